"""What the exact per-sample diagonal costs beside one plain forward and backward pass, and beside its rivals.

The quantity is the sum over samples of the squared per-sample gradient of the cross-entropy, model in eval mode. Its
engines (`layers`, `batched`, `reference`) stand beside torch.func's vmap(grad), BackPACK's SumGradSquared, and Opacus'
grad samples squared and summed. Networks are at random weights, inputs at random: neither changes the cost.

Time. Unit is the plain pass: zero_grad, mean cross-entropy, backward, batch by batch. In every repeat each engine runs
right after a plain pass over as many batches, on one torch thread; printed is the median of time / plain time over
the repeats, with the smallest and largest. With `layers`, `diagonal` has a one-off set-up (it tries rules on a few
samples), which is timed apart, once, and printed in samples of the plain pass; its pass is timed as the call runs it.
Calls with `batched` and `reference` are timed whole. The rivals' own set-up (wrapping the model) is not counted, and
each takes the batch in parts of the size that was fastest for it. What takes over three times the plain pass is timed
on one batch, three times at most.

Values. A rival, and each engine, must first agree with `reference` on four samples: the summed difference of every
tensor within 1e-3 of its sum (0.1 in bf16), beyond what rounding leaves where gradients are 0. Else it says `other
values`; `refuses` has its reason under the table.

Memory. Peak over two batches beyond what was held before, in a process of its own for each figure: model, data and
libraries are held before, and two samples were run to warm up. A call of `diagonal` counts with its set-up and its
result, the plain pass with its gradients. On a GPU it is the allocator's figure, else the kernel's high-water mark of
resident memory, with freed blocks of 64 KiB and more handed back at once.

The rivals are optional and live in an environment of their own (benchmarks/rivals.txt): `make bench-fisher`.

    python benchmarks/fisher.py --repeats 5
    python benchmarks/fisher.py --rows mlp-1024 vit --engines layers torch.func --repeats 3 --skip-memory
    python benchmarks/fisher.py --device cuda --precision bf16
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import importlib.util
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import expunge
from expunge.data import Batch, Data
from expunge.fisher import diagonal
from expunge.fisher.checks import chosen as wanted
from expunge.fisher.engine import Chosen
from expunge.fisher.sums import WINDOW, Sums
from expunge.runtime import Runtime, peak_memory
from expunge.task import Classification, output_tensor
from expunge.zoo import networks

OURS = ("layers", "batched", "reference")
RIVALS = {"torch.func": None, "backpack": "backpack", "opacus": "opacus"}  # with the package that brings each
ENGINES = (*OURS, *RIVALS)
CLASSES = 10
FEW = 4  # samples on which values are compared
SLOW = 3.0  # times the plain pass: beyond it one batch and SLOW_REPEATS do
SLOW_REPEATS = 3
BLOCK = 2**16  # bytes: from here on a freed block goes back to the system while memory is measured

Totals = Mapping[str, Tensor]
Runner = Callable[[Any, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Row:
    """A network with random data: its inputs for n samples, batch size, batches of a timed pass."""

    text: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], Any]
    batch: int
    batches: int


@dataclass(frozen=True)
class Setting:
    """Where the work runs, the same in the processes that measure memory."""

    device: str
    precision: Literal["full", "bf16"]
    threads: int

    def runtime(self, batch: int) -> Runtime:
        return Runtime(batch_size=batch, device=self.device, precision=self.precision, progress=False)


@dataclass
class Found:
    """What became of one engine on one row."""

    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # a batch
    setups: list[float] = field(default_factory=list)  # in samples of the plain pass
    part: int | None = None  # samples at a time, of rivals
    refused: str = ""  # the cell, where there is no number
    remarks: list[str] = field(default_factory=list)

    def cell(self, milliseconds: bool) -> str:
        if self.refused:
            return self.refused
        text = f"{statistics.median(self.ratios):.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})"
        return text + (f", {1e3 * statistics.median(self.seconds):.1f} ms" if milliseconds else "")


def _images(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _bare(**sizes: int) -> dict[str, Any]:
    """Return the settings of a transformer: plain operations, nothing at random."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"num_labels": CLASSES, "attn_implementation": "eager", **off, **sizes}


def _vit(**sizes: int) -> nn.Module:
    import transformers

    return cast("nn.Module", transformers.ViTForImageClassification(transformers.ViTConfig(**_bare(**sizes))))


