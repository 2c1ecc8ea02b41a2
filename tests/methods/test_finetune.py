"""Fine-tuning: plain training on from the original, on retain data alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import MissingNeed, NotFinite, UserError
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, mean_loss
from expunge.unlearn import unlearn

TASK = Classification()
FINETUNE = load("finetune")


class Counted:
    """A dataset that keeps which samples were read."""

    def __init__(self, data: Data) -> None:
        batch = data.read(range(len(data)))
        self.x, self.y, self.read = batch.inputs, data.targets(), set()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        self.read.add(at)
        return self.x[at], self.y[at]


def trained() -> nn.Module:
    return fit(deep(), TASK, blobs(), Recipe(epochs=3, lr=0.05))


def test_equals_training_on_at_a_constant_rate():
    model, data = trained(), blobs()
    ids = data.ids[:9]
    done = unlearn(
        FINETUNE(epochs=2, lr=0.03, momentum=0.5, weight_decay=1e-3, batch_size=20),
        model, TASK, forget=ids, retain=data.without(ids), seed=4,
    )  # fmt: skip
    recipe = Recipe(epochs=2, lr=0.03, momentum=0.5, weight_decay=1e-3, batch_size=20, schedule="constant")
    direct = fit(model, TASK, data.without(ids), recipe, seed=4)
    assert weights_digest(done.model) == weights_digest(direct) != weights_digest(model)
    again = unlearn(FINETUNE(epochs=2, lr=0.03), model, TASK, forget=ids, retain=data.without(ids), seed=5)
    assert weights_digest(again.model) != weights_digest(direct)


def test_batchnorm_statistics_move_and_the_callers_do_not():
    model, data = trained(), blobs()
    before = weights_digest(model)
    done = unlearn(FINETUNE(epochs=1), model, TASK, forget=data.ids[:9], retain=data.without(data.ids[:9]))
    old, new = dict(model.named_buffers()), dict(done.model.named_buffers())
    assert not any(torch.equal(old[name], new[name]) for name in old)
    assert weights_digest(model) == before
    assert not model.training
    assert not done.model.training


def test_forget_samples_are_never_read():
    counted = Counted(blobs())
    data = Data.from_torch(counted)
    ids = data.ids[:9]
    counted.read.clear()
    unlearn(FINETUNE(epochs=2), trained(), TASK, forget=data.subset(ids), retain=data.without(ids))
    assert counted.read == set(range(9, 60))


def test_batch_size_and_augmentation_come_from_the_recipe_where_given():
    model, data = trained(), blobs()
    given = {"forget": data.ids[:9], "retain": data.without(data.ids[:9])}
    theirs = unlearn(FINETUNE(epochs=1), model, TASK, **given, recipe=Recipe(batch_size=8, lr=9.0))
    mine = unlearn(FINETUNE(epochs=1, batch_size=8), model, TASK, **given, recipe=Recipe(batch_size=64))
    assert weights_digest(theirs.model) == weights_digest(mine.model)


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("lr", -1.0), ("batch_size", 0), ("momentum", -0.1)])
def test_bad_settings_are_refused(field: str, value: float):
    with pytest.raises(UserError, match=field):
        FINETUNE(**{field: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("finetune", r"at step \d+ in epoch \d: lower finetune.lr \(now 1e\+18\)"),
        ("l1_sparse", r"at step \d+ in epoch \d: lower l1_sparse.lr \(now 1e\+18\) or l1_sparse.displacement"),
    ],
)
def test_a_loss_that_diverges_names_the_step_and_the_methods_own_setting(name: str, text: str):
    model, data = trained(), blobs()
    with pytest.raises(NotFinite, match=text):
        unlearn(load(name)(lr=1e18), model, TASK, forget=data.ids[:9], retain=data.without(data.ids[:9]))


def test_steps_are_told():
    model, data = trained(), blobs()
    done = unlearn(
        FINETUNE(epochs=2, batch_size=20), model, TASK, forget=data.ids[:9], retain=data.without(data.ids[:9])
    )
    assert (done.log["epochs"], done.log["steps"]) == (2, 2 * 3)


def test_the_best_epoch_on_holdout_is_returned_only_where_asked():
    model, data = trained(), blobs()
    ids, holdout = data.ids[:9], data.subset(data.ids[40:])
    given = {"forget": ids, "retain": data.without(ids), "seed": 4}
    many = {"epochs": 6, "lr": 0.5, "momentum": 0.9, "batch_size": 20}
    best = unlearn(FINETUNE(keep_best=True, **many), model, TASK, holdout=holdout, **given)
    epochs = [unlearn(FINETUNE(**many | {"epochs": e}), model, TASK, **given).model for e in range(1, 7)]
    losses = [mean_loss(m, TASK, holdout, Runtime(progress=False)) for m in epochs]
    assert losses.index(min(losses)) != 5
    assert weights_digest(best.model) == weights_digest(epochs[losses.index(min(losses))])
    with pytest.raises(MissingNeed, match="holdout for finetune"):
        unlearn(FINETUNE(keep_best=True), model, TASK, **given)
