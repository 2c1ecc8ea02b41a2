import copy
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge import checkpoints, identity, tensors, train
from expunge.data import Data
from expunge.errors import CorruptArtefact, NotFinite, UserError
from expunge.files import canonical
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.train import Recipe, augment, batch_orders, fit, fresh, share

D = torch.float64
TASK = Classification()
QUIET = Runtime(progress=False)
STEP = Recipe(epochs=1, batch_size=100, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")


def blobs(n=20, seed=0, flip=False, **options):
    torch.manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, dtype=D) + 2 * torch.eye(4, dtype=D)[y]
    return Data.from_arrays(x, (y + 1) % 3 if flip else y, **options)


def network(seed=0):
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(inner, nn.Linear(6, 3)).to(D)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, 3).to(D)


def same(a, b):
    return tensors.weights_digest(a) == tensors.weights_digest(b)


def gradients(model, data):
    """Return the gradient of the mean loss, by autograd on a copy of its parameters."""
    batch = data.read(range(len(data)))
    loss = F.cross_entropy(model(batch.inputs), batch.target)
    return torch.autograd.grad(loss, list(model.parameters()))


class Stop:
    """A progress callback that interrupts after some calls and counts samples."""

    def __init__(self, calls=10**9):
        self.calls, self.samples = calls, 0

    def __call__(self, progress):
        self.calls -= 1
        self.samples = progress.done
        if self.calls == 0:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Ridge:
    scale: float

    def __call__(self, model, batch, outputs, losses):
        return self.scale * sum(p.square().sum() for p in model.parameters())


def test_one_sgd_step_by_hand():
    model, data = linear(), blobs()
    found = fit(model, TASK, data, replace(STEP, weight_decay=0.3), runtime=QUIET)
    for before, after, g in zip(model.parameters(), found.parameters(), gradients(model, data), strict=True):
        assert torch.allclose(after, before - 0.1 * (g + 0.3 * before), rtol=0, atol=1e-12)


def test_one_adamw_step_by_hand():
    model, data = linear(), blobs()
    found = fit(model, TASK, data, replace(STEP, optimizer="adamw", weight_decay=0.3), runtime=QUIET)
    for before, after, g in zip(model.parameters(), found.parameters(), gradients(model, data), strict=True):
        want = before * (1 - 0.1 * 0.3) - 0.1 * g / (g.abs() + 1e-8)
        assert torch.allclose(after, want, rtol=0, atol=1e-12)


def test_momentum_carries_the_first_step_into_the_second():
    model, data = linear(), blobs()
    first = fit(model, TASK, data, STEP, runtime=QUIET)
    second = fit(model, TASK, data, replace(STEP, epochs=2, momentum=0.9), runtime=QUIET)
    both = zip(first.parameters(), second.parameters(), gradients(model, data), gradients(first, data), strict=True)
    for before, after, old, new in both:
        assert torch.allclose(after, before - 0.1 * (0.9 * old + new), rtol=0, atol=1e-12)


def test_clip_bounds_the_length_of_a_step():
    model, data = linear(), blobs()
    found = fit(model, TASK, data, replace(STEP, clip=0.01), runtime=QUIET)
    moved = [(b - a).detach() for a, b in zip(model.parameters(), found.parameters(), strict=True)]
    assert math.sqrt(sum(float(m.square().sum()) for m in moved)) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_penalties_are_added_to_the_loss():
    model, data = linear(), blobs()
    plain = fit(model, TASK, data, STEP, runtime=QUIET)
    found = fit(model, TASK, data, replace(STEP, penalties=(Ridge(0.2), Ridge(0.05))), runtime=QUIET)
    for before, without, after in zip(model.parameters(), plain.parameters(), found.parameters(), strict=True):
        assert torch.allclose(after, without - 0.1 * 2 * 0.25 * before, rtol=0, atol=1e-12)


