"""∇τ: the forget loss up to that on held-out data, the retain loss down, in one step."""

from __future__ import annotations

import copy
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import MissingNeed, NotFinite, UserError
from expunge.methods import build, load
from expunge.methods.nabla_tau import affordable
from expunge.objectives.tau_hinge import TauHinge
from expunge.runtime import Progress, Runtime
from expunge.scenario import forget_class
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn
from replays import close, reads, samples
from worlds import QUIET, world

D = torch.float64
TASK = Classification()
NABLA = load("nabla_tau")
PLAIN = blobs(60)
WEIGHTS = 0.5 + torch.arange(60, dtype=D) % 4
DATA = Data.from_arrays(
    PLAIN.read(range(60)).inputs, PLAIN.targets(), ids=PLAIN.ids, weight=WEIGHTS.tolist(), name="train"
)
UNSEEN = blobs(30, seed=5, name="holdout")
HARD = torch.arange(30) % 4 == 0  # with wrong labels, so that the loss is far above that on what was learned
HOLDOUT = Data.from_arrays(UNSEEN.read(range(30)).inputs, (UNSEEN.targets() + HARD) % 3, ids=UNSEEN.ids, name="holdout")


def parts(count: int, data: Data = DATA) -> dict[str, Data]:
    sets = {"forget": data.subset(data.ids[:count]), "retain": data.without(data.ids[:count])}
    return sets | {"holdout": HOLDOUT}


def noisy(n: int = 60, seed: int = 0, name: str = "train") -> Data:
    """Return points whose labels are drawn at random: what is learned of them is memory."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=D)
    return Data.from_arrays(x, torch.randint(3, (n,), generator=generator), name=name)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, PLAIN, Recipe(epochs=10, lr=0.05, batch_size=8))


@pytest.fixture(scope="module")
def learned() -> nn.Module:
    """A network that knows random labels by heart."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 3)).double()
    return fit(net, TASK, noisy(), Recipe(epochs=60, lr=0.1, batch_size=10))


def random_request(learned: nn.Module, **settings: object) -> Unlearned:
    sets = parts(12, noisy()) | {"holdout": noisy(seed=7, name="holdout")}
    return unlearn(NABLA(**{"batch_size": 8, **settings}), learned, TASK, runtime=QUIET, **sets)


def loss_of(net: nn.Module, data: Data) -> float:
    batch = data.read(range(len(data)))
    with torch.no_grad():
        return F.cross_entropy(net(batch.inputs), batch.target).item()


# The formula.


@pytest.mark.parametrize(
    ("settings", "tau", "forget", "retain", "alpha", "want"),
    [
        ({}, 0.9, [0.1, 0.3, 0.2, 0.0], [0.05, 0.15], 0.25, 0.215625),
        ({"reduction": "sample"}, 0.9, [0.1, 0.3, 0.2, 0.0], [0.05, 0.15], 0.25, 0.21875),
        ({}, 0.5, [0.9, 0.7], [0.2], 0.25, 0.15),
        ({"hinge": "two_sided"}, 0.5, [0.9, 0.7], [0.2], 0.25, 0.1725),
        ({}, 1.0, [2.5, 0.1], [0.3], 0.4, 0.18),
        ({"reduction": "sample"}, 1.0, [2.5, 0.1], [0.3], 0.4, 0.342),
        ({"hinge": "two_sided"}, 1.0, [2.5, 0.1], [0.3], 0.4, 0.216),
    ],
)
def test_loss_is_that_of_the_formula(settings, tau, forget, retain, alpha, want):
    each = settings.get("reduction") == "sample"
    away, kept = torch.tensor(forget, dtype=D, requires_grad=True), torch.tensor(retain, dtype=D)
    found = NABLA(**settings).loss(away, kept, tau=tau, alpha=alpha, each=each)
    assert found.item() == pytest.approx(want, abs=1e-12)
    hinge = TauHinge(**settings).of(away.detach(), tau, each=each)
    assert alpha * hinge.item() + (1 - alpha) * sum(retain) / len(retain) == pytest.approx(want, abs=1e-12)
    found.backward()
    gaps = [tau - (v if each else sum(forget) / len(forget)) for v in forget]
    pulls = [max(0.0, g) if settings.get("hinge") != "two_sided" else g for g in gaps]
    slopes = torch.tensor([-2 * alpha * pull / len(forget) for pull in pulls], dtype=D)
    torch.testing.assert_close(away.grad, slopes, rtol=0, atol=1e-12)


