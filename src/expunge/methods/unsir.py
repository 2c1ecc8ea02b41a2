"""Impairing a class by noise that the network fits worst, and repairing the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._inputs import real
from expunge.methods._steps import Descent, Loss, Stepped, Taken, only_classes
from expunge.passes import whole
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.train import Recipe, outputs_and_losses

SHARE = 0.05  # of noise beside S_r, as in published runs on CIFAR-100: 32 · 80 noises beside 99 · 500 samples


def noise_loss(losses: Tensor, noise: Tensor, penalty: float) -> Tensor:
    """Return −mean_i CE_i + λ·mean_i Σ N_i², a scalar in nats.

    Args:
        losses: cross-entropy of each noise under the forgotten class (b,), in nats.
        noise: (b, ...), in input units.
        penalty: λ.
    """
    return penalty * noise.flatten(1).square().sum(dim=1).mean() - losses.mean()


def first_of_others(targets: Tensor, label: int, most: int) -> NDArray[np.int64]:
    """Return the positions, in order, of the first ``most`` samples of every class but ``label``."""
    found = [torch.nonzero(targets == c).flatten()[:most] for c in targets.unique().tolist() if c != label]
    return np.sort(torch.cat(found).numpy()) if found else np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class UNSIR(Stepped):
    """Forget one class by training on noise learned against it, mixed with retain samples, then on these alone.

    Noise: N* = argmin_N −CE(f_θ(N), c) + λ·mean_i Σ N_i², N of b inputs that start from N(0, 1), by Adam; θ stays as
    it is, in eval mode. Impair: CE on {(N*, c) repeated R times} ∪ S_r. Repair: CE on S_r, by a fresh optimiser.
    S_r is the first q samples of each other class in the retain set, augmented as the recipe says; the noise never is.

    Needs the class, and labelled retain data; forgotten samples are never read. Passes: at most
    ``epochs + repair_epochs`` over the retain set, of which S_r is a part, and one sample for the shape of inputs; with
    ``keep_best`` as many over holdout. Declines forget sets that are no class and tasks without classes; refuses inputs
    that are no real numbers. Where only part of a class is to be forgotten all of it is, and a note says so. Σ N_i²
    grows with the number of values in an input, so λ does not carry over from one size to another.

    Defaults: the original's learning rates, with the fewer noises, steps and copies of later adaptations. These also
    divide the rates by 200 and 100, which on the digits forgets nothing; the original's 256 noises, 40 steps and 20
    copies beside 1000 samples a class are too much for a retain set of a thousand samples.

    ``compat="official"`` learns the noise in train mode as the published code does: dropout is on, and BatchNorm
    statistics absorb the noise, until (1 − momentum)^steps of the old ones are left.
    """

    reference: ClassVar[Reference] = Reference(
        "Fast Yet Effective Machine Unlearning",
        "Ayush K. Tarun and Vikram S. Chundawat and Murari Mandal and Mohan Kankanhalli",
        2023,
        "https://arxiv.org/abs/2111.08947",
        "IEEE Transactions on Neural Networks and Learning Systems",
    )
    example: ClassVar[dict[str, object]] = {"noises": 8, "noise_steps": 5, "repeats": 2}

    epochs: int = option(1, unit="passes over noise and S_r", text="how long to impair")
    repair_epochs: int = option(1, unit="passes over S_r", text="how long to repair")
    lr: float = option(0.02, symbol="η", unit="1", text="learning rate to impair", search=Search(1e-4, 5e-2, log=True))
    repair_lr: float = option(0.01, unit="1", text="learning rate to repair", search=Search(1e-4, 5e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    noises: int = option(32, symbol="b", unit="inputs", text="learned, all different")
    noise_steps: int = option(25, unit="steps", text="of Adam on the noise")
    noise_lr: float = option(0.1, unit="input units", text="of Adam on the noise")
    penalty: float = option(0.1, symbol="λ", unit="nats", text="of the noise's squared norm")
    repeats: int | None = option(
        None,
        symbol="R",
        unit="copies",
        text=f"of each noise in a pass; unset, as many as make {SHARE:.0%} of S_r, at least 1",
    )
    per_class: int = option(1000, symbol="q", unit="samples", text="at most of each retained class in S_r")
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="paper, or official to learn the noise in train mode"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("repair_epochs", 0)
        for name in ("noise_steps", "repeats", "per_class"):
            self.count(name, 1)
        self.one_of("compat", "paper", "official")
        self.count("noises", 1 if self.compat == "paper" else 2)  # BatchNorm in train mode refuses one
        self.positive("repair_lr", "noise_lr")
        self.positive("penalty", zero=True)

    @property
    def unlearns(self) -> Needs:
        """Labelled retain data and the class; optionally the recipe."""
        return self.sees(retain=See.LABELLED, scenario=True)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return at most how often the retain set is read, and holdout data with ``keep_best``."""
        both = self.epochs + self.repair_epochs
        return self.reads(phase, times=both, retain=both)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks without classes and forget sets that are no class."""
        if scenario is not None and scenario.kind != "class":
            return f"it learns noise against one class, and the forget set is of kind '{scenario.kind}'"
        return only_classes(task, "it learns noise against one class")

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Learn the noise, impair and repair."""
        more = self.noises * (self.noise_steps + self.epochs * self._copies(len(session.retain)))
        each = len(session.retain) + (len(session.holdout) if self.keep_best else 0)
        total = more + (self.epochs + self.repair_epochs) * each  # at most: S_r is a part of the retain set
        with session.runtime.tracking(f"unlearning by {self.name}", total) as advance:
            descent = Descent(session, self, session.model, advance)
            self.descend(session, descent)
        return descent.finished(), state

    def descend(self, session: Session, descent: Descent) -> None:
        """Learn the noise, impair, and repair."""
        label = int(session.scenario.target)
        kept = self._kept(session, label)
        noise = self._learned(session, self._start(kept), label, descent.advance)
        copies = Data.from_arrays(noise.cpu(), np.full(self.noises, label), name="noise")
        repeats = self._copies(len(kept))
        session.record("repeats", repeats)
        copies = replace(copies, positions=np.tile(copies.positions, repeats))

        def loss(model: nn.Module, now: Taken) -> Tensor:
            return descent.losses(now.batch).mean()

        for _ in range(self.epochs):
            descent.epoch([copies, kept], loss, name="impair_loss", made=1)
            descent.ended()
        session.record("impair_steps", descent.steps)
        descent.optimizer.state.clear()  # repair starts without the momentum of impair
        for _ in range(self.repair_epochs):
            self._repair(descent, kept, loss)
            descent.ended()
        session.record("repair_steps", descent.steps - int(session.log["impair_steps"]))

    def _copies(self, kept: int) -> int:
        return self.repeats or max(1, round(SHARE * kept / self.noises))

    def _repair(self, descent: Descent, kept: Data, loss: Loss) -> None:
        try:
            descent.epoch([kept], loss, rate=self.repair_lr, name="repair_loss")
        except NotFinite as error:
            remedy = f"lower {self.name}.repair_lr (now {self.repair_lr:g}) or {self.name}.lr (now {self.lr:g})"
            raise NotFinite(error.expected, error.got, remedy) from error

    def _kept(self, session: Session, label: int) -> Data:
        """Return S_r, the first q samples of each class that stays.

        Raises:
            UserError: no other class is in the retain set.
        """
        retain = session.retain
        targets = retain.targets()
        at = first_of_others(targets, label, self.per_class)
        if not len(at):
            remedy = "pass retain data of the classes that stay"
            raise UserError(f"retain samples of other classes than {label} for {self.name}", "none", remedy)
        session.record("retained", len(at))
        if staying := int((targets == label).sum()):
            text = f"{staying} samples of class {label} were to stay: unsir forgets a class as a whole, theirs too."
            session.record("note", text)
        return replace(retain, positions=retain.positions[at])

    def _start(self, kept: Data) -> Tensor:
        """Return noise from N(0, 1) in the shape and type of a retain sample's inputs, (b, ...)."""
        like = real(kept.read([0]).inputs, self.name)
        return torch.randn(self.noises, *like.shape[1:]).to(like.dtype)

    def _learned(self, session: Session, noise: Tensor, label: int, advance: Callable[[int], None]) -> Tensor:
        """Return the noise after its steps; no gradient is taken with respect to weights.

        Raises:
            NotFinite: the noise's loss is NaN or infinite.
        """
        model, device = session.model, session.runtime.torch_device
        noise = noise.to(device).requires_grad_(True)
        target = torch.full((self.noises,), label, device=device)
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)

        def loss() -> Tensor:
            with session.runtime.autocast():
                batch = Batch(noise, target, None, torch.arange(self.noises))
                return noise_loss(outputs_and_losses(model, session.task, batch)[1], noise, self.penalty)

        def measured(name: str) -> None:
            model.eval()
            with torch.no_grad():
                session.record(name, float(loss()))

        with whole(f"{self.noises} noises", f"lower {self.name}.noises"):
            measured("noise_loss_before")
            model.train(self.compat == "official")
            for step in range(1, self.noise_steps + 1):
                with torch.enable_grad():
                    value = loss()
                    if not bool(torch.isfinite(value)):
                        remedy = f"lower {self.name}.noise_lr (now {self.noise_lr:g}), or check the model"
                        raise NotFinite("a finite loss of unsir's noise", f"{value.item()} at its step {step}", remedy)
                    (noise.grad,) = torch.autograd.grad(value, [noise])
                optimizer.step()
                advance(self.noises)
            measured("noise_loss_after")
        return noise.detach()


METHOD = UNSIR
