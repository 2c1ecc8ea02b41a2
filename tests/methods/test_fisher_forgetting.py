"""Fisher forgetting: the Fisher information and both forms of noise, by hand and by slow loops; who is left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, K, blobs, deep
from expunge.data import Batch, Data
from expunge.errors import Declined, Incompatible, UserError
from expunge.fisher import diagonal
from expunge.masks import Masks
from expunge.method import Needs, See, Session, State
from expunge.methods import build, load
from expunge.methods.fisher_forgetting import deviations, head_of, variances
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_ids
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn

FF = load("fisher_forgetting")
CODE = FF(form="variance")
OFFICIAL = FF(form="variance", compat="official")
TASK = Classification()
QUIET = Runtime(batch_size=7, progress=False)


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def request(
    method: Any, model: nn.Module, data: Data, case: Scenario, retain: Data | None = None, **given: Any
) -> Unlearned:
    retain = data.without(case.forget) if retain is None else retain
    given = {"runtime": QUIET, **given}
    return unlearn(method, model, TASK, forget=list(case.forget), retain=retain, scenario=case, **given)


def trained(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Data]:
    data = blobs(60, dtype=dtype)
    return fit(deep(dtype), TASK, data, Recipe(epochs=8, lr=0.05), runtime=QUIET), data


def draws(model: nn.Module, seed: int = 0, before: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(named_seed("fisher_forgetting", seed, before))
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def slow_fisher(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return F as the released code computes it: batch 1, for every class one backward pass weighted by p_c."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row in x:
        logits = model(row[None])
        p = logits.detach().softmax(dim=1)[0]
        for c in range(len(p)):
            loss = F.cross_entropy(logits, torch.tensor([c]))
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for name, grad in zip(total, grads, strict=True):
                total[name] += p[c] * grad.square()
    return {n: v / len(x) for n, v in total.items()}


def logits_are_inputs() -> tuple[nn.Module, Data]:
    """Return logits = x, and the sample (1, 2) to retain beside one of each class to forget."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.eye(2, dtype=torch.float64)
    return model, Data.from_arrays(t([1, 2], [5, 0], [0, 5]), torch.tensor([1, 0, 1]), ids=["x", "a", "b"])


P14 = t([0.1966119, 0.7864477], [0.1966119, 0.7864477])


def test_fisher_information_of_one_sample_by_hand():
    """p = (0.2689414, 0.7310586); the expectation over classes is p₀p₁x², not the square at either label."""
    model, data = logits_are_inputs()
    one = data.subset(["x"])
    torch.testing.assert_close(diagonal(model, TASK, one, of="true").values["weight"], P14, atol=1e-6, rtol=0)
    for label, row in ((0, (0.5344466, 2.1377866)), (1, (0.0723295, 0.2893180))):
        labelled = Data.from_arrays(t([1, 2]), torch.tensor([label]))
        found = diagonal(model, TASK, labelled).values["weight"]
        torch.testing.assert_close(found, t(row, row), atol=1e-6, rtol=0)


