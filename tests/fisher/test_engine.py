"""Which engine serves which parameter, and what the trial on two samples finds out before a pass begins."""

from __future__ import annotations

import logging
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from cases import CASES, QUIET, K, N, Positions, blobs, deep, gap
from expunge.data import Data
from expunge.errors import UserError
from expunge.fisher import diagonal
from expunge.fisher.checks import chosen
from expunge.fisher.engine import Chosen
from expunge.runtime import Runtime
from expunge.task import Classification

D = torch.float64
WITHOUT_RULE = {
    "embedding_by_frequency": {"0.weight"},
    "input_overwritten": {"b.bias"},
    "functional": {"a.weight"},
    "functional_unseen_at_first": {"a.weight"},
    "writes_buffer": {"scale"},
    "routed": {"expert.weight", "expert.bias"},
    "flattened": {"place.weight"},
    "bidirectional": {"place.weight"},
    "attention_extra_key": {f"attention.{n}" for n in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v")}
    | {"attention.out_proj.weight", "attention.out_proj.bias"},
}


def engines(model: nn.Module, task: Any, data: Data) -> Chosen:
    return Chosen(model, task, data, chosen(model, None), "loss", "auto", QUIET, 0)


@pytest.mark.parametrize("name", CASES)
def test_what_has_a_rule_is_served_by_it(name: str):
    model, data = CASES[name].make()
    found = engines(model, CASES[name].task, data)
    rest = {*found.batched, *found.reference}
    assert rest == WITHOUT_RULE.get(name, set())
    assert found.served.known() == {n for n, p in model.named_parameters() if p.requires_grad} - rest


@pytest.mark.parametrize(("name", "last"), [("photographs", True), ("viewed", False), ("conv", False)])
def test_channels_come_last_where_several_convolutions_allow_it(name: str, last: bool):
    model, data = CASES[name].make()
    assert engines(model, CASES[name].task, data).served.last == last
    assert data.read(range(2)).inputs.is_contiguous()
    found = diagonal(model, CASES[name].task, data, runtime=QUIET)
    assert all(v.is_contiguous() for v in found.sums.values())


SMALL = {"num_labels": K, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
IDS = torch.arange(N * 6).reshape(N, 6) * 7 % 29 + 1
TOKENS = {"input_ids": IDS, "attention_mask": (torch.arange(6) < torch.tensor([[4], [6]] * (N // 2))).long()}
PIXELS = {"pixel_values": torch.linspace(-1, 1, N * 192, dtype=D).reshape(N, 3, 8, 8).sin()}


def named(name: str) -> tuple[nn.Module, Any]:
    """Return a tiny network of transformers with inputs for it."""
    torch.manual_seed(0)
    t = transformers
    if name == "vit":
        return t.ViTForImageClassification(t.ViTConfig(image_size=8, patch_size=4, **SMALL)), PIXELS
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(vocab_size=30, max_position_embeddings=8, **SMALL)), TOKENS
    if name == "albert":  # one layer's weights are used by all layers
        return t.AlbertForSequenceClassification(
            t.AlbertConfig(vocab_size=30, max_position_embeddings=8, embedding_size=4, **SMALL)
        ), TOKENS
    if name == "llama":
        return t.LlamaForSequenceClassification(t.LlamaConfig(vocab_size=30, pad_token_id=0, **SMALL)), TOKENS
    config = t.GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=8, pad_token_id=0, num_labels=K)
    return t.GPT2ForSequenceClassification(config), TOKENS


@pytest.mark.parametrize("name", ["vit", "bert", "albert", "llama", "gpt2"])
def test_transformers_are_served_by_rules_alone(name: str):
    model, inputs = named(name)
    model, data = model.double().eval(), Data.from_arrays(inputs, torch.arange(N) % K)
    found = engines(model, Classification(), data)
    assert not found.batched
    assert not found.reference
    truth = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    for size in (1, 3, 8):
        fast = diagonal(model, Classification(), data, runtime=Runtime(batch_size=size, progress=False))
        assert gap(fast.values, truth.values) < 1e-10


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_adapters_are_served_by_rules_alone(name: str):
    base, inputs = named(name)
    targets = {"bert": ["query", "value", "word_embeddings"], "gpt2": ["c_attn"]}[name]
    config = peft.LoraConfig(r=2, target_modules=targets[:2], fan_in_fan_out=name == "gpt2", lora_dropout=0.1)
    model = peft.get_peft_model(base, config).double().eval()
    for n, p in model.named_parameters():
        if "lora_B" in n:
            nn.init.normal_(p)
    data = Data.from_arrays(inputs, torch.arange(N) % K)
    found = engines(model, Classification(), data)
    assert found.served.known() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora" in n for n in found.served.known())
    truth = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    assert gap(diagonal(model, Classification(), data, runtime=QUIET).values, truth.values) < 1e-10


@pytest.mark.parametrize("ran", [False, True])
def test_a_compiled_model_has_the_rules_of_its_own_modules(ran: bool):
    model, data = deep().eval(), blobs(N)
    want = diagonal(model, Classification(), data, engine="reference", runtime=QUIET).values
    compiled = torch.compile(model, backend="eager")
    if ran:
        compiled(data.read(range(N)).inputs)
    assert not engines(model, Classification(), data).batched
    found = diagonal(compiled, Classification(), data, runtime=QUIET).values
    assert gap({k.removeprefix("_orig_mod."): v for k, v in found.items()}, want) < 1e-10
    inside = nn.Sequential(torch.compile(model[0], backend="eager"), model[1]).eval()
    found = diagonal(inside, Classification(), data, runtime=QUIET).values
    assert gap({k.replace("_orig_mod.", ""): v for k, v in found.items()}, want) < 1e-10


@settings(max_examples=60, deadline=None)
@given(
    draw=st.data(),
    dimensions=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    transposed=st.booleans(),
    n=st.integers(1, 5),
    size=st.integers(1, 4),
)
def test_convolutions_of_any_shape_equal_the_reference(draw, dimensions, groups, bias, transposed, n, size):
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.draw(st.integers(low, high)) for _ in range(dimensions))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = tuple(min(p, k // 2) for p, k in zip(each(0, 2), kernel, strict=True))
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (
            nn.Conv1d,
            nn.Conv2d,
            nn.Conv3d,
        )
    )
    if not transposed:
        options["padding_mode"] = draw.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    torch.manual_seed(0)
    layer = kinds[dimensions - 1](4, 4, kernel, bias=bias, **options)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(K)).double().eval()
    x = torch.randn(n, 4, *(draw.draw(st.integers(5, 6)) for _ in range(dimensions)), dtype=D)
    model(x)
    data = Data.from_arrays(x, torch.arange(n) % K)
    truth = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    found = diagonal(model, Classification(), data, engine="layers", runtime=Runtime(batch_size=size, progress=False))
    assert gap(found.values, truth.values) < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    norm=st.sampled_from(["none", "layer", "rms"]),
    bias=st.booleans(),
    n=st.integers(1, 6),
    size=st.integers(1, 4),
    of=st.sampled_from(["loss", "output_norm"]),
)
def test_layers_at_any_positions_equal_the_reference(lead, norm, bias, n, size, of):
    torch.manual_seed(0)
    after = {"none": nn.Identity, "layer": lambda: nn.LayerNorm(5, bias=bias), "rms": lambda: nn.RMSNorm(5)}[norm]()
    model = nn.Sequential(nn.Linear(4, 5, bias=bias), after, nn.Tanh(), nn.Flatten(), nn.LazyLinear(K)).double().eval()
    x = torch.randn(n, *lead, 4, dtype=D)
    model(x)
    data = Data.from_arrays(x, torch.arange(n) % K)
    truth = diagonal(model, Classification(), data, of=of, engine="reference", runtime=QUIET)
    runtime = Runtime(batch_size=size, progress=False)
    found = diagonal(model, Classification(), data, of=of, engine="layers", runtime=runtime)
    assert gap(found.values, truth.values) < 1e-10


class Centred(nn.Module):
    """Takes the batch's mean away: what a sample's output is depends on its company."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(dim=0))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x, 0.5))  # also in eval mode


@pytest.mark.parametrize("engine", ["auto", "layers", "batched", "reference"])
def test_samples_coupled_by_their_batch_are_refused(engine: Any):
    said = "do not depend on the other samples of a batch, got another output for train/0 alone than in company"
    with pytest.raises(UserError, match=said):
        diagonal(Centred().double().eval(), Classification(), blobs(4), engine=engine)
    with pytest.raises(UserError, match="the same output each time in eval mode.*switch dropout"):
        diagonal(Noisy().double().eval(), Classification(), blobs(4), engine=engine)


class Turning(nn.Module):
    """From the third call on, changes a layer's input in place after the layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K)
        self.b.weight.requires_grad_(False)  # so that autograd itself needs no input of b
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        z = torch.tanh(x) + y
        if self.armed:
            with torch.no_grad():
                x.add_(0)  # the same values, but nobody can tell
        return self.head(z)


def test_an_input_changed_behind_the_rules_sends_the_pass_to_the_reference(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, data = Turning().double().eval(), blobs(N)
    want = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    assert engines(model, Classification(), data).served.known() == {*want.sums}

    class Later(Classification):
        def forward(self, model: nn.Module, batch: Any, taps: Any = ()) -> Any:
            model.armed = len(batch) == 2  # the last batch of a window
            return super().forward(model, batch, taps)

    with caplog.at_level(logging.WARNING):
        found = diagonal(model, Later(), data, runtime=QUIET)
    assert "Linear does not do what its rule says: one backward pass a sample computes 5 parameters" in caplog.text
    assert gap(found.values, want.values) < 1e-10


class Seldom(nn.Module):
    """A side path for exactly one sample: one row is not a row for all."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            return self.head(x + torch.cat([self.side(x[:1]), self.side(x[1:])]))
        return self.head(x + self.side(x))


def test_a_way_not_taken_in_the_trial_goes_to_the_reference():
    torch.manual_seed(0)
    model, data = Seldom().double().eval(), blobs(N)
    want = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    assert gap(diagonal(model, Classification(), data, runtime=QUIET).values, want.values) < 1e-10


class Turned(nn.Module):
    """Gives a layer rows that are not samples, but as many: its rule does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)  # sample by sample
        mixed = torch.cat([rows[::2], rows[1::2]])  # no longer
        out = torch.tanh(self.a(mixed / 4))
        back = torch.empty_like(out)
        back[::2], back[1::2] = out[: len(out) // 2], out[len(out) // 2 :]
        return back.unflatten(0, x.shape[:2]).sum(dim=1)


@pytest.mark.parametrize("of", ["loss", "output_norm"])
def test_a_trial_sees_wrong_rules_where_the_loss_has_no_gradient(of: Any):
    """The first and the last sample are learnt so well that their gradients are 0 in float32."""

    torch.manual_seed(0)
    model = nn.Sequential(Turned(), nn.Linear(4, K)).eval()
    x = torch.randn(N, 4, 4)
    scale = torch.ones(N, 1, 1)
    scale[[0, -1]] = 1e4
    with torch.no_grad():
        y = model(scale * x).argmax(dim=1)
    y[1:-1] = torch.arange(N - 2) % K
    data = Data.from_arrays(scale * x, y)
    ends = diagonal(model, Classification(), data.subset([data.ids[0], data.ids[-1]]), engine="reference")
    assert float(ends.values["0.a.weight"].max()) == 0
    want = diagonal(model, Classification(), data, of=of, engine="reference", runtime=QUIET)
    found = diagonal(model, Classification(), data, of=of, runtime=QUIET)
    assert gap(found.values, want.values) < 1e-4


def test_user_hooks_and_replaced_forwards_keep_their_meaning():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Positions(), nn.Linear(4, K)).double().eval()
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    inner = model[3].forward
    model[3].forward = lambda x: inner(x.abs())  # as libraries do that move weights between devices
    data = Data.from_arrays(torch.randn(N, 3, 4, dtype=D), torch.arange(N) % K)
    want = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    found = engines(model, Classification(), data)
    assert {*found.batched} == {"3.weight", "3.bias"}
    assert gap(diagonal(model, Classification(), data, runtime=QUIET).values, want.values) < 1e-10


def odd(forward: Any, **modules: nn.Module) -> nn.Module:
    """Return a module with these parts and this forward."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    model = Odd()
    for name, module in modules.items():
        setattr(model, name, module)
    return model.double().eval()


def packed(m: nn.Module, x: Tensor) -> Tensor:
    """Only real tokens are worked on, all texts' in a row."""
    real = x > 0
    hidden = torch.zeros(*x.shape, 4, dtype=D).masked_scatter(real.unsqueeze(2), torch.tanh(m.a(m.e(x)[real])))
    return m.head(hidden.sum(dim=1))


def sorted_rows(m: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.head(torch.tanh(m.a(x[order]))[order.argsort()])


def behind(m: nn.Module, x: Tensor) -> Tensor:
    """A second use of a weight, on a way that few samples take."""
    hidden, hot = m.a(x), x[:, :1] > 0
    return m.head(torch.tanh(hidden + hot * F.linear(x.cos(), m.a.weight) if bool(hot.any()) else hidden))


def positions(m: nn.Module, x: Tensor) -> Tensor:
    """A table without a batch; a text without tokens has no gradient."""
    hidden = m.e(x) + m.p(torch.arange(4))
    return m.head(torch.tanh(m.a(hidden) * (x > 0).unsqueeze(2)).sum(dim=1))


def swallows(m: nn.Module, x: Tensor) -> Tensor:
    try:
        return m.head(torch.tanh(m.a(x) + (m.b(x[:1]) if len(x) == 3 else m.b(x))))
    except Exception:
        return m.head(torch.tanh(m.a(x)))


def no_grad(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.tanh(m.a(x))
    return m.head(x + m.a(x))


def checkpointed(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(checkpoint(lambda v: torch.tanh(m.a(v)), x, use_reentrant=False))


def loop(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(torch.stack([m.a(row) for row in x]))


TEXTS = (torch.arange(4) < torch.tensor([[0], [1], [2], [3], [3], [1], [2], [4]])).long() * IDS[:, :4] % 5
ROUTES = torch.randn(N, 4, dtype=D, generator=torch.Generator().manual_seed(3))
ROUTES[:, 0] = torch.tensor([-1.0, 1, -1, -1, -1, -1, 1, -1])


def linears(*names: str) -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {**{n: nn.Linear(4, 4) for n in names}, "head": nn.Linear(4, K)}


ODD: dict[str, tuple[Any, dict[str, nn.Module], Tensor]] = {
    "packed": (packed, {"e": nn.Embedding(5, 4), **linears("a")}, torch.where(torch.arange(4) == 0, 1, TEXTS)),
    "sorted": (sorted_rows, linears("a"), ROUTES),
    "behind": (behind, linears("a"), ROUTES),
    "positions": (positions, {"e": nn.Embedding(5, 4), "p": nn.Embedding(4, 4), **linears("a")}, TEXTS),
    "swallows": (swallows, linears("a", "b"), ROUTES),
    "no_grad": (no_grad, linears("a"), ROUTES),
    "checkpointed": (checkpointed, linears("a"), ROUTES),
    "loop": (loop, linears("a"), ROUTES),
    "weight_norm": (lambda m, x: m.head(m.a(x)), {**linears(), "a": weight_norm(nn.Linear(4, 4))}, ROUTES),
    "old_weight_norm": (
        lambda m, x: m.head(m.a(x)),
        {**linears(), "a": nn.utils.weight_norm(nn.Linear(4, 4))},
        ROUTES,
    ),
    "groupnorm_flat": (lambda m, x: m.head(m.a(x)), {**linears(), "a": nn.GroupNorm(2, 4)}, ROUTES),
    "sparse": (
        lambda m, x: m.head(m.e(x).mean(dim=1)),
        {**linears(), "e": nn.Embedding(5, 4, sparse=True)},
        TEXTS,
    ),
    "lstm": (lambda m, x: m.head(m.a(x.unflatten(1, (2, 2)))[0][:, -1]), {**linears(), "a": nn.LSTM(2, 4)}, ROUTES),
}
ODD["lstm"][1]["a"].batch_first = True


@pytest.mark.parametrize("of", ["loss", "true"])
@pytest.mark.parametrize("name", ODD)
def test_models_that_do_odd_things_with_rows_equal_the_reference(name: str, of: Any):
    forward, modules, x = ODD[name]
    model, data = odd(forward, **modules), Data.from_arrays(x, torch.arange(N) % K)
    truth = diagonal(model, Classification(), data, of=of, engine="reference", runtime=QUIET)
    assert all(bool(v.any()) for v in truth.sums.values())
    for size in (1, 2, 3, 8):
        found = diagonal(model, Classification(), data, of=of, runtime=Runtime(batch_size=size, progress=False))
        assert gap(found.values, truth.values) < 1e-10


def test_a_scripted_module_is_left_to_the_slow_engines():
    model = torch.jit.trace(deep().eval(), torch.zeros(2, 4, dtype=D)).eval()
    truth = diagonal(deep().eval(), Classification(), blobs(N), engine="reference", runtime=QUIET).values
    assert gap(diagonal(model, Classification(), blobs(N), runtime=QUIET).values, truth) < 1e-10


def test_parameters_that_are_not_real_are_refused():
    model = deep().eval()
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex128)))
    with pytest.raises(UserError, match="real parameters, got complex ones: phase: name others by params="):
        diagonal(model, Classification(), blobs(N))
    rest = [n for n, _ in model.named_parameters() if n != "phase"]
    assert diagonal(model, Classification(), blobs(N), params=rest).count == N


def test_outputs_that_no_gradient_leads_to_are_refused():
    said = "outputs with a gradient to the parameters, got outputs without: call it outside torch.inference_mode"
    with torch.inference_mode(), pytest.raises(UserError, match=said):
        diagonal(deep().eval(), Classification(), blobs(N))


def test_fused_encoder_layers_are_left_as_they_were():
    case = CASES["encoder_layer"]
    model, data = case.make()
    before = torch.backends.mha.get_fastpath_enabled()
    diagonal(model, case.task, data, runtime=QUIET)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert all("forward" not in vars(m) for m in model.modules())
