"""A fictional person is forgotten by a small language model: masked answers, refusals, rivals and retrained.

Fictional people are drawn by a seeded grammar, six facts of each. A small GPT-2 learns them from questions in three
wordings; a fourth is held back. One person is forgotten. For each seed, other people, another network and another one
to forget. Rows are means over seeds with the standard deviation. Rates of the rivals were chosen among three to four on
seed 100, those of masked answers while the method was built, on the first seeds.

- name, secret: share of answers to the forgotten person's questions that name the person, and that tell the fact that
  is asked for; as trained on, and in other words.
- others: ROUGE-L of the answers about the others, as trained on, and in other words; right: answers that equal gold.
- back: the same share of secrets (three facts, in other words) once the network was trained for some steps on the
  other three facts of the person again.

A second table tells how well rankings of words find the facts: the share of answers in which the words that the first k
of the ranking give hold the whole fact, the name not counted.

    python benchmarks/concepts_lm.py --seeds 5
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.concepts.answers import Exchange, asked, mentions, places
from expunge.concepts.words import Tokens, attributed, content, corrected, named, split, surprise
from expunge.evaluate import evaluate
from expunge.methods import build
from expunge.metric import Value
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_subject
from expunge.train import Recipe, fit
from expunge.unlearn import prepare, unlearn
from expunge.zoo.profiles import REFUSALS, Profiles, profiles

QUIET = Runtime(progress=False, device="cpu")
MASK = {"name": "concept_masking", "lr": 1e-2, "batch_size": 8, "anchors": 3.0}
ALL = {**MASK, "tune": "all", "lr": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "masked answers, LoRA": MASK,
    "masked answers": ALL,
    "masked answers, k = 3": {**ALL, "top": 3},
    "k = 3, gradients alone": {**ALL, "top": 3, "gamma": 0.0},
    "k = 3, random words": {**ALL, "top": 3, "choose": "random"},
    "name alone": {**ALL, "choose": "names"},
    "refusals": {**ALL, "style": "refusal", "refusals": REFUSALS},
    "finetune": {"name": "finetune", "epochs": 10, "lr": 0.2},
    "gradient_ascent": {"name": "gradient_ascent", "until": 5.0, "epochs": 10, "lr": 3e-4, "optimizer": "adamw"},
    "neg_grad_plus": {"name": "neg_grad_plus", "until": 5.0, "lr": 3e-4, "optimizer": "adamw"},
    "ssd": {"name": "ssd"},
}
COLUMNS = {
    "name": "appearance/name/forget",
    "name, other words": "appearance/name/test_forget",
    "secret": "appearance/secret/forget",
    "secret, other words": "appearance/secret/test_forget",
    "others": "utility/rouge/retain",
    "others, other words": "utility/rouge/test_retain",
    "others right, other words": "utility/exact/test_retain",
}
AGAIN = ("town", "work", "instrument")  # facts that are trained on again
KINDS = ("both", "gradients alone", "name hidden alone", "random")


def one_seed(
    seed: int, people: int, epochs: int, only: Sequence[str], folder: Path
) -> tuple[dict[str, dict[str, float]], dict[tuple[str, int], float]]:
    """Return numbers by row and column, and the recall of facts by ranking and k."""
    p = profiles(people, seed=seed)
    p.tokenizer(folder)
    case = forget_subject(p.train, p.names[seed % people], column="subject", test=p.test)
    forget, retain = p.train.subset(case.forget), p.train.without(case.forget)
    recipe = replace(p.recipe, epochs=epochs)

    def trained(data: Any, at: int) -> nn.Module:
        torch.manual_seed(at)
        return fit(p.new_model(), p.task, data, recipe, runtime=QUIET, seed=at).eval()

    models: dict[str, Any] = {"original": trained(p.train, seed), "retrained": trained(retain, seed)}
    models["second retrained"] = trained(retain, seed + 1000)
    for name, settings in METHODS.items():
        if only and name not in only:
            continue
        method = build({**settings, **({"tokenizer": str(folder)} if settings["name"] == "concept_masking" else {})})
        given = {"scenario": case, "recipe": recipe, "runtime": QUIET, "seed": seed}
        ready = prepare(method, models["original"], p.task, train=p.train, **given)
        models[name] = unlearn(method, ready.model, p.task, forget=forget, retain=retain, state=ready.state, **given)
    metrics = ["appearance", "utility"]
    more = {"train": p.train, "test": p.test, "scenario": case, "metrics": metrics, "runtime": QUIET}
    scores = evaluate(models, p.task, **more)
    found: dict[str, dict[str, float]] = {}
    for row, model in models.items():
        values = scores.values[row]
        found[row] = {column: _number(values[name]) for column, name in COLUMNS.items()}
        found[row]["back"] = _back(p, case, getattr(model, "model", model), seed)
        found[row]["s"] = getattr(model, "seconds", math.nan)
    return found, recall(p, case, models["original"], Tokens(folder), seed)


def _number(value: Any) -> float:
    return value.x if isinstance(value, Value) else math.nan


def _back(p: Profiles, case: Scenario, model: nn.Module, seed: int) -> float:
    """Return the share of secrets that are told after some steps on other facts of the person."""
    forget = p.train.subset(case.forget)
    again = [i for i, fact in zip(forget.ids, forget.column("fact"), strict=True) if fact in AGAIN]
    recipe = Recipe(epochs=5, batch_size=8, lr=1e-3, optimizer="adamw")
    tuned = fit(model, p.task, forget.subset(again), recipe, runtime=QUIET, seed=seed)
    who = zip(p.test.ids, p.test.column("subject"), p.test.column("fact"), strict=True)
    rest = [i for i, name, fact in who if name == case.target["value"] and fact not in AGAIN]
    held = p.test.subset(rest)
    scores = evaluate(
        {"original": tuned},
        p.task,
        train=p.train,
        test=held,
        scenario=forget_subject(p.train, case.target["value"], column="subject", test=held),
        metrics=["appearance"],
        runtime=QUIET,
    )
    return _number(scores.values["original"]["appearance/secret/test_forget"])


def recall(p: Profiles, case: Scenario, model: nn.Module, tokens: Tokens, seed: int) -> dict[tuple[str, int], float]:
    """Return the share of the person's answers whose fact is among the first k words by each score."""
    data = p.train.subset(case.forget)
    told = asked(data)
    names = [mentions(v) for v in data.column("mention")]
    secrets = [mentions(v) for v in data.column("secret")]
    ig = attributed(model, p.task, told.exchanges, runtime=QUIET).values
    gaps = surprise(model, p.task, told.exchanges, names, runtime=QUIET)
    zero = [tuple(0.0 for _ in row) for row in ig]
    drawn = np.random.default_rng(seed)
    scores = {
        "both": corrected(ig, gaps),
        "gradients alone": corrected(ig, gaps, 0.0),
        "name hidden alone": corrected(zero, gaps),
        "random": [tuple(drawn.random(len(row))) for row in ig],
    }
    found = {}
    for kind in KINDS:
        for k in (1, 2, 3):
            rows = zip(told.exchanges, scores[kind], names, secrets, strict=True)
            found[kind, k] = float(np.mean([_first(e, s, n, w, k, tokens, told.end) for e, s, n, w in rows]))
    return found