def test_variances_of_the_head_by_hand():
    v = variances(P14, 1e-6, 1e-8, head=True, whole=True)
    torch.testing.assert_close(v, torch.full((2, 2), 3.17885e-5, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(v.sqrt(), torch.full((2, 2), 5.63813e-3, dtype=torch.float64), rtol=1e-5, atol=0)
    rows = variances(P14, 1e-6, 1e-8, head=True, whole=True, label=0)
    torch.testing.assert_close(rows[0], t(1e-3, 1e-3))
    assert torch.equal(rows[1], v[1])


@pytest.mark.parametrize(
    ("fisher", "given", "want"),
    [
        (t([1e-2, 0.0]), {}, [[5.5e-4, 5.5e-4]]),  # 100 and 1000, averaged over the inputs
        (t([1e-2, 0.0]), {"head": True}, [[1e-4, 1e-4]]),  # both 100
        (t([1e-2, 0.0]), {"head": True, "whole": True}, [[1e-3, 1e-3]]),
        (t([1e-2, 0.0]), {"whole": True}, [[5.5e-4, 5.5e-4]]),  # not the head
        (t(1e-2, 0.0), {}, [1e-3, 1e-2]),  # one dimension: tenfold, no average
        (t(1e-2, 0.0), {"head": True}, [1e-3, 1e-3]),
        (t(1e-2, 0.0), {"head": True, "whole": True, "label": 1}, [1e-3, 1e-3]),  # tenfold once
        (t(1e-2), {}, [1e-3]),
        (torch.tensor(1e-2, dtype=torch.float64), {}, 1e-4),
    ],
)
def test_caps_and_factors_of_the_released_code(fisher: Tensor, given: dict[str, Any], want: Any):
    torch.testing.assert_close(variances(fisher, 1e-6, 1e-8, **given), t(want)[0], rtol=1e-5, atol=0)


def test_average_over_input_channels_keeps_kernel_positions():
    fisher = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    found = variances(fisher, 1e-6, 1e-8)
    torch.testing.assert_close(
        found, (1e-6 / (fisher + 1e-8)).clamp(max=1e-3).mean(dim=1, keepdim=True).expand(4, 3, 2, 2)
    )
    assert found.std(dim=1).max() == 0 < found.std(dim=2).max()


def test_the_papers_deviations_go_with_the_fourth_root():
    found = deviations(t(1e-3, 16e-3, 0.0), 1e-9, 1e-8)
    torch.testing.assert_close(found, t(10**-1.5, 10**-1.5 / 2, 0.1**0.25), rtol=1e-4, atol=0)


def test_a_forgotten_class_gets_a_row_around_zero():
    model, data = logits_are_inputs()
    done = request(CODE, model, data, forget_ids(data, ["a", "b"]))
    draw = draws(model)["weight"]
    torch.testing.assert_close(
        (done.model.weight.data - torch.eye(2)) / draw, (3.17885e-6**0.5) * torch.ones_like(draw)
    )
    case = Scenario(train=tuple(data.ids), forget=("a", "b"), kind="class", target=0)
    done = request(CODE, model, data, case)
    want = t([0, 0], [0, 1]) + t([0.0316228] * 2, [5.63813e-3] * 2) * draw
    torch.testing.assert_close(done.model.weight.data, want, rtol=1e-5, atol=1e-8)
    assert done.log["head"] == ["weight"]
    plain = request(FF(), model, data, case)  # the paper's form knows no class
    torch.testing.assert_close(plain.model.weight.data, torch.eye(2) + deviations(P14, 1e-9, 1e-8) * draw)


class Net(nn.Module):
    """A convolution with BatchNorm of K channels, which has the head's number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4)
        self.middle, self.head = nn.Linear(16, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.relu(self.norm(self.conv(x))).flatten(1))))


def images() -> tuple[nn.Module, Data, Scenario]:
    torch.manual_seed(3)
    model = Net().double().eval()
    model.norm.running_mean.normal_()
    data = Data.from_arrays(torch.randn(18, 1, 3, 3, dtype=torch.float64), torch.arange(18) % 3)
    return model, data, forget_class(data, 1)


@pytest.mark.parametrize("form", ["quartic", "variance", "official"])
def test_equals_the_slow_loops_on_a_network(form: str):
    """12 retained samples in batches of 7 and 5 against single samples, class by class, tensor by tensor."""
    model, data, case = images()
    method = {"quartic": FF(noise=1e-8), "variance": CODE, "official": OFFICIAL}[form]
    retain = data.without(case.forget)
    done = request(method, model, data, case)
    fisher = slow_fisher(model, retain.read(range(len(retain))).inputs)
    draw = draws(model)
    for name, theta in model.named_parameters():
        mean, f = theta.detach().clone(), fisher[name]
        if form == "quartic":
            deviation = 1e-8**0.25 * (f + 1e-8) ** -0.25
        else:
            head = len(f) == 3 if form == "official" else name.startswith("head")
            u = (1 / (f + 1e-8)).clamp(max=1e3)
            v = 1e-6 * (u.clamp(max=1e2) if head else u)
            if f.ndim > 1:
                v = v.mean(dim=1, keepdim=True).expand_as(f).clone()
            if head:
                mean[1], v[1] = 0, 1e-4
            deviation = (v * 10 if head or f.ndim == 1 else v).sqrt()
        found = dict(done.model.named_parameters())[name].detach()
        torch.testing.assert_close(found, mean + deviation * draw[name], rtol=1e-9, atol=1e-12, msg=name)
    if form != "quartic":
        wide = ["head.bias", "head.weight"] + (["middle.bias", "middle.weight"] if form == "official" else [])
        assert done.log["head"] == wide


def test_the_fast_fisher_information_equals_the_slow_loops():
    model, data, case = images()
    retain = data.without(case.forget)
    slow = slow_fisher(model, retain.read(range(len(retain))).inputs)
    for size in (1, 5, 12):
        fast = diagonal(model, TASK, retain, of="true", runtime=Runtime(batch_size=size, progress=False)).values
        for name, value in slow.items():
            torch.testing.assert_close(fast[name], value, rtol=1e-10, atol=1e-14)


class Pooled(nn.Module):
    """Logits are the means of K channels: the last convolution is the head, though its outputs are no logits."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.hidden, self.head, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(torch.relu(self.hidden(x))).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("last", "want"),
    [(nn.Identity(), ["head.bias", "head.weight"]), (nn.LogSoftmax(dim=1), [])],
    ids=["pooled", "softmax"],
)
def test_the_head_is_what_gives_one_logit_a_row(last: nn.Module, want: list[str]):
    torch.manual_seed(0)
    model, batch = Pooled(last), Batch(torch.randn(4, 1, 3, 3), None, None, torch.arange(4))
    assert head_of(model, TASK, batch) == (set(want), 3)
    assert head_of(model, TASK, batch, by_shape=True)[0] == {
        f"{n}.{p}" for n in ("hidden", "head") for p in ("weight", "bias")
    }
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_a_head_says_that_no_row_was_found():
    torch.manual_seed(0)
    data = Data.from_arrays(torch.randn(9, 1, 3, 3), torch.arange(9) % 3)
    done = request(CODE, Pooled(nn.LogSoftmax(dim=1)).eval(), data, forget_class(data, 2))
    assert "No layer gives one logit a row, so the row of class 2 was not found" in done.note
    with pytest.raises(UserError, match="a class from 0 to 2 to forget, got 7"):
        request(
            CODE,
            Pooled(nn.Identity()).eval(),
            data,
            Scenario(train=data.ids, forget=data.ids[:2], kind="class", target=7),
        )


@pytest.mark.parametrize("method", [FF(), CODE, OFFICIAL], ids=["quartic", "variance", "official"])
def test_nothing_is_seen_but_retained_inputs(method: Any):
    want = Needs(retain=See.INPUTS, scenario=method.form == "variance", optional=frozenset({"scenario"}))
    assert (method.prepares, method.unlearns) == (Needs(), want)
    model, data = trained()
    case = forget_class(data, 0)
    batch = data.read(range(len(data)))
    others = Data.from_arrays(batch.inputs, data.targets().flip(0)), Data.from_arrays(batch.inputs)
    found = [request(method, model, d, case).model for d in (data, *others)]
    assert len({weights_digest(m) for m in found}) == 1
    assert weights_digest(found[0]) != weights_digest(model)


@pytest.mark.parametrize("method", [FF(), CODE], ids=["quartic", "variance"])
def test_it_reads_the_retain_set_once_beside_a_few_samples(method: Any, monkeypatch: pytest.MonkeyPatch):
    model, data = trained()
    case, seen, read = forget_class(data, 0), [], Data.read

    def counted(part: Data, index: Sequence[int]) -> Batch:
        seen.extend(part.ids[i] for i in index)
        return read(part, index)

    monkeypatch.setattr(Data, "read", counted)
    request(method, model, data, case)
    assert not set(case.forget) & set(seen)
    assert set(case.retain) == set(seen)
    assert method.passes("unlearn", None) == {"retain": 1.0}
    assert len(seen) <= 40 + 12 + (4 if method is CODE else 0)


def test_batch_size_does_not_matter_and_weights_of_half_precision_stay_so():
    model, data = trained()
    case = forget_class(data, 0)
    one, all_ = (request(FF(), model, data, case, runtime=Runtime(batch_size=n, progress=False)).model for n in (1, 60))
    for (name, a), b in zip(one.state_dict().items(), all_.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    half, small = trained(torch.float32)[0].bfloat16(), blobs(60, dtype=torch.bfloat16)
    done = request(FF(), half, small, case)
    assert {p.dtype for p in done.model.parameters()} == {torch.bfloat16}
    assert done.changed.share > 0.5


def test_the_seed_and_the_requests_before_decide_the_noise():
    model, data = trained()
    case = forget_ids(data, data.ids[:6])
    first, again, other = (request(FF(), model, data, case, seed=s) for s in (0, 0, 1))
    assert weights_digest(first.model) == weights_digest(again.model) != weights_digest(other.model)
    assert first.state.meta["noised"] == 1
    rest = data.without(case.forget)
    more = forget_ids(rest, rest.ids[:2])
    second = request(FF(), first.model, rest, more, state=first.state)
    assert second.state.meta["noised"] == 2
    fisher = diagonal(first.model.eval(), TASK, rest.without(more.forget), of="true").values
    for name, p in first.model.named_parameters():
        want = p + deviations(fisher[name], 1e-9, 1e-8) * draws(model, before=1)[name]
        torch.testing.assert_close(dict(second.model.named_parameters())[name], want)


def test_buffers_and_frozen_weights_stay_and_tied_weights_move_once():
    model, data = trained()
    model[1].bias.requires_grad_(False)
    done = request(FF(), model, data, forget_class(data, 0))
    assert torch.equal(done.model[1].bias, model[1].bias)
    assert not torch.equal(done.model[0][0][1].weight, model[0][0][1].weight)
    for (name, a), b in zip(model.named_buffers(), done.model.buffers(), strict=True):
        assert torch.equal(a, b), name
    tied, tokens = CASES["tied"].make()
    done = request(FF(), tied, tokens, forget_ids(tokens, tokens.ids[:2]))
    assert done.model.head.weight is done.model.embedding.weight
    fisher = diagonal(tied, TASK, tokens.without(tokens.ids[:2]), of="true", engine="reference").values
    want = tied.embedding.weight + deviations(fisher["embedding.weight"], 1e-9, 1e-8) * draws(tied)["embedding.weight"]
    torch.testing.assert_close(done.model.embedding.weight, want)


def masked(method: Any, model: nn.Module, retain: Data, masks: Masks, case: Scenario) -> tuple[nn.Module, Session]:
    """Run a request as a composition does that holds weights by masks."""
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method=method.name, phase="unlearn", needs=method.unlearns,
        source=model, given={"retain": retain.unlabelled(), "scenario": case}, masks=masks,
    )  # fmt: skip
    return method.unlearn(session, State())[0], session


@pytest.mark.parametrize("method", [FF(), CODE], ids=["quartic", "variance"])
def test_masked_weights_stay_to_the_bit_and_the_others_move_as_ever(method: Any):
    model, data = trained()
    case = forget_class(data, 0)
    generator = torch.Generator().manual_seed(1)
    kept = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters() if n != "0.2.bias"}
    free = dict(request(method, model, data, case).model.named_parameters())
    edited, session = masked(method, model, data.without(case.forget), Masks(kept), case)
    for name, p in edited.named_parameters():
        mask = kept.get(name, torch.ones_like(p) > 0)
        assert torch.equal(p[~mask], dict(model.named_parameters())[name][~mask]), name
        torch.testing.assert_close(p[mask], free[name][mask], rtol=1e-9, atol=1e-12)
    sizes = [int(kept.get(n, torch.ones_like(p)).sum()) for n, p in model.named_parameters()]
    means = [one["deviation"] for _, one in session.log["noise"]]
    assert session.log["deviation"] == pytest.approx(sum(m * s for m, s in zip(means, sizes, strict=True)) / sum(sizes))
    none = Masks({n: torch.zeros_like(p) > 0 for n, p in model.named_parameters()})
    still, session = masked(method, model, data.without(case.forget), none, case)
    assert weights_digest(still) == weights_digest(model)
    assert session.log["note"] == ["No weight moved: the noise is lost in rounding, or masks hold all weights."]
    with pytest.raises(Incompatible, match="which the mask is for"):
        masked(method, model, data.without(case.forget), Masks({"other": torch.ones(2) > 0}), case)


