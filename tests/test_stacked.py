import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cases import Tied
from expunge import tensors
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.runtime import Progress, Runtime
from expunge.stacked import fit_stacked, stackable
from expunge.task import Binary, CausalLM, Classification, Regression
from expunge.train import Recipe, fit

D = torch.float64
TASK = Classification()
QUIET = Runtime(progress=False, device="cpu")
SEEDS = (3, 11, 4)
SGD = Recipe(epochs=3, batch_size=5, lr=0.1, momentum=0.9, weight_decay=0.01)
WHERE = "train these models one by one with expunge.train.fit"


def mlp(dtype=D):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def convolutional():
    front = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(front, nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).to(D)


def dropping():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).to(D)


def several(build, count=3):
    """Return networks that differ in their weights."""
    torch.manual_seed(0)
    return [build() for _ in range(count)]


def sets(*shape, n=13, count=3, dtype=D, **options):
    """Return a set of samples for each model; 13 in batches of 5 leave 3."""
    torch.manual_seed(1)
    found = [(torch.randn(n, *shape, dtype=dtype), torch.arange(n) % 3) for _ in range(count)]
    return [Data.from_arrays(x + y.reshape(-1, *[1] * len(shape)), y, **options) for x, y in found]


def apart(models, task, data, recipe, seeds=SEEDS):
    """Return what the stack must come to, one model after the other."""
    return [fit(m, task, d, recipe, runtime=QUIET, seed=s) for m, d, s in zip(models, data, seeds, strict=True)]


def gap(found, want):
    """Return the largest difference of any number of two lists of networks; integers differ by 0 or more than 0.5."""
    pairs = [(a.state_dict(), b.state_dict()) for a, b in zip(found, want, strict=True)]
    assert all(list(a) == list(b) for a, b in pairs)
    return max(float((a[name].double() - b[name].double()).abs().max()) for a, b in pairs for name in a)


RECIPES = {
    "cosine": SGD,
    "without momentum": replace(SGD, momentum=0.0, schedule="constant"),
    "linear, warm-up": replace(SGD, schedule="linear", warmup=1.5),
    "milestones": replace(SGD, schedule="multistep", milestones=(1, 2), gamma=0.3),
    "adamw": replace(SGD, optimizer="adamw", lr=0.02, weight_decay=0.3, warmup=0.5),
    "clip": replace(SGD, clip=0.2),
    "one sample left over": replace(SGD, batch_size=4),
    "one batch": replace(SGD, batch_size=100),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize(("build", "shape"), [(mlp, (4,)), (convolutional, (2, 6, 6))], ids=["mlp", "batchnorm"])
def test_a_stack_comes_to_what_fit_comes_to_one_by_one(recipe, build, shape):
    models, data = several(build), sets(*shape)
    found = fit_stacked(models, TASK, data, recipe, seeds=SEEDS, runtime=QUIET)
    want = apart(models, TASK, data, recipe)
    assert gap(found, want) < 1e-10
    assert gap(found, models) > 0.01
    assert gap(found[:2], found[1:]) > 0.01
    assert not any(module.training for made in found for module in made.modules())


def test_running_statistics_and_counts_are_each_models_own():
    models, data = several(convolutional), sets(2, 6, 6)
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    want = apart(models, TASK, data, SGD)
    assert [int(m[0][1].num_batches_tracked) for m in found] == [9, 9, 9]
    for made, one in zip(found, want, strict=True):
        for norm, other in ((made[0][1], one[0][1]), (made[2], one[2])):
            assert torch.allclose(norm.running_mean, other.running_mean, rtol=0, atol=1e-10)
            assert torch.allclose(norm.running_var, other.running_var, rtol=0, atol=1e-10)


def test_augmentation_is_each_models_own():
    models, data = several(convolutional), sets(2, 6, 6)
    recipe = replace(SGD, crop=1, flip=True)
    found = fit_stacked(models, TASK, data, recipe, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, recipe)) < 1e-10
    assert gap(found, apart(models, TASK, data, SGD)) > 0.01


def test_a_stack_of_one_and_the_same_model_twice():
    models, data = several(mlp, 1), sets(4, count=1)
    for seeds in ([3], [3, 4]):
        k = len(seeds)
        found = fit_stacked(models * k, TASK, data * k, SGD, seeds=seeds, runtime=QUIET)
        assert gap(found, apart(models * k, TASK, data * k, SGD, seeds)) < 1e-10


