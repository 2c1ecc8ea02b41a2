"""Any forgetting objective under any anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from expunge import anchors, objectives
from expunge.anchors import Anchor
from expunge.method import Reference, option
from expunge.methods._compose import Composing
from expunge.objectives import Objective
from expunge.references import TRIPPA_2024


@dataclass(frozen=True, kw_only=True)
class Compose(Composing):
    """Lower a forgetting objective U on the forget set while an anchor holds the rest of the model.

    ``objective`` is one of entropy, uniform, random_label, bad_teacher, scrub, ascent, tau_hinge; ``anchor`` one of
    retain_repair, kl_gaussian, fisher, l2sp, none. Each has fields of its own: {"name": "retain_repair", "lam": 0.3};
    the name alone will do. Any pair runs, and what a pair needs follows from its two parts: `expunge objectives` and
    `expunge anchors` list them.

    Every ``every`` steps the model as it would be returned is measured on the whole forget set: objective, loss,
    entropy, accuracy and the anchor's penalty go into ``done.log``. It ends once the objective calls the forget set
    forgotten at two checks in a row and the penalty has changed by less than 1 % over the last tenth of the steps, or
    after ``steps``. Where nothing is there to forget, no weight is moved, and the note says so.

    Sizes of objectives differ, so a weight that suits one suits no other: tune an anchor's weight for each.

    Passes: of the anchor, and one over the forget set for each look at it.
    """

    reference: ClassVar[Reference] = TRIPPA_2024
    example: ClassVar[dict[str, Any]] = {
        "objective": {"name": "entropy"},
        "anchor": {"name": "retain_repair", "steps": 20},
    }

    objective: Objective = option("tau_hinge", unit="objective", text="what is lowered: a name, or {name, fields}")
    anchor: Anchor = option("retain_repair", unit="anchor", text="what holds the rest: a name, or {name, fields}")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objective", objectives.build(self.objective))  # names and mappings become parts
        object.__setattr__(self, "anchor", anchors.build(self.anchor))

    @property
    def pair(self) -> tuple[Objective, Anchor]:
        """The objective and the anchor."""
        return self.objective, self.anchor


METHOD = Compose