def test_the_log_tells_how_strong_the_noise_was():
    model, data = trained()
    case = forget_class(data, 0)
    done = request(FF(noise=1e-10), model, data, case)
    fisher = diagonal(model, TASK, data.without(case.forget), of="true").values
    each = torch.cat([deviations(f, 1e-10, 1e-8).flatten() for f in fisher.values()])
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert done.log["deviation"] == pytest.approx(float(each.mean()))
    assert done.log["largest_deviation"] == pytest.approx(float(each.max()))
    assert done.log["noise_to_weights"] == pytest.approx(float(each.norm() / weights.norm()))
    below = torch.cat([f.flatten() < 1e-8 for f in fisher.values()]).double().mean()
    assert done.log["capped"] == pytest.approx(float(below))
    assert [one["tensor"] for _, one in done.log["noise"]] == [n for n, _ in model.named_parameters()]


def test_weights_that_the_retained_say_nothing_of_are_told():
    """Of 12 inputs 8 are 0 in retained samples: F is 0 there, and δ alone decides."""
    torch.manual_seed(0)
    x = torch.zeros(23, 12)
    x[:3, :8], x[3:, 8:] = torch.randn(3, 8), torch.randn(20, 4)
    data, model = Data.from_arrays(x, torch.arange(23) % 3), nn.Linear(12, 3, bias=False).eval()
    done = request(FF(), model, data, forget_ids(data, data.ids[:3]))
    assert done.log["capped"] == pytest.approx(2 / 3)
    assert "The Fisher information of 67% of the weights is so low that the largest deviation" in done.note
    assert done.log["largest_deviation"] == pytest.approx(0.1**0.25)
    assert "so low" not in request(FF(damping=1e-3), model, data, forget_ids(data, data.ids[20:])).note


