"""The bank of concepts of one network: their vectors, what speaks for them, and the scores of samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.concepts.cav import Cav, Concept, Rules, fit_cav
from expunge.errors import Incompatible, UserError, listing
from expunge.seeds import seed as named_seed
from expunge.tensors import check_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Bank:
    """Concepts of one layer of one network.

    Args:
        names: m of them, unique.
        vectors: c, (m, d), float64, none of them 0.
        intercepts: b, (m,), float64.
        facts: one dict a concept, see `Cav.record`.
        dropped: name and reason of those that were fitted and are not used, see `Cav.record`.

    Raises:
        UserError: no concept, names that occur twice, or shapes that do not fit.
        NotFinite: a number is NaN or infinite.
    """

    names: tuple[str, ...]
    vectors: Tensor
    intercepts: Tensor
    facts: tuple[Mapping[str, Any], ...]
    dropped: tuple[Mapping[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        m = len(self.names)
        if not m:
            raise UserError("a concept or more in the bank", "none", "give concepts")
        if len(set(self.names)) < m:
            twice = listing(sorted({n for n in self.names if self.names.count(n) > 1}))
            raise UserError("concepts of different names", f"{twice} more than once", "rename them")
        if self.vectors.dim() != 2 or len(self.vectors) != m or self.intercepts.shape != (m,) or len(self.facts) != m:
            got = f"{tuple(self.vectors.shape)} and {tuple(self.intercepts.shape)}"
            raise UserError(f"{m} vectors (m, d) and intercepts (m,)", got, "give as many as names")
        check_finite({"vectors": self.vectors, "intercepts": self.intercepts}, "the concept bank", "fit it anew")
        zeros = [name for name, row in zip(self.names, self.vectors, strict=True) if not bool(row.any())]
        if zeros:
            raise UserError("concept vectors that are not 0", f"zeros for {listing(zeros)}", "leave these out")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def units(self) -> Tensor:
        """Vectors of length 1, (m, d)."""
        found: Tensor = self.vectors / self.vectors.norm(dim=1, keepdim=True)
        return found

    def scores(self, f: Tensor) -> Tensor:
        """Return the geometric margins s_i = (c_i·f + b_i)/‖c_i‖ of representations.

        Args:
            f: (N, d).

        Returns:
            (N, m), in units of the representation, in its type.

        Raises:
            UserError: representations of another length.
        """
        if f.dim() != 2 or f.shape[1] != self.vectors.shape[1]:
            got = f"shape {tuple(f.shape)}"
            raise UserError(f"representations (N, {self.vectors.shape[1]}), as the bank's", got, "use the same layer")
        away = self.intercepts / self.vectors.norm(dim=1)
        found: Tensor = f @ self.units.to(f).T + away.to(f)
        return found

    def take(self, index: Sequence[int]) -> Bank:
        """Return the bank of the concepts at these positions."""
        at = [int(i) for i in index]
        return Bank(
            tuple(self.names[i] for i in at),
            self.vectors[at],
            self.intercepts[at],
            tuple(self.facts[i] for i in at),
            self.dropped,
        )

    def tensors(self, prefix: str = "concepts.") -> dict[str, Tensor]:
        """Return what a state keeps, by name."""
        return {f"{prefix}vectors": self.vectors.clone(), f"{prefix}intercepts": self.intercepts.clone()}

    def meta(self) -> dict[str, Any]:
        """Return what a state keeps beside the tensors, JSON."""
        return {
            "names": list(self.names),
            "facts": [dict(fact) for fact in self.facts],
            "dropped": [dict(fact) for fact in self.dropped],
        }

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], prefix: str = "concepts.") -> Bank:
        """Return the bank that a state keeps.

        Args:
            tensors: as `tensors` gave them.
            meta: as `meta` gave it.
            prefix: of the tensors' names.

        Raises:
            Incompatible: the state holds no bank.
        """
        wanted = (f"{prefix}vectors", f"{prefix}intercepts")
        if any(name not in tensors for name in wanted) or not {"names", "facts", "dropped"} <= meta.keys():
            raise Incompatible("a bank of concepts in the state", "none", "prepare anew")
        vectors, intercepts = (tensors[name] for name in wanted)
        return cls(tuple(meta["names"]), vectors, intercepts, tuple(meta["facts"]), tuple(meta["dropped"]))

    @classmethod
    def of(cls, cavs: Sequence[Cav]) -> Bank:
        """Return the bank of fitted vectors, without those that are to be dropped, which is said in the log.

        Raises:
            UserError: none is left, with the reasons.
        """
        kept = [cav for cav in cavs if cav.dropped is None]
        lost = [cav for cav in cavs if cav.dropped is not None]
        for cav in lost:
            log.info("concept %s is dropped: %s", cav.name, cav.dropped)
        if not kept:
            got = "; ".join(f"{cav.name}: {cav.dropped}" for cav in lost[:3]) or "none"
            remedy = "give more or clearer examples, another layer, or vectors"
            raise UserError("a concept that can be used", got + ("; ..." if len(lost) > 3 else ""), remedy)
        wide = {len(cav.vector) for cav in kept}
        if len(wide) > 1:
            got = f"vectors of {' and '.join(str(n) for n in sorted(wide))}"
            raise UserError("concepts of one layer", got, "take all from the same layer")
        return cls(
            tuple(cav.name for cav in kept),
            torch.stack([cav.vector for cav in kept]),
            torch.tensor([cav.intercept for cav in kept], dtype=torch.float64),
            tuple(cav.record() for cav in kept),
            tuple(cav.record() for cav in lost),
        )

    @classmethod
    def fit(
        cls,
        concepts: Sequence[Concept],
        *,
        random: Tensor | None = None,
        gradients: Sequence[Tensor] = (),
        rules: Rules | None = None,
        seed: int = 0,
    ) -> Bank:
        """Fit the vectors of several concepts.

        A concept without negatives of its own is fitted against the other concepts' positives and as many of the
        random representations.

        Args:
            concepts: examples or given vectors.
            random: (n, d), representations of any retained samples.
            gradients: see `fit_cav`; every concept is tested, which the correction counts.
            rules: of fit and keeping.
            seed: of halves and draws.

        Returns:
            The concepts that are kept; the others under ``dropped``.

        Raises:
            UserError: too few examples, or no concept that can be used.
        """
        fitted = [_against(concept, concepts, random, seed) for concept in concepts]
        tests = max(1, sum(c.vector is None for c in concepts))
        return cls.of([fit_cav(c, rules=rules, gradients=gradients, tests=tests, seed=seed) for c in fitted])


def _against(concept: Concept, concepts: Sequence[Concept], random: Tensor | None, seed: int) -> Concept:
    """Return the concept with negatives: its own, or the others' positives and as many random rows."""
    if concept.positives is None or concept.negatives is not None:
        return concept
    rows = [c.positives for c in concepts if c is not concept and c.positives is not None]
    if random is not None:
        count = sum(len(r) for r in rows) or len(random)
        rng = np.random.default_rng(named_seed("negatives", concept.name, seed))
        rows.append(random[torch.from_numpy(rng.permutation(len(random))[:count])])
    if not rows:
        remedy = "give negatives, other concepts or random representations"
        raise UserError(f"something to tell concept {concept.name} from", "nothing", remedy)
    wide = concept.positives.shape[1]
    if any(r.dim() != 2 or r.shape[1] != wide for r in rows):
        got = next(f"shape {tuple(r.shape)}" for r in rows if r.dim() != 2 or r.shape[1] != wide)
        raise UserError(f"representations (n, {wide}), as of concept {concept.name}", got, "take all from one layer")
    return replace(concept, negatives=torch.cat([r.to(concept.positives) for r in rows]))