def test_the_gradient_of_the_published_example():
    away = torch.tensor([0.1, 0.3, 0.2, 0.0], dtype=D, requires_grad=True)
    NABLA().loss(away, torch.tensor([0.05, 0.15], dtype=D), tau=0.9, alpha=0.25, each=False).backward()
    torch.testing.assert_close(away.grad, torch.full((4,), -0.09375, dtype=D), rtol=0, atol=1e-12)


# The schedule.


@pytest.mark.parametrize(
    ("forget", "retain", "batches", "epochs", "restart", "alpha"),
    [
        (1500, 48500, (6, 190), 95, 31, 0.05),
        (7500, 42500, (30, 167), 16, 5, 0.25),
        (15000, 35000, (59, 137), 6, 2, 0.5),
    ],
)
def test_the_schedule_of_images(forget, retain, batches, epochs, restart, alpha):
    plan = NABLA().schedule(forget, retain)
    assert (len(plan.forget), len(plan.retain)) == batches
    assert (sum(plan.forget), sum(plan.retain)) == (forget, retain)
    assert (plan.epochs, plan.restart) == (epochs, restart)
    assert plan.alpha == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize(
    ("share", "batches", "epochs"), [(0.03, (11, 329), 14), (0.15, (51, 289), 2), (0.3, (102, 238), 1)]
)
def test_the_schedule_of_texts(share, batches, epochs):
    forget = round(share * 43410)
    plan = NABLA(budget=1.0, batch_size=128, alpha=0.5).schedule(forget, 43410 - forget)
    assert (len(plan.forget), len(plan.retain)) == batches
    assert plan.epochs == epochs == affordable(*batches, 1.0)
    assert plan.alpha == 0.5


def test_the_weight_and_the_rate_of_each_epoch():
    plan = NABLA(epochs=4, alpha=0.25).schedule(10, 90)
    assert [plan.strength(i) for i in range(4)] == pytest.approx([0.25, 0.1875, 0.125, 0.0625], abs=1e-12)
    assert [plan.rate(i) for i in range(5)] == pytest.approx([1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4], abs=1e-15)
    constant = NABLA(epochs=4, final_lr=1.0).schedule(10, 90)
    assert [constant.rate(i) for i in range(4)] == [1e-3] * 4


def test_the_floors_and_caps():
    assert affordable(8, 5, 1.0) == 1
    assert affordable(1, 1000, 6.0) == 100
    plan = NABLA(batch_size=4).schedule(40, 8)
    assert (plan.epochs, plan.restart, plan.alpha) == (1, 1, 0.9)
    assert NABLA(batch_size=4).schedule(9, 90).forget == (4, 5)


@pytest.mark.parametrize("sizes", [(3, 57), (11, 49), (20, 40), (29, 31), (31, 29), (50, 10), (1, 59)])
def test_what_is_read_is_what_is_counted(sizes, model, monkeypatch):
    seen, bars = reads(monkeypatch, NABLA), list[Progress]()
    sets = parts(sizes[0])
    method = NABLA(batch_size=7, force=True)
    done = unlearn(method, model, TASK, runtime=Runtime(progress=bars.append, device="cpu"), **sets)
    plan = method.schedule(*sizes)
    kept, away = set(sets["retain"].ids), set(sets["forget"].ids)
    assert sum(len(ids) for ids in seen if ids[0] in kept) == plan.reads
    assert sum(len(ids) for ids in seen if ids[0] in away) == (2 * plan.epochs + 1) * sizes[0]
    assert sum(ids == HOLDOUT.ids for ids in seen) == math.ceil(plan.epochs / 5) + 1
    assert done.log["steps"] == plan.epochs * len(plan.forget)
    assert bars[-1].done == bars[-1].total == sum(map(len, seen))


