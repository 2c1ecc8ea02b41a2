"""Prune first, then unlearn: any method on a network that was made sparse before, its mask a hard constraint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from expunge.copies import private
from expunge.errors import Incompatible, UserError
from expunge.files import digest, jsonable
from expunge.identity import content, described
from expunge.masks import Masks
from expunge.method import Method, Nature, Needs, Reference, Search, See, Session, State, option
from expunge.methods import _pruning
from expunge.methods._composed import Composed
from expunge.methods._pruning import Layers, Scope, check_kept, cut, part, prunable
from expunge.recipe import Recipe
from expunge.references import JIA_2023
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Task
from expunge.tensors import load_weights, parameters, save_weights, weights_digest
from expunge.train import fit

By = Literal["omp", "imp", "synflow", "random"]
MASK, INNER = "mask/", "inner/"


@dataclass(frozen=True, kw_only=True)
class Pruned(Composed):
    """Make the network sparse once, before any request, then unlearn by any method inside the weights that are left.

    m = Prune(θ_o), θ_s = m ⊙ Train(D), θ_u = m ⊙ U(θ_s; D_f, D_r): what is pruned is exactly 0 before and after every
    request. `prepare` prunes and trains the sparse network by the original's recipe, then prepares the inner method on
    it; that costs a further training, for ``imp`` one a round. ``sparsity=0`` leaves the original as it is, untrained.

    ``omp`` prunes once by the size |w| of the original's weights; ``imp`` in rounds of 20 % of the weights left, the
    last down to the sparsity asked for, training after each; ``synflow`` before training, by scores without data, in
    100 iterations; ``random`` by a draw. Without ``rewind`` training goes on from the pruned weights, with the whole
    recipe. With ``rewind=r`` the network is trained anew for r epochs of the recipe, pruned there, and trained for the
    rest of it; 0 rewinds to the untrained network. Published: omp at 95 %, rewound to epoch 8 of 182 and trained for
    182 more, its milestones r early, where ours ends with the recipe. Published counts are rounded as ours, halves to
    even; published ties are arbitrary, here the first in order go.

    ``Pruned(method=Retrain())`` is the sparse retrained network, what the others under the same mask are compared to.
    It is not exact under ``omp`` and ``imp``, whose masks were found with the forgotten samples in the training data.

    Needs the training set and the recipe to prepare, the untrained network for ``rewind`` and ``synflow``, and what
    the inner method needs. Declines what that declines, networks without such layers, and methods that are served by
    more than their weights. A forward pass takes as long as a dense one.

    Passes to prepare: the recipe's epochs over the training set; ``imp``: of each of its ceil(ln(1−s)/ln 0.8) rounds.
    """

    nature: ClassVar[Nature] = Nature.EDIT
    reference: ClassVar[Reference] = JIA_2023
    example: ClassVar[dict[str, Any]] = {"method": {"name": "finetune", "epochs": 1}, "sparsity": 0.5}

    method: Method = option(None, unit="method", text="what runs on the sparse network: its name and fields")
    sparsity: float = option(
        0.95, symbol="s", unit="1", text="share of the prunable weights that are 0", search=Search(0.5, 0.98)
    )
    by: By = option("omp", unit="-", text="what goes first: omp, imp, synflow or random")
    scope: Scope = option("global", unit="-", text="whether the share is of all layers together, or of each layer")
    layers: Layers = option(
        "auto",
        unit="-",
        text="what is prunable. conv: weights of 2-d convolutions, as published; weights: of all convolutions, linear "
        "layers and attention projections but the last; auto: conv where most weights are such, else weights",
    )
    rewind: int | None = option(
        None, symbol="r", unit="epochs", text="to which epoch weights go back before training on; unset, they stay"
    )

    def __post_init__(self) -> None:
        self.names_method()
        s, r = self.sparsity, self.rewind
        if isinstance(s, bool) or not isinstance(s, int | float) or not 0 <= s < 1:
            raise UserError("pruned.sparsity of 0 or more and below 1", repr(s), "write 0.95 for 95 %")
        for name, known in {"by": get_args(By), "scope": get_args(Scope), "layers": get_args(Layers)}.items():
            if getattr(self, name) not in known:
                want = f"pruned.{name} among {', '.join(known)}"
                raise UserError(want, repr(getattr(self, name)), "choose one of them")
        if r is not None and (isinstance(r, bool) or not isinstance(r, int) or r < 0):
            raise UserError("pruned.rewind of 0 epochs or more", repr(r), "give a whole number, or leave it unset")
        if r is not None and self.by == "synflow":
            remedy = "leave it unset: synflow prunes before training, and has nothing to go back to"
            raise UserError("no pruned.rewind with synflow", repr(r), remedy)

    @property
    def inner(self) -> Method:
        """The method that runs on the sparse network."""
        return self.method

    @property
    def prepares(self) -> Needs:
        """The training set with labels and the recipe; the untrained network where it begins there."""
        anew = self.by == "synflow" or self.rewind is not None
        own = Needs(train=See.LABELLED, holdout=See.LABELLED, recipe=True, fresh=anew, optional=frozenset({"holdout"}))
        return own | self.method.prepares

    @property
    def unlearns(self) -> Needs:
        """What the inner method reads."""
        return self.method.unlearns

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs of all trainings, and the inner method's passes."""
        found = dict(self.method.passes(phase, recipe))
        if phase == "prepare" and recipe is not None and self.sparsity > 0:
            total, last = self._epochs(recipe)
            found["train"] = found.get("train", 0.0) + total
            if recipe.patience is not None:
                found["holdout"] = found.get("holdout", 0.0) + last
        return found

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what the inner method declines, what is served by more than weights, and nothing to prune."""
        if why := self.served_by_more():
            return why
        if isinstance(self.method, Pruned):
            return "the network would be pruned twice"
        if parameters(model) and not prunable(model, self.layers):
            if self.layers == "conv":
                return "it prunes 2-d convolutions, and this network trains none: set layers to weights"
            return "it prunes convolutions and linear layers but the last, and this network trains no other"
        return self.method.declines(task, scenario, model)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Prune, train the sparse network, and prepare the inner method on it under the mask."""
        names = prunable(session.model, self.layers)
        if self.sparsity == 0:
            masks, sparse = cut(_pruning.magnitudes(session.model, names), lambda n, left: 0), session.model
            session.record("note", "Nothing is pruned at sparsity 0, and nothing was trained.")
        else:
            masks, sparse = self._sparse(session, names)
        self._tell(session, masks)
        session.record("trained_epochs", self._epochs(session.recipe)[0] if self.sparsity else 0)
        nested = session.nested(self.method, sparse, masks)
        model, inner = self.run(nested)
        return self._held(session, nested, model, masks), self._state(masks, inner)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Run the inner method under the mask; what it moved of the pruned weights is set back to 0, and said."""
        masks = self._masks(session, state)
        self._tell(session, masks)
        if self.method.nature == Nature.EXACT and self.by in ("omp", "imp") and self.sparsity:
            session.record(
                "note",
                "The mask was found with the forgotten samples in the training data: under it retraining is not exact.",
            )
        nested = session.nested(self.method, masks=masks)
        kept = {k.removeprefix(INNER): state.tensors[k] for k in state.tensors if k.startswith(INNER)}
        model, inner = self.run(nested, State(kept, state.meta["inner"]))
        return self._held(session, nested, model, masks), self._state(masks, inner)

    def _epochs(self, recipe: Recipe) -> tuple[int, int]:
        """Return the epochs of all trainings together, and those that may end by patience."""
        count = len(_pruning.rounds(self.sparsity)) if self.by == "imp" else 1
        start = self._start(recipe)
        last = count * (recipe.epochs - start)
        return start + last, last

    def _start(self, recipe: Recipe) -> int:
        """Return the epoch of the recipe that sparse training starts from."""
        return min(self.rewind or 0, max(0, recipe.epochs - 1))

    def _sparse(self, session: Session, names: list[str]) -> tuple[Masks, nn.Module]:
        """Return the masks and the trained sparse network."""
        work = _Trainings(session, digest(self.preparation(), session.recipe.to_json())[:12])
        if self.by == "synflow":
            now = session.new_model()
            shape = _shape(session)
            masks = _pruning.synflow(now, session.task, shape, names, self.sparsity, self.scope, self.name)
            masks.prune(now)
            made = work.fit(now, session.recipe, masks)
        else:
            masks, made = self._rounds(session, names, work)
        work.clear()
        return masks, made

    def _rounds(self, session: Session, names: list[str], work: _Trainings) -> tuple[Masks, nn.Module]:
        """Prune by scores of the trained weights, and train from there, or from the weights of an early epoch."""
        recipe, now, masks = session.recipe, session.model, None
        base = None if self.rewind is None else self._early(session, work)
        rest = recipe if base is None else part(recipe, self._start(recipe), recipe.epochs)
        for fall in _pruning.rounds(self.sparsity) if self.by == "imp" else [_pruning.of_all(self.sparsity)]:
            if self.by == "random":
                scores = _pruning.drawn(now, names, named_seed("pruned", "random", session.seed))
            else:
                scores = _pruning.magnitudes(now, names)
            masks = cut(scores, fall, scope=self.scope, kept=masks)
            check_kept(masks, self.name)
            start = now if base is None else base
            masks.prune(start)
            now = work.fit(start, rest, masks)
        assert masks is not None
        return masks, now

    def _early(self, session: Session, work: _Trainings) -> nn.Module:
        """Return the network after the first epochs of its training, on the original's own path where seeds agree."""
        recipe, start = session.recipe, session.new_model()
        epoch = self._start(recipe)
        if self.rewind != epoch:
            text = f"The recipe has {recipe.epochs} epochs: weights went back to epoch {epoch}, not {self.rewind}."
            session.record("note", text)
        return work.fit(start, part(recipe, 0, epoch), None, seed=session.seed) if epoch else start

    def _tell(self, session: Session, masks: Masks) -> None:
        kept = sum(int(mask.sum()) for mask in masks.kept.values())
        found = {"density": masks.density, "densities": masks.densities, "kept": kept, "prunable": masks.size}
        session.record("pruned", found)

    def _held(self, session: Session, nested: Session, model: nn.Module, masks: Masks) -> nn.Module:
        """Return the inner method's network, what it moved of the pruned weights set back to 0.

        Raises:
            Incompatible: it returned another network.
        """
        astray = masks.strays(model)
        if astray:
            masks.prune(model)
            text = f"{nested.method} moved {astray} of the pruned weights; they were set back to 0."
            session.record("note", text)
        return model

    def _state(self, masks: Masks, inner: State) -> State:
        found: dict[str, Tensor] = {MASK + name: mask for name, mask in masks.kept.items()}
        found |= {INNER + name: inner.tensors[name] for name in inner.tensors}
        meta = {"preparation": jsonable(self.preparation()), "density": masks.density, "inner": dict(inner.meta)}
        return State(found, meta)

    def _masks(self, session: Session, state: State) -> Masks:
        """Return the masks of a state, held to the settings and the network.

        Raises:
            Incompatible: it was prepared with other settings, or the masks belong to another network.
        """
        own, found = jsonable(self.preparation()), state.meta.get("preparation")
        if not isinstance(found, Mapping) or found != own:
            told = found if isinstance(found, Mapping) else {}
            odd = [name for name in own if told.get(name) != own[name]]
            want, got = (", ".join(f"{n}={said.get(n)!r}" for n in odd) for said in (own, told))
            raise Incompatible(f"a state of pruned with {want}", f"one with {got}", "prepare anew, or ask as prepared")
        masks = Masks({k.removeprefix(MASK): state.tensors[k] for k in state.tensors if k.startswith(MASK)})
        astray = masks.strays(session.model)
        if astray or not masks.kept:
            got = f"{astray} others" if masks.kept else "no mask in the state"
            raise Incompatible("pruned weights that are 0", got, "pass the model that came with the state")
        return masks


