"""A binary model says what a two-class one of the logits (0, z) says: of methods, objectives, attacks and measures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cases import gap
from expunge import methods, objectives
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import collect
from expunge.fisher import diagonal
from expunge.metric import Unavailable
from expunge.objectives import Context
from expunge.runtime import Runtime
from expunge.scenario import forget_class, forget_ids
from expunge.task import Binary, Classification, MultiLabel, Quantile, class_logits
from expunge.train import Recipe, fit
from expunge.unlearn import prepare, unlearn

D = torch.float64
QUIET = Runtime(batch_size=7, progress=False, device="cpu")
RECIPE = Recipe(epochs=4, batch_size=8, lr=0.2)
TASKS = {"one": Binary(), "two": Classification()}


class Net(nn.Module):
    """One logit z, or the two logits (0, z); parameters have the same names."""

    def __init__(self, two: bool) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.two = two

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(torch.relu(self.norm(self.hidden(x))))
        return torch.cat([torch.zeros_like(z), z], dim=1) if self.two else z


def net(two: bool, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(two).to(D)


def drawn(n: int, seed: int, name: str, two: bool) -> Data:
    """Return n samples, their labels class indices or 0.0 and 1.0."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=D)
    y = (x[:, 0] - x[:, 1] + 0.5 * x[:, 2] > 0).long()
    return Data.from_arrays(x, y if two else y.double(), columns={"side": (x[:, 3] > 0).tolist()}, name=name)


class World:
    def __init__(self, two: bool) -> None:
        self.two, self.task = two, TASKS["two" if two else "one"]
        self.train, self.holdout, self.test = (
            drawn(n, seed, name, two) for seed, (name, n) in enumerate((("train", 37), ("holdout", 20), ("test", 60)))
        )
        self.model = fit(net(two), self.task, self.train, RECIPE, runtime=QUIET)

    def new(self) -> nn.Module:
        return net(self.two, seed=5)

    def case(self, kind: str):
        rest = {"holdout": self.holdout, "test": self.test}
        return (
            forget_class(self.train, 1, **rest)
            if kind == "class"
            else forget_ids(self.train, self.train.ids[:9], **rest)
        )

    def edited(self, name: str, case, **settings):
        method = methods.build({"name": name, **methods.load(name).example, **settings})
        given = {"recipe": RECIPE, "new_model": self.new, "scenario": case, "runtime": QUIET, "seed": 0}
        given |= {"holdout": self.holdout}
        ready = prepare(method, self.model, self.task, train=self.train, **given)
        forget = self.train.subset(case.forget)
        retain = self.train.without(case.forget)
        return unlearn(method, ready.model, self.task, forget=forget, retain=retain, state=ready.state, **given)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World(two=False), World(two=True)]


def test_training_is_the_same(worlds):
    one, two = (dict(w.model.state_dict()) for w in worlds)
    assert gap({k: v.double() for k, v in one.items()}, {k: v.double() for k, v in two.items()}) < 1e-10


FORGOTTEN = [
    *((name, "ids", {}) for name in ("amnesiac", "random_label", "bad_teacher", "scrub", "ssd", "lfssd", "salun")),
    *((name, "ids", {}) for name in ("gradient_ascent", "neg_grad_plus", "fisher_forgetting")),
    ("nabla_tau", "class", {"force": True}),
    ("unsir", "class", {}),
    *(
        ("compose", "ids", {"objective": name, "anchor": "retain_repair", "force": True, "steps": 5})
        for name in objectives.names()
    ),
    (
        "compose",
        "class",
        {"objective": "uniform", "anchor": {"name": "retain_repair", "keep": "both"}, "force": True, "steps": 5},
    ),
]


@pytest.mark.parametrize(("name", "kind", "settings"), FORGOTTEN, ids=lambda v: v if isinstance(v, str) else "")
def test_methods_give_the_same_weights(name, kind, settings, worlds):
    settings = {k: v for k, v in settings.items() if k in {f for f in methods.load(name).__dataclass_fields__}}
    one, two = (w.edited(name, w.case(kind), **settings) for w in worlds)
    own, other = ({k: v.double() for k, v in done.model.state_dict().items()} for done in (one, two))
    assert gap(own, other) < 1e-8
    start = worlds[0].model.state_dict()
    if name not in ("lfssd",):
        assert any(not torch.equal(own[k], start[k].double()) for k in own)


