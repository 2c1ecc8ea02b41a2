"""What two processes do together, written to files: run by `test_processes.py` through accelerate's launcher."""

from __future__ import annotations

import faulthandler
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge import fisher, processes, tensors
from expunge.anchors._learn import prepared
from expunge.anchors._settings import Learning
from expunge.canaries import FILE, Canaries
from expunge.data import Batch, Data
from expunge.errors import ExpungeError, UserError
from expunge.evidence import collect
from expunge.fisher import diagonal, diagonals
from expunge.method import Method, Needs, Reference, See, Session, State
from expunge.methods import build
from expunge.penalties import GradientNorm
from expunge.runtime import Runtime
from expunge.scenario import forget_class
from expunge.task import Classification
from expunge.train import Recipe, fit, mean_loss
from expunge.unlearn import prepare, unlearn

D = torch.float64
TASK = Classification()
RUN = Runtime(device="cpu", batch_size=4, progress=False)
QUANTITIES = ("loss", "sampled_loss", "true", "output_norm", "batch_mean")


@dataclass(frozen=True)
class Ridge:
    scale: float

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        return self.scale * sum(p.square().sum() for p in model.parameters()) + 0.1 * outputs.square().mean()


PLAIN = Recipe(epochs=3, batch_size=7, lr=0.1, penalties=(Ridge(0.01),), clip=1.0)
RECIPES = {
    "sgd": PLAIN,
    "adamw": replace(PLAIN, optimizer="adamw", lr=0.01, warmup=1.5),
    "patience": replace(PLAIN, epochs=9, patience=1, lr=0.8, clip=None),
    "single": replace(PLAIN, epochs=1, batch_size=1),
    "restricted": replace(PLAIN, penalties=(Ridge(0.01), GradientNorm(0.3))),
    "per tensor": replace(PLAIN, batch_size=3, penalties=(GradientNorm(0.3, "per_tensor"),)),
}


def blobs(n: int, name: str = "train", flip: bool = False) -> Data:
    generator = torch.Generator().manual_seed(n)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, dtype=D, generator=generator) + torch.eye(4, dtype=D)[y]
    weight = torch.linspace(0.5, 1.5, n) if name == "train" else None
    return Data.from_arrays(x, (y + 1) % 3 if flip else y, weight=weight, name=name)


def network(cls: type[nn.Module] = nn.Sequential) -> nn.Module:
    torch.manual_seed(0)
    return cls(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(D).eval()


def noisy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 3)).to(D).eval()


