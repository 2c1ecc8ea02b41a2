"""Label-agnostic forgetting, and afterwards a short repair with a few labelled retain samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.method import Needs, Search, See, Session, option
from expunge.methods._laf import Forgetting
from expunge.methods._represent import RepresentationSplit
from expunge.methods.laf import LAF
from expunge.passes import whole
from expunge.recipe import Recipe
from expunge.seeds import seed as named_seed
from expunge.train import batch_orders, mean_loss, outputs_and_losses, stepped

HELD = 10  # one in so many of the labelled samples is held out, where there are so many
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class LAFR(LAF):
    """Forget as `laf` does, then lower the task's loss on a labelled part S of the retain set.

    min 1/|S| Σ_{(x, y) ∈ S} loss(g_c(g_e(x)), y), by Adam in eval mode, in batches of 32, over the weights of the
    classifier alone, or over all. S is ``share`` of the retain set, drawn once by the seed; only its labels are read. A
    tenth of S, where it has ten samples or more, is held out: the epoch with the lowest loss on it is kept, the model
    before the repair among them, and the repair ends at the first epoch that does not lower it. Sample weights multiply
    the loss.

    With ``repair_scope="classifier"`` the extractor stays bit for bit as `laf` left it, and so do weights that both
    sides share. With ``all`` the repair may undo the forgetting: agreement with the original on the forget set before
    and after it is recorded, and what is forgotten must be measured after it.

    Needs what `laf` needs, and retain data with labels. Passes: those of `laf`, and ``repair_epochs`` over S.
    """

    share: float = option(
        0.1, symbol="|S|/|D_r|", unit="share", text="of the retain set whose labels are used", search=Search(0.01, 1.0)
    )
    repair_scope: Literal["classifier", "all"] = option("classifier", unit="-", text="which weights the repair moves")
    repair_lr: float = option(1e-4, unit="1", text="rate of Adam in the repair", search=Search(1e-5, 1e-2, log=True))
    repair_epochs: int = option(5, unit="passes over S", text="of the repair, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("repair_scope", "classifier", "all")
        self.positive("share", "repair_lr")
        self.count("repair_epochs", 1)
        if self.share > 1:
            raise UserError(f"{self.name}.share of at most 1", f"{self.share:g}", "give a share of the retain set")

    @property
    def unlearns(self) -> Needs:
        """Inputs to forget and labelled samples to keep."""
        return Needs(forget=See.INPUTS, retain=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return at most how often each set is read; the repair reads S an epoch, and a tenth of it once more."""
        found = super().passes(phase, recipe)
        if phase == "prepare":
            return found
        return found | {"forget": found["forget"] + 2, "retain": found["retain"] + 2 + 2.0 * self.repair_epochs}

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return what the updates and the repair cost."""
        found = super().work(phase, recipe, classes)
        more = {} if phase == "prepare" else {"retain": found["retain"] + self.share * self.repair_epochs}
        return found | more

    def repair(self, session: Session, course: Forgetting) -> None:
        """Train on with the labelled part of the retain set."""
        learned, held = labelled_part(session.retain, self.share, session.seed)
        before = course.looked(course.steps)
        session.record("labelled", len(learned) + (0 if held is None else len(held)))
        with course.only(self._repaired(course.split)) as weights:
            self._trained(session, weights, learned, held)
        after = course.looked(course.steps)
        session.record("repair_agreement", {"before": before.forget, "after": after.forget})
        if after.forget - before.forget > 0.05:
            text = "The repair brought predictions on the forget set back towards the original's: agreement rose"
            session.record("note", f"{text} from {before.forget:.0%} to {after.forget:.0%}.")

    def _repaired(self, split: RepresentationSplit) -> tuple[str, ...]:
        more = () if self.repair_scope == "classifier" else (*split.extractor, *split.shared)
        return (*split.classifier, *more)

    def _split(self, session: Session, data: Any) -> RepresentationSplit:
        """Return the split, and refuse one that leaves nothing to repair before anything is computed."""
        split = super()._split(session, data)
        if not self._repaired(split):
            want = f"trainable weights above {split.tap} for {self.name} to repair"
            raise UserError(want, "none", "set repair_scope to all")
        return split

    def _trained(self, session: Session, weights: dict[str, nn.Parameter], learned: Data, held: Data | None) -> None:
        """Take the epochs, and set the weights back to the best of them."""
        model, task, runtime = session.model, session.task, session.runtime
        optimizer = torch.optim.Adam(weights.values(), lr=self.repair_lr)
        mask = None if session.masks is None else session.masks.hold(model)
        generator = torch.Generator().manual_seed(named_seed("laf_r", "order", session.seed))
        best, kept = math.inf, dict[str, Tensor]()
        if held is not None:
            best, kept = mean_loss(model, task, held, runtime), _copied(weights)
            session.record("repair_held_loss", best, step=0)
        epoch = 0
        for epoch in range(1, self.repair_epochs + 1):
            total = 0.0
            for at in batch_orders(BATCH, torch.randperm(len(learned), generator=generator)):
                with whole(f"a batch of {len(at)} samples", "free memory, or take another device"):
                    optimizer.zero_grad(set_to_none=True)
                    batch = learned.read(at).to(runtime.torch_device)
                    with torch.enable_grad(), runtime.autocast():
                        losses = outputs_and_losses(model, task, batch)[1]
                        loss = (losses if batch.weight is None else losses * batch.weight.to(losses)).mean()
                    if not bool(torch.isfinite(loss)):
                        remedy = f"lower {self.name}.repair_lr (now {self.repair_lr:g})"
                        raise NotFinite(f"a finite loss of {self.name}'s repair", f"{loss.item()}", remedy)
                    loss.backward()
                    stepped(model, optimizer, None, mask)
                    total += float(loss.detach()) * len(at)
            session.record("repair_loss", total / len(learned), step=epoch)
            if held is None:
                continue
            now = mean_loss(model, task, held, runtime)
            session.record("repair_held_loss", now, step=epoch)
            if now >= best:
                break
            best, kept = now, _copied(weights)
        session.record("repair_epochs", epoch)
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].copy_(value)


def labelled_part(retain: Data, share: float, seed: int) -> tuple[Data, Data | None]:
    """Return a random share of the retain set in two parts, to learn from and held out; of fewer than ten the first.

    Args:
        retain: labelled.
        share: of its samples, rounded down, at least one.
        seed: of the draw.
    """
    ids = retain.ids
    generator = torch.Generator().manual_seed(named_seed("laf_r", "labelled", seed))
    drawn = torch.randperm(len(ids), generator=generator)[: max(1, int(share * len(ids)))].tolist()
    chosen = [ids[at] for at in drawn]
    apart = len(chosen) // HELD
    return retain.subset(chosen[apart:]), retain.subset(chosen[:apart]) if apart else None


def _copied(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


METHOD = LAFR