def test_weights_of_samples():
    models, data = several(mlp), sets(4, weight=torch.arange(13).double())
    data[1] = sets(4)[1]  # without weights
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, SGD)) < 1e-10


def test_a_plain_average_over_batch_and_models_would_be_told():
    models, data = several(mlp), sets(4)
    slower = replace(SGD, lr=SGD.lr / len(models))
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, slower)) > 0.01


def test_tied_frozen_and_unused_weights():
    def build():
        made: Any = Tied().to(D)
        made.unused = nn.Linear(2, 2).to(D)
        made.head.bias.requires_grad_(False)
        return made

    torch.manual_seed(2)
    data = [Data.from_arrays(torch.randint(0, 5, (13, 3)), torch.arange(13) % 5) for _ in range(3)]
    models = several(build)
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, SGD)) < 1e-10
    for made, model in zip(found, models, strict=True):
        assert made.head.weight is made.embedding.weight
        assert torch.equal(made.head.bias, model.head.bias)
        assert not made.head.bias.requires_grad
        assert torch.equal(made.unused.weight, model.unused.weight)


class Keyworded(nn.Module):
    """A network of two named inputs, with a buffer that it replaces."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)
        self.register_buffer("last", torch.zeros(3, dtype=D))

    def forward(self, wide, narrow):
        found = self.a(wide) + self.b(narrow)
        if self.training:
            self.last = found.detach().mean(dim=0)
        return found


def test_inputs_by_name_and_a_buffer_that_is_replaced():
    data = [
        Data.from_arrays({"wide": d.read(range(13)).inputs, "narrow": d.read(range(13)).inputs[:, :2]}, d.targets())
        for d in sets(4)
    ]
    models = several(lambda: Keyworded().to(D))
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, SGD)) < 1e-10
    assert all(float(made.last.abs().max()) > 0 for made in found)


def test_other_tasks():
    y = torch.arange(13) % 2
    real = [Data.from_arrays(d.read(range(13)).inputs, torch.randn(13, 3, dtype=D)) for d in sets(4)]
    cases = [(Regression(), mlp, real)]
    single = [Data.from_arrays(d.read(range(13)).inputs, y) for d in sets(4)]
    cases.append((Binary(), lambda: nn.Linear(4, 1).to(D), single))
    tokens = [Data.from_arrays(t, t) for t in torch.randint(0, 5, (3, 13, 4))]
    cases.append((CausalLM(), lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).to(D), tokens))
    for task, build, data in cases:
        models = several(build)
        found = fit_stacked(models, task, data, SGD, seeds=SEEDS, runtime=QUIET)
        assert gap(found, apart(models, task, data, SGD)) < 1e-10, task


def test_float32_and_autocast():
    models, data = several(lambda: mlp(torch.float32)), sets(4, dtype=torch.float32)
    found = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    assert gap(found, apart(models, TASK, data, SGD)) < 1e-5
    half = replace(QUIET, precision="bf16")
    coarse = fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=half)
    assert all(p.dtype == torch.float32 for made in coarse for p in made.parameters())
    assert 1e-5 < gap(coarse, found) < 0.1


def test_dropout_is_drawn_for_each_model_and_by_the_seeds():
    models, data = several(dropping, 1) * 2, sets(4)[:1] * 2
    found = fit_stacked(models, TASK, data, SGD, seeds=[3, 3], runtime=QUIET)
    assert gap(found[:1], found[1:]) > 1e-3  # one model, one set, one seed: masks alone differ
    assert gap(found, fit_stacked(models, TASK, data, SGD, seeds=[3, 3], runtime=QUIET)) == 0
    assert stackable(models[0], TASK, data[0], SGD) is None


def test_models_modes_gradients_and_random_states_are_left_alone():
    models, data = several(convolutional), sets(2, 6, 6)
    models[0].eval()
    models[1][4].weight.grad = torch.ones(3, 12, dtype=D)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    want = (random.random(), np.random.rand(), float(torch.rand(())))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with torch.no_grad():
        found = fit_stacked(models, TASK, data, replace(SGD, flip=True, epochs=1), seeds=SEEDS, runtime=QUIET)
        assert not torch.is_grad_enabled()
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == want
    assert [m.training for m in models] == [False, True, True]
    assert torch.equal(models[1][4].weight.grad, torch.ones(3, 12, dtype=D))
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for made in found for p in made.parameters())
    held = {p.untyped_storage().data_ptr() for p in found[0].parameters()}
    assert not held & {p.untyped_storage().data_ptr() for p in found[1].parameters()}


class Keeper(nn.Module):
    """Stores what passes through, as visual tools do."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        self.seen = self.a(x)
        return self.seen