# The loop.


def adamw(net: nn.Module, slots: dict[str, tuple[Tensor, Tensor]], loss: Tensor, *, step: int, lr: float) -> None:
    """Take a step of AdamW with its usual settings: decay apart from the gradient, both moments corrected."""
    net.zero_grad()
    loss.backward()
    with torch.no_grad():
        for name, p in net.named_parameters():
            first, second = slots.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
            first.mul_(0.9).add_(p.grad, alpha=0.1)
            second.mul_(0.999).add_(p.grad**2, alpha=0.001)
            p.mul_(1 - lr * 0.01)
            p.sub_(lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_equals_a_loop_written_by_hand(reduction, model, monkeypatch):
    seen = reads(monkeypatch, NABLA)
    sets = parts(11, DATA.subset(DATA.ids[:58]))
    settings = {"epochs": 5, "alpha": 0.9, "lr": 0.1, "batch_size": 4, "refresh": 2, "reduction": reduction}
    done = unlearn(NABLA(**settings), model, TASK, seed=2, **sets)
    away, kept = set(sets["forget"].ids), set(sets["retain"].ids)
    steps = [(r, f) for r, f in zip(seen, seen[1:], strict=False) if r[0] in kept and f[0] in away]
    assert [len(f) for _, f in steps] == [4, 4, 3] * 5
    assert [len(r) for r, _ in steps] == [4] * 11 + [3] + [4] * 3
    assert {i for r, _ in steps[:12] for i in r} == kept  # four epochs are one pass; the fifth begins another
    assert steps[12][0] != steps[0][0]
    slow, slots, taken = copy.deepcopy(model).eval(), dict[str, tuple[Tensor, Tensor]](), 0
    weight = dict(zip(DATA.ids, WEIGHTS.tolist(), strict=True))
    logged: dict[str, list[float]] = {"tau": [], "forget_loss": [loss_of(slow, sets["forget"])], "alpha": [], "lr": []}
    active, retained = [], []
    for epoch in range(5):
        if epoch in (0, 2, 4):
            logged["tau"].append(loss_of(slow, HOLDOUT))
        tau, alpha, lr = logged["tau"][-1], 0.9 * (5 - epoch) / 5, 0.1 * (1 - 0.9 * epoch / 5)
        pulled, total = 0, 0.0
        for beside, ids in steps[3 * epoch : 3 * epoch + 3]:
            (x, y), (u, v) = samples(DATA, ids), samples(DATA, beside)
            lost = F.cross_entropy(slow(x), y, reduction="none")
            ours = F.cross_entropy(slow(u), v, reduction="none") * torch.tensor([weight[i] for i in beside], dtype=D)
            gap = (tau - (lost if reduction == "sample" else lost.mean())).clamp_min(0)
            pulled += bool((gap > 0).any())
            total += ours.sum().item()
            taken += 1
            adamw(slow, slots, alpha * (gap**2).mean() + (1 - alpha) * ours.mean(), step=taken, lr=lr)
        logged["alpha"].append(alpha)
        logged["lr"].append(lr)
        logged["forget_loss"].append(loss_of(slow, sets["forget"]))
        active.append(pulled / 3)
        retained.append(total / sum(len(r) for r, _ in steps[3 * epoch : 3 * epoch + 3]))
    logged["tau"].append(loss_of(slow, HOLDOUT))
    assert set(active) == {2 / 3, 1.0}  # the hinge is off on some batches
    assert close(done.model, slow, 1e-10)
    logged |= {"hinge_active": active, "retain_loss": retained}
    for name, values in logged.items():
        assert [v for _, v in done.log[name]] == pytest.approx(values, rel=1e-10), name
    assert [s for s, _ in done.log["tau"]] == [0, 6, 12, 15]
    assert [s for s, _ in done.log["forget_loss"]] == [0, 3, 6, 9, 12, 15]
    gap = (logged["tau"][-1] - logged["forget_loss"][-1]) / logged["tau"][-1]
    assert done.log["tau_gap"] == pytest.approx(gap, rel=1e-10)


@pytest.mark.parametrize(("mode", "moved"), [("eval", False), ("train", True)])
def test_batchnorm_moves_in_train_mode_alone(mode, moved, model):
    done = unlearn(NABLA(epochs=1, mode=mode, batch_size=8), model, TASK, **parts(9))
    pairs = zip(model.buffers(), done.model.buffers(), strict=True)
    assert [not torch.equal(a, b) for a, b in pairs] == [moved] * 3


def test_dropout_is_on_in_train_mode_alone(learned):
    net = nn.Sequential(*learned[:2], nn.Dropout(0.5), learned[2])
    found = {mode: [random_request(net, epochs=1, mode=mode) for _ in range(2)] for mode in ("eval", "train")}
    plain = random_request(learned, epochs=1)
    values = {mode: [one.log["retain_loss"][0][1] for one in both] for mode, both in found.items()}
    assert values["eval"] == [plain.log["retain_loss"][0][1]] * 2
    assert values["train"][0] == values["train"][1] != values["eval"][0]


def test_it_ends_near_tau_where_the_pull_is_strong(learned):
    done = random_request(learned, lr=0.02, alpha=0.5, epochs=40, hinge="two_sided")
    assert abs(done.log["tau_gap"]) < 0.2
    assert done.log["forget_loss"][0][1] < 0.1 * done.log["tau"][0][1]
    assert loss_of(done.model, noisy().without(noisy().ids[:12])) < 0.1 * done.log["tau"][-1][1]


def test_a_gap_that_stays_tells_what_to_change(learned):
    below = random_request(learned, lr=1e-5, epochs=1)
    assert below.log["tau_gap"] > 0.9
    text = r"mean forget loss ended at .* below it: double nabla_tau.lr \(now 1e-05\), then raise nabla_tau.alpha"
    assert re.search(text, below.note)
    above = random_request(learned, lr=0.3, alpha=0.9, epochs=2)
    assert above.log["tau_gap"] < -0.1
    assert re.search(r"above it: halve nabla_tau.lr \(now 0.3\), or set nabla_tau.hinge to 'two_sided'", above.note)
    within = random_request(learned, lr=0.02, alpha=0.5, epochs=120, hinge="two_sided", batch_size=12)
    assert abs(within.log["tau_gap"]) < 0.1
    assert within.note == ""


# What there is to forget.


def high(model: nn.Module) -> tuple[nn.Module, dict[str, Data]]:
    """Return a request of samples whose labels are wrong, so that their loss is above that on held-out data."""
    wrong = Data.from_arrays(PLAIN.read(range(9)).inputs, (PLAIN.targets()[:9] + 1) % 3, ids=PLAIN.ids[:9])
    return model, {"forget": wrong, "retain": PLAIN.without(PLAIN.ids[:9]), "holdout": HOLDOUT}


def test_where_nothing_is_to_be_forgotten_no_bit_changes(model):
    net, sets = high(model)
    done = unlearn(NABLA(), net, TASK, **sets)
    assert weights_digest(done.model) == weights_digest(model)
    assert done.log["steps"] == 0
    assert "tau_gap" not in done.log
    text = (
        r"Nothing to forget: the mean loss on the samples to forget is .*, and τ = .* not above 1.05 times it; no weig"
    )
    assert re.search(text, done.note)


def test_holdout_that_the_model_knows_as_well_is_no_aim(model):
    same = PLAIN.read(range(9))
    known = Data.from_arrays(same.inputs, same.target, name="holdout")
    done = unlearn(NABLA(), model, TASK, **{**parts(9), "holdout": known})
    assert done.changed.count == 0
    assert "That is so of holdout data that the model was trained on, and of samples whose labels are" in done.note


def test_force_takes_the_steps_all_the_same(model):
    net, sets = high(model)
    one = unlearn(NABLA(force=True, epochs=3), net, TASK, **sets)
    assert one.log["steps"] == 3
    assert one.log["hinge_active"] == [[1, 0.0], [2, 0.0], [3, 0.0]]
    assert "force is set, and steps were taken all the same" in one.note


def test_the_two_sided_hinge_draws_a_loss_back_down(model):
    net, sets = high(model)
    settings = {"force": True, "epochs": 30, "lr": 0.01, "alpha": 0.5}
    two = unlearn(NABLA(hinge="two_sided", **settings), net, TASK, **sets)
    one = unlearn(NABLA(**settings), net, TASK, **sets)
    start = two.log["forget_loss"][0][1]
    assert two.log["forget_loss"][-1][1] < 0.7 * start < one.log["forget_loss"][-1][1]


def test_a_tau_of_zero_has_no_shares():
    net = nn.Linear(2, 1, bias=False, dtype=D)
    with torch.no_grad():
        net.weight.zero_()
    zeros = [
        Data.from_arrays(torch.zeros(n, 2, dtype=D), torch.zeros(n, 1, dtype=D), name=name)
        for n, name in ((2, "a"), (5, "b"), (3, "holdout"))
    ]
    sets = dict(zip(("forget", "retain", "holdout"), zeros, strict=True))
    done = unlearn(NABLA(force=True, epochs=1), net, Regression(), **sets)
    assert "tau_gap" not in done.log
    assert "τ ended at 0" in done.note


@pytest.mark.parametrize(("count", "warned"), [(30, False), (31, True)])
def test_more_than_half_to_forget_is_told(count, warned, model, caplog):
    with caplog.at_level(logging.WARNING):
        done = unlearn(NABLA(epochs=1), model, TASK, **parts(count))
    text = "of the data is to be forgotten: retraining on the rest may cost less and is exact."
    assert (text in done.note) is (text in caplog.text) is warned


def test_without_holdout_data_it_names_what_would_do(model):
    sets = {name: data for name, data in parts(9).items() if name != "holdout"}
    with pytest.raises(MissingNeed, match=r"holdout for nabla_tau to unlearn.*or use .*which would do without"):
        unlearn(NABLA(), model, TASK, **sets)


# Kinds of request and of data.


def test_a_class_is_removed():
    w = world("class", 150)
    given = {"forget": w.forget, "retain": w.retain, "holdout": w.holdout, "runtime": QUIET}
    done = unlearn(NABLA(batch_size=16, lr=0.01, epochs=20), w.model, w.task, scenario=w.scenario, **given)
    held = w.test.read(range(len(w.test)))
    with torch.no_grad():
        right = done.model(held.inputs).argmax(1) == held.target
    gone = held.target == 1
    assert right[gone].double().mean() < 0.05
    assert right[~gone].double().mean() > 0.9
    assert done.log["tau"][0][1] == pytest.approx(max(math.log(3), loss_of(w.model, w.holdout)), rel=1e-5)
    assert done.log["forget_loss"][-1][1] > math.log(3)
    assert done.note == ""  # a class may end above τ: a model that never saw it does


def test_of_a_class_the_hinge_is_on_each_sample_unless_told_otherwise(model):
    case = forget_class(PLAIN, 1)
    sets = {"forget": PLAIN.subset(case.forget), "retain": PLAIN.without(case.forget), "holdout": HOLDOUT}

    def run(scenario: object, **settings: object) -> str:
        return weights_digest(unlearn(NABLA(epochs=2, **settings), model, TASK, scenario=scenario, **sets).model)

    assert run(case) == run(case, reduction="sample") != run(case, reduction="batch")
    assert run(None) == run(None, reduction="batch") != run(None, reduction="sample")


def test_regression_rises_to_its_own_held_out_error():
    torch.manual_seed(0)
    x, noise = torch.randn(50, 12, dtype=D), torch.randn(50, 1, dtype=D)
    train = Data.from_arrays(x[:20], x[:20, :1] + noise[:20], name="train")
    holdout = Data.from_arrays(x[20:], x[20:, :1] + noise[20:], name="holdout")
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 1)).double()
    net = fit(net, Regression(), train, Recipe(epochs=200, lr=0.05, batch_size=10, weight_decay=0.0))
    sets = {"forget": train.subset(train.ids[:5]), "retain": train.without(train.ids[:5]), "holdout": holdout}
    done = unlearn(NABLA(batch_size=5, lr=0.01, alpha=0.5, epochs=40), net, Regression(), **sets)
    first, last = done.log["forget_loss"][0][1], done.log["forget_loss"][-1][1]
    assert first < 0.1 * done.log["tau"][0][1]
    assert last > 0.5 * done.log["tau"][-1][1]


