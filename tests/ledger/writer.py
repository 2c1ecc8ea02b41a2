"""A process that receives requests into a ledger and says each that was acknowledged, until it ends or is killed.

    python writer.py FOLDER PREFIX COUNT [STEPS]

With STEPS each request is also refused and erased, and each acknowledged step is said as ``id:step``.
"""

import sys
from datetime import date
from pathlib import Path

from expunge.ledger import Ledger, Request


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main():
    folder, prefix, count, *steps = sys.argv[1:]
    with Ledger.open(Path(folder), create=True, actor=prefix) as ledger:
        for n in range(int(count)):
            id = f"{prefix}.{n}"
            values = (f"train/{id}", "x" * (n * 131 % 3000 + 1))
            ledger.receive(Request(id, "ids", values, received=date(2025, 3, 1), due=date(2025, 3, 31)))
            say(id)
            if steps:
                ledger.record(id, "refused", {"reason": "sent twice"})
                say(f"{id}:refused")
                ledger.erase(id, "asked for")
                say(f"{id}:erased")


if __name__ == "__main__":
    main()
