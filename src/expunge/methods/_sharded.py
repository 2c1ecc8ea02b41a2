"""The base of exact methods that keep apart what each part of a model was trained on: shards, slices, stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data, id_texts
from expunge.errors import CorruptArtefact, Incompatible, UserError, listing
from expunge.exact.assign import assigned, astray, key, taught, twins
from expunge.exact.book import (
    BASE,
    Book,
    Sequences,
    Served,
    Stage,
    samples_digest,
    stage_name,
    tensor_name,
    tensors_digest,
)
from expunge.exact.ensemble import AGGREGATES, Ensemble, rule
from expunge.exact.stages import Values, Work, checked, of_stages, stage_of
from expunge.files import jsonable
from expunge.identity import described
from expunge.method import Nature, Needs, See, Session, State, need, option
from expunge.methods._fields import Checked
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Classes, MultiLabel, Task
from expunge.train import Recipe

COVERS = (
    "Exact: no served weight was trained on a deleted sample, and training again without it, with the same slices and "
    "seeds, gives the same bits on a CPU. What the network before training knows, and exact or near copies under "
    "other ids, lie outside of that."
)


Line = tuple[tuple[str, str], ...]


def line_of(book: Book, shard: int, prefix: Sequence[int]) -> Line:
    """Return what the network after a stage is made of: names and digests of the stages up to it."""
    return tuple((name, book.stages[name].tensors) for name in book.line(stage_name(shard, prefix)))


@dataclass(frozen=True, kw_only=True)
class Sharded(Checked):
    """Training in shards and slices, of which a request takes back those stages alone that read a deleted sample.

    A subclass says in which orders slices are read, how a stage is trained, and how stages make a network.
    """

    nature: ClassVar[Nature] = Nature.EXACT
    refits: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    prepares = Needs(train=See.LABELLED, recipe=True, fresh=True)
    unlearns = Needs(forget=See.IDS, retain=See.LABELLED, recipe=True, optional=frozenset({"retain", "recipe"}))

    shards: int = option(2, symbol="m", unit="shards", text="each with a network of its own")
    slices: int = option(3, symbol="L", unit="slices", text="of each shard, read one after another")
    aggregate: Literal["softmax", "logits", "votes"] = option(
        "softmax", unit="-", text="mean probability, mean logits or votes; without probabilities always the mean"
    )
    owner: str = option("", unit="-", text="column that says whose a sample is; empty: each stands for itself")
    band: str = option("", unit="-", text="column of the slice by likelihood of deletion, 0 to L − 1; empty: by hash")
    failure: Literal["all", "first"] = option(
        "all", unit="-", text="train anew once all shards have nothing clean left, or once the first has"
    )
    stage_epochs: int | None = option(
        None, symbol="e", unit="epochs", text="of each stage; unset, 2e′/(L + 1) of the recipe's e′, at least 1"
    )

    def __post_init__(self) -> None:
        self.count("shards", 1)
        self.count("slices", 1)
        self.count("stage_epochs", 1)
        self.one_of("aggregate", *AGGREGATES)
        self.one_of("failure", "all", "first")
        for name in ("owner", "band"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{self.name}.{name} as the name of a column", repr(getattr(self, name)), "write it")

    @property
    @abstractmethod
    def heals(self) -> bool:
        """Whether lost stages are trained anew wherever retain data and recipe are given, not at a failure alone."""

    @abstractmethod
    def orders(self, session: Session) -> Sequences:
        """Return the orders of slices by shard."""

    @abstractmethod
    def start(self, session: Session) -> nn.Module:
        """Return the network before any stage, as public as it was before; its weights are stored beside the state."""

    @abstractmethod
    def layers(self, base: nn.Module, config: Mapping[str, Any], depth: int) -> tuple[str, ...]:
        """Return the names of what the stage at this depth, from 1, trains."""

    @abstractmethod
    def stage(
        self,
        session: Session,
        base: nn.Module,
        config: Mapping[str, Any],
        earlier: Sequence[Values],
        data: Data,
        recipe: Recipe,
        seed: int,
    ) -> Values:
        """Train one stage and return its tensors by name, on the CPU.

        Args:
            session: for task and runtime.
            base: the network before any stage; left as it is.
            config: of the record.
            earlier: tensors of the stages before it in its sequence, the first one first.
            data: its samples, sorted by id; where fewer are left than `least`, the stage is left untrained.
            recipe: at the epochs of a stage.
            seed: of everything random in it.
        """

    @abstractmethod
    def member(self, base: nn.Module, config: Mapping[str, Any], stages: Sequence[Values]) -> nn.Module:
        """Return the network that stands after the last of some stages, from their tensors, the first stage first."""

    def least(self, base: nn.Module) -> int:
        """Return how many samples a stage needs; with fewer it is left untrained and never served."""
        return 1

    def extra(self, session: Session, base: nn.Module) -> dict[str, Any]:
        """Return what else decides the training, as JSON values for the record."""
        return {}

    def epochs(self, recipe: Recipe) -> int:
        """Return e = max(1, round(2e′/(L + 1))), at which all stages together read as much as e′ unsliced epochs."""
        return self.stage_epochs or max(1, round(2 * recipe.epochs / (self.slices + 1)))

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe of one stage: its warm-up and milestones shortened as its epochs are.

        Raises:
            UserError: it stops early, which looks at other samples and cannot be taken back.
        """
        if recipe.patience is not None:
            remedy = "leave it out: the epoch to stop at would be a function of samples that may be deleted"
            raise UserError(f"a recipe without early stopping for {self.name}", f"patience={recipe.patience}", remedy)
        epochs = self.epochs(recipe)
        share = epochs / max(1, recipe.epochs)
        steps = tuple(m * share for m in recipe.milestones)
        return replace(recipe.again(), epochs=epochs, warmup=recipe.warmup * share, milestones=steps)  # type: ignore[arg-type]

    def foreseen(self, phase: str, given: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Return the passes of one call: of a request, over the retain data those stages that it must train anew."""
        recipe = given.get("recipe")
        if phase == "prepare":
            self.recipe(given["recipe"])
            assigned(given["train"], self.shards, self.slices, seed, owner=self.owner, band=self.band)
            return self.passes(phase, recipe)
        forget, retain = given["forget"], given.get("retain")
        book = self.book(given["state"]).after(forget.ids if isinstance(forget, Data) else id_texts(forget))
        again = self._due(book, able=retain is not None and recipe is not None)
        if not again:
            return {}
        need(self.name, {"retain": retain, "recipe": recipe}, self._why(book))
        assert retain is not None
        assert recipe is not None
        reads = sum(int(book.inside(*stage).sum()) for stage in book.missing(again))
        return {"retain": reads * self.epochs(recipe) / max(1, len(retain))}

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline votes of a task without classes or labels."""
        if self.aggregate == "votes" and not isinstance(task, Classes | MultiLabel):
            return f"{type(task).__name__} has no classes to vote for: set aggregate to softmax, which takes the mean"
        return None

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Deal the samples to slices and train every stage."""
        self._refuse(session)
        train, recipe = session.train, self.recipe(session.recipe)
        base, orders = self.start(session).eval(), self.orders(session)
        places = assigned(train, self.shards, self.slices, session.seed, owner=self.owner, band=self.band)
        secret = key(session.seed, "id")
        same = twins(train.contents(secret))
        config = {
            **{name: getattr(self, name) for name in ("shards", "slices", "failure")},
            **{"kind": self.name, "sequences": orders, "seed": session.seed, "epochs": recipe.epochs},
            **self._told(session),
            **{"settings": self.preparation(), "base": tensors.weights_digest(base)},
            **self.extra(session, base),
        }
        book = Book.opened(config, secret, train.ids, places, taught(train, secret), same)
        book = book.noted("base", tensors=book.config["base"], config=book.digest)
        values: dict[str, Tensor] = {}
        book, work = self._trained(session, base, book, train, recipe, range(self.shards), values)
        copies = astray(same, places)
        if copies:
            text = f"{copies} samples have an exact copy in another slice: deleting one of them leaves what the copy"
            session.record("note", f"{text} taught.")
        session.record("copies", copies)
        session.record("samples_processed", work.processed)
        session.record("slice_sizes", np.bincount(places, minlength=self.shards * self.slices))
        session.record("note", COVERS)
        made = self._ended(session, base, book, values)
        work.clear()
        return made

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Revoke every stage that read a deleted sample, fall back, and train anew where that is due and possible."""
        self._refuse(session)
        before = self.book(state)
        self._check_settings(session.task, before)
        model = session.model
        if not isinstance(model, Ensemble):
            got = type(model).__name__
            raise Incompatible(f"the ensemble that {self.name} prepared", got, "pass ready.model, or serve it first")
        ids = session.forget.ids
        self._tell_copies(session, before, ids)
        book, lost = before.after(ids).purged()
        again = self._due(book, able=session.retain is not None and session.recipe is not None)
        if again:
            session.require("retain", "recipe", why=self._why(book))
        values = {k: state.tensors[k] for k in of_stages(state.tensors) if stage_of(k) not in lost}
        work = None
        if again:
            data = self._staying(session, book, again)
            recipe = self.same_recipe(session, book)
            book, work = self._trained(session, model.base, book, data, recipe, again, values)
        self._tell(session, before, book, lost, work)
        made = self._ended(session, model.base, book, values, self._standing(model, before))
        if work is not None:
            work.clear()
        return made

    def served_from(self, model: nn.Module) -> nn.Module:
        """Return the network before any stage: the stages' weights are in the state."""
        return model.base if isinstance(model, Ensemble) else model

    def serve(self, model: nn.Module, state: State) -> nn.Module:
        """Return the ensemble that the state says is served, on the stored network."""
        book = self.book(state)
        return self.assembled(model, book, state.tensors, str(state.meta["rule"]))

    def book(self, state: State) -> Book:
        """Return the record of a state, held to the tensors beside it.

        Raises:
            Incompatible: the state is none of this method's.
            CorruptArtefact: the record is not whole, or a stage's tensors are missing or too many.
        """
        if "book" not in state.meta or "manifest" not in state.meta:
            raise Incompatible(f"a state that {self.name} prepared", "one without a record of stages", "prepare anew")
        book = Book.from_json(state.meta["book"], state.meta["manifest"], state.tensors)
        found, live = (
            {stage_of(k) for k in of_stages(state.tensors)},
            {s.name for s in book.stages.values() if s.live},
        )
        if found != live:
            got = f"others under {listing(sorted(found ^ live))}"
            raise CorruptArtefact("tensors of every live stage and no other", got, "restore the state from a copy")
        return book

    def served(self, book: Book) -> dict[str, Served]:
        """Return what serves, by the name of its member: of each shard its deepest live sequence."""
        return {str(shard): one for shard, one in enumerate(book.plan()) if one is not None}

    def assembled(
        self,
        base: nn.Module,
        book: Book,
        values: Values,
        how: str,
        standing: Mapping[Line, nn.Module] = MappingProxyType({}),
    ) -> Ensemble:
        """Return the ensemble of what a record says is served.

        Args:
            base: the network before any stage.
            book: the record.
            values: tensors of stages, as in a state.
            how: the rule; see `expunge.exact.ensemble.rule`.
            standing: members on this base that were made of the same stages already, by their `line_of`.

        Raises:
            CorruptArtefact: a stage's tensors are not those of the record.
            UserError: nothing is left to serve.
        """
        members = {}
        for name, (order, depth) in self.served(book).items():
            shard = int(name.partition("-")[0])
            known = standing.get(line_of(book, shard, order[:depth])) if standing else None
            if known is None:
                stages = [checked(book, stage_name(shard, order[:k]), values) for k in range(1, depth + 1)]
                known = self.member(base, book.config, stages)
            members[name] = known
        if not members:
            raise UserError("a shard with something left to serve", "none", "prepare anew, on more samples")
        return Ensemble(base, members, how)

    def _standing(self, model: Ensemble, book: Book) -> dict[Line, nn.Module]:
        """Return the members of an ensemble by what they were made of, as the record says that it stands."""
        every = self.served(book).items()
        return {line_of(book, int(n.partition("-")[0]), o[:k]): model.members[n] for n, (o, k) in every}

    def _ended(
        self,
        session: Session,
        base: nn.Module,
        book: Book,
        values: Values,
        standing: Mapping[Line, nn.Module] = MappingProxyType({}),
    ) -> tuple[nn.Module, State]:
        """Return ensemble and state of a record that was held to what is served."""
        reads = np.zeros(len(book.id), dtype=np.bool_)
        for name, one in self.served(book).items():  # a shard may be answered for by several sequences
            plan = tuple(one if shard == int(name.partition("-")[0]) else None for shard in range(book.shards))
            book.check(plan)
            reads |= book.closure(plan)
        how = rule(self.aggregate, session.task)
        made = self.assembled(base, book, values, how, standing).to(session.runtime.torch_device).eval()
        depths = [0 if one is None else one[1] for one in book.plan()]
        session.record("depths", depths)
        session.record("trained_on", int(reads.sum()))
        meta = {"book": book.to_json(), "manifest": list(book.manifest), "rule": how}
        return made, State({**values, **book.tensors()}, meta)

    def _refuse(self, session: Session) -> None:
        if session.masks is not None:
            remedy = "run it without the mask: what chose the weights was a function of all samples"
            raise UserError(f"weights that may all move for {self.name}", "a mask over some of them", remedy)

    def _told(self, session: Session) -> dict[str, Any]:
        """Return what the session brings that decides the training."""
        recipe: Recipe = session.recipe
        return {
            "recipe": {**recipe.to_json(), "penalties": described(recipe.penalties)},
            "task": described(session.task),
            "precision": session.runtime.precision,
        }

    def _check_settings(self, task: Task, book: Book) -> None:
        own, found = jsonable(self.preparation()), book.config.get("settings", {})
        odd = [name for name in own if found.get(name) != own[name]]
        if odd:
            want, got = (", ".join(f"{n}={said.get(n)!r}" for n in odd) for said in (own, found))
            remedy = "prepare anew, or ask as prepared"
            raise Incompatible(f"a state of {self.name} with {want}", f"one with {got}", remedy)
        if jsonable(described(task)) != book.config.get("task"):
            remedy = "pass the one that was prepared with: it decides how the shards answer together"
            raise Incompatible(f"the task that {self.name} was prepared with", "another", remedy)

    def _due(self, book: Book, *, able: bool) -> list[int]:
        """Return the shards to train anew, those with anything lost where the method heals, dead ones at a failure.

        Args:
            book: the record after a request.
            able: whether retain data and recipe are at hand, which only a failure asks for.
        """
        lost = sorted({s.shard for s in book.stages.values() if not s.live})
        if self.heals and able:
            return [shard for shard in lost if book.inside(shard, range(self.slices)).any()]
        return book.dead() if book.failed else []  # none where too few samples are left in any

    def _why(self, book: Book) -> str:
        if self.failure == "first":
            return f"shard {listing(book.dead())} has no clean stage left"
        return "no shard has a clean stage left"

    def same_recipe(self, session: Session, book: Book) -> Recipe:
        """Return the recipe of a stage, held to the one that was prepared with.

        Raises:
            Incompatible: recipe, task or precision are others.
        """
        odd = self._others(session, book)
        if odd:
            remedy = "pass the one that was prepared with: the stages that stay were trained by it"
            raise Incompatible(f"the {listing(odd)} that {self.name} was prepared with", "another", remedy)
        return self.recipe(session.recipe)

    def _others(self, session: Session, book: Book) -> list[str]:
        """Return which of recipe, task and precision are not those of the record."""
        now = jsonable(self._told(session))
        return [name for name in now if now[name] != book.config.get(name)]

    def _staying(self, session: Session, book: Book, shards: Iterable[int]) -> Data:
        """Return the retain samples of some shards, held to what was prepared.

        Raises:
            UserError: some of them are missing, or have other content.
        """
        retain, shards = session.retain, list(shards)
        book.place(retain.ids)
        rows = book.rows(retain.ids)
        needed = np.zeros(len(book.id), dtype=np.bool_)
        for shard in shards:
            needed |= book.inside(shard, range(self.slices))
        missing = int(needed.sum() - needed[rows].sum())
        if missing:
            want = f"retain data with all {int(needed.sum())} samples that stay in shard {listing(shards)}"
            raise UserError(want, f"{missing} fewer", "pass retain=train.without(forget ids), and all of it")
        part = retain.subset([i for i, wanted in zip(retain.ids, needed[rows], strict=True) if wanted])
        now = taught(part, book.key)
        odd = [i for i, same in zip(part.ids, now == book.content[book.rows(part.ids)], strict=True) if not same]
        if odd:
            remedy = "pass the samples as they were trained on, untransformed, not augmented and with their weights"
            raise UserError(
                "the content that was prepared under each id", f"other content under {listing(odd)}", remedy
            )
        return part

    def _trained(
        self,
        session: Session,
        base: nn.Module,
        book: Book,
        data: Data,
        recipe: Recipe,
        shards: Iterable[int],
        values: dict[str, Tensor],
    ) -> tuple[Book, Work]:
        """Train every stage of some shards that is not live, and put its tensors into ``values``."""
        work, least = Work(session, base, recipe), self.least(base)
        ids, rows = np.asarray(data.ids, dtype=object), book.rows(data.ids)
        for shard, prefix in book.missing(shards):
            name, before = stage_name(shard, prefix), [stage_name(shard, prefix[:k]) for k in range(1, len(prefix))]
            earlier = [checked(book, other, values) for other in before]
            part = data.subset(sorted(ids[book.inside(shard, prefix)[rows]]))
            seed = named_seed("stage", book.config["seed"], shard, "-".join(map(str, prefix)))
            parents = (before[-1],) if before else (BASE,)
            told = [book.digest, name, seed, [book.stages[s].tensors for s in before]]
            told += [part.ids, book.content[book.rows(part.ids)].tolist()]
            found = work.found(name, told)
            if found is None:
                found = self.stage(session, base, book.config, earlier, part, recipe, seed)
                work.keep(name, told, found)
            layers = self.layers(base, book.config, len(prefix))
            reads = book.id[book.rows(part.ids)]
            steps = work.steps(len(part)) if len(part) >= least else 0
            facts: dict[str, Any] = {"tensors": tensors_digest(found), "seed": seed, "steps": steps}
            facts |= {"samples": samples_digest(reads), "n": len(part), "parents": parents, "layers": layers}
            book = book.trained(Stage(shard=shard, prefix=prefix, **facts))
            values |= {tensor_name(name, k): v for k, v in found.items()}
        odd = self._others(session, book)
        if odd:
            want, got = f"a {listing(odd)} that keeps nothing of what it sees", "one that training changed"
            raise UserError(want, got, "keep such values out of it: they would carry samples from stage to stage")
        return book, work

    def _tell_copies(self, session: Session, book: Book, ids: Sequence[str]) -> None:
        rows = book.rows(ids)
        groups = np.unique(book.twin[rows][book.twin[rows] >= 0])
        rest = np.ones(len(book.id), dtype=np.bool_)
        rest[rows] = False
        copies = int((np.isin(book.twin, groups) & rest & (book.gone == 0)).sum()) if len(groups) else 0
        session.record("copies", copies)
        if copies:
            session.record(
                "note", f"{copies} exact copies of these samples stay under other ids, with what they teach."
            )

    def _tell(self, session: Session, before: Book, book: Book, lost: Sequence[str], work: Work | None) -> None:
        """Record what a request took, and say what is served now."""
        session.record("revoked", list(lost))
        session.record("retrained", [] if work is None else work.names)
        session.record("samples_processed", 0 if work is None else work.processed)
        if not lost:
            session.record("note", "No live stage had read these samples: what is served stays as it was.")
        if work is not None and work.names:
            shards = sorted({int(name.partition("/")[0]) for name in work.names})
            count = f"{len(work.names)} stage{' was' if len(work.names) == 1 else 's were'}"
            session.record("note", f"{count} trained anew without the deleted samples, in shard {listing(shards)}.")
        plan = book.plan()
        depths = [0 if p is None else p[1] for p in plan]
        if min(depths) < self.slices:
            every = ", ".join(map(str, depths))
            session.record("note", f"Stages that are served, of {self.slices}, by shard: {every}.")
        dead = book.dead()
        if dead:
            session.record("note", f"Shard {listing(dead)} has no clean stage left and is out of the ensemble.")
        session.record("note", COVERS)