@pytest.mark.parametrize("of", ["loss", "true", "output_norm"])
def test_importances_are_the_same(of, worlds):
    one, two = (diagonal(w.model, w.task, w.train, of=of, runtime=QUIET).values for w in worlds)
    assert gap(one, two) < 1e-10


def test_evidence_holds_class_logits_and_whole_labels(worlds):
    one, two = (collect(w.model, w.task, w.test, runtime=QUIET) for w in worlds)
    assert one.outputs.shape == (60, 1)
    assert torch.allclose(one.logits, two.outputs)
    assert one.target.dtype == torch.int64
    assert torch.equal(one.target, two.target)
    assert torch.equal(one.prediction, two.prediction)
    for name in ("entropy", "confidence", "correct", "modified_entropy", "margin"):
        assert torch.allclose(getattr(one.signals, name), getattr(two.signals, name))
    some = torch.tensor([3, 1])
    assert torch.equal(one.take(some).logits, one.logits[some])


def judged(w: World, kind: str):
    case = w.case(kind)
    again = [
        fit(net(w.two, seed), w.task, w.train.without(case.forget), RECIPE, runtime=QUIET, seed=seed) for seed in (1, 2)
    ]
    named = {"original": w.model, "retrained": again, "ssd": w.edited("ssd", case)}
    given = {"recipe": RECIPE, "new_model": w.new, "scenario": case, "runtime": QUIET}
    return evaluate(named, w.task, train=w.train, test=w.test, holdout=w.holdout, seed=0, **given)


UNLIKE = ("cost/", "decisions/", "segments/", "stability/")  # of time and memory, or of two classes alone


@pytest.mark.parametrize("kind", ["ids", "class"])
def test_an_audit_finds_the_same(kind, worlds):
    one, two = (judged(w, kind) for w in worlds)
    assert list(one.values) == list(two.values)
    assert one.flaws == two.flaws == {}
    compared = 0
    for model, found in one.values.items():
        for name, value in found.items():
            other = two.values[model][name]
            if name.startswith(UNLIKE):
                continue
            assert isinstance(value, Unavailable) == isinstance(other, Unavailable), (model, name, value, other)
            if not isinstance(value, Unavailable):
                assert value.x == pytest.approx(other.x, abs=1e-6), (model, name)
                assert value.unit == other.unit
                compared += 1
    assert compared > 100


def test_objectives_read_class_logits():
    z = torch.tensor([[0.3], [-1.2]], dtype=D)
    batch = Batch(torch.zeros(2, 4), torch.tensor([1.0, 0.0]), None, torch.arange(2))
    for name in ("entropy", "uniform", "ascent", "tau_hinge"):
        objective = objectives.load(name)()
        one = objective.values(z, batch, Context(Binary(), tau=1.0))
        two = objective.values(class_logits(Binary(), z), replaced(batch), Context(Classification(), tau=1.0))
        assert torch.allclose(one, two), name


def replaced(batch: Batch) -> Batch:
    return replace(batch, target=batch.target.long())


def test_a_wrong_label_of_two_is_the_other_one():
    batch = Batch(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 1.0]), None, torch.arange(3))
    context = Context(Binary(), draws=torch.tensor([0.1, 0.6, 0.9], dtype=D))
    wrong = objectives.load("random_label")().relabelled(batch.target, batch.index, 2, context)
    assert wrong.tolist() == [0, 1, 0]


def test_a_masked_class_of_two_leaves_the_other(worlds):
    one = worlds[0]
    for label, margin in ((1, -10.0), (0, 10.0)):
        case = forget_class(one.train, label, holdout=one.holdout, test=one.test)
        said = collect(one.edited("head_mask", case).model, one.task, one.test, runtime=QUIET)
        assert said.outputs.unique().tolist() == [margin]
        assert said.prediction.unique().tolist() == [1 - label]


def test_one_logit_has_no_row_of_a_class(worlds):
    done = worlds[0].edited("fisher_forgetting", worlds[0].case("class"), form="variance")
    assert "One logit tells both classes, so class 1 has no row of its own" in done.note
    assert done.log["head"] == ["head.bias", "head.weight"]


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Identity()])
def test_a_sigmoid_at_the_end_is_noticed(layer, worlds):
    w = worlds[0]
    case = w.case("ids")
    squashed = nn.Sequential(w.model, layer)
    given = {"recipe": RECIPE, "scenario": case, "runtime": QUIET, "metrics": ["loss", "accuracy"]}
    found = evaluate({"original": squashed}, w.task, train=w.train, test=w.test, **given)
    said = "its outputs are probabilities, where logits are expected: leave out its sigmoid"
    assert found.flaws.get("original", "") == (said if isinstance(layer, nn.Sigmoid) else "")