def test_a_weight_of_zero_leaves_a_sample_out_up_to_the_denominator():
    data = blobs(8, weight=[1, 1, 0, 1, 1, 1, 1, 1])
    found = fit(linear(), TASK, data, STEP, runtime=QUIET)
    fewer = blobs(8).without(["train/2"])
    want = fit(linear(), TASK, fewer, replace(STEP, lr=0.1 * 7 / 8), runtime=QUIET)
    for a, b in zip(found.parameters(), want.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    ones = fit(linear(), TASK, blobs(8, weight=torch.ones(8)), STEP, runtime=QUIET)
    assert same(ones, fit(linear(), TASK, blobs(8), STEP, runtime=QUIET))


def test_training_learns():
    found = fit(network(), TASK, blobs(60), Recipe(epochs=20, batch_size=16, lr=0.1), runtime=QUIET)
    batch = blobs(60).read(range(60))
    assert float((found(batch.inputs).argmax(1) == batch.target).double().mean()) > 0.8
    x = torch.randn(40, 4, dtype=D)
    line = Data.from_arrays(x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=D) + 3)
    model = fit(nn.Linear(4, 1).to(D), Regression(), line, Recipe(epochs=150, lr=0.1, weight_decay=0.0), runtime=QUIET)
    assert model.weight[0].tolist() == pytest.approx([1, -2, 0.5, 0], abs=0.02)


def test_one_seed_gives_the_same_bits_and_another_does_not():
    recipe = Recipe(epochs=2, batch_size=6)
    runs = [fit(network(), TASK, blobs(), recipe, runtime=QUIET, seed=s) for s in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@dataclass(frozen=True)
class Spy:
    seen: list

    def __call__(self, model, batch, outputs, losses):
        self.seen.extend(batch.index.tolist())
        return 0.0


def test_each_epoch_has_its_own_order_of_every_sample():
    spy = Spy([])
    fit(linear(), TASK, blobs(), Recipe(epochs=2, batch_size=6, penalties=(spy,)), runtime=QUIET)
    first, second = spy.seen[:20], spy.seen[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != sorted(first)


def test_the_callers_model_and_generators_are_left_as_found():
    model, data = network().train(), blobs()
    model[0][1].eval()
    before, modes = tensors.weights_digest(model), [m.training for m in model.modules()]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    want = float(torch.rand(1)), float(np.random.rand()), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    found = fit(model, TASK, data, Recipe(epochs=1), runtime=QUIET)
    assert (float(torch.rand(1)), float(np.random.rand()), random.random()) == want
    assert tensors.weights_digest(model) == before
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training for m in found.modules())
    assert found[0][1].num_batches_tracked == 1


def test_generators_are_left_as_found_by_an_interrupted_training():
    model, data = linear(), blobs()
    torch.manual_seed(3)
    want = float(torch.rand(1))
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        fit(model, TASK, data, STEP, runtime=Runtime(progress=Stop(1)))
    assert float(torch.rand(1)) == want


def test_frozen_stay_and_tied_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)).to(D)
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    found = fit(model, TASK, blobs(), Recipe(epochs=1), runtime=QUIET)
    assert found[0].weight is found[1].weight
    assert not torch.equal(found[0].weight, model[0].weight)
    assert torch.equal(found[2].bias, model[2].bias)
    assert not found[2].bias.requires_grad


