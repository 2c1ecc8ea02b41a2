"""Every engine is held to the reference, and the reference to a loop written here."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, QUIET, Case, K, N, blobs, deep, gap
from expunge.data import Data
from expunge.errors import Incompatible, NotFinite, UserError
from expunge.fisher import Diagonal, diagonal, diagonals
from expunge.runtime import Runtime
from expunge.task import Classification, Quantile, Regression, Task
from expunge.tensors import weights_digest

ENGINES = ("auto", "layers", "batched", "reference")
LEVELS = tuple(enumerate((0.05, 0.5, 0.8)))
PAIRS = [(name, of) for name, case in CASES.items() for of in case.quantities()]


def logits_of(model: nn.Module, x: Any) -> Tensor:
    out = model(**x) if isinstance(x, dict) else model(x)
    if not isinstance(out, Tensor):
        out = out["logits"] if isinstance(out, dict) else out.logits
    return out


def rows(x: Any, at: int) -> Any:
    return {k: v[at : at + 1] for k, v in x.items()} if isinstance(x, dict) else x[at : at + 1]


def every(case: Case, f: Tensor) -> list[Tensor]:
    """Return every target that a sample may have."""
    if isinstance(case.task, Classification):
        return list(torch.arange(len(f)))
    return [torch.tensor(y, dtype=f.dtype) for y in itertools.product((0, 1), repeat=f.numel())]


def loss_of(task: Task, f: Tensor, y: Tensor, chance: bool = False) -> Tensor:
    """Return the loss of one sample's outputs, or the chance that the model gives its target."""
    if isinstance(task, Regression):
        error = f - y
        return (error.abs() if task.error == "absolute" else error**2).sum() / len(f)
    if isinstance(task, Quantile):
        return sum(max(q * (y[t] - f[t, i]), (q - 1) * (y[t] - f[t, i])) for t in range(2) for i, q in LEVELS) / 2
    if isinstance(task, Classification):
        logs = f.log_softmax(0)[int(y)]
    else:  # labels that are independent of each other
        logs = torch.stack(
            [(p.log() if b else (1 - p).log()) for p, b in zip(f.ravel().sigmoid(), y.ravel(), strict=True)]
        )
    return logs.sum().exp() if chance else -logs.mean()


def brute(case: Case, model: nn.Module, data: Data, of: str) -> dict[str, Tensor]:
    """Return the diagonal by one autograd call a sample and scalar, from the formulas alone."""
    batch = data.read(range(len(data)))
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in params.items()}
    for s in range(len(data)):
        f = logits_of(model, rows(batch.inputs, s))[0]
        weight = 1.0 if batch.weight is None else float(batch.weight[s])
        if of == "output_norm":
            scalars = [(1.0, (f * f).sum())]
        elif of == "true":
            scalars = [
                (float(loss_of(case.task, f.detach(), y, chance=True)), loss_of(case.task, f, y))
                for y in every(case, f)
            ]
        else:
            scalars = [(1.0, loss_of(case.task, f, batch.target[s]))]
        for share, q in scalars:
            grads = torch.autograd.grad(weight * q, list(params.values()), retain_graph=True, allow_unused=True)
            for (name, _), g in zip(params.items(), grads, strict=True):
                if g is not None:
                    total[name] += g.abs() if of == "output_norm" else share * g**2
    return {n: t / len(data) for n, t in total.items()}


@pytest.mark.parametrize(("name", "of"), [p for p in PAIRS if p[1] != "sampled_loss"])
def test_reference_equals_a_loop_over_samples(name: str, of: str):
    case = CASES[name]
    model, data = case.make()
    found = diagonal(model, case.task, data, of=of, engine="reference", runtime=QUIET)
    assert found.count == N
    assert gap(found.values, brute(case, model, data, of)) < 1e-10


