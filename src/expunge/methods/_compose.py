"""The loop of methods that pair a forgetting objective with an anchor: batches, checks, when it is forgotten."""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge.anchors import Anchor, Hold, Known
from expunge.data import Batch, Data
from expunge.errors import Incompatible
from expunge.files import jsonable
from expunge.method import Needs, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.objectives import Context, Level, Objective
from expunge.objectives._base import told, told_words
from expunge.objectives._distances import negative_entropy
from expunge.objectives.tau_hinge import TauHinge
from expunge.passes import Passes, whole
from expunge.recipe import Recipe
from expunge.scenario import Scenario
from expunge.task import Classes, Task, class_count
from expunge.train import endless_orders, mean_loss

log = logging.getLogger(__name__)
WHOLE = 256  # forget samples of which each step sees all
PLANNED = 300  # steps that a plan counts where nothing says how many
TWICE = 2  # checks in a row at which the forget set must be forgotten
SETTLED = 0.01  # share by which the penalty may still change over the last tenth of the steps
PREPARED = "prepared"  # where a state says how
ALARM = 0.05  # nats a sample by which the divergence predicts the loss to rise
Early = Literal["settled", "reached", "never"]
MOST = 0.5  # share of the data beyond which unlearning is no edit


@dataclass(frozen=True, kw_only=True)
class Composing(Checked):
    """What methods have in common that lower an objective under an anchor; a subclass names the two.

    Every ``every`` steps the model as it would be returned is measured on the whole forget set. It ends as ``early``
    says, or after ``steps``.
    """

    batch_size: int | None = option(
        None, symbol="B", unit="samples", text=f"of the forget set a step; unset, all of {WHOLE} or fewer, else {WHOLE}"
    )
    steps: int | None = option(None, symbol="T", unit="steps", text="at most; unset, what the anchor says")
    every: int = option(20, unit="steps", text="between two looks at the forget set")
    accuracy: float | None = option(
        None,
        unit="share",
        text="of the forget set told right at which it ends, instead of what the objective calls forgotten",
    )
    early: Early = option(
        "settled",
        unit="-",
        text="when it ends before all steps: settled, forgotten at two looks in a row, the penalty no longer changing; "
        "reached, forgotten at one; never",
    )
    force: bool = option(False, unit="-", text="take steps although nothing is there to forget")

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "every"):
            self.count(name, 1)
        self.inside("accuracy", 0, 1, ends=True)
        self.one_of("early", *get_args(Early))
        self.flag("force")

    @property
    @abstractmethod
    def pair(self) -> tuple[Objective, Anchor]:
        """The objective and the anchor."""

    @property
    def prepares(self) -> Needs:
        """What the anchor reads, with held-out data where the objective rises to its loss."""
        objective, anchor = self.pair
        needs = anchor.prepares
        return needs | Needs(holdout=See.LABELLED) if self._stores(objective, anchor) else needs

    @property
    def unlearns(self) -> Needs:
        """What the objective and the anchor read; held-out data where the objective asks and no state tells."""
        objective, anchor = self.pair
        needs = objective.needs | anchor.unlearns
        asks = objective.threshold and getattr(objective, "tau", None) is None
        free = frozenset() if asks and not self._stores(objective, anchor) else frozenset({"holdout"})
        if asks or objective.compared:
            needs = needs | Needs(holdout=See.LABELLED, optional=free)
        if self.accuracy is not None:
            needs = needs | Needs(forget=See.INPUTS)
        return needs

    def _stores(self, objective: Objective, anchor: Anchor) -> bool:
        """Return whether the held-out loss is written down by `prepare`."""
        return objective.threshold and getattr(objective, "tau", None) is None and bool(anchor.prepares.train)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what the objective or the anchor declines."""
        objective, anchor = self.pair
        if self.accuracy is not None and not isinstance(task, Classes):
            return f"{self.name}.accuracy is a share of classes told right, and this task has no classes"
        return objective.declines(task) or anchor.declines(task, model)

    def preparation(self) -> dict[str, Any]:
        """Return the settings that decide what is prepared: the anchor's, whatever is lowered."""
        return {"name": self.name, **({"anchor": decides} if (decides := self.pair[1].preparation()) else {})}

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the anchor's passes; a step counts as one over the forget set, and 300 are planned where none says.

        Over the forget set there are besides a look every so many steps, one before and one after, and one to deflate.
        """
        objective, anchor = self.pair
        found = dict(anchor.passes(phase, recipe, self.steps))
        if phase == "prepare":
            return found | ({"holdout": 1.0} if self.prepares.holdout else {})
        steps = self.steps or anchor.planned or PLANNED
        aside = 3 if getattr(anchor, "deflate", False) else 2
        found["forget"] = found.get("forget", 1.0) * steps + steps / self.every + aside
        return found | ({"holdout": 2.0} if self.unlearns.holdout else {})

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Do the anchor's one-off pass, and write down the settings that it was done with."""
        anchor = self.pair[1]
        model, state = anchor.prepare(session)
        own = anchor.preparation()
        return model, _marked(state, {"anchor": anchor.name, **own}) if own else state

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Lower the objective under the anchor until the forget set is forgotten."""
        objective, anchor = self.pair
        self._check_prepared(anchor, state)
        known = _known(session, anchor.known(state))
        context = objective.context(session, known.tau, known.accuracy)
        course = _Course(self, session, objective, context)
        start = course.check(session.model, step=0)
        if (tau := course.threshold(start)) is not None:
            session.record("tau", tau)
        self._warn(session)
        if course.idle(start) and not self.force:
            session.record("steps", 0)
            text = f"Nothing to forget: {course.met(start)} before any step; no weight was moved"
            session.record("note", f"{text}, set {self.name}.force to take steps all the same.")
            return session.model, state
        size = self.batch_size or min(len(session.forget), WHOLE)
        hold = anchor.hold(session, state, course.lowered, self.steps)
        course.run(hold, size, hold.steps)
        model, left = _same_everywhere(session, *hold.finish())
        return model, _marked(left, state.meta.get(PREPARED))

    def _check_prepared(self, anchor: Anchor, state: State) -> None:
        """Refuse settings of the preparation that are not those it was done with; a default stands for any.

        How σ is kept may change from request to request. Of another anchor's preparation all must be the same.

        Raises:
            Incompatible: names them.
        """
        found, own = state.meta.get(PREPARED), jsonable(anchor.preparation())
        if not own or found is None:
            return
        if not isinstance(found, Mapping) or "anchor" not in found:
            raise Incompatible(f"settings that {self.name} was prepared with in its state", repr(found), "prepare anew")
        known = fields(anchor) if found["anchor"] == anchor.name else ()  # type: ignore[arg-type]
        defaults = {f.name: f.default for f in known}
        odd = [n for n in own if n != "stored" and own[n] not in (found.get(n), defaults.get(n, found.get(n)))]
        if odd:
            want, got = (", ".join(f"{n}={said.get(n)!r}" for n in odd) for said in (own, found))
            other = "" if found["anchor"] == anchor.name else f" for the anchor {found['anchor']}"
            want, got = f"a state of {self.name} prepared with {want}", f"one prepared with {got}{other}"
            raise Incompatible(want, got, "prepare anew, or ask as prepared")

    def _warn(self, session: Session) -> None:
        """Warn of a forget set that is most of the data, where that is known."""
        scenario = session.scenario
        if scenario is None or not scenario.train:
            return
        share = len(session.forget) / len(scenario.train)
        if share > MOST:
            text = f"{share:.0%} of the training data is to be forgotten: training anew on the rest may cost less"
            log.warning("%s", text)
            session.record("note", f"{text}.")


@dataclass
class _Course:
    """One request on its way: batches, looks at the forget set, and whether it is forgotten.

    Args:
        method: when to look and when to end.
        session: the forget set, and where values are recorded.
        objective: what is lowered.
        context: what it looks at.
    """

    method: Composing
    session: Session
    objective: Objective
    context: Context
    before: Tensor | None = None
    reached: int = 0
    penalties: list[tuple[int, float]] = field(default_factory=list)

    def lowered(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the objective on a batch, a scalar."""
        outputs = self.session.task.forward(model, batch)[0]
        return self.objective.loss(outputs, batch, self.context)

    def run(self, hold: Hold, size: int, steps: int) -> None:
        """Take the steps."""
        runtime, forget = self.session.runtime, self.session.forget
        every = itertools.repeat(np.arange(len(forget)))
        batches = every if size >= len(forget) else endless_orders(size, len(forget))
        taken, level = 0, None
        with runtime.tracking(f"forgetting by {self.method.name}", steps * size) as advance:
            for taken in range(1, steps + 1):
                at = next(batches)
                with whole(f"a batch of {len(at)} samples", f"lower {self.method.name}.batch_size"):
                    hold.step(forget.read(at).to(runtime.torch_device))
                advance(len(at))
                if taken % self.method.every == 0 or taken == steps:
                    with hold.mean() as model:
                        level = self.check(model, step=taken, hold=hold)
                    if self.ended(level, taken):
                        break
        self.session.record("steps", taken)
        assert level is not None
        self._told(level, taken, steps, hold)

    def check(self, model: nn.Module, *, step: int, hold: Hold | None = None) -> Level:
        """Measure a model on the forget set, and record what is found."""
        level = self._measured(model)
        found = {
            "objective": level.value,
            "forget_loss": level.loss,
            "entropy": level.entropy,
            "forget_accuracy": level.accuracy,
        }
        penalty = 0.0 if hold is None else hold.penalty()
        if penalty is not None and hold is not None:
            self.penalties.append((step, penalty))
            found["penalty"] = penalty
        for name, value in (found | ({} if hold is None else hold.told())).items():
            if value is not None:
                self.session.record(name, value, step=step)
        return level

    def ended(self, level: Level, step: int) -> bool:
        """Return whether it ends here, as ``early`` says."""
        self.reached = self.reached + 1 if self._forgotten(level) else 0
        if self.method.early == "settled":
            return self.reached >= TWICE and self._settled(step)
        return self.method.early == "reached" and self.reached > 0

    def threshold(self, level: Level) -> float | None:
        """Return the loss that the objective rises to, else the mean loss on held-out data; None where not known."""
        if isinstance(self.objective, TauHinge):
            return self.objective.level(level.classes, self.context)
        return self.context.tau

    def idle(self, level: Level) -> bool:
        """Return whether the model, as it comes, has nothing to forget."""
        by_accuracy = self.method.accuracy is not None
        return self._forgotten(level) if by_accuracy else self.objective.idle(level, self.context)

    def met(self, level: Level) -> str:
        """Return in words how far the forget set is forgotten, beside what is called forgotten."""
        target = self.method.accuracy
        return self.objective.met(level, self.context) if target is None else told_words(level, self.context, target)

    def _forgotten(self, level: Level) -> bool:
        target = self.method.accuracy
        return self.objective.reached(level, self.context) if target is None else told(level, self.context, target)

    def _settled(self, step: int) -> bool:
        """Return whether the penalty changed by less than 1 % over the last tenth of the steps, or there is none."""
        if not self.penalties:
            return True
        now = self.penalties[-1][1]
        past = [value for at, value in self.penalties if at <= 0.9 * step]
        return bool(past) and abs(now - past[-1]) <= SETTLED * abs(now)

    def _told(self, level: Level, taken: int, steps: int, hold: Hold) -> None:
        """Say whether it was forgotten, and what the divergence predicts."""
        reached = self._forgotten(level)
        self.session.record("reached", reached)
        if not reached:
            text = f"Not forgotten after {taken} of {steps} steps: {self.met(level)}"
            self.session.record("note", f"{text}; take more steps, a higher rate, or a weaker anchor.")
        tau = self.threshold(level) if self.objective.threshold else None
        if tau is not None and level.loss is not None:
            self.session.record("tau_gap", (tau - level.loss) / tau if tau else 0.0)
        alarm = hold.told().get("kl_per_sample", 0.0)
        if alarm > ALARM:
            text = f"The divergence from the original predicts that the mean training loss rises by {alarm:.2g} nats"
            self.session.record("note", f"{text} or more: measure what is kept before serving it.")

    def _measured(self, model: nn.Module) -> Level:
        """Return how much of the forget set a model in eval mode still knows."""
        session, runtime = self.session, self.session.runtime
        task, labels = session.task, session.forget.labelled

        def work(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, int]:
            here = batch.to(runtime.torch_device)
            outputs = task.forward(model, here)[0]
            each = self.objective.values(outputs, here, self.context).double().cpu()
            loss = task.loss(outputs, here.target).double().cpu() if labels and here.target is not None else None
            entropy = predicted = None
            if isinstance(task, Classes):
                entropy = -negative_entropy(task.class_logits(outputs)).double().cpu()
                predicted = task.predictions(outputs).cpu()
            target = None if here.target is None else here.target.cpu()
            return each, loss, entropy, predicted, target, class_count(task, outputs)

        model.eval()
        with torch.no_grad(), runtime.autocast():
            rows = list(Passes(runtime).over(session.forget, work))
        columns: list[Any] = [
            None if part[0] is None else torch.cat(part) for part in list(zip(*rows, strict=True))[:5]
        ]
        values, losses, entropies, predicted, targets = columns
        accuracy = None
        if predicted is not None:
            if targets is None and self.before is None:
                self.before = predicted
            right = predicted == (self.before if targets is None else targets)
            accuracy = float(right.double().mean())
        return Level(
            value=float(values.mean()),
            loss=None if losses is None else float(losses.mean()),
            entropy=None if entropies is None else float(entropies.mean()),
            accuracy=accuracy,
            classes=rows[0][5],
        )


