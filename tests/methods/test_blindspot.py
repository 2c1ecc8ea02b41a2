"""Blindspot: a network that never saw the forget set is followed there, in its outputs and in where it looks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.method import See
from expunge.methods import build, load
from expunge.methods._attention import Probe, Tap, alignment, attention, collapsed
from expunge.methods._steps import Taken
from expunge.methods.blindspot import blind_loss
from expunge.runtime import Progress, Runtime
from expunge.scenario import forget_random
from expunge.seeds import seed as named_seed
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, fresh
from expunge.unlearn import unlearn
from expunge.zoo.forecast import LinearForecast, LSTMForecast, Window
from expunge.zoo.networks import MLP, ConvNet, ConvNet4, ResNet18
from replays import close, reads, samples

TASK = Regression("absolute")
BLIND = load("blindspot")
D = torch.float64


def net(outputs: int = 1) -> nn.Sequential:
    """Return a network with BatchNorm and two blocks before its head."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs)
    ).double()


def values(n: int = 37, outputs: int = 1, weight: Tensor | None = None) -> Data:
    """Return vectors and, of each, smooth functions of it."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=D)
    y = torch.stack([(x[:, k % 4] * 2).sin() + x.sum(dim=1) for k in range(outputs)], dim=1)
    return Data.from_arrays(x, y, weight=weight)


DATA = values()
RECIPE = Recipe(epochs=12, lr=0.02, batch_size=8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(net(), TASK, DATA, RECIPE)


def parts(count: int = 9, data: Data = DATA) -> dict[str, Data]:
    return {"forget": data.subset(data.ids[:count]), "retain": data.without(data.ids[:count])}


def f64(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=D)


# The maps and the loss, with the numbers of the specification.

STUDENT = f64([[[[1, 2]], [[3, 0]]], [[[0, 1]], [[0, 1]]]])
TEACHER = f64([[[[2, 0]], [[0, 2]]], [[[1, 0]], [[1, 0]]]])
SAID, TAUGHT, TRUE = f64([30, 50, 20, 40]), f64([45, 10, 41, 99]), f64([25, 52, 18, 37])
TAP = Tap("a", 1)


def test_a_map_is_the_mean_square_over_channels_of_unit_norm():
    root = 0.5**0.5
    assert attention(STUDENT, 1).tolist() == [pytest.approx([0.92847669, 0.37139068], abs=1e-8), [0, 1]]
    assert attention(TEACHER, 1).tolist() == [pytest.approx([root, root], abs=1e-9), [1, 0]]
    assert attention(torch.zeros(1, 2, 1, 2), 1).tolist() == [[0, 0]]


@pytest.mark.parametrize(("at", "want"), [(slice(0, 1), 0.0808549700), (slice(1, 2), 1.0), (slice(0, 2), 0.5404274850)])
@pytest.mark.parametrize("published", [False, True])
def test_maps_are_apart_by_the_mean_square_over_samples_and_positions(at: slice, want: float, published: bool):
    tap = replace(TAP, published=published)
    assert float(tap.apart(STUDENT[at], TEACHER[at])) == pytest.approx(want, abs=1e-9)


def test_two_vectors_are_apart_but_for_the_published_map():
    one, other = torch.randn(2, 5, 64, dtype=D)
    assert float(Tap("a", None, published=True).apart(one, other)) == 0
    want = [(a * a / (a * a).norm() - b * b / (b * b).norm()).square().mean() for a, b in zip(one, other, strict=True)]
    assert float(Tap("a", None).apart(one, other)) == pytest.approx(float(sum(want)) / 5, abs=1e-12)
    assert float(Tap("a", None).apart(one, other)) > 0
    pooled = one.reshape(5, 64, 1, 1)
    assert torch.equal(attention(pooled, 1), attention(one))


def test_channels_of_a_sequence_are_its_last_dimension():
    a = torch.randn(3, 7, 4, dtype=D)
    slow = torch.stack([torch.stack([(step * step).mean() for step in row]) for row in a])
    slow = slow / slow.norm(dim=1, keepdim=True)
    torch.testing.assert_close(attention(a, 2), slow)
    assert attention(a, 2).shape == (3, 7)
    assert collapsed(a).shape == attention(a, 1).shape == (3, 4)


def test_half_precision_is_squared_in_single():
    found = attention(torch.full((1, 2, 2), 300.0, dtype=torch.float16), 1)  # 300² is infinite in float16
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx([0.5**0.5] * 2)]


def test_no_gradient_flows_through_a_map_of_zeros():
    a = torch.zeros(2, 3, 4, dtype=D, requires_grad=True)
    Tap("a", 1).apart(a, torch.rand(2, 3, 4, dtype=D)).backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


class Look(nn.Module):
    """Give every one-hot sample its own activation."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = nn.Parameter(maps.clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ichw->bchw", x, self.maps)


