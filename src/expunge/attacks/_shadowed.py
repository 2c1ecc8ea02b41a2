"""One number of each sample under each shadow model, found again by the sample's id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import UserError, listing
from expunge.evidence import Evidence, Outputs, Shadow
from expunge.metric import SPLITS
from expunge.shadows.pool import Floats

# Splits of one source share samples; sets of different sources may use one id for different samples.
SOURCES = {"forget": 0, "retain": 0, "test": 1, "test_forget": 1, "test_retain": 1, "holdout": 2}


@dataclass(frozen=True, eq=False)
class Under:
    """One number of N samples under T shadow models.

    Args:
        values: (T, N), float64.
        seen: whether the model of the row was trained on the sample of the column, (T, N) bool.
        sources: of the samples, by id, see `SOURCES`; N distinct ids in the order of the columns.
    """

    values: Floats
    seen: NDArray[np.bool_]
    sources: dict[str, int]

    def at(self, outputs: Outputs, attack: str, split: str | None = None) -> NDArray[np.int64]:
        """Return the columns of these samples, (M,).

        Args:
            outputs: of some of the samples, in any order.
            attack: its name in words.
            split: where they are from: a sample of another source under the same id is not taken for it.

        Returns:
            The columns.

        Raises:
            UserError: samples without ids, or such that the shadow models were not run on.
        """
        return places([i if self.knows(i, split) else None for i in self.sources], outputs, attack)

    def knows(self, name: str, split: str | None) -> bool:
        """Return whether there is a sample of this id, of the split's source if one is given."""
        found = self.sources.get(name)
        return found is not None and (split is None or found == SOURCES[split])


def under(shadows: Sequence[Evidence], read: Callable[[Outputs], Tensor], attack: str) -> Under:
    """Return a number of every sample that all shadow models were run on.

    Rows are matched by id, whatever the order in which a shadow model was run on the samples. Splits that not all of
    them have are left out.

    Args:
        shadows: evidence of T shadow models, see `expunge.evidence.Shadow`.
        read: returns the number, (N,), of outputs.
        attack: its name in words.

    Returns:
        The table.

    Raises:
        UserError: no split in common, outputs without ids, other samples under one shadow model than under
            the first, or one id in two sources of data.
    """
    splits = [s for s in SPLITS if all(("model", s) in found for found in shadows)]
    if not splits:
        raise UserError(f"a split that all shadow models were run on, for {attack}", "none", "run all on the same")
    parts, homes = dict[str, NDArray[np.bool_]](), dict[str, int]()
    for split in splits:
        ids, home = ids_of(shadows[0]["model", split], attack), SOURCES[split]
        if clash := [i for i in ids if homes.get(i, home) != home]:
            want = f"ids that name one sample each, for {attack}"
            remedy = "give each data set a name or ids of its own, such as Data.from_arrays(..., name='test')"
            raise UserError(want, f"{listing(clash)} in {split} and in other data", remedy)
        parts[split] = np.asarray([i not in homes for i in ids], dtype=np.bool_)
        homes |= dict.fromkeys(ids, home)
    rows = [
        np.concatenate([_row(s["model", k], shadows[0]["model", k], read, attack)[new] for k, new in parts.items()])
        for s in shadows
    ]
    seen = [np.asarray([i in trained for i in homes], dtype=np.bool_) for trained in map(_trained, shadows)]
    return Under(np.stack(rows), np.stack(seen), homes)


def ids_of(outputs: Outputs, attack: str) -> tuple[str, ...]:
    """Return the ids of the samples.

    Args:
        outputs: of a model.
        attack: its name in words.

    Raises:
        UserError: there are none.
    """
    if outputs.ids is None:
        raise UserError(f"outputs with the ids of their samples, for {attack}", "none", "take outputs from collect")
    return outputs.ids


def places(ids: Sequence[str | None], outputs: Outputs, attack: str) -> NDArray[np.int64]:
    """Return where samples stand among ids, (M,).

    Args:
        ids: those that are known, None at places that do not count.
        outputs: of some of the samples, in any order.
        attack: its name in words.

    Raises:
        UserError: samples without ids, or with ids that are not known.
    """
    there = {name: at for at, name in enumerate(ids)}
    found = ids_of(outputs, attack)
    if unknown := [i for i in found if i not in there]:
        want = f"samples that enough shadow models were run on, for {attack}"
        raise UserError(want, f"also {listing(unknown)}", "collect each shadow's outputs on the same splits")
    return np.asarray([there[i] for i in found], dtype=np.int64)


def _trained(shadow: Evidence) -> frozenset[str]:
    return shadow.trained if isinstance(shadow, Shadow) else frozenset()


def _row(outputs: Outputs, first: Outputs, read: Callable[[Outputs], Tensor], attack: str) -> NDArray[np.float64]:
    """Return the numbers of one shadow model in the order of the first one's samples."""
    found: NDArray[np.float64] = read(outputs).double().numpy()
    own, want = ids_of(outputs, attack), ids_of(first, attack)
    if own == want:
        return found
    if set(own) != set(want):
        got = f"{listing(sorted(set(own) ^ set(want)))} under some only"
        raise UserError(f"the same samples under every shadow model, for {attack}", got, "run all on the same data")
    return found[places(own, first, attack)]