RESUMED = {
    "sgd": Recipe(epochs=5, batch_size=6, lr=0.05, warmup=1.5),
    "adamw": Recipe(epochs=5, batch_size=6, lr=0.01, optimizer="adamw"),
    "no_momentum": Recipe(epochs=5, batch_size=6, momentum=0.0),
    "patience": Recipe(epochs=5, batch_size=6, lr=0.02, schedule="constant", patience=2),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("calls", [2, 10])  # in the first epoch, in the third
def test_an_interrupted_training_resumes_and_ends_with_the_same_bits(tmp_path, name, calls):
    recipe, data = RESUMED[name], blobs()
    holdout = blobs(9, seed=5, flip=name == "patience", name="holdout")
    options = {"holdout": holdout, "seed": 4}
    whole = Stop()
    want = fit(network(), TASK, data, recipe, runtime=Runtime(progress=whole), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(),
            TASK,
            data,
            recipe,
            runtime=Runtime(progress=Stop(calls), workdir=tmp_path, checkpoint_every=0),
            **options,
        )
    done = (calls - 1) // 4  # four steps an epoch of 20
    assert len(list(tmp_path.iterdir())) == (done > 0)
    rest = Stop()
    found = fit(
        network(), TASK, data, recipe, runtime=Runtime(progress=rest, workdir=tmp_path, checkpoint_every=0), **options
    )
    assert rest.samples == whole.samples - 20 * done  # resumed, not begun again
    assert same(found, want)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_after_the_last_epoch_trains_no_further(tmp_path, monkeypatch):
    recipe, options = RESUMED["patience"], {"holdout": blobs(9, seed=5, flip=True, name="holdout")}
    want = fit(network(), TASK, blobs(), recipe, runtime=QUIET, **options)
    run = Runtime(progress=False, workdir=tmp_path, checkpoint_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "clear", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(network(), TASK, blobs(), recipe, runtime=run, **options)
    rest = Stop()
    assert same(fit(network(), TASK, blobs(), recipe, runtime=replace(run, progress=rest), **options), want)
    assert rest.samples == 0


def test_a_short_training_neither_writes_nor_reads_its_data_for_a_name(tmp_path, monkeypatch):
    def never(data):
        raise AssertionError("fingerprints of all data")

    monkeypatch.setattr(checkpoints, "content", never)
    monkeypatch.setattr(checkpoints, "_write", never)
    found = fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=Runtime(progress=False, workdir=tmp_path / "work"))
    assert same(found, fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=QUIET))
    assert not (tmp_path / "work").exists()


def test_checkpoints_are_written_when_so_many_seconds_have_passed(tmp_path, monkeypatch):
    clock, written, write = [100.0], [], checkpoints._write

    def kept(path, model, optimizer, now):
        written.append(now.epoch)
        write(path, model, optimizer, now)

    class Slow:
        def __call__(self, progress):
            clock[0] += 2.0  # an epoch of four steps takes 8 seconds

    monkeypatch.setattr(checkpoints, "_write", kept)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    run = Runtime(progress=Slow(), workdir=tmp_path, checkpoint_every=15)
    found = fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=run)
    assert written == [2, 4]
    assert same(found, fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=QUIET))
    assert list(tmp_path.iterdir()) == []


def changed(edit):
    model = network()
    edit(model)
    return model


def corrected(at):
    data = blobs(600)
    y = data.targets()
    y[at] = (y[at] + 1) % 3
    return Data.from_arrays(data.read(range(600)).inputs, y)


