"""Who has an evidence pack alone, and knows which ids there are, does not find out which of them was forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from expunge.files import digest
from expunge.service import record


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(texts(part) for part in value.values())
    elif isinstance(value, list):
        yield from chain.from_iterable(texts(part) for part in value)


def test_no_digest_in_a_pack_fits_a_guess(pets: Any, tmp_path: Path) -> None:
    shop = pets()
    shop.ask("r1", "117")
    shop.process()
    shop.process(how="retrain")
    with shop.ledger() as ledger:
        record.export(tmp_path / "pack", ledger, "r1")
    pack = (json.loads((tmp_path / "pack" / name).read_text()) for name in ("record.json", "events.json"))
    found = {text for document in pack for text in texts(document)}
    ids = list(shop.project.train.ids)
    for guess in ids:
        left = [i for i in ids if i != guess]
        tries = (left, sorted(left), [guess], guess)
        assert not found & {digest(each) for each in tries}
        assert not found & {digest(*each) for each in tries[:3]}