def _marked(state: State, prepared: Mapping[str, Any] | None) -> State:
    """Return a state that says how it was prepared, where that is known."""
    return state if prepared is None else State(state.tensors, {**state.meta, PREPARED: jsonable(prepared)})


def _known(session: Session, stored: Known) -> Known:
    """Return the loss and accuracy on held-out data at the model as it is, or else as `prepare` wrote them down."""
    holdout = session.given.get("holdout")
    if not isinstance(holdout, Data):
        return stored
    runtime, task = session.runtime, session.task
    tau = mean_loss(session.model, task, holdout, runtime)
    if not isinstance(task, Classes):
        return Known(tau, None)

    def right(batch: Batch) -> int:
        here = batch.to(runtime.torch_device)
        assert here.target is not None
        return int((task.predictions(task.forward(session.model, here)[0]) == here.target).sum())

    with torch.no_grad(), runtime.autocast():
        return Known(tau, sum(Passes(runtime).over(holdout, right)) / len(holdout))


def _same_everywhere(session: Session, model: nn.Module, state: State) -> tuple[nn.Module, State]:
    """Return what process 0 has: all did the same work, which rounds alike only on like machines."""
    if session.runtime.count == 1:
        return model, state
    mine = ({k: v.cpu() for k, v in model.state_dict().items()}, {k: state.tensors[k].cpu() for k in state.tensors})
    weights, tensors = session.runtime.shared(mine)
    model.load_state_dict(weights)
    return model, State(tensors, state.meta)