class Hungry(nn.Sequential):
    """Has memory for two samples at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
        return super().forward(x)


LEARNED = {
    "two": {},
    "follow": {"pairs": 3, "mean_rate": 2.0},
    "lone": {"antithetic": False},
    "model": {"importance": "fisher_model", "scale": "bgd"},
    "uniform": {"importance": "uniform"},
}


def sigma(runtime: Runtime, task: Classification = TASK, **settings: Any) -> State:
    """Return what a preparation of σ leaves, batches of eight samples and one of seven."""
    needs = Needs(train=See.LABELLED, holdout=See.LABELLED)
    session = Session(
        task=task,
        runtime=runtime,
        seed=9,
        method="kl_gaussian",
        phase="prepare",
        needs=needs,
        source=network(),
        given={"train": blobs(23), "holdout": blobs(9, "holdout")},
    )
    how = Learning(learn_batch=8, epochs=2, most_epochs=3, agreement=0.99, sigma0=0.2, **settings)
    return prepared(how, session)[1]


def numbers(runtime: Runtime) -> dict[str, Tensor]:
    """Return what must not depend on the number of processes, up to rounding."""
    found: dict[str, Tensor] = {}
    model, data, holdout = network(), blobs(23), blobs(9, "holdout", flip=True)
    for of in QUANTITIES:
        imp = diagonal(model, TASK, data, of=of, runtime=runtime, seed=5)
        found |= {f"diagonal/{of}/{k}": v for k, v in imp.values.items()}
        found[f"diagonal/{of}/count"] = torch.tensor(imp.count)
    few = {"few": data.ids[3:6], "other": data.ids[5:9]}
    for name, part in diagonals(model, TASK, data, groups=few, runtime=runtime).items():
        found |= {f"groups/{name}/{k}": v for k, v in part.sums.items()}
    found |= {f"hungry/{k}": v for k, v in diagonal(network(Hungry), TASK, data, runtime=runtime).sums.items()}
    for name, recipe in RECIPES.items():
        for n in (22, 23):  # a last batch of one, which joins the one before, and one of two
            trained = fit(model, TASK, blobs(n), recipe, holdout=holdout, runtime=runtime, seed=3)
            found |= {f"fit/{name}/{n}/{k}": v for k, v in trained.state_dict().items()}
    for name, settings in LEARNED.items():
        state = sigma(runtime, **settings)
        found |= {f"sigma/{name}/{k}": v for k, v in state.tensors.items()}
        facts = state.meta["posterior"]["facts"]
        told = [facts[k] for k in ("clean_loss", "sampled_loss", "tau", "accuracy", "passes", *["epochs"] * 2)]
        found[f"sigma/{name}/facts"] = torch.tensor([*told, *facts["agreement"]], dtype=D)
    found["mean_loss"] = torch.tensor(mean_loss(model, TASK, holdout, runtime), dtype=D)
    found["outputs"] = collect(model, TASK, data, runtime=runtime).outputs
    case = forget_class(data, 1)
    recipe = replace(PLAIN, epochs=1)
    for name in ("ssd", "lfssd", "finetune", "l1_sparse", "retrain", "head_mask", "iau"):
        method = build({"name": name, **({"alpha": 1.2} if "ssd" in name else {})})
        given: dict[str, Any] = {"recipe": recipe, "scenario": case, "runtime": runtime}
        ready = prepare(method, model, TASK, train=data, **given)
        request = {"forget": data.subset(case.forget), "retain": data.without(case.forget), "state": ready.state}
        done = unlearn(method, ready.model, TASK, **request, **given)
        found |= {f"{name}/{k}": v for k, v in done.model.state_dict().items()}
        found |= {f"{name}/state/{k}": v for k, v in done.state.tensors.items() if not k.startswith("samples/")}
        with torch.no_grad():
            found[f"{name}/outputs"] = done.model(data.read(range(5)).inputs)
    return found


REFERENCE = Reference("Tests", "The expunge authors", 2026, "https://pypi.org/project/expunge/")


@dataclass(frozen=True, kw_only=True)
class Odd(Method):
    """Edits by process 0 alone; its field chooses what goes wrong."""

    name: ClassVar[str] = "odd"
    unlearns = Needs(forget=See.LABELLED)
    reference = REFERENCE
    fault: str = ""

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        session.forget.read(range(len(session.forget)))
        if self.fault == "raises":
            raise UserError("a good day", f"a bad one with {session.runtime.count}", "try tomorrow")
        with torch.no_grad():
            session.model[0].weight.add_(torch.randn(6, 4, dtype=D))
        session.model[0].last = torch.zeros(3)
        if self.fault == "hook":
            session.model.register_forward_hook(lambda module, args, out: out + 1)
        return session.model, State({"a": torch.ones(2)}, {"b": 1})


@dataclass(frozen=True, kw_only=True)
class Apart(Odd):
    """Says that it is distributed, and leaves other weights on each process."""

    name: ClassVar[str] = "apart"
    distributed = True

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        session.forget.read(range(len(session.forget)))
        with torch.no_grad():
            session.model[0].bias.add_(session.runtime.rank)
        return session.model, state


@dataclass(frozen=True, kw_only=True)
class Skips(Odd):
    """Reads every sample but one, each process a half."""

    name: ClassVar[str] = "skips"
    distributed = True

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        session.forget.read(range(1 + session.runtime.rank, len(session.forget), session.runtime.count))
        return session.model, state


class Fails(Classification):
    """Fails on one process after some batches; counts them."""

    rank, after, calls = 0, 100, 0

    def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> Any:
        type(self).calls += 1
        if RUN.rank == self.rank and self.calls > self.after:
            raise ValueError(f"process {self.rank} fails")
        return super().forward(model, batch, taps)


def failing(rank: int, after: int) -> Fails:
    Fails.rank, Fails.after, Fails.calls = rank, after, 0
    return Fails()


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ExpungeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def words(folder: Path) -> dict[str, Any]:
    """Return what is said on this process where one of the two goes wrong, and facts about it."""
    model, data = network(), blobs(23)
    forget = data.subset(data.ids[:5])
    spoiled = blobs(23).read(range(23))
    spoiled.inputs[7] = torch.nan
    bad = Data.from_arrays(spoiled.inputs, spoiled.target)
    other = network()
    with torch.no_grad():
        other[0].bias[0] += RUN.rank
    heard: list[Any] = []
    diagonal(model, TASK, data, runtime=replace(RUN, progress=heard.append))
    locked = network()
    locked.note = lambda: "cannot be pickled"
    lone = replace(RUN, processes=1)
    sums = diagonal(model, TASK, data, runtime=lone).sums

    def edit(method: Method, of: nn.Module = model) -> Any:
        return unlearn(method, of, TASK, forget=forget, runtime=RUN)

    done, unpickled = edit(Odd()), edit(Odd(), locked)
    return {
        "raises": said(lambda: edit(Odd(fault="raises"))),
        "hook": said(lambda: edit(Odd(fault="hook"))),
        "apart": said(lambda: edit(Apart())),
        "skips": said(lambda: edit(Skips())),
        "other weights": said(lambda: edit(Odd(), other)),
        "other weights to fit": said(lambda: fit(other, TASK, data, PLAIN, runtime=RUN)),
        "other weights to diagonal": said(lambda: diagonal(other, TASK, data, runtime=RUN)),
        "other seed": said(lambda: fit(model, TASK, data, PLAIN, runtime=RUN, seed=RUN.rank)),
        "nan": said(lambda: fit(model, TASK, bad, PLAIN, runtime=RUN)),
        "nan in diagonal": said(lambda: diagonal(model, TASK, bad, runtime=RUN)),
        "fit fails": said(lambda: fit(model, failing(1, 2), data, PLAIN, runtime=RUN)),
        "diagonal fails": said(lambda: diagonal(model, failing(0, 3), data, engine="batched", runtime=RUN)),
        "labels": said(lambda: mean_loss(network(), TASK, blobs(8).unlabelled(), RUN)),
        "numbers": said(lambda: Runtime(device="cpu", processes=3)),
        "weights": tensors.weights_digest(done.model),
        "weights without pickle": tensors.weights_digest(unpickled.model),
        "kept": [hasattr(done.model[0], "last"), unpickled.model.note()],
        "state": [done.state.meta["b"], done.state.meta["expunge"]["key"], done.seconds],
        "progress": [len(heard), *([heard[-1].done, heard[-1].total] if heard else [])],
        "lone": tensors.tensor_digest(torch.cat([v.flatten() for v in sums.values()])),
        **resumed(folder),
        **passed(folder),
        **planted(folder),
        **learned(folder),
    }


def resumed(folder: Path) -> dict[str, Any]:
    """Return what became of a training with BatchNorm and dropout that failed on one process and was resumed."""
    data, recipe = blobs(23), replace(PLAIN, epochs=4)
    options = {"seed": 2, "holdout": blobs(9, "holdout", flip=True)}
    whole = fit(noisy(), TASK, data, recipe, runtime=RUN, **options)
    kept = replace(RUN, workdir=folder, checkpoint_every=0)
    broken = failing(1, 7)  # in the third epoch of three steps, the fourth being too small for two
    failed = said(lambda: fit(noisy(), broken, data, recipe, runtime=kept, **options))
    left = len(list(folder.glob("fit-*")))
    again = failing(1, 100)
    after = fit(noisy(), again, data, recipe, runtime=kept, **options)
    counted = int(whole[1].num_batches_tracked)
    digests = [tensors.weights_digest(m) for m in (whole, after)]
    return {"failed": failed, "left": left, "resumed": digests, "counted": counted, "steps": again.calls}


def passed(folder: Path) -> dict[str, Any]:
    """Return what became of a pass that failed on one process in its last batch and was resumed."""
    usual, fisher.WINDOW = fisher.WINDOW, 4  # one batch
    kept, data = replace(RUN, workdir=folder / "pass", checkpoint_every=0), blobs(23)

    def run(runtime: Runtime, after: int) -> str:
        found = diagonal(network(), failing(1, after), data, runtime=runtime)
        return tensors.tensor_digest(torch.cat([v.flatten() for v in found.sums.values()]))

    whole, calls = run(RUN, 10**6), Fails.calls
    failed = said(lambda: run(kept, RUN.gathered(calls)[1] - 1))
    RUN.barrier()
    left = len(list((folder / "pass").glob("importance-*")))
    RUN.barrier()
    after = run(kept, 10**6)
    RUN.barrier()
    fewer, still = Fails.calls < calls, len(list((folder / "pass").glob("importance-*")))
    fisher.WINDOW = usual
    return {"pass failed": failed, "pass left": left, "pass": [whole, after], "pass fewer": fewer, "pass still": still}


def planted(folder: Path) -> dict[str, Any]:
    """Return what became of a training with canaries: who wrote the manifest, which it is, and the weights."""
    saved, usual = [], Canaries.save
    Canaries.save = lambda self, path: saved.append(usual(self, path))  # type: ignore[method-assign,assignment]
    kept, recipe = replace(RUN, workdir=folder / "planted"), replace(PLAIN, canaries=4)
    model = fit(network(), TASK, blobs(23), recipe, runtime=kept, seed=6)
    refused = said(lambda: fit(network(), TASK, blobs(23), recipe, runtime=kept, seed=7))
    Canaries.save = usual  # type: ignore[method-assign]
    found = Canaries.load(folder / "planted" / FILE)
    sums = [float(v.sum()) for v in model.state_dict().values()]
    return {"saves": len(saved), "canaries": found.digest(), "planted": sums, "planted elsewhere": refused}


def learned(folder: Path) -> dict[str, Any]:
    """Return what became of the learning of σ that failed on one process in mid epoch and was resumed."""
    kept = replace(RUN, workdir=folder / "learned", checkpoint_every=0)
    (folder / "learned").mkdir(parents=True, exist_ok=True)

    def run(runtime: Runtime, rank: int, after: int) -> str:
        state = sigma(runtime, failing(rank, after))
        return tensors.tensor_digest(torch.cat([v.flatten() for v in state.tensors.values()]))

    whole, calls = run(RUN, 1, 10**6), Fails.calls
    failed = said(lambda: run(kept, 1, calls // 2))
    RUN.barrier()
    left = len(list((folder / "learned").glob("kl_gaussian-*")))
    RUN.barrier()
    after = run(kept, 1, 10**6)
    RUN.barrier()
    still = len(list((folder / "learned").glob("kl_gaussian-*")))
    fewer = Fails.calls < calls
    return {
        "sigma failed": failed,
        "sigma left": left,
        "sigma": [whole, after],
        "sigma fewer": fewer,
        "sigma still": still,
    }


def main(folder: Path) -> None:
    """Write this process's results into the folder."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("expunge").addHandler(handler)
    found = numbers(RUN)
    memory = [h for h in heard if "memory" in h]
    meta = {"count": RUN.count, "memory": memory, **words(folder / "work")}
    tensors.save(folder / f"{RUN.rank}.safetensors", found, meta)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(120, exit=True)  # rather than wait for another process for ever
    torch.set_num_threads(1)
    processes.EXCHANGE = 64  # some parameters travel alone
    main(Path(sys.argv[1]))
