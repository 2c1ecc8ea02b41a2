"""S3T: slices trained one after another into LoRA on groups of blocks; a request takes groups off and reads no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data
from expunge.errors import MissingNeed, UserError, listing
from expunge.exact import groups, lora
from expunge.exact.book import Book, Sequences, Served
from expunge.exact.ensemble import Ensemble
from expunge.exact.groups import Blocks
from expunge.exact.lora import Lora
from expunge.exact.sequences import choose
from expunge.exact.stages import Values
from expunge.method import Reference, Search, Session, option
from expunge.methods._sharded import Sharded
from expunge.references import CHOWDHURY_2025
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Task
from expunge.train import Recipe, fit


@dataclass(frozen=True)
class Parts:
    """What is trained of a network: LoRA on groups of its blocks, the first stage's first, and the head's modules."""

    at: Blocks
    groups: tuple[tuple[int, ...], ...]
    head: tuple[str, ...]
    how: Lora

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values for the record."""
        how = {name: getattr(self.how, name) for name in ("rank", "alpha", "rslora", "targets")}
        return {"blocks": self.at.path, "count": self.at.count, "groups": self.groups, "head": self.head, **how}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Parts:
        """Return what a record says."""
        said = config["lora"]
        how = Lora(rank=said["rank"], alpha=said["alpha"], rslora=said["rslora"], targets=tuple(said["targets"]))
        at = Blocks(said["blocks"], said["count"], how.targets)
        return cls(at, tuple(tuple(group) for group in said["groups"]), tuple(said["head"]), how)

    def union(self, stages: Sequence[Values]) -> dict[str, Tensor]:
        """Return the tensors of several stages: all their adapters, and the head of the last."""
        return {name: tensor for stage in stages for name, tensor in stage.items()}