OTHERS = {
    "dropout": lambda o: o | {"model": changed(lambda m: setattr(m[0][3], "p", 0.5))},
    "activation": lambda o: o | {"model": changed(lambda m: m[0].__setitem__(2, nn.Tanh()))},
    "frozen": lambda o: o | {"model": changed(lambda m: m[0][0].requires_grad_(False))},
    "seed": lambda o: o | {"seed": 1},
    "recipe": lambda o: o | {"recipe": replace(o["recipe"], lr=0.03)},
    "penalty": lambda o: o | {"recipe": replace(o["recipe"], penalties=(Ridge(0.1),))},
    "model": lambda o: o | {"model": network(1)},
    "data": lambda o: o | {"data": blobs(seed=1)},
    "labels": lambda o: o | {"data": blobs(flip=True)},
    "weights": lambda o: o | {"data": blobs(weight=torch.linspace(0, 1, 20))},
    "holdout": lambda o: o | {"holdout": blobs(9, seed=5, name="holdout")},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_training_does_not_take_over_the_checkpoint(tmp_path, what):
    options = {"model": network(), "task": TASK, "data": blobs(), "recipe": RESUMED["patience"], "seed": 0}
    options |= {"holdout": blobs(9, seed=5, flip=True, name="holdout")}
    with pytest.raises(KeyboardInterrupt):
        fit(**options, runtime=Runtime(progress=Stop(10), workdir=tmp_path, checkpoint_every=0))
    other = OTHERS[what](options)
    found = fit(**other, runtime=Runtime(progress=False, workdir=tmp_path, checkpoint_every=0))
    assert same(found, fit(**other, runtime=QUIET))
    assert len(list(tmp_path.iterdir())) == 1  # the first one's is kept


def test_one_label_that_was_corrected_begins_again(tmp_path):
    options = {"model": network(), "task": TASK, "recipe": replace(RESUMED["sgd"], batch_size=100)}
    with pytest.raises(KeyboardInterrupt):
        fit(**options, data=corrected(3), runtime=Runtime(progress=Stop(10), workdir=tmp_path, checkpoint_every=0))
    found = fit(**options, data=corrected(1), runtime=Runtime(progress=False, workdir=tmp_path, checkpoint_every=0))
    assert same(found, fit(**options, data=corrected(1), runtime=QUIET))


def test_another_precision_begins_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(),
            TASK,
            blobs(),
            RESUMED["sgd"],
            runtime=Runtime(progress=Stop(10), workdir=tmp_path, checkpoint_every=0),
        )
    heard = Stop()
    fit(
        network(),
        TASK,
        blobs(),
        RESUMED["sgd"],
        runtime=Runtime(progress=heard, workdir=tmp_path, checkpoint_every=0, precision="bf16"),
    )
    assert heard.samples == 100


class Worded(Classification):
    """A task that is no dataclass of its own, with settings and without a repr."""

    def __init__(self, scale):
        object.__setattr__(self, "scale", scale)

    def __repr__(self):
        return object.__repr__(self)  # with its address

    def loss(self, outputs, target):
        return super().loss(outputs, target) * self.scale


@pytest.mark.parametrize(("scale", "heard"), [(0.5, 60), (0.25, 100)])
def test_a_task_is_known_by_its_settings_not_by_its_address(tmp_path, scale, heard):
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(),
            Worded(0.5),
            blobs(),
            RESUMED["sgd"],
            runtime=Runtime(progress=Stop(10), workdir=tmp_path, checkpoint_every=0),
        )
    rest = Stop()
    fit(
        network(),
        Worded(scale),
        blobs(),
        RESUMED["sgd"],
        runtime=Runtime(progress=rest, workdir=tmp_path, checkpoint_every=0),
    )
    assert rest.samples == heard


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (Ridge(0.1), Ridge(0.2)),
        (Slotted(1), Slotted(2)),
        ({"a": Worded(1)}, {"a": Worded(2)}),
        ([1.0, None], [1.0, 0]),
        (math.nan, math.inf),
        ({1, 2}, {1, 3}),
        (torch.ones(2), torch.zeros(2)),
        (np.ones(2), np.zeros(2)),
        (linear(0), linear(1)),
        (F.relu, F.gelu),
        (Worded(Ridge(1)), Worded(Ridge(2))),
    ],
    ids=lambda v: type(v).__name__,
)
def test_settings_are_told_apart_and_have_no_address(value, other):
    told = identity.described(value)
    assert told == identity.described(copy.deepcopy(value))
    assert told != identity.described(other)
    assert " at 0x" not in canonical(told)


def test_a_damaged_checkpoint_is_named(tmp_path):
    run = Runtime(progress=Stop(10), workdir=tmp_path, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=run)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptArtefact, match=path.name):
        fit(network(), TASK, blobs(), RESUMED["sgd"], runtime=replace(run, progress=False))