SMALL_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 32,
    "patch_size": 4,
}
WORDS, LENGTH = 8192, 128


def _bert() -> nn.Module:
    import transformers

    class Rows(transformers.BertForSequenceClassification):
        """BERT with a row of positions and of the attention mask for each sample: its rivals can do no other."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            rows, length = input_ids.shape
            hidden = (1 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            return super().forward(
                input_ids=input_ids,
                attention_mask=hidden.expand(rows, 1, length, length),
                token_type_ids=torch.zeros_like(input_ids),
                position_ids=torch.arange(length, device=input_ids.device).expand(rows, length),
            )

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    tokens = {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "type_vocab_size": 1}
    return Rows(transformers.BertConfig(**_bare(**sizes, **tokens)))


def _texts(n: int) -> dict[str, Tensor]:
    """Return texts of 32 to 128 tokens, padded with index 0."""
    lengths = torch.randint(LENGTH // 4, LENGTH + 1, (n, 1))
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": torch.randint(1, WORDS, (n, LENGTH)) * mask, "attention_mask": mask}


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    )  # fmt: skip


def _small(name: str, *shape: int) -> Callable[[], nn.Module]:
    return lambda: networks.factory(name, shape, CLASSES)()


ROWS = {
    "resnet18": Row("ResNet-18, 3×3 stem, 32×32", _small("resnet18", 3, 32, 32), _images(3, 32, 32), 64, 6),
    "vit": Row("ViT, patch 4, depth 6, width 192, 32×32", lambda: _vit(**SMALL_VIT), _images(3, 32, 32), 64, 2),
    "vit-base": Row("ViT-B/16, 224×224", _vit, _images(3, 224, 224), 4, 2),  # the configuration's defaults
    "bert": Row("BERT¹, depth 4, width 256, 128 tokens", _bert, _texts, 32, 2),
    "mlp-1024": Row("MLP 784-1024-1024-10", _mlp, _images(784), 256, 16),
    "mlp": Row("zoo `mlp`, 8×8", _small("mlp", 1, 8, 8), _images(1, 8, 8), 64, 64),
    "convnet": Row("zoo `convnet`, 32×32", _small("convnet", 3, 32, 32), _images(3, 32, 32), 64, 16),
}
NOTES = (
    "¹ transformers' BERT with a row of positions and of the attention mask for each sample, as the rivals ask; texts "
    "of 32 to 128 tokens, padded.",
)


class Case:
    """One row at hand: its model, its data, and a function for each engine that passes over some batches."""

    def __init__(self, row: Row, setting: Setting) -> None:
        for text in ("Full backward hook is firing", "Extension saving to"):  # rivals on first layers, on missing rules
            warnings.filterwarnings("ignore", message=text)
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.row, self.runtime = row, setting.runtime(row.batch)
        self.device = torch.device(self.runtime.torch_device)
        self.model = row.build().eval().to(self.device)
        count = row.batch * row.batches
        self.data = Data.from_arrays(row.draw(count), torch.randint(CLASSES, (count,)))
        self._parts: dict[int, Data] = {}

    def first(self, samples: int) -> Data:
        if samples not in self._parts:
            self._parts[samples] = self.data.subset(self.data.ids[:samples])
        return self._parts[samples]

    def forward(self, model: nn.Module, inputs: Any) -> Tensor:
        with self.runtime.autocast():
            return output_tensor(model(**inputs) if isinstance(inputs, dict) else model(inputs))

    def _batches(self, samples: int) -> Iterator[Batch]:
        for batch in self.first(samples).batches(self.row.batch):
            yield batch.to(self.device)

    def plain(self, samples: int) -> None:
        for batch in self._batches(samples):
            self.model.zero_grad()
            F.cross_entropy(self.forward(self.model, batch.inputs), _target(batch)).backward()

    def ours(self, engine: Any) -> Callable[[int], Totals]:
        task = Classification()
        return lambda samples: diagonal(self.model, task, self.first(samples), engine=engine, runtime=self.runtime).sums

    def prepared(self) -> tuple[float, Callable[[int], None]]:
        """Return the seconds of the set-up of `layers`, and its pass: batches into sums, a window at a time."""
        params, task = wanted(self.model, None), Classification()
        start = time.perf_counter()
        chosen = Chosen(self.model, task, self.data, params, "loss", "layers", self.runtime, 0)
        wait(self.device)
        setup, sums = time.perf_counter() - start, Sums(params)
        close = max(1, WINDOW // self.row.batch)

        def run(samples: int) -> None:
            for at, batch in enumerate(self._batches(samples), 1):
                chosen(batch, sums)
                if at % close == 0:
                    sums.close()
            sums.close()

        return setup, run

    def rival(self, name: str, part: int) -> Callable[[int], Totals]:
        """Return a rival that takes ``part`` samples at a time, on a copy of the model, for some wrap it."""
        make: dict[str, Callable[[Case, nn.Module], Runner]]
        make = {"torch.func": _functional, "backpack": _backpack, "opacus": _opacus}
        step = make[name](self, copy.deepcopy(self.model))

        def run(samples: int) -> Totals:
            total: dict[str, Tensor] = {}
            for batch in self._batches(samples):
                for start in range(0, len(batch), part):
                    at = slice(start, start + part)
                    for key, value in step(_at(batch.inputs, at), _target(batch)[at]).items():
                        total[key] = total[key].add_(value) if key in total else value
            return total

        return run

    def engine(self, name: str, part: int | None) -> Callable[[int], Totals]:
        return self.ours(name) if name in OURS else self.rival(name, part or self.row.batch)

    def seconds(self, call: Callable[[int], object], samples: int) -> float:
        self.first(samples)
        wait(self.device)
        start = time.perf_counter()
        call(samples)
        wait(self.device)
        return time.perf_counter() - start


def _target(batch: Batch) -> Tensor:
    assert batch.target is not None
    return batch.target


def _at(inputs: Any, at: slice) -> Any:
    return {k: v[at] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[at]


def _functional(case: Case, model: nn.Module) -> Runner:
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        named = {k: v.unsqueeze(0) for k, v in inputs.items()} if isinstance(inputs, dict) else {}
        with case.runtime.autocast():
            value = functional_call(model, params, () if named else (inputs.unsqueeze(0),), named)
        return F.cross_entropy(output_tensor(value), target.unsqueeze(0))

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def step(inputs: Any, target: Tensor) -> dict[str, Tensor]:
        return {name: g.square().sum(dim=0) for name, g in each(weights, inputs, target).items()}

    return step


def _backpack(case: Case, model: nn.Module) -> Runner:
    backpack = importlib.import_module("backpack")
    extensions = importlib.import_module("backpack.extensions")
    for module in model.modules():  # not the containers: what is kept on them can overwrite a submodule of theirs
        if not any(True for _ in module.children()):
            backpack.extend(module)

    def step(inputs: Any, target: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        with backpack.backpack(extensions.SumGradSquared()):  # of the sum: the mean would divide each gradient by B
            F.cross_entropy(case.forward(model, inputs), target, reduction="sum").backward()
        return _kept(model, "sum_grad_squared")

    return step


def _opacus(case: Case, model: nn.Module) -> Runner:
    # Its hooks act in train mode alone, which is eval mode here: it refuses BatchNorm, and dropout is 0.
    wrapped = importlib.import_module("opacus").GradSampleModule(model, loss_reduction="sum").train()

    def step(inputs: Any, target: Tensor) -> dict[str, Tensor]:
        wrapped.zero_grad()
        F.cross_entropy(case.forward(wrapped, inputs), target, reduction="sum").backward()
        return {name: g.square().sum(dim=0) for name, g in _kept(model, "grad_sample").items()}

    return step


def _kept(model: nn.Module, attribute: str) -> dict[str, Tensor]:
    """Return what a library left on each parameter, and take it away."""
    found = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if not hasattr(parameter, attribute):
                raise NotImplementedError(f"gives nothing for {name} of {type(module).__name__}")
            found[name] = getattr(parameter, attribute)
            delattr(parameter, attribute)
    return found


def gap(found: Totals, truth: Totals, slack: float) -> str:
    """Return the first tensor that is off, or nothing."""
    # Rounding leaves noise where a gradient is 0, as the bias of an attention key has it.
    eps = torch.finfo(torch.bfloat16 if slack > 0.01 else torch.float32).eps
    noise = (8 * eps) ** 2 * max(float(t.max()) for t in truth.values())
    for name, b in truth.items():
        a = found.get(name)
        if a is None or not bool((a.double() - b).abs().sum() <= slack * b.abs().sum() + noise * b.numel()):
            return name
    return ""


@contextmanager
def heard(remarks: list[str]) -> Iterator[None]:
    """Keep what the engines log: which parameters have no rule."""
    logger, handler = logging.getLogger("expunge"), logging.Handler(logging.INFO)
    handler.emit = lambda record: remarks.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def tried(case: Case, name: str, truth: Totals) -> Found:
    """Hold an engine to the reference's values; for a rival find the samples at a time at which it is fastest."""
    package = RIVALS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        return Found(refused="not installed")
    found = Found()
    slack = 1e-3 if case.runtime.precision == "full" else 0.1
    try:
        with heard(found.remarks):
            values = case.engine(name, FEW)(FEW)
        off = gap(values, truth, slack)
        if off:
            return Found(refused="other values", remarks=[f"differs from reference in {off}"])
        if name in RIVALS:
            found.part = _fastest_part(case, name)
    except Exception as error:  # whatever a library says of a model that it does not support
        reason = shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")
        return Found(refused="refuses", remarks=[reason])
    finally:
        gc.collect()
    return found


