"""The rule that SSD, LFSSD and ASSD dampen by, and the selection that the first two share."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.fisher import Diagonal, Quantity, diagonal
from expunge.fisher.checks import wide
from expunge.fisher.quantities import MEANS
from expunge.method import Needs, Search, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.tensors import check_finite, parameters

log = logging.getLogger(__name__)
Importance = Literal["exact", "batch_mean"]
Order = Literal["label", "data"]

SHARE, TOP = 0.3, 0.04
"""``alpha="auto"``: this share of the bound n/n_f, and this share of weights at most; see docs/results/alpha.md."""


@dataclass(frozen=True)
class Count:
    """What dampening did to one tensor, or to all.

    Args:
        size: scalars.
        selected: with I_f > α·I_D.
        changed: of these, with β below 1.
        zeroed: of these, with β of 0.
        unseen: of the selected, with I_D of 0.
    """

    size: int = 0
    selected: int = 0
    changed: int = 0
    zeroed: int = 0
    unseen: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def dampen(
    theta: Tensor, forget: Tensor, reference: Tensor, alpha: float, dampening: float, unseen: str = "zero"
) -> tuple[Tensor, Count]:
    """Return β∘θ with β_i = min(λ·I_D,i / I_f,i, 1) where I_f,i > α·I_D,i, and 1 elsewhere.

    Args:
        theta: weights θ, any shape and floating dtype.
        forget: importance I_f on the forget set, same shape.
        reference: importance I_D on the training set, same shape.
        alpha: α ≥ 0; selection is strict, a tie is not selected.
        dampening: λ ≥ 0; 0 prunes what is selected.
        unseen: what happens to weights with I_f > 0 and I_D = 0: ``zero`` or ``skip``.

    Returns:
        The new weights in θ's dtype, and the counts.

    Raises:
        NotFinite: an importance is NaN or infinite.

    >>> one = torch.ones(3)
    >>> dampen(torch.tensor([1.0, -2.0, 2.0]), torch.tensor([0.5, 2.0, 10.0]), one, 1.0, 1.0)[0]
    tensor([ 1.0000, -1.0000,  0.2000])
    """
    forget, reference = wide(forget), wide(reference)
    check_finite({"forget": forget, "reference": reference}, "importances", "check data and weights")
    selected = forget > alpha * reference
    bare = selected & (reference == 0)
    if unseen == "skip":
        selected = selected & ~bare
    ratio = dampening * reference / torch.where(selected, forget, torch.ones_like(forget))
    beta = torch.where(selected, ratio.clamp(max=1.0), torch.ones_like(ratio))
    counts = (selected, beta < 1, selected & (beta == 0), bare)
    count = Count(theta.numel(), *(int(mask.sum()) for mask in counts))
    return torch.where(beta < 1, (wide(theta) * beta.to(wide(theta))).to(theta.dtype), theta), count


def movable(session: Session) -> Mapping[str, Tensor]:
    """Return by parameter where a weight may move under the session's masks; those without an entry are all free."""
    return {} if session.masks is None else session.masks.kept


def ratio_above(forget: Diagonal, reference: Diagonal, share: float, free: Mapping[str, Tensor] | None = None) -> float:
    """Return the smallest α for which at most this share of the weights that may move has I_f > α·I_D.

    Weights of I_D = 0 count with ratio 0 here: dampening treats them by its ``unseen`` policy.

    Args:
        forget: the forget set's diagonal.
        reference: the training set's.
        share: of the scalars that may move, in [0, 1).
        free: by parameter a bool tensor, True where the weight may move; those without one are all free.

    Returns:
        The ratio, 0 or more; 0 where none may move.
    """
    scale, masks = reference.count / forget.count, free or {}
    parts = []
    for name, total in reference.sums.items():
        d = total.cpu()
        ratio = torch.where(d > 0, forget.sums[name].cpu() * scale / d.clamp_min(1e-300), torch.zeros_like(d)).float()
        parts.append(ratio[masks[name].cpu()] if name in masks else ratio.flatten())
    ratios = torch.cat(parts).numpy()
    if not len(ratios):
        return 0.0
    rank = len(ratios) - 1 - int(share * len(ratios))
    return float(np.nextafter(np.partition(ratios, rank)[rank], np.float32(np.inf)))