def test_patience_stops_and_restores_the_best_epoch():
    recipe = Recipe(epochs=50, batch_size=6, lr=0.05, schedule="constant", patience=3)
    heard = Stop()
    against = blobs(9, seed=5, flip=True, name="holdout")  # the better the training, the worse there
    found = fit(linear(), TASK, blobs(), recipe, holdout=against, runtime=Runtime(progress=heard))
    assert heard.samples == 20 * 4  # the first epoch, and three without a lower loss
    best = fit(linear(), TASK, blobs(), replace(recipe, epochs=1, patience=None), runtime=QUIET)
    assert same(found, best)


def test_mean_loss_is_over_samples_not_batches():
    model, data = linear(), blobs(7)
    batch = data.read(range(7))
    want = F.cross_entropy(model(batch.inputs), batch.target).item()
    assert train.mean_loss(model, TASK, data, Runtime(batch_size=3)) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (5, 4, [5]), (3, 1, [1, 2])],
)
def test_a_last_batch_of_one_joins_its_neighbour(n, size, sizes):
    order = torch.randperm(n)
    found = list(batch_orders(size, order))
    assert [len(at) for at in found] == sizes
    assert np.concatenate(found).tolist() == order.tolist()


def test_batchnorm_survives_a_last_batch_of_one():
    trained = fit(network(), TASK, blobs(13), Recipe(epochs=1, batch_size=4), runtime=QUIET)
    assert all(bool(torch.isfinite(p).all()) for p in trained.parameters())


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({"schedule": "constant"}, {0: 0.1, 9.5: 0.1}),
        ({"schedule": "constant", "warmup": 2}, {0: 0.0, 0.5: 0.025, 1: 0.05, 2: 0.1, 9: 0.1}),
        ({"schedule": "cosine"}, {0: 0.1, 2.5: 0.1 * (1 + math.sqrt(0.5)) / 2, 5: 0.05, 10: 0.0}),
        ({"schedule": "cosine", "warmup": 2}, {1: 0.05, 2: 0.1, 6: 0.05, 10: 0.0, 11: 0.0}),
        ({"schedule": "linear"}, {0: 0.1, 4: 0.06, 10: 0.0, 12: 0.0}),
        ({"schedule": "linear", "warmup": 0.5}, {0.25: 0.05, 0.5: 0.1, 5.25: 0.05}),
        ({"schedule": "multistep", "milestones": (3, 6)}, {2: 0.1, 3: 0.02, 5: 0.02, 6: 0.004, 9: 0.004}),
        ({"schedule": "multistep", "milestones": (4,), "gamma": 0.5, "warmup": 1}, {0.5: 0.05, 3: 0.1, 4: 0.05}),
    ],
)
def test_rates_at_points_computed_by_hand(fields, points):
    recipe = Recipe(epochs=10, lr=0.1, **fields)
    assert {e: recipe.rate(e) for e in points} == pytest.approx(points, abs=1e-15)