@dataclass(frozen=True, kw_only=True)
class S3T(Sharded):
    """Train each slice into LoRA on its own blocks of a frozen public network; forget by taking groups of blocks off.

    Of n transformer blocks stage i of a sequence π trains blocks n−1−(i−1)h to n−i·h, from the output down, on slices
    π(1) ∪ … ∪ π(i), the groups above attached and frozen, those below not there yet. A request in slice π(p) takes
    stages p to L off, and the shard is answered for by its deepest sequence that is left: B sequences a shard, in
    which different slices come first. Nothing is trained, and no sample read, until no shard has one left; retain data
    and recipe are asked for then. The shards' outputs are put together as ``aggregate`` says.

    The head is trained in every stage and kept for each, or left as it was: language models ask for ``frozen``, for
    their output layer is never touched. Optimiser and schedule begin anew with each stage, whose seed depends on the
    run's seed, shard and slices alone. Networks with BatchNorm are declined, for its statistics would tell of every
    stage; so is early stopping.

    The network before training must be given as ``new_model``: a public one, which no deletion concerns. The model
    that `prepare` is given is not used, and may be that network itself. Sets of more than a few samples hit every
    slice: S3T is for single requests. The passes over the retain data that it tells are those of a failure; a dry run
    tells those of the request.

    Published code keeps one head for all stages and matches block numbers as text, so that the last stage trains
    blocks 10 and 11 with 1 once more; neither is exact, and neither is done here.
    """

    reference: ClassVar[Reference] = CHOWDHURY_2025
    example: ClassVar[dict[str, object]] = {
        "shards": 2, "slices": 2, "stage_epochs": 1, "rank": 2, "alpha": 4.0, "lr": 0.01, "steps_by": "adamw"
    }  # fmt: skip

    budget: int | None = option(
        None, symbol="B", unit="sequences", text="of slices a shard; unset, as many as slices, each first in one"
    )
    blocks: int | None = option(None, symbol="h", unit="blocks", text="a slice; unset, as many as the network allows")
    rank: int = option(16, symbol="r", unit="1", text="of LoRA", search=Search(1, 64, log=True, whole=True))
    alpha: float = option(32.0, symbol="α", unit="1", text="of LoRA; weights move by α/r·B·A", search=Search(1, 128))
    rslora: bool = option(False, unit="-", text="scale by α/√r instead of α/r")
    targets: tuple[str, ...] = option(
        (), unit="-", text="linear layers of a block that take LoRA, by the ends of their names; empty: query and value"
    )
    head: Literal["stage", "frozen"] = option("stage", unit="-", text="train the head in each stage, or leave it")
    head_at: tuple[str, ...] = option((), unit="-", text="modules that are the head; empty: those behind the blocks")
    blocks_at: str = option("", unit="-", text="name of the list of blocks; empty: the only one")
    select: Literal["cyclic", "cover", "bms", "sorted", "random"] = option(
        "cyclic", unit="-", text="rule that chooses sequences; bms and sorted know a prior"
    )
    prior: tuple[float, ...] | None = option(
        None, symbol="p", unit="1", text="how likely a request hits each slice of a shard, L weights"
    )
    requests: float = option(10.0, symbol="t", unit="requests", text="to a shard, that bms looks ahead")
    serving: Literal["deepest", "all"] = option("deepest", unit="-", text="sequences of a shard that answer")
    lr: float | None = option(None, symbol="η", unit="1", text="learning rate of LoRA; unset, the recipe's")
    steps_by: Literal["recipe", "sgd", "adamw"] = option("recipe", unit="-", text="optimiser of LoRA; recipe: its own")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("budget", "blocks", "rank"):
            self.count(name, 1)
        self.positive("alpha", "requests", "lr")
        self.flag("rslora")
        self.one_of("head", "stage", "frozen")
        self.one_of("serving", "deepest", "all")
        self.one_of("steps_by", "recipe", "sgd", "adamw")
        for name in ("targets", "head_at"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(v, str) and v for v in value):
                raise UserError(f"{self.name}.{name} as a tuple of names", repr(value), "write for example ('query',)")
        if not isinstance(self.blocks_at, str):
            raise UserError(f"{self.name}.blocks_at as a name", repr(self.blocks_at), "write for example 'vit.layers'")
        if self.head == "frozen" and self.head_at:
            raise UserError(f"no {self.name}.head_at beside a frozen head", repr(self.head_at), "leave one of them out")
        self._chosen(0)
        if self.prior is not None:
            object.__setattr__(self, "prior", tuple(float(p) for p in self.prior))  # a list, or an array

    @property
    def heals(self) -> bool:
        """False: what is lost is trained anew at a failure alone."""
        return False

    def _chosen(self, seed: int) -> tuple[tuple[int, ...], ...]:
        budget = self.slices if self.budget is None else self.budget
        found = choose(self.slices, budget, self.prior, self.select, seed, requests=self.requests)
        return tuple(tuple(order) for order in found)

    def orders(self, session: Session) -> Sequences:
        """Return the sequences of each shard; those that are drawn differ between shards."""
        return tuple(self._chosen(named_seed("sequences", session.seed, shard)) for shard in range(self.shards))

    def _work(self, recipe: Recipe, cost: bool) -> float:
        """Return what all stages cost, in passes over the training data; or in those of plain training."""
        done = {order[:k] for order in self._chosen(0) for k in range(1, self.slices + 1)}
        shares = [len(prefix) / self.slices for prefix in done]
        return self.epochs(recipe) * sum(s * (1 + s) / 2 if cost else s for s in shares)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return e·B(L + 1)/2 passes, sequences that begin alike counted once: to unlearn, at a failure alone."""
        if recipe is None:
            return {}
        return {"train" if phase == "prepare" else "retain": self._work(recipe, cost=False)}

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the passes, a backward pass counted as far down as stage i goes, i/L of the blocks."""
        if recipe is None or phase == "unlearn":
            return {}
        return {"train": self._work(recipe, cost=True)}

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe of one stage, with the learning rate and the optimiser of LoRA."""
        found = super().recipe(recipe)
        found = found if self.lr is None else replace(found, lr=self.lr)
        return found if self.steps_by == "recipe" else replace(found, optimizer=self.steps_by)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline networks without transformer blocks, with too few, with BatchNorm, or without a head of their own."""
        reason = super().declines(task, scenario, model)
        network = model.base if isinstance(model, Ensemble) else model
        if reason is not None or next(network.parameters(), None) is None:  # no network to look at
            return reason
        try:
            self.parts(network)
        except UserError as error:
            return f"it asks for {error.expected}, and there is {error.got}: {error.remedy}"
        return None

    def parts(self, model: nn.Module) -> Parts:
        """Return what is trained of a network.

        Raises:
            UserError: it has no transformer blocks, or too few; no layers of these names; no head, or a tied one; or
                BatchNorm.
        """
        at = groups.blocks(model, self.blocks_at)
        norms = groups.batch_norms(model)
        if norms:
            remedy = "take LayerNorm: running statistics tell of every sample that was read"
            raise UserError("a network without BatchNorm", listing(norms), remedy)
        each = self.blocks or at.count // self.slices
        slices = at.groups(self.slices, max(1, each))
        how = Lora(rank=self.rank, alpha=self.alpha, rslora=self.rslora, targets=at.targets(self.targets))
        head: tuple[str, ...] = ()
        if self.head == "stage":
            head = groups.head(model, at, self.head_at)
            if not head:
                got = "the output layer of a language model" if groups.is_language_model(model) else "none"
                raise UserError("a head behind the blocks to train in each stage", got, "set head to 'frozen'")
        return Parts(at, slices, head, how)

    def start(self, session: Session) -> nn.Module:
        """Return the public network that ``new_model`` builds; it may be the given model's, where that is untrained.

        Raises:
            MissingNeed: no ``new_model`` was given.
            UserError: it builds another network.
        """
        if session.factory is None:
            why = f"new_model for {self.name}, because a trained network cannot be made public by drawing weights anew"
            raise MissingNeed(why, "none", "pass new_model=, a factory of the public network")
        with tensors.isolated_rng(named_seed("fresh", session.seed)):
            same = session.factory()
        if isinstance(same, nn.Module) and tensors.weights_digest(same) == tensors.weights_digest(session.source):
            made = session.model  # untrained
        else:
            made = session.new_model()
        return made.requires_grad_(False)

    def extra(self, session: Session, base: nn.Module) -> dict[str, Any]:
        """Return which blocks, layers and modules are trained."""
        return {"lora": self.parts(base).to_json()}

    def layers(self, base: nn.Module, config: Mapping[str, Any], depth: int) -> tuple[str, ...]:
        """Return the names of the layers that take LoRA in the stage at this depth, and those of the head."""
        parts = Parts.of(config)
        group = [f"{parts.at.path}.{n}.{name}" for n in parts.groups[depth - 1] for name in parts.how.targets]
        return (*group, *parts.head)

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
        """Train one group of blocks, and the head, on a network whose earlier groups are attached and frozen."""
        parts = Parts.of(config)
        now = parts.groups[: len(earlier) + 1]
        begun = lora.stage(base, parts.at, parts.head, parts.how, now, parts.union(earlier), seed=seed)
        made = begun
        if len(data):
            made = fit(begun, session.task, data, recipe, runtime=session.runtime, seed=seed)
            lora.check_frozen(begun, made)
        return lora.extract(made, parts.at, parts.head, now[-1])

    def member(self, base: nn.Module, config: Mapping[str, Any], stages: Sequence[Values]) -> nn.Module:
        """Return the network with the adapters of some stages and the head of the last, on the base's own tensors."""
        parts = Parts.of(config)
        return lora.member(base, parts.at, parts.head, parts.how, parts.groups[: len(stages)], parts.union(stages))

    def served(self, book: Book) -> dict[str, Served]:
        """Return what serves: of each shard its deepest live sequence, or each that is live, equal networks once."""
        if self.serving == "deepest":
            return super().served(book)
        found: dict[str, Served] = {}
        for shard in range(book.shards):
            every = {order[:depth]: (order, depth) for order, depth in book.live(shard)}
            found |= {f"{shard}-{n}": one for n, one in enumerate(every.values())}
        return found


METHOD = S3T
