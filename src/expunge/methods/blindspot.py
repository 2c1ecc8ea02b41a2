"""A network that never saw the forget set teaches what to say of it, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.errors import NotFinite, UserError
from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._attention import Probe, Tap, alignment
from expunge.methods._steps import SIZE, Descent, Stepped, Taken, only_reals
from expunge.references import TARUN_2023
from expunge.runtime import Progress
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Task, sample_losses
from expunge.train import Recipe, fit

RATE = 1e-2  # of the blindspot network by Adam, where there is neither a recipe nor a rate


def blind_loss(
    forget: Tensor | None, retain: Tensor | None, apart: Tensor | float = 0.0, strength: float = 0.0
) -> Tensor:
    """Return L = c·(L_f + λ·Σ AD) + (1 − c)·L_r of a batch, a scalar.

    c is the share of the batch to forget, and the two parts are means, so that every sample counts alike:
    L = 1/B·(Σ_f d + Σ_r ℓ) + c·λ·Σ AD. A part without samples is exactly 0.

    Args:
        forget: d of each sample to forget, (n_f,), in units of the loss; None where there is none.
        retain: ℓ of each sample that stays, (n_r,); None where there is none.
        apart: Σ AD over the samples to forget.
        strength: λ.

    >>> one, two = torch.tensor([15.0, 21.0]), torch.tensor([2.0, 3.0])
    >>> float(blind_loss(one, two)), float(blind_loss(None, two))
    (10.25, 2.5)
    """
    parts = [part for part in (forget, retain) if part is not None]
    size = sum(map(len, parts))
    loss = torch.cat([part.reshape(-1) for part in parts]).sum() / size
    return loss if forget is None else loss + len(forget) / size * strength * apart


@dataclass(frozen=True, kw_only=True)
class Blindspot(Stepped):
    """Follow a network trained briefly without the forget set, on the forget set: its outputs, and where it looks.

    The blindspot network B is new, is trained on the retain set for ``blindspot_epochs``, then frozen, in eval mode.
    The original learns from batches of both sets mixed: L = c·(L_f + λ·Σ_j AD_j) + (1 − c)·L_r, c the share of the
    batch to forget, L_f the mean distance d(f(x), B(x)) over it, L_r the mean loss of the rest. AD_j is, at a tap, the
    mean squared difference of the two networks' attention maps on the samples to forget: a² is averaged over channels,
    and the positions of a sample divided by their norm. Both networks see the same augmented inputs.

    Channels are the second dimension of images, the last of sequences (B, T, H), unless the tap is a one-dimensional
    convolution. A tap (B, H) has no positions, and the published map of it is always 1: here it is a² / ‖a²‖.
    ``compat="official"`` averages over the second dimension of every tap, and so loses those of (B, H).

    ``taps`` names modules. Unset, they are the network's blocks: its children with weights, but normalisations,
    embeddings, and what gives the outputs; of a `Sequential` of several, and of what has no tensor (B, ...) for its
    output, the children. AD is divided by the number of positions, so λ does not carry over to other sizes.

    B is trained as the recipe says, its warm-up and milestones shortened with it, without early stopping; without a
    recipe by Adam, 64 samples a step. It starts from a seed of its own, not from the retrained reference's network.

    Needs the forget set's inputs, the retain set with labels, and the untrained network. For real targets: declines
    tasks without them. Distances of `Quantile` are means over the quantiles. Sample weights multiply L_r.
    BatchNorm statistics move with batches of both sets.

    Passes: E over the forget set, E + ``blindspot_epochs`` over the retain set; with ``keep_best`` E over holdout.

    Defaults are the published ones: E of 1 for faces and 5 for texts, ``blindspot_epochs`` of 2 and 10. With one epoch
    small networks hardly forget; λ = 50 slows forgetting, and may cost retain error: tune both.
    """

    reference: ClassVar[Reference] = TARUN_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1, "blindspot_epochs": 1}

    epochs: int = option(
        5, symbol="E_u", unit="passes over both sets", text="how long", search=Search(1, 10, whole=True)
    )
    lr: float = option(1e-3, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    blindspot_epochs: int = option(
        2,
        symbol="E_b",
        unit="passes over the retain set",
        text="how long the blindspot network is trained",
        search=Search(1, 10, whole=True),
    )
    blindspot_lr: float | None = option(
        None, unit="1", text=f"its learning rate; unset, the recipe's, or {RATE:g} without a recipe"
    )
    attention: float = option(
        50.0,
        symbol="λ",
        unit="the loss's",
        text="weight of the attention maps' distance",
        search=Search(choices=(0.0, 5.0, 50.0)),
    )
    taps: tuple[str, ...] | None = option(
        None, unit="modules", text="whose outputs are compared; unset, the network's blocks"
    )
    distance: Literal["absolute", "squared"] | None = option(
        None, symbol="d", unit="-", text="of outputs on the forget set; unset, the task's error, or absolute"
    )
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="official averages maps over the second dimension of every tap, as the published code"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("blindspot_epochs", 1)
        self.positive("blindspot_lr")
        self.positive("attention", zero=True)
        self.one_of("compat", "paper", "official")
        if self.distance is not None:
            self.one_of("distance", "absolute", "squared")
        names = self.taps
        if names is not None and not (isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)):
            remedy = "write for example ('layer1', 'layer2'), and attention=0 for none"
            raise UserError("blindspot.taps as a tuple of module names", repr(names), remedy)
        if names is not None and len(set(names)) < len(names):
            raise UserError("blindspot.taps that differ", repr(names), "name each module once")

    @property
    def unlearns(self) -> Needs:
        """Inputs to forget, labelled samples to keep, the untrained network; the recipe where there is one."""
        return self.sees(forget=See.INPUTS, retain=See.LABELLED, fresh=True)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks whose targets are no real numbers."""
        return only_reals(task, "it follows another network's predictions by their distance")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over both sets, and those that train the blindspot network."""
        return self.reads(phase, forget=self.epochs, retain=self.epochs + self.blindspot_epochs)

    def teaching(self, given: Recipe | None) -> Recipe:
        """Return how the blindspot network is trained.

        Args:
            given: the original's recipe, or None.
        """
        epochs = self.blindspot_epochs
        if given is None:
            rate = self.blindspot_lr or RATE
            return Recipe(  # without decay AdamW is Adam
                epochs=epochs, lr=rate, optimizer="adamw", weight_decay=0.0, batch_size=SIZE, schedule="constant"
            )
        share = epochs / max(1, given.epochs)
        return replace(
            given,
            epochs=epochs,
            lr=self.blindspot_lr or given.lr,
            warmup=given.warmup * share,
            milestones=tuple(m * share for m in given.milestones),  # type: ignore[misc]  # compared with epochs
            patience=None,
        )

    def descend(self, session: Session, descent: Descent) -> None:
        """Train the blindspot network, then follow it for the epochs."""
        taps = self._taps(session, descent)
        blindspot = self._blindspot(session, descent)

        def loss(model: nn.Module, now: Taken) -> Tensor:
            return self.loss(session.task, model, blindspot, now, taps)

        for _ in range(self.epochs):
            descent.epoch([session.forget, session.retain], loss)
            descent.ended()

    def loss(self, task: Task, model: nn.Module, blindspot: nn.Module, now: Taken, taps: Sequence[Tap]) -> Tensor:
        """Return the loss of a step's samples, a scalar.

        Args:
            task: outputs and loss.
            model: the network that forgets.
            blindspot: the frozen network that never saw the forget set.
            now: inputs of source 0, the forget set, and labelled samples of source 1.
            taps: what is compared.
        """
        names = [tap.name for tap in taps]
        forget, retain = now.parts.get(0), now.parts.get(1)
        outputs, said = task.forward(model, now.batch, names if forget is not None else ())
        own, far, near = now.of(0), None, None
        apart: Tensor | float = 0.0
        if forget is not None:
            with torch.no_grad():
                taught, seen = task.forward(blindspot, forget, names)
            far = self.gaps(task, outputs[own], taught)
            apart = alignment(taps, {name: value[own] for name, value in said.items()}, seen)
        if retain is not None:
            assert retain.target is not None
            near = sample_losses(task, outputs[~own], retain.target)
            near = near if retain.weight is None else near * retain.weight.to(near)
        return blind_loss(far, near, apart, self.attention)

    def gaps(self, task: Task, outputs: Tensor, taught: Tensor) -> Tensor:
        """Return d of each sample, the mean over its outputs, (B,).

        Args:
            task: whose own error is taken where ``distance`` is unset.
            outputs: (B, ...).
            taught: of the blindspot network.
        """
        kind = self.distance or getattr(task, "error", "absolute")
        gap = outputs - taught
        return (gap.square() if kind == "squared" else gap.abs()).flatten(1).mean(dim=1)

    def _taps(self, session: Session, descent: Descent) -> tuple[Tap, ...]:
        """Return what is compared, told by what the original says of two samples that stay.

        Raises:
            UserError: a module that is asked for cannot be tapped.
        """
        if self.attention == 0 and self.taps is None:
            return ()
        batch = session.retain.read(range(min(2, len(session.retain)))).to(session.runtime.torch_device)
        probe = Probe(descent.model, session.task, batch)
        names = probe.found() if self.taps is None else probe.asked(self.taps, f"{self.name}.taps")
        if self.attention == 0:
            return ()
        session.record("taps", list(names))
        if not names:
            text = "The network has no block to compare but the one that gives its outputs: they alone are followed."
            session.record("note", text)
        return probe.taps(names, published=self.compat == "official")

    def _blindspot(self, session: Session, descent: Descent) -> nn.Module:
        """Return a new network trained on the retain set, frozen and in eval mode.

        Raises:
            NotFinite: its loss became NaN or infinite; names the rate to lower.
        """
        recipe, done = self.teaching(session.recipe), 0

        def tell(now: Progress) -> None:
            nonlocal done
            descent.advance(now.done - done)
            done = now.done

        own = replace(session, seed=named_seed("blindspot", session.seed))
        quiet = replace(session.runtime, progress=tell)
        try:
            made = fit(own.new_model(), session.task, session.retain, recipe, runtime=quiet, seed=own.seed)
        except NotFinite as error:
            remedy = f"lower {self.name}.blindspot_lr (now {recipe.lr:g})"
            raise NotFinite(f"{error.expected} of the blindspot network", error.got, remedy) from error
        return made.eval().requires_grad_(False)


METHOD = Blindspot
