"""What S3T costs: training, a deletion, storage and memory, each as a ratio with the number that it is held to.

Networks are at random weights and inputs at random: neither changes the cost. LoRA is on queries and values.

1. Training. One sequence of L slices beside one LoRA model on the same blocks and data, by `expunge.train.fit`; the
   sequence whole, by `prepare`, with assignment, digests and record. At an equal number of samples processed (target
   1.2), and at equal epochs a stage, beside the prediction [(L+1)/2 + f(L+1)(2L+1)/(6L)]/(1+f), f the share of blocks
   with adapters, which counts 1 for a forward pass and as much for the backward pass through a block (target: within
   10 %). The processor's time of one thread; each repeat runs a LoRA model before and after a sequence; medians.
2. Deletion. The method's own time for a request that shortens what its shard serves, and that of `Server.delete` with
   queue, record, files and receipt on the disk, beside loading the shorter adapter by PEFT from its file into a bare
   network that is in memory already (target 2); what one more adapter takes in a network that has others stands below.
   The clock's time, each deletion right after a load; medians. Training samples that were read are counted.
3. Storage. Bytes of all stages beside m·B·(A + L·head), A the adapters of all slices; of all files on the disk.
4. Memory. Bytes of all tensors that m shards hold, each storage once, beside backbone + adapters + heads of what is
   served.

    python benchmarks/s3t.py --network vit --repeats 5
    python benchmarks/s3t.py --network bert --samples 128 --repeats 3
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

from expunge.data import Data
from expunge.exact import costs, groups, lora
from expunge.exact.book import Book
from expunge.exact.server import Server
from expunge.exact.store import Store
from expunge.method import State
from expunge.methods import build
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.train import fit
from expunge.unlearn import prepare, unlearn
from expunge.zoo.minilm import MiniLM
from fisher import Setting, machine, say, show

CLASSES, BLOCKS, RANK, ALPHA = 4, 12, 16, 32.0
TASK = Classification()
QUIET = Runtime(progress=False, device="cpu")
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}


def vit() -> nn.Module:
    """Return a ViT of 12 layers of width 192, on 16 patches."""
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=BLOCKS,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
        **PLAIN,
    )
    return transformers.ViTForImageClassification(config)


def bert() -> nn.Module:
    """Return a BERT of MiniLM's sizes, twice as deep."""
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=BLOCKS, num_attention_heads=12, intermediate_size=1536, **PLAIN
    )
    return MiniLM(transformers.BertModel(config, add_pooling_layer=False), CLASSES)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "bert": bert}