class Table(nn.Module):
    """Give every one-hot sample its own output."""

    def __init__(self, maps: Tensor, said: Tensor) -> None:
        super().__init__()
        self.look, self.said = Look(maps), nn.Parameter(said.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.said + 0 * self.look(x).sum(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("flags", "strength", "want"),
    [
        ([1, 0, 1, 0], 0.0, 10.25),
        ([1, 0, 1, 0], 50.0, 23.7606871248),
        ([1, 0, 0, 0], 0.0, 5.5),
        ([1, 0, 0, 0], 50.0, 6.5106871248),
    ],
)
def test_a_step_lowers_the_loss_of_the_formula(flags: list[int], strength: float, want: float):
    rest = torch.rand(2, 2, 1, 2, dtype=D)  # what samples that stay look like is of no matter
    maps, seen = (torch.stack([m[0], rest[0], m[1], rest[1]]) for m in (STUDENT, TEACHER))
    data = Data.from_arrays(torch.eye(4, dtype=D), TRUE)
    gone = [i for i, flag in zip(data.ids, flags, strict=True) if flag]
    sets = {"forget": data.subset(gone), "retain": data.without(gone)}
    method = BLIND(epochs=1, attention=strength)
    done = unlearn(method, Table(maps, SAID), TASK, **sets, new_model=lambda: Table(seen, TAUGHT))
    assert done.log["loss"] == [[1, pytest.approx(want, abs=1e-9)]]
    assert done.log.get("taps") == (["look"] if strength else None)


def test_a_side_without_samples_counts_nothing():
    far, near = (SAID - TAUGHT).abs(), (SAID - TRUE).abs()
    apart = alignment([TAP], {"a": STUDENT}, {"a": TEACHER})
    assert float(blind_loss(None, near)) == 3.0
    assert float(blind_loss(far[[0, 2]], None, apart, 50.0)) == pytest.approx(18 + 50 * 0.5404274850, abs=1e-8)
    assert float(blind_loss(far[[0, 2]], near[[1, 3]], apart, 50.0)) == pytest.approx(23.7606871248, abs=1e-9)
    assert alignment([], {}, {}) == 0


# Properties.


def taken(forget: Tensor, retain: Tensor, target: Tensor) -> Taken:
    sides = [
        Batch(forget, None, None, torch.arange(len(forget))),
        Batch(retain, target, None, torch.arange(len(retain))),
    ]
    both = Batch(torch.cat([forget, retain]), None, None, torch.arange(len(forget) + len(retain)))
    origin = torch.tensor([0] * len(forget) + [1] * len(retain))
    return Taken(both, origin, None, {i: side for i, side in enumerate(sides) if len(side)})


def plain() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def exact() -> nn.Sequential:
    """Return a network of whole numbers, whose sums are the same in batches of any size."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-3, 4, p.shape, generator=generator))
    return model


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_an_original_that_the_blindspot_network_agrees_with_has_no_gradient(error: str):
    student, twin = exact(), exact()
    x = torch.randint(-4, 5, (7, 4)).double()
    target = student(x[3:]).detach()
    loss = BLIND().loss(Regression(error), student, twin, taken(x[:3], x[3:], target), [Tap("0", None)])
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in student.parameters())


@pytest.mark.parametrize("trial", range(5))
def test_the_order_of_a_batch_does_not_matter(trial: int):
    generator = torch.Generator().manual_seed(trial)
    x, y = torch.randn(9, 4, dtype=D, generator=generator), torch.randn(5, 1, dtype=D, generator=generator)
    student, teacher, taps = plain(), net().eval(), [Tap("0", None)]
    one, other = torch.randperm(4, generator=generator), torch.randperm(5, generator=generator)
    with torch.no_grad():
        loss = BLIND().loss(TASK, student, teacher, taken(x[:4], x[4:], y), taps)
        again = BLIND().loss(TASK, student, teacher, taken(x[:4][one], x[4:][other], y[other]), taps)
    assert float(loss) == pytest.approx(float(again), abs=1e-12)


@pytest.mark.parametrize("sizes", [(1, 0), (0, 1), (3, 0), (0, 3)])
def test_a_batch_of_one_side_or_one_sample_has_a_finite_loss(sizes: tuple[int, int]):
    x, y = torch.randn(sum(sizes), 4, dtype=D), torch.randn(sizes[1], 1, dtype=D)
    now = taken(x[: sizes[0]], x[sizes[0] :], y)
    assert torch.isfinite(BLIND().loss(TASK, plain(), net().eval(), now, [Tap("0", None)]))


@dataclass(frozen=True)
class Watching(Regression):
    """A task that keeps what was run: module, whether in training mode, with gradients, with taps, and the inputs."""

    error: str = "absolute"
    runs: list[tuple[nn.Module, bool, bool, tuple[str, ...], Tensor, str]] = field(default_factory=list, compare=False)

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        grads = torch.is_grad_enabled()
        self.runs.append((model, model.training, grads, tuple(taps), batch.inputs, weights_digest(model)))
        return super().forward(model, batch, taps)


def test_the_blindspot_network_stays_as_it_was_trained(model: nn.Module):
    task = Watching()
    done = unlearn(BLIND(epochs=3), model, task, **parts(), recipe=RECIPE, new_model=net)
    blind = next(m for m, training, grads, taps, *_ in task.runs if taps and not training and not grads)
    mine = [run for run in task.runs if run[0] is blind and run[3]]
    assert {(training, grads) for _, training, grads, *_ in mine} == {(False, False)}
    assert {digest for *_, digest in mine} == {weights_digest(blind)}  # buffers and all
    assert all(p.grad is None and not p.requires_grad for p in blind.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(model.buffers(), done.model.buffers(), strict=True))


def test_both_networks_see_the_same_augmented_inputs():
    def build_it() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 9, 1))

    data = Data.from_arrays(torch.rand(12, 1, 5, 5), torch.rand(12))
    task, recipe = Watching(), Recipe(epochs=1, lr=0.01, batch_size=5, crop=2, flip=True)
    original = fit(build_it(), TASK, data, recipe)
    unlearn(BLIND(epochs=2), original, task, **parts(5, data), recipe=recipe, new_model=build_it)
    pairs = [(a, b) for a, b in zip(task.runs, task.runs[1:], strict=False) if a[3] and b[3] and a[1] and not b[1]]
    assert len(pairs) == 6
    for (*_, all_inputs, _), (*_, forget_inputs, _) in pairs:
        assert torch.equal(all_inputs[: len(forget_inputs)], forget_inputs)


# The steps.


def test_equals_a_loop_written_by_hand(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, sets = reads(monkeypatch, BLIND), parts()
    method = BLIND(epochs=2, blindspot_epochs=3, blindspot_lr=0.05, lr=0.01, batch_size=10, weight_decay=1e-3)
    done = unlearn(method, model, TASK, **sets, recipe=RECIPE, new_model=net, seed=2)
    assert done.log["taps"] == ["0", "3"]
    own = named_seed("blindspot", 2)
    recipe = replace(RECIPE, epochs=3, lr=0.05)
    start = fresh(model, new_model=net, seed=own)
    blind = fit(start, TASK, sets["retain"], recipe, seed=own)
    student = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01, weight_decay=1e-3)
    gone, taught = set(sets["forget"].ids), seen[0]
    assert len(taught) == 2  # the two samples that tell the blocks
    rest = iter(seen[1 + 3 * 4 :])  # 28 samples that stay in batches of 8, the last of 4, for three epochs
    sizes: list[int] = []
    while (ids := next(rest, None)) is not None:
        while len(ids) < (7 if sum(sizes) in (30, 67) else 10):
            ids = [*ids, *next(rest)]
        sizes.append(len(ids))
        x, y = samples(DATA, ids)
        hidden = student[0](x)
        second = student[3](student[2](student[1](hidden)))
        out = student[5](student[4](second))[:, 0]
        total = torch.zeros((), dtype=D)
        apart = [torch.zeros((), dtype=D), torch.zeros((), dtype=D)]
        count = sum(i in gone for i in ids)
        for row, sample in enumerate(ids):
            if sample not in gone:
                total = total + (out[row] - y[row, 0]).abs()
                continue
            with torch.no_grad():
                a = blind[0](x[row : row + 1])
                b = blind[3](blind[2](blind[1](a)))
                want = blind[5](blind[4](b))[0, 0]
            total = total + (out[row] - want).abs()
            for k, (mine, other) in enumerate([(hidden[row], a[0]), (second[row], b[0])]):
                gap = mine**2 / (mine**2).norm() - other**2 / (other**2).norm()
                apart[k] = apart[k] + (gap**2).sum() / (count * len(gap))
        loss = total / len(ids) + count / len(ids) * 50 * (apart[0] + apart[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sizes == [10, 10, 10, 7] * 2
    assert done.log["steps"] == 8
    assert close(done.model, student)


def test_sample_weights_multiply_the_loss_of_what_stays(model: nn.Module):
    data = values(weight=torch.linspace(0.5, 3.0, 37))
    task = Regression("squared")
    done = unlearn(BLIND(epochs=1, batch_size=64), net(), task, **parts(9, data), recipe=RECIPE, new_model=other_net)
    bare = unlearn(BLIND(epochs=1, batch_size=64), net(), task, **parts(), recipe=RECIPE, new_model=other_net)
    assert done.log["loss"] != bare.log["loss"]


def other_net() -> nn.Sequential:
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)
    ).double()


def test_one_bar_counts_the_training_of_the_blindspot_network_too(model: nn.Module):
    said: list[Progress] = []
    given = {"recipe": RECIPE, "new_model": net, "runtime": Runtime(progress=said.append, device="cpu")}
    unlearn(BLIND(epochs=2, blindspot_epochs=3), model, TASK, **parts(), **given)
    assert {now.what for now in said} == {"unlearning by blindspot"}
    done = [now.done for now in said]
    assert done == sorted(done)
    assert (done[-1], said[0].total) == (2 * 37 + 3 * 28, 2 * 37 + 3 * 28)


def test_without_its_factory_the_network_starts_from_a_seed_of_its_own(model: nn.Module):
    found = []

    def kept(*given: object, seed: int = 0, **more: object) -> nn.Module:
        found.append(seed)
        return fresh(*given, seed=seed, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.method.fresh", kept)
        unlearn(BLIND(epochs=1), model, TASK, **parts(), recipe=RECIPE, seed=5)
    assert found == [named_seed("blindspot", 5)]


def test_it_nears_what_the_blindspot_network_says_and_keeps_the_rest():
    data = values(120)
    order = data.targets()[:, 0].argsort(descending=True).tolist()
    gone = [data.ids[i] for i in order[:24]]  # the largest targets
    sets = {"forget": data.subset(gone), "retain": data.without(gone)}
    recipe = Recipe(epochs=40, lr=0.02, batch_size=16)
    first = fit(net(), TASK, data, recipe)
    again = fit(fresh(first, new_model=net, seed=8), TASK, sets["retain"], recipe, seed=8)
    method = BLIND(epochs=25, blindspot_epochs=30, lr=5e-3, attention=1.0, batch_size=16)
    done = unlearn(method, first, TASK, **sets, recipe=recipe, new_model=net)
    (x, _), (rest, y) = (samples(data, sets[name].ids) for name in ("forget", "retain"))
    with torch.no_grad():
        far, near = ((m(x) - again(x)).abs().mean() for m in (first, done.model))
        assert near < 0.7 * far
        assert (done.model(rest) - y).abs().mean() < 0.3 * y.abs().mean()


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_one_sample_work(size: int, model: nn.Module):
    done = unlearn(BLIND(epochs=1, batch_size=size), model, TASK, **parts(), recipe=RECIPE, new_model=net)
    assert done.changed.count > 0
    sets = {"forget": DATA.subset(DATA.ids[:1]), "retain": DATA.without(DATA.ids[:1])}
    assert unlearn(BLIND(epochs=1), model, TASK, **sets, recipe=RECIPE, new_model=net).changed.count > 0


def test_labels_of_the_forget_set_are_not_asked_for(model: nn.Module):
    sets, given = parts(), {"recipe": RECIPE, "new_model": net}
    bare = sets | {"forget": sets["forget"].unlabelled()}
    one, other = (unlearn(BLIND(), model, TASK, **named, **given) for named in (sets, bare))
    assert weights_digest(one.model) == weights_digest(other.model) != weights_digest(model)
    assert BLIND().unlearns.forget == See.INPUTS
    with pytest.raises(MissingNeed, match="labels for blindspot"):
        unlearn(BLIND(), model, TASK, **{**sets, "retain": sets["retain"].unlabelled()}, **given)
    with pytest.raises(MissingNeed, match="holdout for blindspot"):
        unlearn(BLIND(keep_best=True), model, TASK, **sets, **given)


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_the_published_maps_lose_vectors(compat: str, model: nn.Module):
    given = {"recipe": RECIPE, "new_model": net}
    strong, weak = (
        unlearn(BLIND(epochs=1, compat=compat, attention=a), model, TASK, **parts(), **given) for a in (50.0, 0.0)
    )
    assert close(strong.model, weak.model) is (compat == "official")


# How the blindspot network is trained.


def test_it_is_trained_as_the_recipe_says_in_fewer_epochs():
    given = Recipe(epochs=20, lr=0.3, warmup=5, schedule="multistep", milestones=(10, 16), patience=3, crop=2)
    found = BLIND(blindspot_epochs=4, batch_size=2).teaching(given)
    assert (found.epochs, found.lr, found.warmup, found.milestones) == (4, 0.3, 1.0, (2.0, 3.2))
    assert (found.patience, found.crop, found.batch_size) == (None, 2, given.batch_size)
    assert BLIND(blindspot_lr=0.1).teaching(given).lr == 0.1
    assert BLIND().teaching(replace(given, epochs=0, warmup=0.0)).epochs == 2


def test_without_a_recipe_it_is_trained_by_adam():
    found = BLIND(blindspot_epochs=3).teaching(None)
    assert (found.epochs, found.lr, found.optimizer, found.weight_decay) == (3, 1e-2, "adamw", 0.0)
    assert (found.schedule, found.batch_size) == ("constant", 64)
    model, own = net(), named_seed("blindspot", 0)
    sets = parts()
    done = unlearn(BLIND(epochs=1, batch_size=64), model, TASK, **sets, new_model=other_net)
    slow = fresh(model, new_model=other_net, seed=own).train()
    assert done.log["steps"] == 1
    optimizer = torch.optim.Adam(slow.parameters(), lr=1e-2)
    x, y = samples(DATA, sets["retain"].ids)
    for _ in range(2):  # one batch holds all of it
        optimizer.zero_grad()
        (slow(x) - y).abs().mean().backward()
        optimizer.step()
    gone, _ = samples(DATA, sets["forget"].ids)
    student = model.train()
    with torch.no_grad():
        out, far = student(torch.cat([gone, x]))[:9], slow.eval()(gone)
    again = unlearn(BLIND(epochs=1, batch_size=64, attention=0.0), net(), TASK, **sets, new_model=other_net)
    with torch.no_grad():
        near = (student(torch.cat([gone, x]))[9:] - y).abs().sum()
    want = ((out - far).abs().sum() + near) / 37
    assert again.log["loss"] == [[1, pytest.approx(float(want), abs=1e-9)]]


# What is tapped.


class Listed(nn.Module):
    """Blocks in a list, embeddings before them, normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.word(x.abs().long().clamp(max=8))
        for block in self.blocks:
            y = self.norm(torch.tanh(block(y)))
        return self.head(y.mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.lstm, self.head = nn.LSTM(1, 5, batch_first=batch_first), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2)
        said, _ = self.lstm(x if self.first else x.transpose(0, 1))
        return self.head(said[:, -1] if self.first else said[-1])


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Identity() if head is None else head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


VECTOR = lambda: torch.randn(2, 4)  # noqa: E731
SERIES = lambda: torch.randn(2, 6, 2)  # noqa: E731
IMAGE = lambda: torch.randn(2, 1, 8, 8)  # noqa: E731
BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, int | None]]] = {
    "flat": (lambda: net().float(), VECTOR, {"0": None, "3": None}),
    "mlp": (lambda: MLP((4,), 1), VECTOR, {"body.1": None, "body.3": None}),
    "convnet": (lambda: ConvNet((1, 8, 8), 1), IMAGE, {"body.0": 1, "body.3": 1, "body.6": 1}),
    "resnet18": (
        lambda: ResNet18((1, 8, 8), 1),
        IMAGE,
        {"stem": 1} | {f"stages.{i}": 1 for i in range(8)},
    ),
    "listed": (Listed, VECTOR, {f"blocks.{i}": 2 for i in range(3)}),
    "lstm": (lambda: Recurrent(True), VECTOR, {"lstm": 2}),
    "time first": (lambda: Recurrent(False), VECTOR, {}),
    "wrapped": (lambda: Wrapped(net().float()), VECTOR, {"inner.0": None, "inner.3": None}),
    "wrapped list": (lambda: Wrapped(Wrapped(Listed())), VECTOR, {f"inner.inner.blocks.{i}": 2 for i in range(3)}),
    "backbone": (
        lambda: Wrapped(nn.Sequential(*list(net().float())[:4]), nn.Linear(5, 1)),
        VECTOR,
        {"inner.0": None, "inner.3": None},
    ),
    "one hidden layer": (lambda: plain().float(), VECTOR, {"0": None}),
    "linear": (lambda: nn.Linear(4, 1), VECTOR, {}),
    "convnet4": (lambda: ConvNet4((1, 8, 8), 1), IMAGE, {f"block{i}": 1 for i in range(1, 5)}),
    "linear forecast": (lambda: LinearForecast(Window(6, 2), (3, 2)), SERIES, {}),
    "lstm forecast": (lambda: LSTMForecast(Window(6, 2), (3, 2)), SERIES, {"lstm": 2}),
    "several outputs": (lambda: net(3).float(), VECTOR, {"0": None, "3": None}),
    "convolution of series": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(9, 1)),
        VECTOR,
        {"1": 1},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found(name: str):
    make, inputs, want = BLOCKS[name]
    torch.manual_seed(0)
    probe = Probe(make().eval(), TASK, Batch(inputs(), None, None, torch.arange(2)))
    names = probe.found()
    assert {n: probe.channel(n) for n in names} == want
    assert [tap.name for tap in probe.taps(names)] == list(want)


