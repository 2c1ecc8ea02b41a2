"""Processes that receive requests into a ledger and say each step that was acknowledged.

    python writer.py write FOLDER PREFIX COUNT      one process, to its end
    python writer.py kill FOLDER COUNT SEED         several at a time, each killed at a random moment, COUNT in all
    python writer.py make FOLDER COUNT SEED         two in each of COUNT new folders, killed while they make the ledger

Of those that are killed, every second one also refuses and erases its requests, and says ``id:step`` of each step.
"""

import os
import signal
import sys
import time
from datetime import date
from pathlib import Path
from random import Random

from expunge.ledger import Ledger, Request

AT_ONCE = 4


def say(text):
    os.write(1, f"{text}\n".encode())  # in one piece, whoever else writes into the same pipe


def write(folder, prefix, count, steps=False):
    with Ledger.open(folder, create=True, actor=prefix) as ledger:
        for n in range(count):
            id = f"{prefix}.{n}"
            values = (f"train/{id}", "x" * (n * 131 % 3000 + 1))
            ledger.receive(Request(id, "ids", values, received=date(2025, 3, 1), due=date(2025, 3, 31)))
            say(id)
            if steps:
                ledger.record(id, "refused", {"reason": "sent twice"})
                say(f"{id}:refused")
                ledger.erase(id, "asked for")
                say(f"{id}:erased")


def born(folder, number):
    """Return a new process that writes until it is killed; it ends with 1 on an error."""
    child = os.fork()
    if child == 0:
        try:
            write(folder, f"k{number}", 10**6, steps=number % 2 == 1)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def end(child):
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"writer {child} ended by itself")


def kill(folder, count, seed):
    random, running = Random(seed), []
    for number in range(count):
        running.append(born(folder, number))
        if len(running) < AT_ONCE and number < count - 1:
            continue
        for child in random.sample(running, 1 if number < count - 1 else len(running)):
            time.sleep(random.random() * 0.12)
            end(child)
            running.remove(child)


def make(folder, count, seed):
    random = Random(seed)
    for number in range(count):
        running = [born(folder / str(number), 2 * number + n) for n in range(2)]
        time.sleep(random.random() * 0.06)
        for child in running:
            end(child)


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    if what == "write":
        write(Path(place), rest[0], int(rest[1]))
    else:
        {"kill": kill, "make": make}[what](Path(place), int(rest[0]), int(rest[1]))
