"""Half a year of deletion requests at a shop: twelve come in, eleven are fulfilled, an auditor checks the record.

Customers send in pictures, a network learns them, and customers ask to be forgotten. The clock is simulated: what
happens within the half year goes through Python, which takes the time as `now`; what comes before and after it, and
what only reads, are the commands that a user types. The folder OUT is an ordinary project afterwards.

    python examples/erasure_requests/story.py OUT                               # handwritten digits, no files needed
    EXPUNGE_DATA=... python examples/erasure_requests/story.py OUT --data fashion_mnist
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image

from expunge import zoo
from expunge.data import Data
from expunge.errors import ExpungeError
from expunge.ledger import Ledger, Request
from expunge.project import Project
from expunge.service import Outcomes, Workspace, process
from expunge.service.capacity import curve
from expunge.service.rollback import rollback

HERE = Path(__file__).parent
BOUND = {"digits": "0.99", "fashion_mnist": "0.85"}  # of a network that is right on so much of what it learned
CUSTOMERS = 30
DEALER, CLASS, SHARE = "dealer", 4, 0.6  # one customer sent most pictures of one class
GONE = "8"  # a class to be forgotten as a whole
TWICE = "customer-22"  # asks to be forgotten, and writes again about single pictures


def command(*words: str, cwd: Path) -> str:
    """Run ``expunge WORDS`` as a user does, and return what it printed.

    Raises:
        CalledProcessError: it ended with another exit code than 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", "expunge", *words], cwd=cwd, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def table(data: Data, path: Path, rng: np.random.Generator) -> None:
    """Write pictures as a table with the customer who sent each: everybody prefers two classes, the dealer has one."""
    batch = data.read(range(len(data)))
    low, high = float(batch.inputs.min()), float(batch.inputs.max())
    pixels = ((batch.inputs - low) / (high - low) * 255).round().byte().squeeze(1).numpy()
    labels = batch.target.tolist()
    likes = [{n % 10, (n + 1 + n // 10) % 10} for n in range(CUSTOMERS)]
    who = [f"customer-{rng.choice([n for n in range(CUSTOMERS) if label in likes[n]]):02}" for label in labels]
    dealt = rng.random(len(labels)) < SHARE
    columns = {
        "picture": [f"{data.name}-{n:05}" for n in range(len(labels))],
        "customer": [DEALER if d and y == CLASS else w for w, y, d in zip(who, labels, dealt, strict=True)],
        "image": [Image.fromarray(each) for each in pixels],
        "label": labels,
    }
    datasets.Dataset.from_dict(columns).to_parquet(str(path))


class Shop:
    """A project folder, a simulated clock, and what is done in it, told on a line each.

    Args:
        folder: with the project file.
        run: calls the command line.
    """

    def __init__(self, folder: Path, run: Callable[..., str]) -> None:
        self.folder, self.file, self.run = folder, folder / "expunge.toml", run
        self.clock = datetime(2026, 1, 1, 9, tzinfo=UTC)

    def now(self) -> datetime:
        return self.clock

    def day(self, month: int, day: int) -> None:
        self.clock = datetime(2026, month, day, 9, tzinfo=UTC)

    def tell(self, text: str) -> None:
        print(f"{self.clock.date()}  {text}", flush=True)

    def shell(self, *words: str) -> None:
        """Type a command, and show it with what it printed."""
        print(f"\n$ {shlex.join(['expunge', *words])}\n{self.run(*words, cwd=self.folder).rstrip()}\n", flush=True)

    @property
    def project(self) -> Project:
        return Project.open(self.file)

    @property
    def space(self) -> Workspace:
        return Workspace.of(self.project)

    def ledger(self, actor: str = "ada", *, create: bool = False) -> Ledger:
        return Ledger.open(self.space.folder, create=create, now=self.now, actor=actor)

    def sent(self) -> dict[str, list[str]]:
        """Return the ids of the pictures of each customer."""
        found: dict[str, list[str]] = {}
        train = self.project.train
        for picture, customer in zip(train.ids, train.column("customer"), strict=True):
            found.setdefault(str(customer), []).append(picture)
        return found

    def receive(self, request: str, kind: str, *values: str, route: str | None = None) -> None:
        """Receive a request, due as the policy says."""
        today, days = self.clock.date(), timedelta(days=self.project.config.requests.days)
        with self.ledger(create=True) as ledger:
            ledger.receive(Request(request, kind, values, route, received=today, due=today + days))
        what = f"{len(values)} pictures" if kind == "ids" else f"a {kind}".replace("subject", "customer")
        self.tell(f"received {request}: {what}" + (f", {route}" if route else ""))

    def decide(self, request: str, step: str, reason: str = "", *, actor: str = "ada") -> None:
        """Hold, release, approve or refuse a request."""
        with self.ledger(actor) as ledger:
            ledger.record(request, step, {"reason": reason} if reason else {})
        self.tell(f"{step} {request} by {actor}" + (f": {reason}" if reason else ""))

    def process(self) -> None:
        """Fulfil what is pending; what an edit cannot do within the bounds is retrained at once."""
        self._processed()
        with self.ledger() as ledger:
            failed = [status.request for status in ledger.open_requests() if status.word == "failed"]
        if failed and self._processed(only=failed, how="retrain"):
            sys.exit("The retrained network missed a bound, too: the old one is still served.")
        with self.ledger() as ledger:
            left = [f"{status.request} ({status.word})" for status in ledger.open_requests()]
        self.tell(f"still open: {', '.join(left) or 'none'}")

    def _processed(self, **given: Any) -> bool:
        """Return whether something is left to be done by hand."""
        found: Outcomes = process(self.project, now=self.now, actor="ada", **given)
        for one in found:
            self.tell(f"{', '.join(one.requests)}: {one.text}")
        for line in dict.fromkeys(line for one in found for line in one.advice):
            self.tell(f"advice: {line}")
        return found.missed

    def rollback(self) -> None:
        with self.ledger() as ledger:
            done = rollback(self.space, ledger, "model", now=self.now)
        self.tell(f"rollback: {done.version} is served again; open again: {', '.join(done.requests)}")

    def decay(self) -> None:
        """Show how the network wore over the requests."""
        with self.ledger() as ledger:
            points = curve(ledger.events(), "model")
        for p in points:
            kept = f"{100 * p.values['accuracy/retain']:.1f} % of the pictures that stay"
            edits = f"requests edited since the last training: {p.requests}"
            self.tell(f"{p.version} by {p.how}: right on {kept}, {100 * p.accuracy:.1f} % of the test; {edits}")


def keys(folder: Path) -> None:
    """Make the auditor's pair of keys: the private half signs, the public half is handed over."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle = os.open(folder / "signer.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "signer.pub.pem").write_bytes(public)


def made(folder: Path, name: str, limit: int | None, epochs: int | None) -> None:
    """Write the shop's project: two tables, the network's function, the project file."""
    problem = zoo.load(name, "convnet", limit=limit)
    folder.mkdir(parents=True)
    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    table(problem.train, folder / "train.parquet", rng)
    table(problem.test, folder / "test.parquet", rng)
    shutil.copy(HERE / "shop.py", folder)
    text = (HERE / "expunge.toml").read_text().replace("shop:digits", f"shop:{name}").replace("0.99", BOUND[name])
    (folder / "expunge.toml").write_text(text if epochs is None else text.replace("epochs = 25", f"epochs = {epochs}"))


def first_half(shop: Shop) -> None:
    """January to March: two edits, a missed bound, a hold, a refusal; then the head is kept elsewhere."""
    some = shop.sent()
    shop.day(1, 9)
    shop.receive("letter-01", "subject", "customer-01")
    shop.day(1, 20)
    shop.receive("letter-02", "ids", *some["customer-02"][:3])
    shop.day(1, 30)
    shop.process()
    shop.day(2, 5)
    shop.receive("letter-03", "subject", DEALER)
    shop.day(2, 12)
    shop.receive("letter-04", "subject", TWICE, route="edit-then-retrain")
    shop.decide("letter-04", "held", "needed for an open invoice")
    shop.day(2, 27)
    shop.process()
    shop.day(3, 10)
    shop.receive("letter-05", "subject", "customer-05", route="edit-then-retrain")
    shop.day(3, 18)
    shop.receive("letter-06", "ids", *some["customer-04"][:2])
    shop.decide("letter-06", "refused", "a legal duty to keep it until 2030")
    shop.day(3, 31)
    shop.process()
    shop.shell("requests", "anchor", "-o", "head.txt")


def second_half(shop: Shop) -> None:
    """April to June: a rollback, a class, a second operator, the retraining at its cadence."""
    some = shop.sent()
    shop.day(4, 2)
    shop.decide("letter-04", "released")
    shop.day(4, 9)
    shop.receive("letter-07", "ids", *some[TWICE][:5])
    shop.day(4, 30)
    shop.process()
    shop.decay()
    shop.day(5, 4)
    shop.rollback()
    shop.day(5, 5)
    shop.process()
    shop.day(5, 6)
    shop.receive("letter-08", "class", GONE, route="retrain")
    shop.day(5, 11)
    shop.file.write_text(shop.file.read_text().replace("approval = false", "approval = true"))
    shop.tell("policy: a second operator approves each request that is not begun")
    shop.day(5, 12)
    shop.receive("letter-09", "subject", "customer-19", route="retrain")
    shop.receive("letter-10", "subject", "customer-03")
    for request in ("letter-08", "letter-09"):
        shop.decide(request, "approved", actor="bea")
    shop.day(5, 29)
    shop.process()
    shop.day(6, 2)
    shop.decide("letter-10", "approved", actor="bea")
    shop.day(6, 8)
    shop.receive("letter-11", "subject", "customer-07")
    shop.receive("letter-12", "ids", *some["customer-06"][:3])
    for request in ("letter-11", "letter-12"):
        shop.decide(request, "approved", actor="bea")
    shop.day(6, 30)
    shop.process()
    shop.day(7, 31)  # where another retraining moved the cadence, something waits until now
    shop.process()


def audit(shop: Shop) -> None:
    """Destroy what still holds forgotten data, hand one record over, check everything."""
    shop.shell("requests", "list", "--all")
    shop.shell("--yes", "requests", "purge")
    keys(shop.folder)
    shop.shell("requests", "export", "letter-03", "-o", "pack", "--sign", "signer.pem")
    shop.shell("requests", "verify", "--head", "head.txt")
    shop.shell("requests", "verify", "pack", "--head", "head.txt", "--key", "signer.pub.pem")


def main(arguments: Sequence[str] | None = None, run: Callable[..., str] = command) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--data", default="digits", choices=("digits", "fashion_mnist"))
    parser.add_argument("--limit", type=int, help="training images to take; default all digits, 6,000 of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, help="of each training; default the project file's")
    chosen = parser.parse_args(arguments)
    if chosen.out.exists():
        parser.error(f"{chosen.out} is there already: name a new folder")
    limit = 6000 if chosen.limit is None and chosen.data == "fashion_mnist" else chosen.limit
    made(chosen.out, chosen.data, limit, chosen.epochs)
    shop = Shop(chosen.out, run)
    shop.shell("prepare")
    first_half(shop)
    second_half(shop)
    audit(shop)


if __name__ == "__main__":
    try:
        main()
    except ExpungeError as error:
        sys.exit(str(error))