def test_a_network_without_blocks_is_followed_by_its_outputs_alone():
    start, other = (nn.Linear(4, 1, dtype=D) for _ in range(2))
    done = unlearn(BLIND(epochs=1), start, TASK, **parts(), recipe=RECIPE, new_model=lambda: other)
    assert done.log["taps"] == []
    assert "no block to compare but the one that gives its outputs" in done.note


@pytest.mark.parametrize(
    ("taps", "text"),
    [
        (("0", "9"), r"blindspot.taps among 0, 1, 2, 3, 4, got '9' \(no such module\): name others"),
        (("5",), r"got '5' \(no output \(B, ...\) of two numbers a sample or more\)"),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 50.0])
def test_taps_that_are_not_there_are_refused_with_those_that_are(
    taps: tuple[str, ...], text: str, strength: float, model: nn.Module
):
    task = Watching()
    with pytest.raises(UserError, match=text):
        unlearn(BLIND(taps=taps, attention=strength), model, task, **parts(), recipe=RECIPE, new_model=net)
    assert len(task.runs) == 1  # before anything is trained


def test_a_tap_with_time_in_front_is_refused():
    torch.manual_seed(0)
    with pytest.raises(UserError, match="blindspot.taps among none: this network has no output to tap, got 'lstm'"):
        unlearn(BLIND(taps=("lstm",)), Recurrent(False).double(), TASK, **parts(), recipe=RECIPE)