def test_rates_reach_the_optimizer_step_by_step_in_warm_up_and_epoch_by_epoch_after(monkeypatch):
    seen, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (seen.append(self.param_groups[0]["lr"]), step(self))[1])
    recipe = Recipe(epochs=3, batch_size=5, lr=0.1, schedule="linear", warmup=1)
    fit(linear(), TASK, blobs(10), recipe, runtime=QUIET)
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0}, r"Recipe\.lr above 0, got 0"),
        ({"lr": math.nan}, r"Recipe\.lr above 0, got nan"),
        ({"batch_size": 0}, r"Recipe\.batch_size above 0"),
        ({"epochs": -1}, r"Recipe\.epochs of 0 or more, got -1"),
        ({"momentum": -0.1}, r"Recipe\.momentum of 0 or more"),
        ({"weight_decay": math.inf}, r"Recipe\.weight_decay of 0 or more, got inf"),
        ({"clip": 0}, r"Recipe\.clip above 0"),
        ({"patience": 0}, r"Recipe\.patience above 0"),
        ({"optimizer": "adam"}, r"Recipe\.optimizer 'sgd' or 'adamw', got 'adam'"),
        ({"schedule": "step"}, "Recipe.schedule constant, cosine, linear or multistep, got 'step'"),
        ({"epochs": "3"}, r"Recipe\.epochs as a whole number, got '3': write it without quotes"),
        ({"epochs": 2.5}, r"Recipe\.epochs as a whole number, got 2\.5"),
        ({"batch_size": True}, r"Recipe\.batch_size as a whole number, got True"),
        ({"patience": "2"}, r"Recipe\.patience as a whole number, got '2'"),
        ({"lr": None}, r"Recipe\.lr as a number, got None"),
        ({"clip": [1]}, r"Recipe\.clip as a number, got \[1\]"),
        ({"flip": "yes"}, r"Recipe\.flip as True or False, got 'yes'"),
        ({"milestones": 60}, r"Recipe\.milestones as a tuple of epochs, got 60: write for example \(60, 120\)"),
        ({"milestones": ("60",)}, r"Recipe\.milestones as a tuple of epochs, got \('60',\)"),
        ({"penalties": Ridge(0.1)}, r"Recipe\.penalties as a tuple of penalties, got Ridge\(scale=0\.1\)"),
        ({"penalties": (0.1,)}, r"Recipe\.penalties as a tuple of penalties, got \(0\.1,\)"),
        ({"optimizer": None}, r"Recipe\.optimizer 'sgd' or 'adamw', got None"),
    ],
)
def test_recipes_out_of_range(fields, said):
    with pytest.raises(UserError, match=said):
        Recipe(**fields)


def test_numbers_of_numpy_and_lists_will_do():
    recipe = Recipe(epochs=np.int64(3), lr=np.float32(0.5), milestones=[1, 2.5])
    assert recipe.rate(0) == 0.5


def test_a_recipe_is_named_by_its_penalties_settings():
    body = Recipe(milestones=(2, 3), penalties=(Ridge(0.5),)).to_json()
    assert body["milestones"] == [2, 3]
    assert body["penalties"] == ["Ridge(scale=0.5)"]
    assert body["lr"] == 0.1


def test_no_epochs_return_the_same_weights_in_eval_mode():
    found = fit(network(), TASK, blobs(), Recipe(epochs=0), runtime=QUIET)
    assert same(found, network())
    assert not found.training


class Reduced(Classification):
    def loss(self, outputs, target):
        return super().loss(outputs, target).mean()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"data": blobs().subset([])}, UserError, "training data, got no sample in train"),
        ({"data": blobs().unlabelled()}, UserError, "labelled data to train on, got no targets"),
        ({"recipe": Recipe(patience=2)}, UserError, "holdout data for Recipe.patience, got none: pass holdout="),
        (
            {"recipe": Recipe(patience=2), "holdout": blobs(3).unlabelled()},
            UserError,
            "holdout data for Recipe.patience, got none with labels",
        ),
        ({"recipe": Recipe(patience=2), "holdout": blobs(3).subset([])}, UserError, "got none with labels"),
        ({"data": Data.from_arrays(torch.zeros(3, 4, dtype=D), [0, 1, 3])}, UserError, "classes 0 to 2, got class 3"),
        ({"data": Data.from_arrays(torch.zeros(3, 4, dtype=D), [0.0, 1, 2])}, UserError, "class indices as integers"),
        ({"recipe": {"epochs": 1}}, UserError, "a Recipe, got dict: write for example"),
        ({"model": linear().requires_grad_(False)}, UserError, "with trainable parameters, got frozen ones only"),
        (
            {
                "recipe": Recipe(epochs=1, patience=2),
                "holdout": Data.from_arrays(torch.zeros(3, 4, dtype=D), [0, 1, 3]),
            },
            UserError,
            "classes 0 to 2, got class 3",
        ),
        (
            {
                "recipe": Recipe(epochs=1, patience=2),
                "holdout": Data.from_arrays(torch.full((3, 4), math.nan, dtype=D), [0, 1, 2], name="holdout"),
            },
            NotFinite,
            "a finite mean loss on holdout, got nan: lower the learning rate, or check the weights and that data",
        ),
        ({"task": Reduced()}, UserError, r"a loss of shape \(B,\), one number a sample, got shape \(\)"),
        (
            {"recipe": Recipe(crop=1)},
            UserError,
            r"images \(B, C, H, W\) for Recipe.crop and flip, got inputs \(20, 4\)",
        ),
        (
            {"data": Data.from_arrays(torch.full((3, 4), math.nan, dtype=D), [0, 1, 2])},
            NotFinite,
            r"a finite training loss, got nan at step 1 in epoch 1: lower Recipe\.lr \(now 0\.1\) or check the data",
        ),
    ],
)
def test_fit_refuses(change, error, said):
    options = {"model": linear(), "task": TASK, "data": blobs(), "recipe": Recipe(epochs=1), **change}
    with pytest.raises(error, match=said):
        fit(**options, runtime=QUIET)