class _Trainings:
    """Trainings one after another under one session; those that are done are kept in its folder until the last is.

    Args:
        session: in prepare.
        key: tells trainings of other settings apart.
    """

    def __init__(self, session: Session, key: str) -> None:
        self.session, self.key, self.number, self.paths = session, key, 0, list[Path]()

    def fit(self, start: nn.Module, recipe: Recipe, masks: Masks | None, seed: int | None = None) -> nn.Module:
        """Return a network trained from ``start``, or what an interrupted call has left of it."""
        self.number += 1
        session, outer = self.session, self.session.masks if masks is None else masks.both(self.session.masks)
        path = self._path(start, outer)
        if path is not None:
            self.paths.append(path)
            if path.exists():
                made = private(start)
                load_weights(path, made)
                return made.eval()
        made = fit(
            start,
            session.task,
            session.train,
            recipe,
            holdout=session.holdout if recipe.patience is not None else None,
            runtime=session.runtime,
            seed=named_seed("pruned", session.seed, self.number) if seed is None else seed,
            masks=outer,
        )
        if path is not None:
            save_weights(path, made, {}, overwrite=True)
        return made

    def _path(self, start: nn.Module, masks: Masks | None) -> Path | None:
        """Return the file of a training, named by all that decides its result; None without a folder."""
        session = self.session
        if session.runtime.workdir is None:
            return None
        parts = [self.key, weights_digest(start), described(masks), session.runtime.precision, content(session.train)]
        folder = session.checkpoint(f"{digest(parts)[:12]}-{self.number}")
        return None if folder is None else folder.with_suffix(".safetensors")

    def clear(self) -> None:
        """Remove what was kept."""
        for path in self.paths:
            path.unlink(missing_ok=True)


def _shape(session: Session) -> tuple[int, ...]:
    """Return the shape of one input, of which synflow reads nothing else.

    Raises:
        UserError: inputs are no single tensor of numbers with a fraction.
    """
    inputs = session.train.read([0]).inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = "several by name" if isinstance(inputs, dict) else str(inputs.dtype)
        raise UserError("inputs of one floating-point tensor for synflow", got, "take another pruner: by omp or imp")
    return tuple(inputs.shape[1:])


METHOD = Pruned
