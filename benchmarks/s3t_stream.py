"""Deletions that arrive one by one: what S3T and SISA still know, how long they last, what each deletion takes.

Systems on the same data and public network:

- `s3t`: m shards, L slices, B sequences, LoRA on the frozen network; `s3t, prior` also knows how likely each sample is
  to be deleted: slices are bands of likelihood, and sequences are chosen for it.
- `sisa`: m shards, L slices, whole networks, falling back to the last clean checkpoint; `sisa, retraining` trains again
  from there at each deletion.
- `lora`: one LoRA model on all blocks, and `retrained`: the whole network; both trained anew on what is left, at a few
  points of the stream. Between these their accuracy is drawn as a straight line.

Orders: `uniform`, each sample as likely as another; `skewed`, samples have a band 0..L−1 drawn at random, and the next
deletion is of band b with weight (b + 1)², among those left. A stream ends with the request that leaves no shard
anything clean: the number before it were served without retraining. Accuracy is measured on test samples whenever what
is served changes. `seconds` is the method's own time, `total` with the driver's checks and copies.

Each part is written when it is done, and a run that is started again goes on: training too, stage by stage.

    python benchmarks/s3t_public.py --data digits --models models
    EXPUNGE_MODELS=models python benchmarks/s3t_stream.py run --data digits_private --folder runs/digits
    python benchmarks/s3t_stream.py table runs/digits
    python benchmarks/s3t_stream.py plot runs/digits --output docs/results/s3t-digits.svg
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from expunge import tensors, zoo
from expunge.data import Data
from expunge.errors import MissingNeed
from expunge.exact.arrivals import Independent
from expunge.exact.book import Book
from expunge.exact.ensemble import Ensemble, combined
from expunge.exact.simulate import lifetime, plans
from expunge.files import digest
from expunge.method import Method, State
from expunge.methods import build
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import output_tensor
from expunge.train import fit, fresh
from expunge.unlearn import prepare, serve, unlearn
from fisher import show

BAND = "band"
ORDERS = ("uniform", "skewed")
STREAMED = ("s3t", "s3t, prior", "sisa")  # deletion after deletion
RETRAINED = ("sisa, retraining", "lora", "retrained")  # a few points each
LOOKS = {
    "s3t": ("#1f77b4", "-"),
    "s3t, prior": ("#2ca02c", "-"),
    "sisa": ("#d62728", "-"),
    "lora": ("grey", "--"),
    "retrained": ("black", ":"),
}
matplotlib.rcParams["svg.hashsalt"] = "expunge"  # the same figure gives the same bytes


@dataclass(frozen=True)
class Setting:
    """What decides the numbers of a run.

    Args:
        data: a named data set.
        network: a named network that was pretrained on public data.
        limit: training samples, None for all.
        tested: test samples, at most.
        shards: m.
        slices: L.
        budget: sequences a shard, B.
        epochs: e′ of LoRA; stages train for 2e′/(L + 1) of them.
        lr: of LoRA.
        whole_epochs: e′ of whole networks.
        whole_lr: of whole networks.
        requests: at most, of a stream.
        points: at which what is retrained anew is measured.
        seed: of everything.
    """

    data: str
    network: str
    limit: int | None
    tested: int
    shards: int
    slices: int
    budget: int
    epochs: int
    lr: float
    whole_epochs: int
    whole_lr: float
    requests: int
    points: int
    seed: int

    @property
    def key(self) -> str:
        """Tells runs apart that share a folder."""
        return digest(vars(self))[:12]


class Run:
    """A setting at work in a folder.

    Args:
        setting: what to do.
        folder: of results and unfinished work.
        data_dir: folder of data sets.
    """

    def __init__(self, setting: Setting, folder: Path, data_dir: Path | None) -> None:
        self.setting, self.folder = setting, folder
        self.problem = zoo.load(setting.data, setting.network, data_dir=data_dir, limit=setting.limit)
        train = self.problem.train
        rng = np.random.default_rng(named_seed("band", setting.seed))
        self.bands = rng.permutation(np.arange(len(train)) % setting.slices)
        column = np.asarray(self.bands.tolist(), dtype=object)
        self.train: Data = replace(train, all_columns={**dict(train.all_columns), BAND: self._spread(train, column)})
        rows = np.linspace(0, len(self.problem.test) - 1, min(setting.tested, len(self.problem.test))).round()
        self.test = self.problem.test.read(rows.astype(int).tolist())
        self.runtime = Runtime(device="cpu", progress=False, workdir=folder / "work")
        self.known: dict[str, Tensor] = {}

    @staticmethod
    def _spread(data: Data, values: Any) -> Any:
        """Return values of the samples as a column of all that the source holds."""
        whole = np.full(len(data.all_ids), None, dtype=object)
        whole[data.positions] = values
        return whole

    @property
    def weights(self) -> Any:
        """How likely each sample of a skewed order is to be the next."""
        return (self.bands + 1.0) ** 2

    def order(self, name: str) -> list[str]:
        """Return the ids in the order of their deletion."""
        rng = np.random.default_rng(named_seed("order", name, self.setting.seed))
        times = rng.exponential(size=len(self.train)) / (1.0 if name == "uniform" else self.weights)
        return [self.train.ids[i] for i in np.argsort(times)]

    def method(self, system: str) -> Method:
        """Return the method of a system."""
        s = self.setting
        shape = {"shards": s.shards, "slices": s.slices}
        if system.startswith("sisa"):
            return build({"name": "sisa", **shape})
        if system == "lora":
            return build({"name": "s3t", "shards": 1, "slices": 1, "budget": 1, "blocks": s.slices * self.blocks})
        told = {"name": "s3t", **shape, "budget": s.budget, "blocks": self.blocks}
        if system == "s3t":
            return build(told)
        each = np.bincount(self.bands, weights=self.weights, minlength=s.slices)
        return build({**told, "band": BAND, "select": "bms", "prior": tuple((each / each.sum()).tolist())})

    @property
    def blocks(self) -> int:
        """Blocks of a slice: all of the network's six, evenly."""
        return max(1, 6 // self.setting.slices)

    def recipe(self, system: str) -> Recipe:
        """Return how a system is trained."""
        s, plain = self.setting, self.problem.recipe
        if system.startswith("s3t") or system == "lora":
            return replace(plain, epochs=s.epochs, lr=s.lr, weight_decay=0.0, schedule="constant", warmup=0.0)
        return replace(plain, epochs=s.whole_epochs, lr=s.whole_lr, schedule="constant", warmup=0.0)

    def common(self, system: str) -> dict[str, Any]:
        """Return what every call shares."""
        return {"new_model": self.problem.new_model, "runtime": self.runtime, "seed": self.setting.seed}

    @cached_property
    def model(self) -> nn.Module:
        """The network before training, under a head of its own: exact methods do not use it."""
        build_ = self.problem.new_model
        return fresh(build_(), new_model=build_, seed=named_seed("handed over", self.setting.seed)).eval()

    def prepared(self, system: str) -> tuple[nn.Module, State, float]:
        """Return what a system prepared, now or in an earlier run, and the seconds that it took."""
        method, name = self.method(system), system.replace(", ", "_")
        place, told = self.folder / f"state-{name}-{self.setting.key}", self.folder / f"{name}-{self.setting.key}.json"
        stored = fresh(self.problem.new_model(), new_model=self.problem.new_model, seed=self.setting.seed).eval()
        if not told.exists():
            say(f"{system}: preparing")
            train, recipe = self.train, self.recipe(system)
            start = time.perf_counter()
            ready = prepare(method, self.model, self.problem.task, train=train, recipe=recipe, **self.common(system))
            seconds = time.perf_counter() - start
            ready.state.save(place, overwrite=True)
            write(told, {"seconds": seconds})
            if tensors.weights_digest(method.served_from(ready.model)) != tensors.weights_digest(stored):
                raise SystemExit("the network before training is not what the factory builds from the seed")
        state = State.load(place)
        return serve(method, stored, state), state, float(json.loads(told.read_text(encoding="utf-8"))["seconds"])

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the test samples; what a member says is computed once."""
        if isinstance(model, Ensemble):
            said = combined(torch.stack([self.said(m) for m in model.members.values()]), model.how)
        else:
            said = self.said(model)
        return float((said.argmax(1) == self.test.target).double().mean())

    def said(self, model: nn.Module) -> Tensor:
        """Return a network's outputs for the test samples."""
        mark = tensors.weights_digest(model)
        if mark not in self.known:
            with torch.inference_mode():
                parts = [self.test.part(slice(i, i + 64)) for i in range(0, len(self.test), 64)]
                found = [output_tensor(self.problem.task.forward(model.eval(), part)[0]) for part in parts]
            self.known[mark] = torch.cat(found)
        return self.known[mark]

    def streamed(self, system: str, order: str) -> dict[str, Any]:
        """Return a system's fate under an order of deletions, none of them retrained."""
        method, ids = self.method(system), self.order(order)[: self.setting.requests]
        model, state, prepared = self.prepared(system)
        book = Book.from_json(state.meta["book"], state.meta["manifest"], state.tensors)
        depths = [0 if one is None else one[1] for one in book.plan()]
        rows = [{"request": 0, "depths": depths, "accuracy": self.accuracy(model)}]
        found: dict[str, Any] = {"prepare": prepared, "bytes": held(state), "rows": rows, "failed": False}
        for number, one in enumerate(ids, start=1):
            try:
                done = unlearn(method, model, self.problem.task, forget=[one], state=state, **self.common(system))
            except MissingNeed:
                found["failed"] = True
                break
            model, state = done.model, done.state
            row = {
                "request": number,
                "depths": done.log["depths"],
                "seconds": done.seconds,
                "total": done.total_seconds,
            }
            row["accuracy"] = self.accuracy(model) if done.log["revoked"] else rows[-1]["accuracy"]
            rows.append(row)
        found["served"] = rows[-1]["request"]
        return found

    def healed(self, order: str) -> dict[str, Any]:
        """Return what SISA takes where it retrains at each of a few deletions."""
        method, model, recipe = self.method("sisa"), None, self.recipe("sisa")
        model, state, prepared = self.prepared("sisa")
        rows: list[dict[str, Any]] = []
        gone: list[str] = []
        for one in self.order(order)[: self.setting.points + 1]:
            gone.append(one)
            given = {"retain": self.train.without(gone), "recipe": recipe}
            done = unlearn(method, model, self.problem.task, forget=[one], state=state, **given, **self.common("sisa"))
            model, state = done.model, done.state
            row = {"request": len(gone), "depths": done.log["depths"], "seconds": done.seconds}
            rows.append({**row, "total": done.total_seconds, "accuracy": self.accuracy(model)})
        return {"prepare": prepared, "rows": rows}

    def anew(self, system: str, order: str, last: int) -> dict[str, Any]:
        """Return what a model trained anew knows at some points of a stream, and what its training took."""
        rows, ids = [], self.order(order)
        for number in sorted({round(last * k / max(1, self.setting.points - 1)) for k in range(self.setting.points)}):
            left = self.train.without(ids[:number]) if number else self.train
            start = time.perf_counter()
            if system == "lora":
                ready = prepare(
                    self.method("lora"),
                    self.model,
                    self.problem.task,
                    train=left,
                    recipe=self.recipe("lora"),
                    **self.common("lora"),
                )
                model = ready.model
            else:
                build_ = self.problem.new_model
                first = fresh(build_(), new_model=build_, seed=self.setting.seed)
                model = fit(first, self.problem.task, left, self.recipe(system), runtime=self.runtime)
            row = {"request": number, "seconds": time.perf_counter() - start}
            rows.append({**row, "accuracy": self.accuracy(model.eval())})
        return {"rows": rows}


def held(state: State) -> int:
    """Return the bytes of all stages of a state."""
    return sum(state.tensors[k].nbytes for k in state.tensors if k.startswith("stage/"))


def write(path: Path, body: Mapping[str, Any]) -> None:
    """Write a document whole."""
    room = path.with_suffix(".part")
    room.write_text(json.dumps(body), encoding="utf-8")
    room.replace(path)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what is finished in a folder."""
    for path in sorted(folder.glob("result-*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def run(args: argparse.Namespace) -> None:
    """Do what is not done yet."""
    torch.set_num_threads(1)
    names = {f for f in Setting.__dataclass_fields__}
    setting = Setting(**{k: v for k, v in vars(args).items() if k in names})
    args.folder.mkdir(parents=True, exist_ok=True)
    work = Run(setting, args.folder, args.data_dir)
    sets = f"{len(work.train)} training samples, {len(work.test)} test samples"
    say(f"{setting.data}, {setting.network}: {sets}; m={setting.shards}, L={setting.slices}, B={setting.budget}")

    def part(system: str, order: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a part's result, computed where it is not there."""
        path = args.folder / f"result-{system.replace(', ', '_')}-{order}-{setting.key}.json"
        if not path.exists():
            start = time.perf_counter()
            found = {"system": system, "order": order, "setting": vars(setting), **call()}
            write(path, found)
            say(f"{system}, {order}: {time.perf_counter() - start:.0f} s")
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    for order in args.orders:
        last = 1
        for system in (s for s in args.systems if s in STREAMED):
            if system == "s3t, prior" and order == "uniform":
                continue
            last = max(last, part(system, order, lambda s=system, o=order: work.streamed(s, o))["served"])
        if order != args.orders[0]:
            continue
        for system in (s for s in args.systems if s in RETRAINED):
            if system == "sisa, retraining":
                part(system, order, lambda o=order: work.healed(o))
            else:
                part(system, order, lambda s=system, o=order, n=last: work.anew(s, o, n))


def expected(one: Mapping[str, Any]) -> str:
    """Return the requests that a system of the setting lasts where slices are alike, mean ± deviation, or a dash."""
    s, system = one["setting"], one["system"]
    if one["order"] != "uniform" or system not in STREAMED:
        return "–"
    plan = plans(s["shards"], s["slices"], s["budget"] if system == "s3t" else 1)
    found = lifetime(Independent(shards=s["shards"], slices=s["slices"]), plan, runs=10_000).all
    return f"{found.mean - 1:.0f} ± {found.sd:.0f}"  # the request that ends it is not served


def table(args: argparse.Namespace) -> None:
    """Print a table a folder."""
    heads = ["system", "order", "prepare, s", "served without retraining", "expected", "accuracy at first, %"]
    heads += [
        "at the end, %",
        "a deletion, ms: median (longest)",
        "with checks, ms",
        "a training anew, s",
        "stages, MB",
    ]
    for folder in args.folders:
        rows = []
        for one in sorted(results(folder), key=lambda r: (ORDERS.index(r["order"]), place(r["system"]))):
            steps = one["rows"]
            deletions = [r for r in steps if "total" in r]
            streamed = one["system"] in STREAMED
            edits = [1000 * r["seconds"] for r in deletions]
            whole = [1000 * r["total"] for r in deletions]
            ends = "" if not streamed or one["failed"] else " or more"
            rows.append(
                [
                    one["system"],
                    one["order"],
                    f"{one['prepare']:.0f}" if "prepare" in one else "–",
                    f"{one['served']}{ends}" if streamed else "–",
                    expected(one),
                    *(f"{100 * r['accuracy']:.1f}" for r in (steps[0], steps[-1])),
                    f"{np.median(edits):.0f} ({max(edits):.0f})" if edits else "–",
                    f"{np.median(whole):.0f}" if whole else "–",
                    "–" if edits else f"{np.median([r['seconds'] for r in steps]):.0f}",
                    f"{one['bytes'] / 1e6:.1f}" if "bytes" in one else "–",
                ]
            )
        print(f"\n{folder.name}\n")
        show([heads, *rows])


def place(system: str) -> int:
    return (*STREAMED, *RETRAINED).index(system)


def plot(args: argparse.Namespace) -> None:
    """Draw accuracy over deletions, an order a column, a folder a row; below each the mean depth of the shards."""
    figure = Figure(figsize=(4.4 * len(ORDERS), 4.4 * len(args.folders)), layout="constrained")
    axes = figure.subplots(2 * len(args.folders), len(ORDERS), squeeze=False, sharex="row")
    labels: dict[str, Any] = {}
    for at, folder in enumerate(args.folders):
        found = list(results(folder))
        for column, order in enumerate(ORDERS):
            upper, lower = axes[2 * at][column], axes[2 * at + 1][column]
            for one in sorted(found, key=lambda r: place(r["system"])):
                system, steps = one["system"], one["rows"]
                if system not in LOOKS or (one["order"] != order and system in STREAMED):
                    continue
                color, style = LOOKS[system]
                x, y = [r["request"] for r in steps], [100 * r["accuracy"] for r in steps]
                where = "steps-post" if system in STREAMED else "default"
                labels[system] = upper.plot(x, y, color=color, ls=style, lw=1.3, drawstyle=where)[0]
                if system in STREAMED:
                    depth = [np.mean(r["depths"]) for r in steps]
                    lower.plot(x, depth, color=color, ls=style, lw=1.3, drawstyle=where)
                    if one["failed"]:
                        for axis, end in ((upper, y[-1]), (lower, depth[-1])):
                            axis.plot(x[-1], end, marker="x", color=color)
            upper.set(title=f"{folder.name}: {order}", ylabel="test accuracy, %")
            lower.set(xlabel="deletions", ylabel="mean depth of the shards", ylim=(0, None))
            for axis in (upper, lower):
                axis.spines[["top", "right"]].set_visible(False)
    figure.legend(labels.values(), labels.keys(), loc="outside right center", frameon=False, fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, metadata={"Date": None})
    print(args.output)


def listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the type of an option that lists some of what is known, apart by semicolons."""

    def parse(text: str) -> list[str]:
        found = [part.strip() for part in text.split(";")]
        odd = [part for part in found if part not in known]
        if odd:
            raise argparse.ArgumentTypeError(f"{odd[0]!r} is none of {'; '.join(known)}")
        return found

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    go = steps.add_parser("run", help="do what is not done yet")
    go.add_argument("--data", default="digits_private")
    go.add_argument("--network", default="vit_public")
    go.add_argument("--data-dir", type=Path, help="folder of data sets; default EXPUNGE_DATA, then the Hub")
    go.add_argument("--folder", type=Path, required=True, help="of results and unfinished work")
    go.add_argument("--limit", type=int, help="training samples; default all")
    go.add_argument("--tested", type=int, default=1000, help="test samples, at most")
    go.add_argument("--shards", type=int, default=3)
    go.add_argument("--slices", type=int, default=3)
    go.add_argument("--budget", type=int, default=3)
    go.add_argument("--epochs", type=int, default=10, help="of LoRA, unsliced")
    go.add_argument("--lr", type=float, default=3e-3, help="of LoRA")
    go.add_argument("--whole-epochs", type=int, default=10, help="of whole networks, unsliced")
    go.add_argument("--whole-lr", type=float, default=1e-3, help="of whole networks")
    go.add_argument("--requests", type=int, default=60, help="of a stream, at most")
    go.add_argument("--points", type=int, default=2, help="at which models trained anew are measured")
    go.add_argument("--seed", type=int, default=0)
    go.add_argument("--orders", type=listed(ORDERS), default=list(ORDERS), help="apart by semicolons")
    go.add_argument("--systems", type=listed((*STREAMED, *RETRAINED)), default=[*STREAMED, *RETRAINED])
    for name, text in (("table", "print Markdown"), ("plot", "write an SVG figure")):
        step = steps.add_parser(name, help=text)
        step.add_argument("folders", type=Path, nargs="+")
    step.add_argument("--output", type=Path, default=Path("docs/results/s3t.svg"))
    args = parser.parse_args()
    {"run": run, "table": table, "plot": plot}[args.step](args)


if __name__ == "__main__":
    main()