@pytest.mark.parametrize("name", ["output_object", "dict_inputs", "branch", "linear_weighted", "attention"])
@pytest.mark.parametrize("method", [FF(), CODE], ids=["quartic", "variance"])
def test_models_of_all_kinds(name: str, method: Any):
    model, data = CASES[name].make()
    done = request(method, model, data, forget_class(data, K - 1))
    assert done.changed.count > 0
    assert all(bool(torch.isfinite(p).all()) for p in done.model.parameters())
    if method is CODE:
        assert done.log["head"] == ["head.bias", "head.weight"] or name == "linear_weighted"


def test_tasks_without_classes_are_declined():
    model, data = CASES["linear_regression"].make()
    why = "it takes the Fisher information over the model's classes, and this task has no classes"
    assert FF().declines(Regression(), None, model) == why
    with pytest.raises(Declined, match=why):
        unlearn(FF(), model, Regression(), forget=data.ids[:2], retain=data.without(data.ids[:2]))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"form": "root"}, "fisher_forgetting.form"),
        ({"noise": 0.0}, "fisher_forgetting.noise above 0, got 0.0"),
        ({"noise": math.inf}, "fisher_forgetting.noise above 0"),
        ({"damping": -1.0}, "fisher_forgetting.damping above 0"),
        ({"compat": "released"}, "fisher_forgetting.compat"),
        ({"compat": "official"}, "compat='official' and form='variance', as published, got form='quartic'"),
    ],
)
def test_bad_settings_are_refused_in_words(config: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        build({"name": "fisher_forgetting", **config})
    with pytest.raises(UserError, match=match):
        FF(**config)