def test_inputs_may_be_a_dict_of_tensors():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            mask = attention_mask.unsqueeze(2).to(self.head.weight)
            return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))

    def texts(n: int, name: str) -> Data:
        tokens = torch.randint(11, (n, 5))
        return Data.from_arrays(
            {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, torch.randint(2, (n,)), name=name
        )

    torch.manual_seed(1)
    train = texts(24, "train")
    net = fit(Words(), TASK, train, Recipe(epochs=80, lr=0.5, batch_size=8))
    sets = {"forget": train.subset(train.ids[:6]), "retain": train.without(train.ids[:6])}
    done = unlearn(NABLA(epochs=10, lr=0.02, alpha=0.5), net, TASK, holdout=texts(16, "holdout"), **sets)
    assert done.log["forget_loss"][-1][1] > 2 * done.log["forget_loss"][0][1]


def test_masked_weights_stay(learned):
    sets = parts(12, noisy()) | {"holdout": noisy(seed=7, name="holdout")}
    method = build({"name": "salun", "method": {"name": "nabla_tau", "epochs": 2}, "density": 0.5})
    done = unlearn(method, learned, TASK, **sets)
    assert done.changed.count == done.log["may_move"]
    assert "moved" not in done.note


# Settings.


def test_divergence_names_the_rate(learned):
    with pytest.raises(NotFinite, match=r"nabla_tau.* step \d.*: lower nabla_tau.lr \(now 1e\+300\)"):
        random_request(learned, lr=1e300, epochs=1)


def test_passes_told_beforehand():
    assert NABLA().passes("unlearn", None) == {"forget": 115.0, "retain": 3.0, "holdout": 13.0}
    assert NABLA(epochs=7).passes("unlearn", None) == {"forget": 15.0, "retain": 7.0, "holdout": 3.0}
    assert NABLA().passes("prepare", None) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 1.0),
        ("alpha", math.nan),
        ("alpha", "high"),
        ("budget", 0.0),
        ("epochs", 0),
        ("refresh", 0),
        ("final_lr", 1.5),
        ("hinge", "three_sided"),
        ("reduction", "class"),
        ("mode", "half"),
        ("optimizer", "lbfgs"),
        ("batch_size", None),
        ("force", 1),
        ("lr", 0.0),
        ("weight_decay", -0.1),
        ("clip", 0.0),
    ],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(UserError, match=f"nabla_tau.{field}"):
        NABLA(**{field: value})


@pytest.mark.parametrize("field", ["keep_best", "norm"])
def test_what_does_not_apply_is_no_field(field):
    with pytest.raises(UserError, match=f"a field of nabla_tau, got '{field}'"):
        build({"name": "nabla_tau", field: False})
    assert field not in NABLA().settings()


def test_plain_values_build_it():
    assert build({"name": "nabla_tau", "alpha": "auto", "epochs": None}) == NABLA()
    assert build({"name": "nabla_tau", "alpha": 0.5, "epochs": 3, "optimizer": "sgd"}).epochs == 3


def test_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs/nabla_tau.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    every = '("random=0.03", "random=0.15", "random=0.3", "class=3")'
    assert every in code
    exec(
        code.replace("range(10)", "range(1)")
        .replace('("digits")', '("digits", limit=200)')
        .replace(every, '("random=0.3",)'),
        {},
    )
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows] == [6] * 2