@pytest.mark.parametrize(
    ("name", "of", "engine"),
    [(*p, e) for p in PAIRS for e in ("auto", "layers", "batched") if e != "batched" or CASES[p[0]].vmap],
)
def test_engines_equal_reference(name: str, of: str, engine: str):
    case = CASES[name]
    model, data = case.make()
    truth = diagonal(model, case.task, data, of=of, engine="reference", runtime=QUIET)
    found = diagonal(model, case.task, data, of=of, engine=engine, runtime=QUIET)
    assert gap(found.values, truth.values) < 1e-10
    assert not any(v.requires_grad for v in found.sums.values())  # no graph is kept over the pass


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_close(name: str):
    case = CASES[name]
    model, data = case.make()
    truth = diagonal(model, case.task, data, engine="reference", runtime=QUIET)
    single = replace(data, source=type(data.source)(_single(data.source.x), _single(data.source.y), None))
    found = diagonal(model.float(), case.task, single, runtime=QUIET)
    assert all(v.dtype == torch.float64 for v in found.values.values())
    assert gap(found.values, truth.values) < 1e-5


def _single(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _single(v) for k, v in x.items()}
    return x.float() if x.is_floating_point() else x


@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if not c.vmap and n not in ("branch", "embedding_by_frequency", "routed")]
)
def test_vmap_refusal_falls_back_to_the_reference(name: str, caplog: pytest.LogCaptureFixture):
    case = CASES[name]
    model, data = case.make()
    with pytest.raises(RuntimeError):
        diagonal(model, case.task, data, engine="batched", runtime=QUIET)
    with caplog.at_level("WARNING", logger="expunge"):
        diagonal(model, case.task, data, runtime=QUIET)
    assert "vmap refuses this model" in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_square_of_each_sample_before_the_mean(engine: str):
    """Two samples a with output gradients δ in closed form, and one weight shared by two tokens."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data.zero_()
    a, delta = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0.5, -0.5], [-0.25, 0.25]])
    data = Data.from_arrays(a.double(), -delta.double())  # (f − y)²/2 in two targets: gradient f − y = δ at f = 0
    found = diagonal(model, Regression(), data, engine=engine, runtime=QUIET).values["weight"]
    torch.testing.assert_close(found, torch.tensor([[0.40625, 0.53125]] * 2, dtype=torch.float64))
    whole = Runtime(batch_size=2, progress=False)
    mean = diagonal(model, Regression(), data, of="batch_mean", engine=engine, runtime=whole).values["weight"]
    torch.testing.assert_close(mean, torch.tensor([[0.015625, 0.390625]] * 2, dtype=torch.float64))

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:  # x (B, T, 2): columns δ and a
            return (self.scale(x[:, :, 1:]) * x[:, :, :1]).sum(dim=1)

    shared = Weighted().double().eval()
    shared.scale.weight.data.zero_()
    x = torch.tensor([[[1.0, 2.0], [-1.0, 3.0]]], dtype=torch.float64)
    one = Data.from_arrays(x, torch.tensor([[-0.5]], dtype=torch.float64))  # dℓ/df = 2(f − y) = 1
    found = diagonal(shared, Regression(), one, engine=engine, runtime=QUIET).values["scale.weight"]
    assert found.item() == pytest.approx(1.0, abs=1e-12)


def parity() -> tuple[nn.Module, Tensor, Tensor]:
    """Return logits = Wx with equal rows, so p = (½, ½), and four samples of two classes."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1], [1, -1], [2, 0], [0, 2]], dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("order", "size", "row"),
    [([0, 1, 2, 3], 2, (0.125, 0.25)), ([0, 2, 1, 3], 2, (0.3125, 0.0625)), ([0, 1, 2, 3], 4, (0.0625, 0.0))],
)
def test_batch_mean_gives_three_answers_for_one_data_set(order: list[int], size: int, row: tuple[float, float]):
    model, x, y = parity()
    data = Data.from_arrays(x[order], y[order])
    runtime = Runtime(batch_size=size, progress=False)
    found = diagonal(model, Classification(), data, of="batch_mean", runtime=runtime)
    assert found.count == 4 // size
    torch.testing.assert_close(found.values["weight"], torch.tensor([row, row], dtype=torch.float64))
    exact = diagonal(model, Classification(), data, runtime=runtime).values["weight"]
    torch.testing.assert_close(exact, torch.full((2, 2), 0.375, dtype=torch.float64))


