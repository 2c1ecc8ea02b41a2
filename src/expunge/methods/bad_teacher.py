"""Two teachers: the original for what stays, an untrained network for what is to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._steps import Descent, Stepped, Taken, only_classes
from expunge.objectives import bad_teacher
from expunge.references import CHUNDAWAT_2023
from expunge.scenario import Scenario
from expunge.task import Task, class_logits
from expunge.train import Recipe


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Stepped):
    """Distil an untrained network's outputs on the forget set and the original's on a share of the retain set.

    L = 1/B Σ_x KL(p_t(x) ‖ p_S(x)), p = softmax(logits/T), without a factor T². The teacher t is the untrained network
    for a sample to forget, which is the objective `bad_teacher`, and the original for one that stays; both are frozen
    and in eval mode. Samples of both sets are mixed in each batch, and the share of the retain set is drawn once.

    Needs the inputs of both sets, no labels, and the untrained network; declines tasks without classes. In eval mode an
    untrained network with BatchNorm says almost the same of all samples, so the target is nearly a constant. An
    untrained network that keeps a pretrained backbone knows more than it should.

    Passes: E over the forget set, E · ``retain_share`` over the retain set; with ``keep_best`` also E over holdout.

    ``compat="official"`` takes the published code's mean over samples and classes, which divides the loss by K.
    Published runs have 256 samples a step.
    """

    reference: ClassVar[Reference] = CHUNDAWAT_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(
        1,
        symbol="E",
        unit="passes over the forget set and the share",
        text="how long",
        search=Search(1, 10, whole=True),
    )
    lr: float = option(1e-4, symbol="η", unit="1", text="learning rate", search=Search(1e-5, 1e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    retain_share: float = option(
        0.3, unit="share", text="of the retain set that is drawn, once, and learned from", search=Search(0.05, 1.0)
    )
    temperature: float = option(1.0, symbol="T", unit="1", text="by which all logits are divided")
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="official divides the loss by the number of classes, as the published code does"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("compat", "paper", "official")
        self.positive("temperature", "retain_share")
        if self.retain_share > 1:
            raise UserError("bad_teacher.retain_share of at most 1", str(self.retain_share), "give a share")

    @property
    def unlearns(self) -> Needs:
        """Inputs of both sets and the untrained network."""
        return self.sees(forget=See.INPUTS, retain=See.INPUTS, fresh=True)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks without classes."""
        return only_classes(task, "it distils probabilities of classes")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over the forget set, and over the share of the retain set."""
        return self.reads(phase, forget=self.epochs, retain=self.epochs * self.retain_share)

    @property
    def objective(self) -> bad_teacher.BadTeacher:
        """How far the student is from a teacher: on the forget set the objective, on the retain set the repair."""
        return bad_teacher.BadTeacher(temperature=self.temperature, compat=self.compat)

    def descend(self, session: Session, descent: Descent) -> None:
        """Draw the share of the retain set, then take the epochs over it and the forget set together."""
        objective = self.objective
        context = objective.context(session)
        kept = self._share(session.retain)
        session.record("retained", len(kept))

        def loss(model: nn.Module, now: Taken) -> Tensor:
            with torch.no_grad():
                good = class_logits(session.task, session.task.forward(session.original, now.batch)[0])
            teacher = torch.where(now.of(0)[:, None], context.taught(now.batch), good)
            return objective.distance(teacher, context.logits(descent.outputs(now.batch)))

        for _ in range(self.epochs):
            descent.epoch([session.forget, kept], loss)
            descent.ended()

    def _share(self, retain: Data) -> Data:
        """Return a random share of the retain set, rounded down, at least one sample."""
        count = max(1, int(self.retain_share * len(retain)))
        ids = retain.ids
        return retain.subset(ids[at] for at in torch.randperm(len(ids))[:count].tolist())


METHOD = BadTeacher