def images(n=400):
    return torch.arange(n * 2 * 3 * 4, dtype=D).reshape(n, 2, 3, 4) + 1


def test_a_crop_is_a_shift_over_zeros():
    x = images()
    with tensors.isolated_rng(0):
        found = augment(x, crop=1, flip=False)
    assert found.shape == x.shape
    padded = F.pad(x, [1] * 4)
    shifts = {(i, j): padded[:, :, i : i + 3, j : j + 4] for i in range(3) for j in range(3)}
    hits = {k: (found == v).flatten(1).all(1) for k, v in shifts.items()}
    assert torch.equal(torch.stack(list(hits.values())).sum(0), torch.ones(len(x), dtype=torch.long))
    assert all(20 < int(h.sum()) < 75 for h in hits.values())  # 400/9 each: rows and columns drawn apart


def test_a_flip_mirrors_half_of_the_images_left_to_right():
    x = images()
    with tensors.isolated_rng(0):
        found = augment(x, crop=0, flip=True)
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    untouched = (found == x).flatten(1).all(1)
    assert torch.equal(mirrored, ~untouched)
    assert 160 < int(mirrored.sum()) < 240


def test_no_augmentation_is_no_change():
    x = images(2)
    assert torch.equal(augment(x, crop=0, flip=False), x)


def test_augmentation_is_seeded_and_changes_the_training():
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).to(D)
    data = Data.from_arrays(images(9) / 100, torch.arange(9) % 3)
    recipes = [replace(STEP, crop=1, flip=True)] * 2 + [STEP]
    runs = [fit(model, TASK, data, r, runtime=QUIET) for r in recipes]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def trained(seed=0):
    return fit(network(seed), TASK, blobs(seed=seed), Recipe(epochs=3, batch_size=6), runtime=QUIET)


def test_fresh_draws_every_parameter_and_buffer_anew():
    model = trained()
    before = tensors.weights_digest(model)
    found = fresh(model, seed=1)
    old, new = model.state_dict(), found.state_dict()
    assert old.keys() == new.keys()
    assert [k for k in old if torch.equal(old[k], new[k])] == []
    assert [float(new[f"0.1.{k}"].double().mean()) for k in ("running_mean", "running_var", "num_batches_tracked")] == [
        0,
        1,
        0,
    ]
    assert not bool((new["0.0.weight"].abs() > 1 / math.sqrt(4)).any())
    assert found.training
    assert tensors.weights_digest(model) == before
    model[1].weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"trained in all its parts, got frozen 1.weight: pass new_model"):
        fresh(model, seed=1)