@pytest.mark.parametrize(("order", "row"), [([0, 1, 2, 3], (3.0, 6.0)), ([0, 2, 1, 3], (4.0, 6.0))])
def test_the_label_free_mean_over_batches_gives_other_answers_by_order(order: list[int], row: tuple[float, float]):
    model, x, _ = parity()
    data = Data.from_arrays(x[order])
    runtime = Runtime(batch_size=2, progress=False)
    found = diagonal(model, Classification(), data, of="batch_mean_norm", runtime=runtime)
    assert found.count == 2
    torch.testing.assert_close(found.values["weight"], torch.tensor([row, row], dtype=torch.float64))
    exact = diagonal(model, Classification(), data, of="output_norm", runtime=runtime).values["weight"]
    torch.testing.assert_close(exact, torch.tensor([[4.0, 6.0]] * 2, dtype=torch.float64))
    last = diagonal(
        model, Classification(), data.subset(data.ids[order.index(3) : order.index(3) + 1]), of="output_norm"
    )
    torch.testing.assert_close(last.values["weight"], torch.tensor([[0.0, 16.0]] * 2, dtype=torch.float64))


def test_sums_without_the_forgotten_give_the_rest():
    model, x, y = parity()
    data = Data.from_arrays(x, y)
    both = diagonals(model, Classification(), data, groups={"forget": data.ids[3:]}, runtime=QUIET)
    rest = both["all"].subtract(both["forget"])
    assert both["all"].sums["weight"][0].tolist() == pytest.approx([1.5, 1.5])
    assert both["forget"].sums["weight"][0].tolist() == pytest.approx([0, 1])
    assert rest.count == 3
    assert rest.values["weight"][0].tolist() == pytest.approx([0.5, 1 / 6])


@pytest.mark.parametrize("engine", ENGINES)
def test_true_is_the_expectation_over_classes(engine: str):
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.eye(2, dtype=torch.float64)
    data = Data.from_arrays(torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([0]))
    found = diagonal(model, Classification(), data, of="true", engine=engine, runtime=QUIET).values["weight"]
    row = [0.1966119, 0.7864477]
    torch.testing.assert_close(found, torch.tensor([row, row], dtype=torch.float64), atol=1e-6, rtol=0)
    empirical = diagonal(model, Classification(), data, engine=engine, runtime=QUIET).values["weight"][0]
    torch.testing.assert_close(empirical, torch.tensor([0.5344466, 2.1377866], dtype=torch.float64), atol=1e-6, rtol=0)


def test_sampled_loss_is_drawn_from_the_model_by_sample_id():
    model = nn.Linear(1, 2).double().eval()
    model.weight.data, model.bias.data = torch.zeros(2, 1).double(), torch.tensor([0.0, 1.0]).double()
    one = Data.from_arrays(torch.ones(1, 1, dtype=torch.float64), ids=["a"])  # unlabelled
    p = 1 / (1 + torch.tensor(1.0, dtype=torch.float64).exp())  # of class 0; ∂ℓ/∂b₀ = p − 1 or p

    def draws(data: Data) -> list[float]:
        return [
            float(
                diagonal(model, Classification(), data, of="sampled_loss", engine="reference", seed=s).values["bias"][0]
            )
            for s in range(200)
        ]

    found = torch.tensor(draws(one), dtype=torch.float64)
    zero = (found - (p - 1) ** 2).abs() < 1e-12
    assert bool((zero | ((found - p**2).abs() < 1e-12)).all())
    assert abs(float(zero.double().mean() - p)) < 0.12  # 200 draws: 3.9 standard errors
    assert draws(one) == found.tolist()
    other = Data.from_arrays(torch.ones(1, 1, dtype=torch.float64), ids=["b"])
    assert draws(other) != found.tolist()


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(N)),
    size=st.integers(1, N + 3),
    cut=st.integers(1, N - 1),
    of=st.sampled_from(["loss", "sampled_loss", "true", "output_norm"]),
    engine=st.sampled_from(ENGINES),
)
def test_batch_size_order_and_partition_change_nothing(order, size, cut, of, engine):
    case = CASES["inplace_relu"]
    model, data = case.make()
    whole = diagonal(model, case.task, data, of=of, engine="reference", runtime=QUIET)
    ids = [data.ids[i] for i in order]
    runtime = Runtime(batch_size=size, memory=1 + 400 * size, progress=False)
    first, second = (
        diagonal(model, case.task, data.subset(part), of=of, engine=engine, runtime=runtime)
        for part in (ids[:cut], ids[cut:])
    )
    both = first.merge(second)
    assert both.count == N
    assert gap(both.values, whole.values) < 1e-10


