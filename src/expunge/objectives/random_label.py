"""Wrong labels drawn once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, targets, told, told_words
from expunge.objectives._labels import drawn_labels
from expunge.part import Reference, option
from expunge.references import GRAVES_2021
from expunge.task import check_targets, sample_losses


@dataclass(frozen=True, kw_only=True)
class RandomLabel(Objective):
    """Learn a wrong label for each sample, drawn once: U = CE(z, ỹ), ỹ uniform over the K−1 classes other than y.

    ∂U/∂z = p − onehot(ỹ). Needs labels. It is bounded by 0. A sample counts with its weight.

    Reached when no more than ``target`` of the forget set are told right.
    """

    reference: ClassVar[Reference] = GRAVES_2021
    labels: ClassVar[bool] = True
    drawn: ClassVar[bool] = True
    weighed: ClassVar[bool] = True
    compared: ClassVar[bool] = True

    target: float | None = option(
        None,
        unit="share",
        text="of the forget set told right, to come down to; unset, 1 % of a whole class, else as of held-out data",
    )
    exclude_true: bool = option(True, unit="-", text="whether a sample's own class is never drawn for it")

    def __post_init__(self) -> None:
        self.inside("target", 0, 1, ends=True)
        self.flag("exclude_true")

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return the task's loss under the drawn labels, (B,)."""
        own = targets(batch)
        check_targets(context.task, outputs, own)
        wrong = self.relabelled(own, batch.index, context.count(outputs), context)
        return sample_losses(context.task, outputs, wrong)

    def relabelled(self, labels: Tensor, index: Tensor, classes: int, context: Context) -> Tensor:
        """Return the drawn label of each sample, (B,) int64, the same as often as it is asked for in one context.

        Args:
            labels: their own, (B,) integers in 0..K−1.
            index: their positions in the forget set, (B,) int64.
            classes: K.
            context: holds the draws.
        """
        assert context.draws is not None
        draws = context.draws[index.to(context.draws.device)]
        return drawn_labels(draws, labels.long(), classes, exclude_true=self.exclude_true)

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether few enough of the forget set are told right."""
        return told(level, context, self.target)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        return told_words(level, context, self.target)


OBJECTIVE = RandomLabel