def _fastest_part(case: Case, name: str) -> int:
    times: dict[int, float] = {}
    for part in sorted({min(n, case.row.batch) for n in (1, 4, 16, 64, case.row.batch)}):
        call = case.rival(name, part)
        call(min(part, case.row.batch))
        times[part] = case.seconds(call, case.row.batch)
        say(f"  {name}, {part} at a time: {times[part]:.2f} s a batch")
    return min(times, key=lambda part: times[part])


def race(case: Case, engines: list[str], repeats: int) -> dict[str, Found]:
    """Time all engines on one row, interleaved, each right after a plain pass over as many batches."""
    row = case.row
    truth = case.ours("reference")(FEW)
    found = {name: tried(case, name, truth) for name in engines}
    calls: dict[str, Callable[[int], object]]
    calls = {name: case.engine(name, f.part) for name, f in found.items() if not f.refused}
    found["plain"] = Found()
    case.plain(row.batch)
    base, plans = case.seconds(case.plain, row.batch), {}
    if "layers" in calls:
        setup, calls["layers"] = case.prepared()
        found["layers"].setups.append(setup / (base / row.batch))
    for name, call in calls.items():
        first = case.seconds(call, row.batch)
        slow = name != "layers" and first > SLOW * base
        plans[name] = (1, min(repeats, SLOW_REPEATS)) if slow else (row.batches, repeats)
    for turn in range(repeats):
        for name, call in calls.items():
            batches, most = plans[name]
            if turn >= most:
                continue
            samples = batches * row.batch
            unit = case.seconds(case.plain, samples)
            found["plain"].seconds.append(unit / batches)
            spent = case.seconds(call, samples)
            found[name].ratios.append(spent / unit)
            found[name].seconds.append(spent / batches)
            say(f"  repeat {turn + 1} of {most}: {name} {spent / unit:.2f}")
    return found


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Return what a call takes: by the clock on a GPU, and of the process's own time on a CPU."""
    now = time.perf_counter if device.type == "cuda" else time.process_time
    wait(device)
    start = now()
    call()
    wait(device)
    return now() - start


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, call: Callable[[], object]) -> int:
    """Return the bytes held at the peak of a call beyond those held before it."""
    with peak_memory(str(device)) as found:
        call()
    return found[0]