@pytest.mark.parametrize("of", ["loss", "sampled_loss", "true", "output_norm"])
def test_groups_equal_separate_calls(of: str):
    case = CASES["batchnorm1d"]
    model, data = case.make()
    groups = {"a": data.ids[:3], "b": data.ids[2:6], "same": data.ids[:3], "everything": data.ids}
    found = diagonals(model, case.task, data, groups=groups, of=of, runtime=QUIET)
    assert found.keys() == {"all", *groups}
    for name, ids in {**groups, "all": data.ids}.items():
        alone = diagonal(model, case.task, data.subset(ids), of=of, engine="reference", runtime=QUIET)
        assert found[name].count == len(ids)
        assert gap(found[name].values, alone.values) < 1e-10


def test_each_sample_is_read_once_whatever_the_groups():
    case = CASES["linear"]
    model, data = case.make()
    seen: list[int] = []
    runtime = Runtime(batch_size=3, progress=lambda p: seen.append(p.done))
    diagonals(model, case.task, data, groups={"a": data.ids[:3], "b": data.ids[2:6]}, runtime=runtime)
    assert seen[-1] == N
    assert seen == sorted(set(seen))


def test_subtract_equals_recomputing_and_refuses_what_does_not_belong():
    case = CASES["linear"]
    model, data = case.make()

    def of(part: Data, quantity: Any = "loss") -> Diagonal:
        return diagonal(model, case.task, part, of=quantity, runtime=QUIET)

    gone, left = data.ids[:3], data.ids[3:]
    after = of(data).subtract(of(data.subset(gone)))
    assert after.count == 5
    assert gap(after.values, of(data.subset(left)).values) < 1e-10
    with pytest.raises(Incompatible, match="fewer samples to take away than there are, got 8 of 8"):
        of(data).subtract(of(data))
    with pytest.raises(Incompatible, match="a diagonal of 'loss'.*got one of 'output_norm'"):
        of(data).merge(of(data.subset(gone), "output_norm"))
    with pytest.raises(Incompatible, match="batch_mean"):
        of(data, "batch_mean").subtract(of(data.subset(gone), "batch_mean"))
    whole = of(data)
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(Incompatible, match="at weights"):
        whole.subtract(of(data.subset(gone)))
    tiny = Diagonal({"w": torch.tensor([1.0])}, 4, "loss", "x").subtract(
        Diagonal({"w": torch.tensor([1.0 + 1e-7])}, 1, "loss", "x")
    )
    assert tiny.sums["w"].item() == 0  # rounding never leaves a negative importance


def test_frozen_and_unasked_parameters_are_left_out():
    case = CASES["frozen"]
    model, data = case.make()
    assert diagonal(model, case.task, data).values.keys() == {"2.weight"}
    wide_model, _ = CASES["linear"].make()
    some = diagonal(wide_model, case.task, data, params=["2.bias", "0.weight"])
    every = diagonal(wide_model, case.task, data)
    assert some.values.keys() == {"2.bias", "0.weight"}
    assert gap(some.values, {k: every.values[k] for k in some.values}) < 1e-12


def test_unused_parameter_has_importance_zero():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.pooler = nn.Linear(4, K), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    found = diagonal(Spare().double().eval(), Classification(), blobs(6), runtime=QUIET).values
    assert float(found["pooler.weight"].abs().max()) == 0
    assert float(found["head.weight"].max()) > 0


def surroundings(model: nn.Module) -> list[Any]:
    modules = list(model.modules())
    return [
        [m.training for m in modules],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in modules
        ],
        weights_digest(model),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