def _first(
    e: Exchange, score: Sequence[float], names: Any, secret: Any, k: int, tokens: Tokens, end: int | None
) -> bool:
    words = split(e.answer, tokens)
    own = named(e.answer, words, names, tokens)
    free = [i for i, w in enumerate(words) if i not in own and content(w, e.answer, tokens, end)]
    free.sort(key=lambda i: -sum(score[at] for at in words[i].at))
    first = {at for i in free[:k] if sum(score[at] for at in words[i].at) > 0 for at in words[i].at}
    return places(e.answer, secret) <= first


def table(rows: dict[str, dict[str, list[float]]], columns: Sequence[str]) -> str:
    """Return a table of means and standard deviations; shares in per cent, seconds as they are."""
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, values in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(values[c], c) for c in columns)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], column: str) -> str:
    if any(math.isnan(v) for v in values):
        return "–"
    times = 1 if column == "s" else 100
    spread = np.std(values, ddof=1) * times if len(values) > 1 else math.nan
    return f"{np.mean(values) * times:.1f}" + ("" if math.isnan(spread) else f" ± {spread:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40, help="of the original and of retrained")
    parser.add_argument("--only", nargs="*", default=[], help=f"rows beside the networks: {', '.join(METHODS)}")
    parser.add_argument("--out", type=Path, help="file to write the tables into as well")
    args = parser.parse_args()
    if unknown := [name for name in args.only if name not in METHODS]:
        parser.error(f"unknown rows {unknown}: choose from {', '.join(METHODS)}")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    facts: dict[tuple[str, int], list[float]] = defaultdict(list)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found, own = one_seed(seed, args.people, args.epochs, args.only, Path(folder))
        for name, values in found.items():
            for column, value in values.items():
                rows[name][column].append(value)
        for at, value in own.items():
            facts[at].append(value)
        print(f"seed {seed} done", flush=True)
    head = f"{args.people} people, {args.seeds} seeds, per cent.\n\n"
    text = head + table(rows, [*COLUMNS, "back", "s"]) + "\n\nFacts among the first k words, per cent.\n\n"
    ranks = {kind: {f"k = {k}": facts[kind, k] for k in (1, 2, 3)} for kind in KINDS}
    text += table(ranks, [f"k = {k}" for k in (1, 2, 3)])
    print(text)
    if args.out is not None:
        args.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