def held(name: str, engine: str, part: int | None, setting: Setting) -> int:
    """Return the peak of one engine on one row; in a fresh process, for memory once held is seldom given back."""
    case = Case(ROWS[name], setting)
    run: Callable[[int], object] = case.plain if engine == "plain" else case.engine(engine, part)
    run(2)
    case.model.zero_grad()
    for samples in (2, 2 * case.row.batch):
        case.first(samples)
    gc.collect()
    return peak(case.device, lambda: run(2 * case.row.batch))


def apart(*args: Any) -> int:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(held, args)


def memory_table(found: Mapping[str, Mapping[str, Found]], engines: list[str], setting: Setting) -> list[list[str]]:
    lines = [["network", "batch", "plain", *engines]]
    for name, cells in found.items():
        peaks: dict[str, int] = {}
        for engine in ("plain", *engines):
            if not cells[engine].refused:
                peaks[engine] = apart(name, engine, cells[engine].part, setting)
                say(f"memory, {name}, {engine}: {peaks[engine] / 2**20:.1f} MiB")
        line = [ROWS[name].text, str(ROWS[name].batch), f"{peaks['plain'] / 2**20:.1f} MiB"]
        for engine in engines:
            line.append(cells[engine].refused or f"{peaks[engine] / peaks['plain']:.2f}")
        lines.append(line)
    return lines