@pytest.mark.parametrize(
    ("name", "task", "why"),
    [
        ("random_label", MultiLabel(), "random_label draws wrong classes, and this task has no classes"),
        ("scrub", Quantile(), "it compares probabilities of classes, and this task has no classes"),
        ("bad_teacher", MultiLabel(), "it distils probabilities of classes, and this task has no classes"),
        ("fisher_forgetting", Quantile(), "Fisher information over the model's classes, and this task has no classes"),
        ("gradient_ascent", MultiLabel(), "stops at the loss of chance unless until is set to a number or None"),
        ("head_mask", MultiLabel(), "it masks a class's logit, and this task has no classes"),
        ("unsir", Quantile(), "it learns noise against one class, and this task has no classes"),
    ],
)
def test_what_needs_classes_says_so(name, task, why):
    assert why in str(methods.build({"name": name, **methods.load(name).example}).declines(task, None, nn.Identity()))


@pytest.mark.parametrize(("task", "out"), [(MultiLabel(), 3), (Quantile(), 3)])
@pytest.mark.parametrize("name", ["ssd", "lfssd", "finetune", "retrain", "nabla_tau", "l1_sparse", "jit", "assd"])
def test_what_needs_no_classes_runs_on_labels_and_quantiles(task, out, name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out)), torch.randn(23, 4)
    y = x[:, :3] > 0 if isinstance(task, MultiLabel) else x[:, 0]
    train = Data.from_arrays(x, y)
    holdout = Data.from_arrays(x + 0.1, y, name="holdout")
    case = forget_ids(train, train.ids[:5], holdout=holdout)
    method = methods.build({"name": name, **methods.load(name).example})
    given = {"holdout": holdout, "recipe": RECIPE, "scenario": case, "runtime": QUIET, "seed": 0}
    ready = prepare(method, model, task, train=train, **given)
    forget, retain = train.subset(case.forget), train.without(case.forget)
    done = unlearn(method, ready.model, task, forget=forget, retain=retain, state=ready.state, **given)
    said = collect(done.model, task, train, runtime=QUIET)
    assert bool(said.loss.isfinite().all())


def test_the_expectation_over_labels_drives_fisher_forgetting():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(15, 4)
    train = Data.from_arrays(x, x[:, :3] > 0)
    case = forget_ids(train, train.ids[:4])
    retain = train.without(case.forget)
    given = {"forget": train.subset(case.forget), "retain": retain, "scenario": case, "runtime": QUIET}
    method = methods.load("fisher_forgetting")()
    ready = prepare(method, model, MultiLabel(), train=train, scenario=case, runtime=QUIET)
    done = unlearn(method, model, MultiLabel(), state=ready.state, **given)
    assert done.changed.share > 0


def test_a_class_of_several_labels_cannot_be_forgotten():
    train = Data.from_arrays(torch.randn(6, 4), torch.eye(6, 3))
    with pytest.raises(UserError, match="class labels in train, to forget a class, got several labels a sample"):
        forget_class(train, 1)


@pytest.mark.parametrize(("task", "out"), [(Binary(), 1), (MultiLabel(), 3), (Quantile(), 3)])
def test_batches_of_one_sample_say_the_same(task, out):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out)).to(D).eval(), torch.randn(5, 4, dtype=D)
    y = {Binary: (x[:, 0] > 0).double(), MultiLabel: x[:, :3] > 0, Quantile: x[:, 0]}[type(task)]
    data = Data.from_arrays(x, y, weight=torch.linspace(0.5, 2, 5))
    small, large = (Runtime(batch_size=n, progress=False, device="cpu") for n in (1, 4))
    one, many = (collect(model, task, data, runtime=runtime) for runtime in (small, large))
    assert torch.allclose(one.loss, many.loss)
    assert torch.equal(one.prediction, many.prediction)
    assert torch.allclose(one.logits, many.logits)
    for of in ("loss", "sampled_loss"):
        a, b = (diagonal(model, task, data, of=of, runtime=runtime).values for runtime in (small, large))
        assert gap(a, b) < 1e-10
    fitted = fit(model, task, data, replace(RECIPE, batch_size=1, epochs=1), runtime=small)
    assert all(bool(p.isfinite().all()) for p in fitted.parameters())