def test_named_taps_are_taken_and_survive_a_file():
    method = build({"name": "blindspot", "taps": ["3"], "epochs": 1})
    assert method == BLIND(taps=("3",), epochs=1) == build(method.settings())
    done = unlearn(method, net(), TASK, **parts(), recipe=RECIPE, new_model=other_net)
    assert done.log["taps"] == ["3"]


# Tasks, and what is refused.


@pytest.mark.parametrize("task", [Classification(), Binary(), MultiLabel()])
def test_tasks_without_real_targets_are_declined(task: Task, model: nn.Module):
    assert "by their distance, and this task's targets are no real numbers" in BLIND().declines(
        task, forget_random(DATA, 5), model
    )
    with pytest.raises(Declined, match="follows another network's predictions"):
        unlearn(BLIND(), model, task, **parts(), recipe=RECIPE, new_model=net)


def test_quantiles_and_vectors_are_followed():
    task, start = Quantile((0.1, 0.5, 0.9)), net(3)
    flat = Data.from_arrays(DATA.read(range(37)).inputs, DATA.targets()[:, 0])
    first = fit(start, task, flat, RECIPE)
    done = unlearn(BLIND(epochs=1), first, task, **parts(9, flat), recipe=RECIPE, new_model=lambda: net(3))
    assert done.changed.count > 0
    wide = values(outputs=3)
    vectors = fit(net(3), Regression(), wide, RECIPE)
    assert unlearn(BLIND(epochs=1), vectors, Regression(), **parts(9, wide), recipe=RECIPE).changed.count > 0