def time_table(found: Mapping[str, Mapping[str, Found]], engines: list[str], setting: Setting) -> list[list[str]]:
    lines = [["network", "batch", "plain, ms a batch", *engines, "set-up of `layers`, samples"]]
    for name, cells in found.items():
        plain = f"{1e3 * statistics.median(cells['plain'].seconds):.1f}" if cells["plain"].seconds else "–"
        line = [ROWS[name].text, str(ROWS[name].batch), plain]
        line += [cells[engine].cell(setting.device != "cpu") for engine in engines]
        setups = cells["layers"].setups if "layers" in cells else []
        lines.append([*line, f"{statistics.median(setups):.0f}" if setups else "–"])
    return lines


def remarks(found: Mapping[str, Mapping[str, Found]]) -> list[str]:
    lines = list(NOTES) if "bert" in found else []
    for name, cells in found.items():
        for engine, cell in cells.items():
            lines += [f"- {name}, {engine}: {text}" for text in dict.fromkeys(cell.remarks)]
        parts = [f"{engine} {cell.part}" for engine, cell in cells.items() if cell.part]
        if parts:
            lines.append(f"- {name}, samples at a time: {', '.join(parts)}")
    return lines


def machine(setting: Setting) -> str:
    """Return a line on where this ran, with the commit."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    where = [names[0] if names else platform.processor() or platform.machine()]
    if setting.device != "cpu":
        where.append(torch.cuda.get_device_name(setting.device))
    where += [f"{setting.threads} torch thread{'s' if setting.threads > 1 else ''}", f"torch {torch.__version__}"]
    where += ["float32" if setting.precision == "full" else "bf16 autocast", f"commit {commit()}"]
    return ", ".join(where)


def commit() -> str:
    """Return the short commit of the package that was imported, and whether its code differs from it."""
    folder = Path(str(expunge.__file__)).parent

    def git(*words: str) -> str:
        said = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return said.stdout.strip()

    changed = git("status", "--porcelain", "--", ".")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with local changes" if changed else "")


def show(lines: list[list[str]]) -> None:
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    print(head, "|" + "---|" * len(lines[0]), *rest, sep="\n", end="\n\n", flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profile(case: Case) -> None:
    """Print where a plain pass and that of `layers` spend their time, by operation."""
    for name, call in (("plain", case.plain), ("layers", case.prepared()[1])):
        samples = min(3 * case.row.batch, len(case.data))
        call(samples)
        with torch.profiler.profile() as found:
            call(samples)
        table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40)
        print(f"{case.row.text}, {name}, {samples} samples\n{table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto is cuda if there is one")
    parser.add_argument("--precision", default="full", choices=["full", "bf16"])
    parser.add_argument("--skip-memory", action="store_true", help="times alone")
    parser.add_argument(
        "--profile", action="store_true", help="instead, the rows' time by operation, of plain and layers"
    )
    args = parser.parse_args()
    # All processes that measure memory inherit it; this one has read its own settings already.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)}
    setting = Setting(Runtime(device=args.device).torch_device, args.precision, args.threads)
    where, found = machine(setting), {}  # the commit at the start: it may move on meanwhile
    begun = time.perf_counter()
    for name in args.rows if args.profile else ():
        profile(Case(ROWS[name], setting))
    if args.profile:
        return
    for name in args.rows:
        say(f"{name}: checking values ({(time.perf_counter() - begun) / 60:.1f} min so far)")
        found[name] = race(Case(ROWS[name], setting), args.engines, args.repeats)
        gc.collect()
    repeats = f"median of {args.repeats} interleaved repeats (smallest–largest)"
    print(f"Time as a multiple of a plain pass, {repeats}. {where}.\n")
    show(time_table(found, args.engines, setting))
    print(*remarks(found), sep="\n", end="\n\n", flush=True)
    if not args.skip_memory:
        print(f"Peak memory as a multiple of a plain pass. {where}.\n", flush=True)
        show(memory_table(found, args.engines, setting))
    say(f"{(time.perf_counter() - begun) / 60:.1f} min")


if __name__ == "__main__":
    main()