def _bounded(stored: Diagonal, forget: Diagonal, alpha: float) -> bool:
    """Return whether α is at or above the bound n/n_f of ratios, which sums over samples at the same weights have."""
    return stored.of not in MEANS and stored.at == forget.at and alpha >= stored.count / forget.count


class Dampener(Checked):
    """What dampening methods share: importances kept by `prepare`, the edit, the next state.

    A subclass says which importance it takes and finds the threshold α. Weights that masks hold are not selected, and
    do not count in a share or a percentile of the weights.
    """

    def __post_init__(self) -> None:
        self._word("unseen", "zero", "skip")
        self.flag("refresh")

    def _word(self, field: str, *known: str) -> None:
        if getattr(self, field) not in known:
            want = f"{self.name}.{field} {' or '.join(map(repr, known))}"
            raise UserError(want, repr(getattr(self, field)), "choose one of them")

    @property
    @abstractmethod
    def of(self) -> Quantity:
        """The quantity whose gradient is the importance."""

    @property
    @abstractmethod
    def sight(self) -> See:
        """What the importance needs to see of a sample."""

    @property
    @abstractmethod
    def dampening(self) -> float:
        """λ of β = min(λ·I_D/I_f, 1)."""

    @property
    @abstractmethod
    def unseen(self) -> Literal["zero", "skip"]:
        """What to do with weights of importance 0 on the training set."""

    @property
    @abstractmethod
    def refresh(self) -> bool:
        """Whether the stored importance is computed anew after the edit, from retain data."""

    @abstractmethod
    def _alpha(self, session: Session, stored: Diagonal, forget: Diagonal) -> float:
        """Return α, above which ratios of importances are selected."""

    @abstractmethod
    def _nothing(self, session: Session, stored: Diagonal, forget: Diagonal, alpha: float) -> str:
        """Return why no weight was selected, for the reader."""

    @property
    def prepares(self) -> Needs:
        """The training set, once."""
        return Needs(train=self.sight)

    @property
    def unlearns(self) -> Needs:
        """The forget set; with ``refresh`` also the retain set."""
        return Needs(forget=self.sight, retain=self.sight if self.refresh else See.NONE)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """One pass over the training set: S_D = Σ_s |∂q_s/∂θ|^p, kept as float64 sums with their count."""
        return session.model, self._state(self._importance(session, session.model, "train"), stale=0)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """One pass over the forget set, then the element-wise edit; the next state is S_D − S_f."""
        if session.masks is not None:
            session.masks.check(session.model)
        stored = self._stored(session, state)
        forget = self._importance(session, session.model, "forget")
        alpha = self._alpha(session, stored, forget)
        # Where only forgotten samples move a weight its ratio is n/n_f up to rounding, which must not decide.
        cut = math.inf if _bounded(stored, forget, alpha) else alpha
        total, kept = Count(), movable(session)
        with torch.no_grad():
            for name, theta in parameters(session.model).items():
                reference = stored.sums[name].to(theta.device) / stored.count
                found = forget.sums[name].to(theta.device) / forget.count
                if name in kept:
                    found = found.masked_fill(~kept[name].to(theta.device), 0)
                new, count = dampen(theta, found, reference, cut, self.dampening, self.unseen)
                theta.copy_(new)
                session.record("counts", {"tensor": name, **vars(count)}, step=len(session.log.get("counts", [])))
                total += count
        session.record("alpha", alpha)
        session.record("selected", total.selected / total.size)
        session.record("changed", total.changed / total.size)
        session.record("zeroed", total.zeroed)
        session.record("unseen", total.unseen)
        session.record("frozen", [n for n, p in session.model.named_parameters() if not p.requires_grad])
        if total.selected == 0:
            session.record("note", self._nothing(session, stored, forget, alpha))
        elif total.changed == 0:
            text = f"No weight selected had an importance ratio above λ = {self.dampening:g}: nothing was changed."
            session.record("note", text)
        return session.model, self._next(session, state, stored, forget)

    def _importance(self, session: Session, model: nn.Module, part: str) -> Diagonal:
        data = getattr(session, part)
        return diagonal(model, session.task, data, of=self.of, runtime=session.runtime, seed=session.seed)

    def _state(self, kept: Diagonal, stale: int) -> State:
        sums = {f"importance/{k}": v.cpu() for k, v in kept.sums.items()}
        return State(sums, {"of": self.of, "count": kept.count, "at": kept.at, "stale": stale})

    def _check(self, state: State) -> None:
        """Refuse a state that was prepared for another importance."""
        if state.meta.get("of") != self.of:
            got = f"one of '{state.meta.get('of')}'"
            raise Incompatible(f"a state with the importance of '{self.of}'", got, f"prepare {self.name} anew")

    def _stored(self, session: Session, state: State) -> Diagonal:
        self._check(state)
        names = parameters(session.model)
        kept = {n.removeprefix("importance/"): n for n in state.tensors if n.startswith("importance/")}
        if kept.keys() != names.keys():
            odd = sorted(kept.keys() ^ names.keys())[0]
            want = "importances of this model's trainable parameters"
            raise Incompatible(want, f"another set ({odd})", "prepare anew")
        sums = {n: state.tensors[k] for n, k in kept.items()}
        check_finite(sums, "stored importances", "prepare anew")
        return Diagonal(sums, int(state.meta["count"]), self.of, str(state.meta["at"]))

    def _next(self, session: Session, state: State, stored: Diagonal, forget: Diagonal) -> State:
        """Take the forgotten samples' share out of the stored sums, or compute them anew."""
        if self.refresh:
            return self._state(self._importance(session, session.model, "retain"), stale=0)
        stale = int(state.meta["stale"])
        if stale and stored.at != forget.at:
            session.record(
                "note",
                f"The stored importance was taken {stale} request(s) ago, before the weights were edited; the "
                "forgotten samples' share was taken out at today's weights, so only approximately. Prepare anew, "
                "or use refresh=true, to renew it.",
            )
        here = replace(forget, sums={k: v.cpu() for k, v in forget.sums.items()}, at=stored.at)
        if stored.count <= forget.count:
            raise UserError("training samples to remain", f"all {stored.count} to forget", "train a new model")
        return self._state(stored.subtract(here), stale + 1)