def test_fresh_depends_on_nothing_but_architecture_and_seed():
    a, b = trained(0), trained(1)
    assert not same(a, b)
    torch.manual_seed(9)
    first = fresh(a, seed=2)
    state = torch.get_rng_state()
    assert same(fresh(b, seed=2), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(fresh(a, seed=3), first)


def test_fresh_keeps_ties():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = fresh(model)
    assert found[0].weight is found[1].weight
    assert not torch.equal(found[0].weight, model[0].weight)


class Scaled(nn.Module):
    """A layer whose own tensor knows no way back."""

    def __init__(self, kind):
        super().__init__()
        self.body = nn.Linear(3, 3)
        if kind == "buffer":
            self.register_buffer("scale", torch.ones(3))
        else:
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.complex64 if kind == "complex" else torch.float32))


@pytest.mark.parametrize("kind", ["parameter", "buffer", "complex"])
def test_fresh_names_what_it_cannot_initialise(kind):
    said = r"re-initialise every weight, got no reset_parameters for 0\.scale: pass new_model, a factory"
    with pytest.raises(UserError, match=said):
        fresh(nn.Sequential(Scaled(kind)))
    made = fresh(nn.Sequential(Scaled(kind)), new_model=lambda: nn.Sequential(Scaled(kind)))
    assert torch.equal(made[0].scale.real, torch.ones(3))


class Own(Scaled):
    """Initialises itself as transformers do."""

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Own):
            nn.init.zeros_(module.scale)


def test_fresh_follows_the_models_own_initialisation():
    found = fresh(Own("parameter"))
    assert found.scale.tolist() == [0, 0, 0]
    assert found.body.bias.tolist() == [0, 0, 0]
    assert 0 < found.body.weight.abs().max().item() < 0.1


class Mixed(Own):
    """Initialises itself, and leaves the statistics of its BatchNorm to others."""

    def __init__(self):
        super().__init__("parameter")
        self.norm = nn.BatchNorm1d(3)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def test_fresh_resets_statistics_that_the_models_own_initialisation_leaves():
    model = Mixed()
    model.norm(torch.randn(5, 3))
    found = fresh(model)
    assert (int(found.norm.num_batches_tracked), found.norm.running_mean.tolist()) == (0, [0, 0, 0])


class Counts(nn.Linear):
    def __init__(self, resets):
        super().__init__(4, 3)
        self.resets = resets
        self.register_buffer("seen", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("order", torch.arange(4))

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "seen") and self.resets:
            self.seen.zero_()


def test_fresh_resets_counters_or_names_them_and_keeps_tables():
    good, bad = Counts(resets=True), Counts(resets=False)
    good.seen += 7
    found = fresh(good)
    assert (int(found.seen), found.order.tolist()) == (0, [0, 1, 2, 3])
    assert int(fresh(bad).seen) == 0
    bad.seen += 7
    with pytest.raises(UserError, match="re-initialise every weight, got no reset_parameters for seen: pass new_model"):
        fresh(bad)
    assert int(bad.seen) == 7


def test_fresh_from_a_factory_is_seeded():
    model = trained()
    made = [fresh(model, new_model=lambda: network(int(torch.randint(0, 99, ()))), seed=s) for s in (0, 0, 1)]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])
    assert made[0].training


@pytest.mark.parametrize(
    ("factory", "got"),
    [(linear, "Linear"), (lambda: nn.Sequential(nn.Linear(4, 3)), "Sequential"), (lambda: "net", "str")],
)
def test_fresh_refuses_a_factory_of_another_network(factory, got):
    with pytest.raises(UserError, match=rf"build the same network, got {got} with other names or shapes"):
        fresh(network(), new_model=factory)


@pytest.mark.parametrize(
    ("n", "count", "parts"),
    [
        (5, 1, [[0, 1, 2, 3, 4]]),
        (5, 2, [[0, 2, 4], [1, 3]]),
        (3, 2, [[0, 1, 2], []]),
        (1, 2, [[0], []]),
        (5, 4, [[0, 2, 4], [1, 3], [], []]),
        (8, 4, [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_every_process_that_works_on_a_batch_has_two_samples(n, count, parts):
    assert [share(np.arange(n), rank, count).tolist() for rank in range(count)] == parts
