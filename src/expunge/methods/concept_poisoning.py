"""Forgetting a class by training on its samples with another class's concepts in them, under other labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from expunge.concepts.donor import Rule
from expunge.concepts.patches import Labels, Mode
from expunge.errors import UserError
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._concepts import FINDS, part_trained, poison, share_of
from expunge.methods._steps import Descent, Stepped, Taken, only_classes
from expunge.methods._study import STUDIES, Rank, Source, study
from expunge.references import CHANG_2024
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.train import Recipe

TWICE = 2  # checks in a row at which the class must be gone
USED = "The samples to forget were trained on once more, poisoned: what was pasted or their new labels may stay behind."

MOVED = "The file's concepts were found before this edit moved the representation: fit them anew for the next request."


@dataclass(frozen=True, kw_only=True)
class ConceptPoisoning(Stepped):
    """Learn which concepts a class stands on, paste another class's concepts over them, and train on under its label.

    min_θ Σ_{D_r} CE(g(x), y) + Σ_{x∈k} CE(g(x̃), ỹ), where x̃ is a sample of the class k with parts of a donor's in it
    and ỹ the donor's class (``targeted``), a random other class, or k itself (``keep``).

    `prepare` fits a bank of concepts on the training data: linear directions of the representation, found by clusters
    of windows (images) or rows (tables), by topics or lists of words (tokens), from a column of the data, or given in a
    file. A sparse linear head on their scores says how much each class stands on each; where it agrees with the network
    on less than 90 % of the samples, gradients of the network itself say so. `unlearn` takes the M concepts that the
    class stands on most, and a donor class by the rule; finds them in the images, by one forward pass each where the
    representation is a mean of spatial features and else by occlusion; pastes; and trains on until at most
    ``threshold`` of the forget set are still taken for the class, at the end of two epochs in a row.

    **Read it beside** ``mode="none"``, which changes labels alone. On published benchmarks and on ours that forgets as
    well, so that what the concepts add must be shown against it. With ``layers="last"`` the representation stays as it
    was and a linear probe on it still tells the class: outputs are suppressed, nothing is removed. The samples to
    forget are trained on once more, and poisoned samples may remain recognisable as trained on. All outputs of the
    class going to the donor is what no retrained network shows.

    Images are poisoned in the network's own input space. Tables have the columns swapped that go with the concepts;
    texts the words, or masked, see `expunge.concepts.texts`. Modes of one kind of samples are refused elsewhere.

    Needs the training set with labels to prepare; forget inputs, labelled retain data and the class to unlearn. Labels
    of the forget set are never read. Declines forget sets that are no class and tasks without classes. BatchNorm
    statistics stay, unless ``norm="moving"``; frozen layers stay in eval mode throughout.

    The next state is studied anew on the retain set, with the new weights: nothing of the forgotten samples is left in
    it but what the retained ones share. Vectors given in a file are kept as they are, and a note says so.

    Passes, at most: to prepare 4 over the training set, and besides runs of the ``windows`` of ``images`` samples a
    class. To unlearn E + 7 over the retain set, 4 of them to study it anew; 3·E + 8 over the forget set, for a poisoned
    sample is read with its donor, and every epoch ends with a check.
    """

    reference: ClassVar[Reference] = CHANG_2024
    example: ClassVar[dict[str, object]] = {
        "epochs": 2,
        "donor": 0,
        "clusters": 2,
        "windows": 4,
        "examples": 4,
        "redraws": 2,
        "least": 0.3,
        "level": 1.0,
    }
    prepared_by: ClassVar[frozenset[str] | None] = frozenset(
        {
            "source",
            "column",
            "bank",
            "words",
            "tap",
            "images",
            "windows",
            "clusters",
            "examples",
            "redraws",
            "least",
            "level",
            "rank",
        }
    )

    epochs: int = option(10, symbol="E", unit="passes over both sets", text="at most", search=Search(1, 20, whole=True))
    lr: float = option(0.001, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1e-1, log=True))
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    batch_size: int | None = option(32, symbol="B", unit="samples", text="a step; none, the recipe's")
    norm: Literal["moving", "frozen"] = option(
        "frozen", unit="-", text="whether BatchNorm statistics of trained layers move with the batches, or stay"
    )
    layers: str | tuple[str, ...] = option("all", unit="-", text="whose weights move: all, last, or names of modules")
    mode: Mode = option(
        "localized",
        unit="-",
        text="localized, center, random, full (donor shrunk), whole (donor itself), mask (words), none (labels alone)",
    )
    mask: int | None = option(None, unit="token", text="that stands in a word's place, for mode='mask'")
    labels: Labels = option("targeted", unit="-", text="of poisoned samples: targeted (the donor's), random, keep")
    patches: int = option(
        1, symbol="M", unit="concepts", text="pasted over on each sample", search=Search(1, 5, whole=True)
    )
    size: int | None = option(
        None, unit="pixels or columns", text="of a patch, or swapped for each concept; unset, 2/7 of the side, a tenth"
    )
    donor: int | None = option(None, unit="class", text="that donates; unset, by the rule")
    rule: Rule = option("confusion", unit="-", text="confusion: the class that has one of k's as its own top; shared")
    threshold: float | None = option(
        0.01, unit="share of the forget set", text="still taken for the class at which training ends; unset, never"
    )
    source: Source = option(
        "found",
        unit="-",
        text="of concepts: found (clusters of windows or rows, topics of tokens), words, column, or file",
    )
    column: str | None = option(None, unit="-", text="of the training data that names each sample's concepts")
    bank: str | None = option(None, unit="-", text="file of a bank of concepts, for source='file'")
    tap: str | None = option(
        None,
        unit="-",
        text="module whose output, or NAME:input, is the representation; unset, the head's input",
    )
    images: int = option(50, unit="samples a class", text="that concepts are looked for in")
    windows: int = option(20, unit="windows", text="of each such image")
    clusters: int = option(5, unit="clusters or topics a class", text="of windows or rows, or of words")
    examples: int = option(20, unit="windows or samples", text="that a concept needs")
    redraws: int = option(20, unit="fits", text="of each concept against other negatives, to see whether it is stable")
    least: float = option(0.7, unit="accuracy", text="on held-out examples below which a concept is dropped")
    level: float = option(
        0.05, unit="probability", text="at which a concept must move a class's logit more than chance; 1, untested"
    )
    words: tuple[tuple[Any, ...], ...] = option(
        (), unit="lists of a name and its tokens", text="concepts of texts, for source='words'"
    )
    rank: Rank = option(
        "auto", unit="-", text="concepts of a class by the sparse head, by the network's gradients, or by fidelity"
    )
    shown: int = option(
        0, unit="samples, windows", text="poisoned samples, and windows a concept, kept in the log as pictures: data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"mode": Mode, "labels": Labels, "rule": Rule, "source": Source, "rank": Rank}
        for name, words in known.items():
            self.one_of(name, *get_args(words))
        counts = {
            "patches": 1,
            "size": 1,
            "donor": 0,
            "mask": 0,
            "images": 1,
            "windows": 1,
            "clusters": 1,
            "examples": 4,
        }
        for name, least in {**counts, "redraws": 2, "shown": 0}.items():
            self.count(name, least)
        if self.threshold is not None:
            self.inside("threshold", 0, 1, ends=True)
        self.inside("least", 0, 1, ends=True)
        self.inside("level", 0, 1, ends=True)
        names = (self.layers,) if isinstance(self.layers, str) else self.layers
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
            raise UserError(f"{self.name}.layers all, last or names", repr(self.layers), "write for example ['fc']")
        self._lists()
        sources = (("source", "column", "column"), ("source", "file", "bank"), ("source", "words", "words"))
        for field, value, name in (*sources, ("mode", "mask", "mask")):
            given, asked = getattr(self, name), getattr(self, field)
            if (asked == value) != (given not in (None, ())):
                got = f"{self.name}.{name}={given!r} with {field}={asked!r}"
                raise UserError(f"{field}='{value}' and {name} together", got, "set both, or neither")

    def _lists(self) -> None:
        """Hold ``words`` to lists of a name and token ids."""
        rows, want = self.words, f"{self.name}.words as lists of a name and token ids"
        if isinstance(rows, str) or not isinstance(rows, list | tuple):
            raise UserError(want, repr(rows), "write for example [['war', 12, 45]]")
        plain = tuple(tuple(row) if isinstance(row, list | tuple) else (row,) for row in rows)
        for row in plain:
            ids = [i for i in row[1:] if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
            if not row or not isinstance(row[0], str) or not ids or len(ids) != len(row) - 1:
                raise UserError(want, repr(list(row)), "write for example [['war', 12, 45]]")
        if len({row[0] for row in plain}) != len(plain):
            raise UserError(f"{self.name}.words with each name once", repr([r[0] for r in plain]), "join the lists")
        object.__setattr__(self, "words", plain)

    @property
    def studies(self) -> bool:
        """Whether concepts are needed: to find patches, or a donor."""
        return self.mode in ("localized", "mask") or self.donor is None

    @property
    def prepares(self) -> Needs:
        """The training set with labels; nothing where neither patches nor the donor depend on concepts."""
        return Needs(train=See.LABELLED) if self.studies else Needs()

    @property
    def unlearns(self) -> Needs:
        """Forget inputs, labelled retain data, the class; optionally the recipe."""
        return self.sees(forget=See.INPUTS, retain=See.LABELLED, scenario=True)

    def preparation(self) -> dict[str, Any]:
        """Return the settings that decide what `prepare` leaves, and whether it leaves anything."""
        return {**super().preparation(), "studies": self.studies}

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks without classes and forget sets that are no class."""
        if scenario is not None and scenario.kind != "class":
            return f"it relabels one class, and the forget set is of kind '{scenario.kind}'"
        return only_classes(task, "it relabels one class")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return at most how often each set is read."""
        if phase == "prepare":
            return {"train": float(STUDIES)} if self.studies else {}
        again = STUDIES if self.studies else 0
        return self.reads(phase, forget=3.0 * self.epochs + FINDS, retain=float(self.epochs + again + 3))

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Fit the bank of concepts, and tell how much each class stands on each of them."""
        if not self.studies:
            return session.model, State()
        found = study(self, session, session.model, session.train)
        for name, value in found.facts.items():
            session.record(name, value)
        return session.model, found.state()

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Poison and train on; then study the concepts anew, of the new weights and without the forgotten samples."""
        model, _ = super().unlearn(session, state)
        if not self.studies:
            return model, State()
        if self.source == "file":
            session.record("note", MOVED)
        try:
            found = study(self, session, model, session.retain)
        except UserError as error:  # the edit stands
            session.record("note", f"The retained samples could not be studied for a next request: {error}")
            return model, State()
        return model, found.state()

    def descend(self, session: Session, descent: Descent) -> None:
        """Choose concepts and a donor, poison, and train on until the class is gone."""
        few = session.retain.read([0]).to(session.runtime.torch_device)
        with part_trained(session.model, self.layers, session.task, few) as frozen:
            made = poison(self, session, descent.state)
            session.record("note", USED)

            def loss(model: nn.Module, now: Taken) -> Tensor:
                for module in frozen:
                    module.eval()
                return descent.losses(now.batch).mean()

            gone = 0
            self._left(session, descent)
            for _ in range(self.epochs):
                descent.epoch([made.data, session.retain], loss)
                descent.ended()
                left = self._left(session, descent)
                gone = gone + 1 if self.threshold is not None and left <= self.threshold else 0
                if gone == TWICE:
                    break
            session.record("stopped", "threshold" if gone == TWICE else "epochs")

    def _left(self, session: Session, descent: Descent) -> float:
        """Return the share of the forget set still taken for the class, and record it."""
        label = int(session.scenario.target)
        left = share_of(descent.model, session.task, session.forget, label, session.runtime, descent.advance)
        session.record("taken_for_class", left, step=descent.steps)
        return left


METHOD = ConceptPoisoning