@dataclass(frozen=True, kw_only=True)
class Dampening(Dampener):
    """Dampen the weights that matter for the forget set out of proportion to the training set.

    With ``importance="batch_mean"`` the importance is that of published code: the gradient of each batch's mean,
    squared (SSD) or absolute (LFSSD), averaged over batches that weigh alike whatever their size. It depends on the
    batch size and the order of the samples, its ratios have no bound, and a request cannot take the forgotten
    samples out of it: without ``refresh`` the next state still holds them, and says so.

    ``order="label"`` sorts samples by class label, those of a class as the data has them. Published code that forgets
    a class puts that class last. Before a request it is not known, so here it stands where its label does: batches on
    its borders mix it with its neighbours, and the smaller last batch holds the highest label instead. Published code
    that forgets a subclass sorts by subclass, not by label; that which forgets random samples does not sort. Who has
    an order of their own takes ``order="data"``, which keeps the samples as they are given.
    """

    quantities: ClassVar[Mapping[Importance, Quantity]] = {}
    prepared_by: ClassVar[frozenset[str] | None] = frozenset({"importance", "batch", "order"})

    alpha: float | Literal["auto"] = option(
        "auto",
        symbol="α",
        unit="ratio of importances",
        text=f"select where I_f > α·I_D; auto is {SHARE}·n/n_f, raised so that at most {TOP:.0%} are selected; "
        f"with batch_mean what selects {TOP:.0%}",
        search=Search(0.1, 100.0, log=True),
    )
    dampening: float = option(
        1.0,
        symbol="λ",
        unit="1",
        text="β = min(λ·I_D/I_f, 1); 0 prunes what is selected",
        search=Search(0.1, 5.0, log=True),
    )
    unseen: Literal["zero", "skip"] = option(
        "zero", unit="-", text="what to do with weights of importance 0 on the training set: zero or skip"
    )
    refresh: bool = option(
        False, unit="-", text="recompute the stored importance after the edit from retain data, which it then needs"
    )

    importance: Importance = option(
        "exact", unit="-", text="exact: a power of each sample's gradient; batch_mean: of each batch's, as published"
    )
    batch: int = option(
        64, symbol="b", unit="samples", text="of batch_mean; published: 64 for classes, 128 for random samples"
    )
    order: Order = option("label", unit="-", text="of batch_mean: label sorts samples by class; data leaves them")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._word("importance", *get_args(Importance))
        self._word("order", *get_args(Order))
        self.count("batch", 1, "samples")
        self.positive("dampening", zero=True)
        self.positive("alpha", zero=True, word="auto")

    @property
    def of(self) -> Quantity:
        """The quantity whose gradient is the importance."""
        return self.quantities[self.importance]

    @property
    def _sorts(self) -> bool:
        return self.importance == "batch_mean" and self.order == "label"

    @property
    def sight(self) -> See:
        """What the importance needs to see of a sample."""
        return See.LABELLED if self._sorts or self.quantities["exact"] == "loss" else See.INPUTS

    def _importance(self, session: Session, model: nn.Module, part: str) -> Diagonal:
        data, runtime = getattr(session, part), session.runtime
        if self.importance == "batch_mean":
            data, runtime = self._ordered(data), replace(runtime, batch_size=self.batch)
        return diagonal(model, session.task, data, of=self.of, runtime=runtime, seed=session.seed)

    def _ordered(self, data: Data) -> Data:
        """Return the samples in the order that the batches are cut from, at the sight that the quantity needs."""
        if not self._sorts:
            return data
        targets = data.targets()
        if targets.dim() != 1 or targets.is_floating_point():
            got = f"{targets.dtype} of shape {tuple(targets.shape)}"
            raise UserError("one class label a sample to sort by", got, f"set {self.name}.order to 'data'")
        data = replace(data, positions=data.positions[torch.argsort(targets, stable=True).numpy()])
        return data if self.of == "batch_mean" else data.unlabelled()

    def _state(self, kept: Diagonal, stale: int, held: int = 0) -> State:
        state = super()._state(kept, stale)
        if self.of not in MEANS:
            return state
        return State(state.tensors, {**state.meta, "batch": self.batch, "order": self.order, "held": held})

    def _check(self, state: State) -> None:
        super()._check(state)
        for name in ("batch", "order") if self.of in MEANS else ():
            want, got = getattr(self, name), state.meta[name]
            if got != want:
                remedy = f"prepare {self.name} anew, or ask with {name}={got!r}"
                raise Incompatible(f"a state prepared with {name}={want!r}", f"one with {name}={got!r}", remedy)

    def _alpha(self, session: Session, stored: Diagonal, forget: Diagonal) -> float:
        if self.of in MEANS:  # counts are of batches, and nothing bounds the ratio
            return ratio_above(forget, stored, TOP, movable(session)) if self.alpha == "auto" else float(self.alpha)
        n, n_f = stored.count, forget.count
        bound = n / n_f
        if self.alpha == "auto":
            found = max(SHARE * bound, ratio_above(forget, stored, TOP, movable(session)))
            # Weights that only the forget set moves sit at the bound, and are to be selected however many they are.
            return min(found, bound * (1 - 1e-6)) if stored.at == forget.at else found
        if _bounded(stored, forget, self.alpha):
            text = (
                f"α = {self.alpha:g} selects nothing: with {n_f} of {n} samples to forget no importance ratio "
                f"exceeds n/n_f = {bound:.4g}. Take a smaller α, or alpha='auto'."
            )
            log.warning(text)
            session.record("note", text)
        return float(self.alpha)

    def _nothing(self, session: Session, stored: Diagonal, forget: Diagonal, alpha: float) -> str:
        text = f"No weight had an importance ratio above α = {alpha:g}: nothing was changed."
        if not _bounded(stored, forget, alpha):
            most = ratio_above(forget, stored, 0.0, movable(session))
            text += f" The largest ratio is {most:.3g}: take a smaller α, or another method."
        return text

    def _next(self, session: Session, state: State, stored: Diagonal, forget: Diagonal) -> State:
        if self.refresh or self.of not in MEANS:
            return super()._next(session, state, stored, forget)
        session.record(
            "note",
            "The stored importance still holds the forgotten samples' share, which does not come out of means over "
            "batches. Prepare anew, or use refresh=true, to be rid of it.",
        )
        return self._state(stored, int(state.meta["stale"]) + 1, int(state.meta["held"]) + len(session.forget))