class Trap(nn.Sequential):
    """Raises on full batches of 3, after the engines were chosen on fewer samples."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed and len(x) == 3:
            raise RuntimeError("trapped")
        return super().forward(x)


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("of", ["loss", "sampled_loss", "output_norm", "batch_mean", "batch_mean_norm"])
@pytest.mark.parametrize("engine", ENGINES)
def test_everything_is_left_as_found(engine: str, of: str, grad_mode: bool):
    torch.manual_seed(0)
    model = Trap(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, K)).double().eval()
    model[0].bias.requires_grad_(False)
    model[2].weight.grad = torch.full_like(model[2].weight, 7.0)
    model[0].register_forward_hook(lambda module, args, out: None)
    data = blobs(N)
    before = surroundings(model)
    with torch.set_grad_enabled(grad_mode):
        found = diagonal(model, Classification(), data, of=of, engine=engine, runtime=QUIET)
        assert torch.is_grad_enabled() == grad_mode
    assert surroundings(model) == before
    assert float(found.values["0.weight"].max()) > 0
    if engine in ("auto", "layers"):
        model.armed = True
        with pytest.raises(RuntimeError, match="trapped"):
            diagonal(model, Classification(), data, of=of, engine=engine, runtime=QUIET)
        assert surroundings(model) == before


@dataclass(frozen=True)
class MeanLoss(Classification):
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().loss(outputs, target).mean()


def spoiled() -> nn.Module:
    model = deep().eval()
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    return model


BAD: list[tuple[str, Callable[[], Any], str]] = [
    (
        "train mode",
        lambda: diagonal(deep(), Classification(), blobs(4)),
        "model in eval mode, got train mode, with active",
    ),
    (
        "one BatchNorm in train mode",
        lambda: diagonal((m := deep().eval(), m[0][0][1].train())[0], Classification(), blobs(4)),
        r"active 0\.0\.1",
    ),
    (
        "empty",
        lambda: diagonal(deep().eval(), Classification(), blobs(4).subset([])),
        "at least one sample, got none in train",
    ),
    ("quantity", lambda: diagonal(deep().eval(), Classification(), blobs(4), of="los"), "did you mean 'loss'"),
    ("engine", lambda: diagonal(deep().eval(), Classification(), blobs(4), engine="layer"), "did you mean 'layers'"),
    (
        "parameter",
        lambda: diagonal(deep().eval(), Classification(), blobs(4), params=["1.weigth"]),
        r"unknown '1\.weigth': did you mean '1\.weight'",
    ),
    ("no parameter", lambda: diagonal(deep().eval(), Classification(), blobs(4), params=[]), "at least one parameter"),
    (
        "all frozen",
        lambda: diagonal(deep().eval().requires_grad_(False), Classification(), blobs(4)),
        "trainable parameters, got none",
    ),
    (
        "no labels",
        lambda: diagonal(deep().eval(), Classification(), blobs(4).unlabelled()),
        "labels for the quantity 'loss', got none in train",
    ),
    (
        "labels out of range",
        lambda: diagonal(deep(classes=2).eval(), Classification(), blobs(6)),
        "classes 0 to 1, got class 2",
    ),
    ("loss of a batch", lambda: diagonal(deep().eval(), MeanLoss(), blobs(4)), r"loss of shape \(B,\)"),
    ("true of regression", lambda: diagonal(deep().eval(), Regression(), blobs(4), of="true"), "use 'sampled_loss'"),
    (
        "NaN weight",
        lambda: diagonal(spoiled(), Classification(), blobs(4)),
        r"finite weights, got NaN or infinity in 1\.bias:",
    ),
    (
        "NaN input",
        lambda: diagonal(
            deep().eval(), Classification(), Data.from_arrays(torch.full((4, 4), torch.nan).double(), [0] * 4)
        ),
        "finite per-sample gradients",
    ),
    (
        "group called all",
        lambda: diagonals(deep().eval(), Classification(), blobs(4), groups={"all": ["train/0"]}),
        "the name 'all'",
    ),
    ("empty group", lambda: diagonals(deep().eval(), Classification(), blobs(4), groups={"a": []}), "an empty group"),
    (
        "unknown id",
        lambda: diagonals(deep().eval(), Classification(), blobs(4), groups={"a": ["train/9"]}),
        "unknown train/9",
    ),
    (
        "groups of batches",
        lambda: diagonals(deep().eval(), Classification(), blobs(4), groups={"a": ["train/1"]}, of="batch_mean"),
        "no groups for 'batch_mean'",
    ),
]


@pytest.mark.parametrize(("call", "match"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_refused_in_words(call: Callable[[], Any], match: str):
    with pytest.raises(UserError, match=match):
        call()


def test_infinite_gradient_names_its_parameters_only():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + (self.scale * 0).sqrt().sum()

    with pytest.raises(NotFinite, match="infinity in scale:"):
        diagonal(Root().double().eval(), Classification(), blobs(4), of="output_norm")


@pytest.mark.parametrize("size", [1, 4, 32])
def test_positions_looked_up_once_for_a_batch_have_a_rule(size: int, caplog: pytest.LogCaptureFixture):
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.place, self.head = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            if bool((x > 6).any()):  # a look at the data: vmap refuses it
                raise ValueError(x)
            return self.head(torch.tanh(self.word(x) + self.place(torch.arange(5).unsqueeze(0))).mean(dim=1))

    torch.manual_seed(0)
    model = Placed().double().eval()
    data = Data.from_arrays(torch.randint(0, 7, (9, 5)), torch.arange(9) % K)
    truth = diagonal(model, Classification(), data, engine="reference", runtime=QUIET)
    with caplog.at_level(logging.INFO):
        found = diagonal(model, Classification(), data, runtime=Runtime(batch_size=size, progress=False))
    assert not caplog.records
    for name, value in truth.values.items():
        torch.testing.assert_close(found.values[name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("part", ["input", "output gradient", "product"])
def test_underflowing_squares_are_warned_of(engine: str, part: str):
    """One sample among many has a float32 gradient of 1e-23; its square is 0."""
    x, gradient = {"input": (1e-23, 1.0), "output gradient": (1.0, 1e-23), "product": (1e-11, 1e-12)}[part]
    model = nn.Linear(1, 1, bias=False).eval()
    model.weight.data.zero_()
    xs, ys = torch.ones(5, 1), torch.full((5, 1), -0.5)
    xs[4], ys[4] = x, -0.5 * gradient
    with pytest.warns(RuntimeWarning, match="square to 0 in torch.float32"):
        diagonal(model, Regression(), Data.from_arrays(xs, ys), engine=engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagonal(model.double(), Regression(), Data.from_arrays(xs.double(), ys.double()), engine=engine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_models_accumulate_wide(engine: str, dtype: torch.dtype):
    """A bfloat16 running sum of ones stalls at 256, a float16 one at 2048."""
    model = nn.Linear(1, 1, bias=False).eval()
    model.weight.data.zero_()
    n = 300 if engine == "reference" else 3000
    data = Data.from_arrays(torch.ones(n, 1, dtype=dtype), torch.full((n, 1), -0.5, dtype=dtype))
    for size in (7, n):
        found = diagonal(
            model.to(dtype), Regression(), data, engine=engine, runtime=Runtime(batch_size=size, progress=False)
        )
        assert found.sums["weight"].item() == n


def test_layer_rules_serve_half_precision_models(caplog: pytest.LogCaptureFixture):
    model, data = deep(torch.bfloat16).eval(), blobs(N, dtype=torch.bfloat16)
    with caplog.at_level("INFO", logger="expunge"):
        found = diagonal(model, Classification(), data, runtime=QUIET)
    assert "no layer rule" not in caplog.text
    assert "vmap refuses" not in caplog.text
    double = Data.from_arrays(data.source.x.double(), data.source.y)
    wide = diagonal(model.double(), Classification(), double, engine="reference")
    assert max(float((found.values[k] - v).abs().sum() / v.sum()) for k, v in wide.values.items()) < 0.1


@pytest.mark.parametrize("of", ["loss", "true", "output_norm"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_autocast_is_close_to_full(engine: str, of: str):
    model, data = (
        CASES["linear" if engine == "batched" else "batchnorm1d"].make(torch.float32)[0],
        blobs(30, dtype=torch.float32),
    )
    exact = diagonal(model, Classification(), data, of=of).values
    rough = diagonal(model, Classification(), data, of=of, engine=engine, runtime=Runtime(precision="bf16")).values
    assert max(float((rough[k] - exact[k]).abs().sum() / exact[k].abs().sum()) for k in exact) < 0.05
    assert any(not torch.equal(rough[k], exact[k]) for k in exact)  # autocast did run