def test_nothing_of_a_pass_stays_on_the_result():
    found = fit_stacked(several(lambda: Keeper().to(D)), TASK, sets(4), SGD, seeds=SEEDS, runtime=QUIET)
    assert not any("seen" in vars(made) for made in found)


def test_progress_counts_the_samples_of_all_models():
    told: list[Progress] = []
    runtime = replace(QUIET, progress=told.append)
    fit_stacked(several(mlp), TASK, sets(4), SGD, seeds=SEEDS, runtime=runtime)
    assert [p.done for p in told[:3]] == [15, 30, 39]
    assert (told[-1].done, told[-1].total, told[-1].what) == (117, 117, "training 3 models on train")


def test_no_epoch_is_no_change():
    models = several(convolutional)
    found = fit_stacked(models, TASK, sets(2, 6, 6), replace(SGD, epochs=0), seeds=SEEDS, runtime=QUIET)
    assert gap(found, models) == 0


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.a(-x)


class Aside(nn.Module):
    """Reads its second layer's weight from a list of its own, where no name leads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.flat = [self.b.weight]

    def forward(self, x):
        return self.b(self.a(x)) + self.a(x) @ self.flat[0].T


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(1, dtype=D))

    def forward(self, x):
        if self.training:
            self.seen = torch.cat([self.seen, self.seen])
        return self.a(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x[..., None])[0][:, -1])


REFUSED = {
    "branch": (Branching, "vmap can run, got RuntimeError: vmap: It looks like .* data-dependent control flow"),
    "aside": (Aside, "the gradients that the network has outside of torch.func.vmap, got others of b.weight"),
    "growing": (Growing, "vmap can run, got RuntimeError: a buffer changes its shape in train mode"),
    "lstm": (Recurrent, "vmap can run, got RuntimeError: .*lstm"),
    "average": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=None)), "RuntimeError: vmap: .*item"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=list(REFUSED))
def test_networks_that_vmap_cannot_run_are_refused_with_the_reason(build, words):
    models, data = several(lambda: build().to(D)), sets(4)
    with pytest.raises(UserError, match=f"{words}.*: {WHERE}"):
        fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)
    reason = stackable(models[0], TASK, data[0], SGD)
    assert reason is not None
    assert reason.endswith(f"{WHERE}.")
    fit(models[0], TASK, data[0], replace(SGD, epochs=1), runtime=QUIET)  # as the remedy says


def penalty(model, batch, outputs, losses):
    return losses.mean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalties": (penalty,)}, "Recipe.penalties"),
        ({"patience": 2}, "Recipe.patience"),
        ({"canaries": 2, "patience": 1}, "Recipe.patience, Recipe.canaries"),
    ],
    ids=["penalties", "patience", "canaries"],
)
def test_recipes_that_cannot_be_stacked(change, words):
    models, data, recipe = several(mlp), sets(4), replace(SGD, **change)
    text = f"Expected a recipe that stacked models can follow, got one with {words}: {WHERE}."
    with pytest.raises(UserError) as found:
        fit_stacked(models, TASK, data, recipe, seeds=SEEDS, runtime=QUIET)
    assert str(found.value) == text
    assert stackable(models[0], TASK, data[0], recipe) == text


def test_what_can_be_stacked():
    data = sets(2, 6, 6)[0]
    model = several(convolutional, 1)[0]
    state = torch.get_rng_state()
    before = tensors.weights_digest(model)
    assert stackable(model, TASK, data, SGD) is None
    assert stackable(model, TASK, data, replace(SGD, crop=1, clip=1.0), runtime=QUIET) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert tensors.weights_digest(model) == before
    flat = sets(4)[0]
    assert "for Recipe.crop and flip" in str(stackable(several(mlp, 1)[0], TASK, flat, replace(SGD, flip=True)))
    assert "no targets" in str(stackable(several(mlp, 1)[0], TASK, flat.unlabelled(), SGD))
    assert "no sample in train" in str(stackable(several(mlp, 1)[0], TASK, flat.subset([]), SGD))


def strided(stride):
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=stride), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def frozen():
    made = mlp()
    made[0].bias.requires_grad_(False)
    return made


def tied(one, other):
    made = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 3)).to(D)
    made[one].weight = made[other].weight
    return made


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        ([mlp, lambda: nn.Linear(4, 3).to(D)], (4,), "0.weight, 0.bias, 2.weight, 2.bias, its class and"),
        ([mlp, lambda: mlp(torch.float32)], (4,), "0.weight, 0.bias, 2.weight, 2.bias"),
        ([mlp, frozen], (4,), "0.bias"),
        ([dropping, lambda: nn.Sequential(*dropping()[:1], nn.Dropout(0.4), dropping()[2])], (4,), r"1.p \(a setting"),
        ([lambda: strided(1).to(D), lambda: strided(2).to(D)], (2, 6, 6), r"0.stride \(a setting\)"),
        ([lambda: tied(2, 0), lambda: tied(2, 1)], (4,), "2.weight"),
    ],
    ids=["class", "type", "frozen", "dropout", "stride", "ties"],
)
def test_networks_that_differ_are_refused(build, shape, words):
    models = [build[0](), build[0](), build[1]()]
    with pytest.raises(UserError, match=f"one architecture and settings, got a model 2 that differs .* in {words}"):
        fit_stacked(models, TASK, sets(*shape), SGD, seeds=SEEDS, runtime=QUIET)


def test_calls_that_do_not_fit_are_refused():
    models, data = several(mlp), sets(4)

    def call(models=models, data=data, recipe=SGD, seeds=SEEDS):
        return fit_stacked(models, TASK, data, recipe, seeds=seeds, runtime=QUIET)

    with pytest.raises(UserError, match="got 3 models, 3 sets and 2 seeds: give as many of each"):
        call(seeds=[1, 2])
    with pytest.raises(UserError, match="got 0 models, 0 sets and 0 seeds"):
        call([], [], seeds=[])
    with pytest.raises(UserError, match="sets of one size.*got 12, 13 samples: stack the models of each size by them"):
        call(data=[*data[:2], data[2].without(["train/0"])])
    with pytest.raises(UserError, match="training data, got no sample"):
        call(data=[d.subset([]) for d in data])
    with pytest.raises(UserError, match="a Recipe, got dict"):
        call(recipe={})
    with pytest.raises(UserError, match="expunge.data.Data, got list"):
        call(data=[*data[:2], [1] * 13])
    with pytest.raises(UserError, match="labelled data to train on, got a set without targets"):
        call(data=[*data[:2], data[2].unlabelled()])
    with pytest.raises(UserError, match="samples of one shape and type in all sets"):
        call(data=[*data[:2], sets(5)[0]])
    wrong = Data.from_arrays(torch.zeros(13, 4, dtype=D), torch.arange(13))
    with pytest.raises(UserError, match="classes 0 to 2, got class 1[0-2]"):
        call(data=[*data[:2], wrong])
    with pytest.raises(UserError, match="torch.nn.Module"):
        call(["a", *models[1:]])


def test_a_model_that_diverges_is_named():
    models, data = several(mlp), sets(4)
    with torch.no_grad():
        models[1][2].bias.fill_(torch.inf)
    words = r"got nan of model 1 at step 1 in epoch 1: lower Recipe.lr \(now 0.1\), check the data, or stack the others"
    with pytest.raises(NotFinite, match=words):
        fit_stacked(models, TASK, data, SGD, seeds=SEEDS, runtime=QUIET)


def test_too_little_memory_is_a_sentence(monkeypatch):
    def short(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("expunge.stacked._Stack.losses", short)
    with pytest.raises(UserError, match="memory for 3 batches of 5 samples, got too little: stack fewer models"):
        fit_stacked(several(mlp), TASK, sets(4), SGD, seeds=SEEDS, runtime=QUIET)
