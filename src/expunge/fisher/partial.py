"""What an interrupted pass needs to go on: sums at the end of a window of samples, and how far it had come."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge import identity, tensors
from expunge.data import Data
from expunge.errors import CorruptArtefact, Incompatible
from expunge.files import digest
from expunge.fisher.sums import Sums
from expunge.runtime import Runtime

log = logging.getLogger(__name__)


class Partial:
    """One file of a process in ``runtime.workdir``, named by everything but the samples' content that decides the sums.

    The content is looked at when the file is written first and when one is found, so that a short pass costs nothing.

    Args:
        runtime: folder, seconds between two writes, this process's place.
        data: what is passed over.
        parts: JSON values that decide the sums: weights, ids, groups, quantity, engine, settings.
        mark: outputs and sums on some samples: hooks, attributes and transforms decide the sums too.
    """

    def __init__(self, runtime: Runtime, data: Data, parts: Sequence[Any], mark: Sequence[float]) -> None:
        self.data, self.every, self._content, self._mark = data, runtime.checkpoint_every, "", list(mark)
        self.path: Path | None = None
        if runtime.workdir is not None:
            name = digest([*parts, runtime.batch_size, runtime.precision, runtime.count, runtime.rank])[:24]
            self.path = Path(runtime.workdir) / f"importance-{name}.safetensors"
        self._last = time.monotonic()

    def load(self, sums: Sequence[Sums]) -> tuple[int, int, int | None]:
        """Fill sums with those of an interrupted pass.

        Args:
            sums: of each group of samples, in their order.

        Returns:
            The group to go on with, the samples of it that are done, and the batch size that memory allowed.
        """
        if self.path is None or not self.path.exists():
            return 0, 0, None
        try:
            found, meta = tensors.load(self.path)
            state = {name: found[name] for name in found}
        except (CorruptArtefact, Incompatible) as error:
            log.warning("%s cannot be read (%s): beginning anew", self.path.name, type(error).__name__)
            return 0, 0, None
        if meta["content"] != self._digest():
            log.warning("other content under the ids of %s than in %s: beginning anew", self.data.name, self.path.name)
            return 0, 0, None
        if not self._marked(meta["mark"]):
            log.warning("the model gives other values on %s than in %s: beginning anew", self.data.name, self.path.name)
            return 0, 0, None
        for at in range(meta["group"] + 1):
            head = f"{at}/"
            sums[at].load({n.removeprefix(head): t for n, t in state.items() if n.startswith(head)})
        log.info("resuming the pass over %s after %d samples, from %s", self.data.name, meta["done"], self.path.name)
        return meta["group"], meta["start"], meta["size"]

    def keep(self, group: int, start: int, done: int, size: int, sums: Sequence[Sums]) -> None:
        """Write the sums if it is time, whole or not at all.

        Args:
            group: under way.
            start: samples of it that are done.
            done: samples done in all.
            size: batch size that memory allows.
            sums: of each group.
        """
        if self.path is None or time.monotonic() - self._last < self.every:
            return
        state = {f"{at}/{n}": t for at in range(group + 1) for n, t in sums[at].state().items()}
        meta = {
            "content": self._digest(),
            "mark": self._mark,
            "group": group,
            "start": start,
            "done": done,
            "size": size,
        }
        tensors.save(self.path, state, meta, overwrite=True)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the file, once the pass has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _marked(self, mark: Sequence[float]) -> bool:
        pairs = zip(mark, self._mark, strict=False)
        return len(mark) == len(self._mark) and all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in pairs)

    def _digest(self) -> str:
        self._content = self._content or digest(identity.content(self.data))
        return self._content