@pytest.mark.parametrize(
    ("task", "distance", "want"),
    [
        (Regression("absolute"), None, [1.5, 0.0]),
        (Regression("squared"), None, [2.5, 0.0]),
        (Regression("squared"), "absolute", [1.5, 0.0]),
        (Regression("absolute"), "squared", [2.5, 0.0]),
        (Quantile((0.1, 0.9)), None, [1.5, 0.0]),
    ],
)
def test_distances_are_the_tasks_own_error_unless_another_is_asked_for(task: Task, distance: str | None, want: object):
    one, other = f64([[3, 1], [0, 0]]), f64([[1, 2], [0, 0]])
    assert BLIND(distance=distance).gaps(task, one, other).tolist() == want


def test_divergence_names_the_rate_to_lower(model: nn.Module):
    given = {**parts(), "recipe": RECIPE, "new_model": net}
    with pytest.raises(NotFinite, match=r"step \d+: lower blindspot.lr \(now 1e"):
        unlearn(BLIND(epochs=9, lr=1e200, optimizer="sgd"), model, TASK, **given)
    with pytest.raises(NotFinite, match=r"of the blindspot network.*lower blindspot.blindspot_lr \(now 1e"):
        unlearn(BLIND(blindspot_epochs=9, blindspot_lr=1e200), model, Regression(), **given)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "blindspot.epochs of 1 or more"),
        ({"blindspot_epochs": 0}, "blindspot.blindspot_epochs of 1 or more"),
        ({"blindspot_lr": 0.0}, "blindspot.blindspot_lr above 0"),
        ({"attention": -1.0}, "blindspot.attention of 0 or more"),
        ({"distance": "cosine"}, "blindspot.distance absolute or squared"),
        ({"compat": "both"}, "blindspot.compat paper or official"),
        ({"taps": "layer1"}, "blindspot.taps as a tuple of module names"),
        ({"taps": ()}, "blindspot.taps as a tuple of module names"),
        ({"taps": (1,)}, "blindspot.taps as a tuple of module names"),
        ({"taps": ("a", "a")}, "blindspot.taps that differ"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], text: str):
    with pytest.raises(UserError, match=text):
        BLIND(**settings)


# Under a mask, and in a file of settings.


def test_masked_weights_stay_where_they_are():
    start = net()
    method = build({"name": "salun", "method": {"name": "blindspot", "epochs": 2, "lr": 0.01}, "density": 0.5})
    done = unlearn(method, start, TASK, **parts(), recipe=RECIPE, new_model=other_net)
    assert done.log["may_move"] == sum(p.numel() for p in start.parameters()) // 2
    assert 0 < done.changed.count <= done.log["may_move"] + 12  # BatchNorm's statistics are no parameters