def drawn(name: str, samples: int) -> Data:
    """Return random samples."""
    generator = torch.Generator().manual_seed(0)
    inputs: Any = torch.randn(samples, 3, 32, 32, generator=generator)
    if name == "bert":
        ids = torch.randint(1000, 30_000, (samples, 64), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Data.from_arrays(inputs, torch.arange(samples) % CLASSES, name="train")


class Case:
    """One network with its data.

    Args:
        name: of the network.
        samples: of all shards.
        slices: L.
        batch: samples a step.
    """

    def __init__(self, name: str, samples: int, slices: int, batch: int) -> None:
        torch.manual_seed(0)
        self.build, self.data, self.slices = NETWORKS[name], drawn(name, samples), slices
        self.base = self.build().eval()
        self.per_slice = BLOCKS // slices
        self.at = groups.blocks(self.base)
        self.head = groups.head(self.base, self.at)
        self.recipe = Recipe(epochs=1, batch_size=batch, lr=1e-3, optimizer="adamw", weight_decay=0.0)

    def method(self, shards: int, budget: int, epochs: int) -> Any:
        """Return S3T."""
        fields = {"shards": shards, "slices": self.slices, "budget": budget, "blocks": self.per_slice}
        return build({"name": "s3t", **fields, "rank": RANK, "alpha": ALPHA, "stage_epochs": epochs})

    def prepared(self, method: Any) -> Any:
        """Return what S3T prepares."""
        return prepare(
            method, self.base, TASK, train=self.data, recipe=self.recipe, new_model=self.build, runtime=QUIET
        )

    def one(self, epochs: int) -> nn.Module:
        """Train one LoRA model on all blocks that a sequence has."""
        names = [n for n in self.at.linear if n.rpartition(".")[2] in ("query", "value", "q_proj", "v_proj")]
        how = lora.Lora(rank=RANK, alpha=ALPHA, rslora=False, targets=tuple(names))
        blocks = [n for group in self.at.groups(self.slices, self.per_slice) for n in group]
        model = lora.stage(copy.deepcopy(self.base), self.at, self.head, how, [blocks], {})
        return fit(model, TASK, self.data, replace(self.recipe, epochs=epochs), runtime=QUIET)


def spent(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def training(case: Case, repeats: int) -> list[list[str]]:
    """Return the rows of training."""
    count = case.slices
    epochs = 1 if count % 2 else 2
    equal = epochs * (count + 1) // 2
    sequence = case.method(1, 1, epochs)
    case.one(1)
    found: dict[str, list[float]] = {"samples": [], "epochs": []}
    for turn in range(repeats):
        before = {
            name: spent(lambda e=e: case.one(e), time.process_time)
            for name, e in zip(found, (equal, epochs), strict=True)
        }
        middle = spent(lambda: case.prepared(sequence), time.process_time)
        after = {
            name: spent(lambda e=e: case.one(e), time.process_time)
            for name, e in zip(found, (equal, epochs), strict=True)
        }
        for name, ratios in found.items():
            ratios.append(2 * middle / (before[name] + after[name]))
        say(f"  repeat {turn + 1} of {repeats}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in found.items()))
    share = count * case.per_slice / BLOCKS
    rows = []
    for name, kind, target in (("samples", "samples", 1.2), ("epochs", "epochs", None)):
        said = costs.work(count, equal=kind, share=share)  # type: ignore[arg-type]
        ratio = statistics.median(found[name])
        words = f"at most {target}" if target else f"{said:.2f} ± 10 %"
        met = ratio <= target if target else abs(ratio - said) <= 0.1 * said
        spread = f"{ratio:.2f} ({min(found[name]):.2f} to {max(found[name]):.2f})"
        rows.append([f"a sequence / one LoRA model, equal {name}", spread, f"{said:.2f}", words, verdict(met)])
    return rows


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def shorter(case: Case, ready: Any, folder: Path) -> Path:
    """Write the adapter of a sequence without its last slice, as PEFT writes it, and return its folder."""
    book = Book.from_json(ready.state.meta["book"], ready.state.meta["manifest"], ready.state.tensors)
    order, depth = next(one for one in book.plan() if one is not None)
    stages = [method_values(ready.state, f"0/{'-'.join(map(str, order[:k]))}") for k in range(1, depth)]
    values = {k: v for stage in stages for k, v in stage.items() if k.startswith(lora.OWN)}
    layers = [n for group in case.at.groups(case.slices, case.per_slice)[: depth - 1] for n in group]
    names = sorted({name.split(f"{case.at.path}.")[1].split(".", 1)[1].split(".lora_")[0] for name in values})
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=names, layers_to_transform=layers, layers_pattern=case.at.path
    )
    wrapped = peft.get_peft_model(copy.deepcopy(case.base), config)
    peft.set_peft_model_state_dict(
        wrapped, {f"base_model.model.{k.removeprefix(lora.OWN)}": v for k, v in values.items()}
    )
    wrapped.save_pretrained(folder)
    return folder


def method_values(state: State, stage: str) -> dict[str, Tensor]:
    start = f"stage/{stage}/"
    return {k.removeprefix(start): state.tensors[k] for k in state.tensors if k.startswith(start)}


def shortening(state: State, data: Data) -> list[str]:
    """Return one id a shard and slice, such that each deletion shortens what its shard serves, and none ends it."""
    book = Book.from_json(state.meta["book"], state.meta["manifest"], state.tensors)
    found: list[str] = []
    shards, slices = book.place(data.ids)
    for shard, served in enumerate(book.plan()):
        if served is not None:
            wanted = served[0][-1]
            found.append(
                next(i for i, s, at in zip(data.ids, shards, slices, strict=True) if (s, at) == (shard, wanted))
            )
    return found


def deletion(case: Case, repeats: int, shards: int) -> tuple[list[list[str]], Any]:
    """Return the rows of a deletion, and what was prepared."""
    method = case.method(shards, case.slices, 1)
    ready = case.prepared(method)
    room = Path(tempfile.mkdtemp())
    adapter = shorter(case, ready, room / "adapter")
    loads: dict[str, list[float]] = {"bare": [], "beside": []}
    edits, totals, served, processed = [], [], [], 0
    ids = shortening(ready.state, case.data)

    def load() -> None:
        """Time PEFT's ways to load the adapter."""
        bare = copy.deepcopy(case.base)
        start = time.perf_counter()
        wrapped = peft.PeftModel.from_pretrained(bare, adapter)
        loads["bare"].append(time.perf_counter() - start)
        loads["beside"].append(spent(lambda: wrapped.load_adapter(adapter, adapter_name="other"), time.perf_counter))

    load()
    loads = {name: [] for name in loads}
    for turn in range(repeats):
        for one in ids:
            load()
            done = unlearn(method, ready.model, TASK, forget=[one], state=ready.state, runtime=QUIET)
            edits.append(done.seconds)
            totals.append(done.total_seconds)
            processed += int(done.log["samples_processed"])
        folder = room / f"store{turn}"
        Store.create(folder, ready.state)
        with Server(folder, copy.deepcopy(method.served_from(ready.model)), TASK) as server:
            for one in ids:
                load()
                served.append(spent(lambda i=one: server.delete([i]), time.perf_counter))
    unit, beside = (statistics.median(times) for times in loads.values())
    rows = []
    for text, times in (
        ("S3T.unlearn", edits),
        ("the same with the driver's checks", totals),
        ("Server.delete", served),
    ):
        ratio = statistics.median(times) / unit
        words = "" if text.startswith("the same") else "at most 2"
        spread = f"{ratio:.2f}: {1e3 * statistics.median(times):.0f} ms / {1e3 * unit:.0f} ms"
        rows.append([f"{text} / loading the shorter adapter", spread, "", words, verdict(ratio <= 2) if words else ""])
    rows.append(["one more adapter / loading it into a bare network", f"{beside / unit:.2f}", "", "", ""])
    rows.append(["training samples read by these deletions", str(processed), "", "0", verdict(processed == 0)])
    files = [p for p in (room / "store0").rglob("*") if p.is_file()]
    rows += storage(case, ready, shards, sum(p.stat().st_size for p in files))
    return rows, ready


def storage(case: Case, ready: Any, shards: int, disk: int) -> list[list[str]]:
    """Return the rows of storage; the files are those after the deletions."""
    named = {k.split("/", 3)[3]: ready.state.tensors[k] for k in ready.state.tensors if k.startswith("stage/")}
    adapters = sum(t.nbytes for k, t in named.items() if k.startswith(lora.OWN))
    head = sum(t.nbytes for k, t in named.items() if k.startswith(lora.HEAD))
    stages = sum(ready.state.tensors[k].nbytes for k in ready.state.tensors if k.startswith("stage/"))
    bound = costs.storage(shards, case.slices, case.slices, adapters=adapters, head=head)
    whole = costs.storage_checkpoints(shards, case.slices, case.slices, adapters=adapters, head=head)
    rows = [
        [
            "stages / the bound",
            f"{stages / bound:.3f}: {stages / 1e6:.2f} MB",
            "",
            "at most 1",
            verdict(stages <= bound),
        ]
    ]
    rows.append(["stages / whole checkpoints of adapters", f"{stages / whole:.3f}", "", "", ""])
    rows.append(["files of the server after the deletions", f"{disk / 1e6:.2f} MB", "", "", ""])
    return rows


def storages(found: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def memory(case: Case, ready: Any, shards: int) -> list[list[str]]:
    """Return the row of memory."""
    base = storages([*case.base.parameters(), *case.base.buffers()])
    held = storages([*ready.model.parameters(), *ready.model.buffers()])
    book = Book.from_json(ready.state.meta["book"], ready.state.meta["manifest"], ready.state.tensors)
    own = 0
    for shard, served in enumerate(book.plan()):
        if served is not None:
            order, depth = served
            for k in range(1, depth + 1):
                values = method_values(ready.state, f"{shard}/{'-'.join(map(str, order[:k]))}")
                own += sum(t.nbytes for n, t in values.items() if n.startswith(lora.OWN) or k == depth)
    text = f"{held / (base + own):.3f}: {held / 1e6:.1f} MB; backbone {base / 1e6:.1f}, the rest {own / 1e6:.2f}"
    row = [
        f"memory of {shards} shards / backbone, adapters and heads",
        text,
        "",
        "at most 1",
        verdict(held <= base + own),
    ]
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vit", choices=sorted(NETWORKS))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if BLOCKS % args.slices:
        parser.error(f"--slices must divide {BLOCKS} blocks")
    torch.set_num_threads(1)
    say(f"{machine(Setting(device='cpu', threads=1, precision='full'))}; {args.network}, {args.samples} samples")
    case = Case(args.network, args.samples, args.slices, args.batch)
    rows = training(case, args.repeats)
    more, ready = deletion(case, args.repeats, args.shards)
    rows += [*more, *memory(case, ready, args.shards)]
    show([["", f"L = {args.slices}", "predicted", "target", ""], *rows])


if __name__ == "__main__":
    main()
