"""Tables of a grid: known numbers in every form, rows without numbers, papers, costs, tuning, decay."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as reference

from expunge import stats
from expunge.bench import table
from expunge.bench.collect import Gap, Group
from expunge.bench.forms import tex
from expunge.bench.grid import Grid, load
from expunge.errors import UserError
from expunge.metric import Goal, Number, Unavailable, Value
from expunge.scenario import Asked
from expunge.scores import FLOOR, REFERENCE, Scores, with_gaps

FORMS = ("rich", "markdown", "latex", "csv", "json", "html")
TEXTS = ("markdown", "latex", "csv", "json", "html")
HOSTILE = "a_b & 10% <i>|x|</i> $y$ {z} \\w #1 [q] \x1b[31m^~"
GRID = """
title = "A grid"
seeds = 10
data = ["digits"]
scenarios = ["class=3"]
[networks.NETWORK]
[methods.ssd]
[methods.finetune]
"""
NUMBERS = {
    "accuracy/forget": Number("accuracy, forget set", Goal.AS_RETRAINED, (0.0, 1.0)),
    "accuracy/test": Number("accuracy, test set", Goal.AS_RETRAINED, (0.0, 1.0)),
    "loss/test": Number("loss, test set", Goal.AS_RETRAINED, (0.0, math.inf)),
    "membership/loss/auc": Number("loss attack: AUC", Goal.AS_RETRAINED, (0.0, 1.0)),
    "weights/to_retrained": Number("weights, distance to retrained", Goal.MIN, (0.0, math.inf), 0.0),
    "cost/seconds": Number("time of the edit", Goal.MIN, (0.0, math.inf)),
}
UNITS = {"loss/test": "nats", "weights/to_retrained": "L2", "cost/seconds": "s"}
ROWS = ("original", REFERENCE, FLOOR, "no_op", "head_mask", "ssd", "finetune")
TEST = {  # accuracy on the test set in thousandths, by model; each seed moves all of them by its noise
    "original": 940,
    REFERENCE: 850,
    FLOOR: 852,
    "no_op": 940,
    "head_mask": 870,
    "ssd": 800,
    "finetune": 851,
}
SEEDS = np.random.default_rng(0).normal(0, 0.004, 20)
NOISE = np.random.default_rng(1).normal(0, 0.003, (len(ROWS), 20))


def on_test(model: str, seed: int) -> float:
    """Return a model's accuracy on the test set."""
    return float(TEST[model] / 1000 + SEEDS[seed] + NOISE[ROWS.index(model), seed])


def number(name: str, model: str, seed: int) -> Value | Unavailable:
    """Return one number of a run: of accuracies as measured on samples."""
    x = on_test(model, seed)
    if name == "accuracy/test":
        return Value.of(stats.wilson(round(1000 * x), 1000))
    if name == "accuracy/forget":
        return Value.of(stats.wilson(90 if model in ("original", "no_op") else 0, 100))
    if name == "weights/to_retrained":
        return Unavailable("it is the reference itself") if model == REFERENCE else Value.single(10 * x, "L2")
    if name == "cost/seconds" and model == "original":
        return Unavailable("a bare module was given, not an unlearn result")
    return Value.single(x, UNITS.get(name, "1"))


def run(seed: int, models: Sequence[str] = ROWS, **given: Any) -> Scores:
    """Return what one seed measured."""
    parts: dict[str, Any] = {name: {} for name in ("gaps", "distances", "floor", "declined", "notes", "settings")}
    return with_gaps(
        Scores(
            values={m: {name: number(name, m, seed) for name in NUMBERS} for m in models},
            numbers=NUMBERS,
            changed={},
            samples={m: {} for m in models},
            asked=Asked("class", 3, {"train": 1000, "forget": 100, "retain": 900, "test": 1000}),
            **(parts | given),
        )
    )


def group(
    grid: Grid,
    runs: Mapping[int, Scores],
    gaps: Mapping[tuple[int, str], Gap] | None = None,
    costs: Mapping[tuple[int, str], Mapping[str, float]] | None = None,
    **given: Any,
) -> Group:
    """Return a group of the grid's first place."""
    rest: dict[str, Any] = {"step": 1, "steps": 1, "text": "The class 3 is to be forgotten.", "classes": ()}
    rest |= {"versions": {"expunge": frozenset({"0.1.0"})}, "tasks": {}}
    return Group(place=next(iter(grid.places)), runs=runs, gaps=gaps or {}, costs=costs or {}, **(rest | given))


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """A grid of a small network, two methods and ten seeds."""
    return written(tmp_path)


def written(folder: Path, more: str = "", network: str = "mlp") -> Grid:
    """Return a grid file with more in it."""
    (folder / "grid.toml").write_text(GRID.replace("NETWORK", network) + more)
    return load(folder / "grid.toml")


def whole(grid: Grid, seeds: int = 10, **given: Any) -> Group:
    """Return a group with every row on every seed."""
    return group(grid, {seed: run(seed) for seed in range(seeds)}, **given)


def printed(grid: Grid, groups: Sequence[Group], width: int = 120, **given: Any) -> str:
    """Return what a terminal shows."""
    console = Console(width=width, file=io.StringIO(), color_system=None, record=True)
    for item in table.render(grid, groups, "rich", **given):
        console.print(item, soft_wrap=isinstance(item, str), highlight=False, markup=False)
    return console.export_text()


def shown(grid: Grid, groups: Sequence[Group], form: str, **given: Any) -> str:
    """Return a table as text, in one line."""
    text = printed(grid, groups, **given) if form == "rich" else table.render(grid, groups, form, **given)
    return " ".join(text.split())


def markdown(text: str, title: str = "digits, mlp, class 3") -> dict[str, dict[str, str]]:
    """Return the table under a heading: cells by row and head."""
    part = text.split(f"## {title}\n", 1)[1].split("\n## ")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines() if line.startswith("|")]
    heads = [head.strip() for head in lines[0]]
    return {line[0].strip(): dict(zip(heads, map(str.strip, line), strict=True)) for line in lines[2:]}


def records(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the lines of a CSV file by model and number; the first where there are several."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        found.setdefault((line["model"], line["number"]), line)
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half of the 95 % t interval."""
    mean, error = float(np.mean(values)), float(reference.sem(values))
    return mean, float(reference.t.interval(0.95, len(values) - 1, mean, error)[1] - mean)


def test_values_and_gaps_are_means_with_t_intervals_over_seeds(grid: Grid) -> None:
    found = whole(grid)
    mean, half = interval([round(1000 * on_test("ssd", s)) / 1000 for s in range(10)])
    ours, theirs = ([round(1000 * on_test(m, s)) / 1000 for s in range(10)] for m in ("ssd", REFERENCE))
    gap, around = interval(np.subtract(ours, theirs).tolist())
    line = records(table.render(grid, [found], "csv"))["ssd", "accuracy/test"]
    assert [float(line[k]) for k in ("value", "low", "high")] == pytest.approx([mean, mean - half, mean + half])
    assert [float(line[k]) for k in ("gap", "gap_low", "gap_high")] == pytest.approx([gap, gap - around, gap + around])
    assert (line["n"], line["seeds"], line["unit"], line["reason"]) == ("10", "10", "1", "")
    text = f"{100 * mean:.1f} ± {100 * half:.1f}%; {100 * gap:+.1f} ± {100 * around:.1f}".replace("-", "−")
    assert markdown(table.render(grid, [found], "markdown"))["ssd"]["accuracy, test set"] == text
    terminal = printed(grid, [found])
    assert all(part.replace(" ± ", "±").replace("%", "") in terminal for part in text.split("; "))


def test_the_floor_is_the_mean_size_of_the_difference_of_two_retrained_models(grid: Grid) -> None:
    sizes = [abs(round(1000 * on_test(FLOOR, s)) - round(1000 * on_test(REFERENCE, s))) / 1000 for s in range(10)]
    mean, half = interval(sizes)
    text = table.render(grid, [whole(grid)], "markdown")
    assert markdown(text)["floor"]["accuracy, test set"] == f"{100 * mean:.1f} ± {100 * half:.1f}"
    assert list(markdown(text))[-1] == "floor"
    assert float(records(table.render(grid, [whole(grid)], "csv"))["ssd", "accuracy/test"]["floor"]) == pytest.approx(
        mean
    )
    assert "two retrained models of different seeds lie apart" in text


def test_rows_stand_in_the_order_of_the_grid_with_controls_and_the_floor(grid: Grid) -> None:
    mixed = {3: run(3, tuple(reversed(ROWS))), 0: run(0), 7: run(7, ("finetune", *ROWS[:-1]))}
    rows = list(markdown(table.render(grid, [group(grid, mixed)], "markdown")))
    assert rows == [
        "original",
        "retrained",
        "retrained (other seed)",
        "no\\_op",
        "head\\_mask",
        "ssd",
        "finetune",
        "floor",
    ]


@pytest.mark.parametrize("form", TEXTS)
def test_the_same_numbers_give_the_same_bytes_in_whatever_order_they_were_read(grid: Grid, form: str) -> None:
    runs = {seed: run(seed) for seed in range(10)}
    gaps = {(10, "ssd"): Gap("missing", "not run yet"), (11, "ssd"): Gap("failed", "no memory")}
    costs = {(s, m): c for s in range(10) for m, c in (("", {"retrain": 2.0 + s}), ("ssd", cost(0.1, 0.2 * s)))}
    versions = {"torch": frozenset({"2.2", "2.1", "2.10"}), "expunge": frozenset({"0.1.0"})}
    one = table.render(grid, [group(grid, runs, gaps, costs, versions=versions)], form)
    turned = [dict(reversed(part.items())) for part in (runs, gaps, costs, versions)]
    other = group(grid, *turned[:3], versions=turned[3])
    assert table.render(replace(grid, seeds=tuple(reversed(grid.seeds))), [other], form) == one


def cost(prepare: float, edits: float) -> dict[str, float]:
    """Return what a cell cost."""
    return {"prepare": prepare, "unlearn": edits, "edits": edits, "total": edits, "measure": 0.5}


def test_one_seed_has_no_spread_and_says_so(grid: Grid) -> None:
    found = whole(grid, seeds=1)
    for form in FORMS:
        text = shown(grid, [found], form)
        ours = re.sub(r"AUC to (±|\$\\pm\$)5 points", "", text)  # what a caveat says of too few samples
        assert "±" not in ours, form
        assert "pm$" not in ours, form
    ours = markdown(table.render(grid, [found], "markdown"))["ssd"]["accuracy, test set"]
    known = stats.wilson(round(1000 * on_test("ssd", 0)), 1000)
    assert ours.startswith(f"{100 * known.x:.1f}% ({100 * known.low:.1f} to {100 * known.high:.1f}); ")
    text = table.render(grid, [found], "markdown")
    assert "One training seed" in text
    assert "In brackets the 95% interval over samples" in text
    assert "1 seed ranks nothing here, it takes 10" in text
    assert json.loads(table.render(grid, [found], "json"))["groups"][0]["rows"][5]["intervals"] == "samples"


def test_a_row_of_one_seed_among_many_keeps_its_interval_over_samples(grid: Grid) -> None:
    runs = {seed: run(seed, ROWS if seed == 4 else ROWS[:-1]) for seed in range(10)}
    gaps = {(s, "finetune"): Gap("missing", "not run yet") for s in range(10) if s != 4}
    text = table.render(grid, [group(grid, runs, gaps)], "markdown")
    known = stats.wilson(round(1000 * on_test("finetune", 4)), 1000)
    row = markdown(text)["finetune (1 of 10 seeds)"]
    assert row["accuracy, test set"].startswith(
        f"{100 * known.x:.1f}% ({100 * known.low:.1f} to {100 * known.high:.1f})"
    )
    assert "One seed alone: finetune; in brackets the interval over samples, not over seeds." in text
    assert "finetune rests on 1 of 10 seeds: seeds 0, 1, 2, 3, 5, 6, 7, 8 and 9 not run yet." in text
    assert "±" in markdown(text)["ssd"]["accuracy, test set"]


def test_a_row_of_some_seeds_is_compared_over_those(grid: Grid) -> None:
    runs = {seed: run(seed, ROWS if seed < 6 else ROWS[:-1]) for seed in range(10)}
    gaps = {(s, "finetune"): Gap("failed", "out of memory.") for s in range(6, 10)}
    text = table.render(grid, [group(grid, runs, gaps)], "csv")
    ours, theirs = ([round(1000 * on_test(m, s)) / 1000 for s in range(6)] for m in ("finetune", REFERENCE))
    line = records(text)["finetune", "accuracy/test"]
    assert float(line["gap"]) == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert (line["n"], line["seeds"], line["rank"]) == ("6", "6", "")
    said = table.render(grid, [group(grid, runs, gaps)], "markdown")
    assert "finetune rests on 6 of 10 seeds: seeds 6–9 failed: out of memory." in said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Gap("declined", "it forgets whole classes only"), "declined: it forgets whole classes only"),
        (Gap("failed", "CUDA out of memory."), "failed: CUDA out of memory"),
        (Gap("blocked", "no disk"), "not run, for what it needs is not there: no disk"),
        (Gap("corrupt", "other bytes"), "corrupt: other bytes"),
        (Gap("running", "measured/1 is running"), "running"),
        (Gap("missing", "not run yet"), "not run yet"),
    ],
)
def test_a_method_without_numbers_stands_there_with_the_reason(grid: Grid, form: str, gap: Gap, said: str) -> None:
    runs = {seed: run(seed, ROWS[:-1]) for seed in range(2)}
    found = group(grid, runs, {(s, "finetune"): gap for s in range(2)})
    text = shown(grid, [found], form)
    assert re.sub(r"\s", "", said) in re.sub(r"\s", "", text), text
    if form == "markdown":
        row = markdown(table.render(grid, [found], form))[f"finetune ({said})"]
        assert set(list(row.values())[1:]) == {"–"}


def test_a_control_that_declines_and_a_model_with_a_flaw_say_why(grid: Grid) -> None:
    rows = tuple(m for m in ROWS if m != "head_mask")
    given = {"declined": {"head_mask": "it masks one class."}, "flaws": {"ssd": "its outputs are NaN."}}
    runs = {seed: run(seed, rows, **given) for seed in range(2)}
    for found in runs.values():
        found.values["ssd"].update({name: Unavailable("its outputs are NaN") for name in NUMBERS})  # type: ignore[attr-defined]
    text = table.render(grid, [group(grid, runs)], "markdown")
    assert "head\\_mask (declined: it masks one class)" in markdown(text)
    assert "ssd (nothing can be said of it: its outputs are NaN)" in markdown(text)


@pytest.mark.parametrize("form", FORMS)
def test_a_grid_of_which_nothing_is_there_names_every_row(grid: Grid, form: str) -> None:
    gaps = {(s, m): Gap("missing", "not run yet") for s in range(10) for m in ("", "ssd", "finetune")}
    text = shown(grid, [group(grid, {}, gaps)], form)
    assert text.count("not run yet") >= 7
    assert all(tex(name) in text or name.replace("_", "\\_") in text or name in text for name in ROWS)


def test_seeds_without_references_are_named(grid: Grid) -> None:
    gaps = {(s, m): Gap("failed", "diverged") for s in (8, 9) for m in ("", "ssd", "finetune")}
    text = table.render(grid, [whole(grid, seeds=8, gaps=gaps)], "markdown")
    assert "Not counted: seeds 8 and 9 (diverged)." in text
    assert "ssd rests on" not in text


def test_ranks_tell_only_what_seeds_can_tell(grid: Grid) -> None:
    text = table.render(grid, [whole(grid)], "markdown")
    ranks = markdown(text, "digits, mlp, class 3: ranks")
    assert {m: row["accuracy, test set"] for m, row in ranks.items()} == {
        "no\\_op": "4 &gt;",
        "head\\_mask": "2 &gt;",
        "ssd": "3 &gt;",
        "finetune": "1 ≈",
    }
    assert {m: row["accuracy, forget set"] for m, row in ranks.items()} == {
        "no\\_op": "4 &gt;",
        "head\\_mask": "1–3 ≈",
        "ssd": "1–3 ≈",
        "finetune": "1–3 ≈",
    }
    assert "corrected together by Holm at 5%" in text
    assert "time of the edit" not in str(ranks)
    line = records(table.render(grid, [whole(grid)], "csv"))
    assert (line["ssd", "accuracy/test"]["rank"], line["ssd", "weights/to_retrained"]["rank"]) == ("3", "")
    assert line["original", "accuracy/test"]["rank"] == ""


@pytest.mark.parametrize(
    ("network", "seeds", "ranked"),
    [("mlp", 9, False), ("mlp", 10, True), ("resnet18", 4, False), ("resnet18", 5, True)],
)
def test_below_the_fewest_seeds_there_is_no_order(tmp_path: Path, network: str, seeds: int, ranked: bool) -> None:
    asked = written(tmp_path, network=network)
    for form in FORMS:
        text = shown(asked, [whole(asked, seeds)], form)
        if form == "csv":
            assert (
                any(line["rank"] for line in records(table.render(asked, [whole(asked, seeds)], form)).values())
                is ranked
            )
        else:
            assert (f"No ranks: {seeds} seeds rank nothing here" in text) is not ranked, form
    document = json.loads(table.render(asked, [whole(asked, seeds)], "json"))["groups"][0]["ranks"]
    assert bool(document["accuracy/test"]["ranks"]) is ranked
    if ranked:
        pair = next(p for p in document["accuracy/test"]["pairs"] if {p["a"], p["b"]} == {"ssd", "finetune"})
        sizes = [
            [abs(round(1000 * on_test(m, s)) - round(1000 * on_test(REFERENCE, s))) / 1000 for s in range(seeds)]
            for m in (pair["a"], pair["b"])
        ]
        assert pair["p"] == pytest.approx(reference.ttest_rel(*sizes).pvalue, rel=1e-6)
        assert {p["b"] for p in document["accuracy/test"]["pairs"]} >= {"floor"}


PUBLISHED = """
[[published]]
source = "Some paper, 2024, Table 6"
data = "digits"
network = "mlp"
scenario = "class 3"
differences = ["another data set", "the retrained model had seen the class."]
[published.values.ssd]
"accuracy/test" = [0.7454, 0.0]
"cost/seconds" = [120, 5.5]
"probe/one_shot" = [0.5]
[published.values.retrained]
"accuracy/test" = [0.7283, 0.0042]
[[published]]
source = "Another one, 2025"
data = "digits"
network = "mlp"
scenario = "class 3"
[published.values.finetune]
"accuracy/test" = [0.9]
"""


def test_published_numbers_stand_beside_ours_as_printed(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED)
    text = table.render(asked, [whole(asked)], "markdown")
    rows = markdown(text)
    heads = list(rows["ssd"])
    at = heads.index("accuracy, test set")
    assert heads[at + 1 : at + 3] == ["accuracy, test set in \\[1\\]", "accuracy, test set in \\[2\\]"]
    ours = 100 * (np.mean([round(1000 * on_test("ssd", s)) for s in range(10)]) / 1000 - 0.7454)
    first, last = rows["ssd"]["accuracy, test set in \\[1\\]"].split("; ours ")
    assert (first, float(last)) == ("74.54 ± 0.00%", pytest.approx(ours, abs=0.051))
    assert rows["retrained"]["accuracy, test set in \\[1\\]"].startswith("72.83 ± 0.42%; ours +")
    assert rows["finetune"]["accuracy, test set in \\[1\\]"] == "–"
    assert rows["finetune"]["accuracy, test set in \\[2\\]"].startswith("90.0%; ours −")
    assert rows["ssd"]["time of the edit in \\[1\\]"].startswith("120.0 ± 5.5; ours −")
    assert rows["ssd"]["probe/one\\_shot in \\[1\\]"] == "50.0%"
    assert "\\[1\\] Some paper, 2024, Table 6: as printed there" in text
    assert "It differs from ours: another data set. the retrained model had seen the class." in text
    assert "No probe/one\\_shot of ours: it is not measured here." in text


def test_published_numbers_are_never_among_ours(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED)
    plain, more = whole(written(tmp_path)), whole(asked)
    ours, both = (
        json.loads(table.render(g, [found], "json"))["groups"][0]
        for g, found in ((written(tmp_path), plain), (asked, more))
    )
    assert both["rows"] == ours["rows"]
    assert both["ranks"] == ours["ranks"]
    ssd = both["published"][0]["values"]["ssd"]
    assert ssd["accuracy/test"]["mean"] == 0.7454
    assert ssd["accuracy/test"]["ours_minus_published"] == pytest.approx(
        np.mean([round(1000 * on_test("ssd", s)) for s in range(10)]) / 1000 - 0.7454
    )
    assert ssd["probe/one_shot"] == {"mean": 0.5, "spread": None, "ours_minus_published": None}
    lines = list(csv.DictReader(io.StringIO(table.render(asked, [more], "csv"))))
    finetune = [line for line in lines if (line["model"], line["number"]) == ("finetune", "accuracy/test")]
    assert [(line["published"], line["source"]) for line in finetune] == [("0.9", "Another one, 2025")]
    values = [line["value"] for line in lines if line["value"]]
    assert "0.7454" not in values
    assert {line["published"] for line in lines} >= {"0.7454", "0.7283", "0.9"}


def test_models_that_papers_alone_have_stand_below_ours(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED.replace("[published.values.finetune]", "[published.values.bad_teacher]"))
    rows = markdown(table.render(asked, [whole(asked)], "markdown"))
    theirs = "bad\\_teacher (published only: not in this grid)"
    assert rows[theirs]["accuracy, test set in \\[2\\]"] == "90.0%"
    assert rows[theirs]["accuracy, test set"] == "–"
    assert list(rows).index(theirs) > list(rows).index("finetune")
    found = json.loads(table.render(asked, [whole(asked)], "json"))["groups"][0]
    assert [row["model"] for row in found["rows"] if row["role"] == "published"] == ["bad_teacher"]
    assert "bad_teacher" not in found["ranks"]["accuracy/test"]["ranks"]
    lines = csv.DictReader(io.StringIO(table.render(asked, [whole(asked)], "csv")))
    assert [(x["published"], x["value"]) for x in lines if x["model"] == "bad_teacher" and x["published"]] == [
        ("0.9", "")
    ]


def test_papers_on_one_number_have_a_line_each(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED.replace("[published.values.finetune]", "[published.values.ssd]"))
    lines = csv.DictReader(io.StringIO(table.render(asked, [whole(asked)], "csv")))
    ssd = [line for line in lines if (line["model"], line["number"]) == ("ssd", "accuracy/test")]
    assert [(bool(line["value"]), line["published"]) for line in ssd] == [(True, "0.7454"), (False, "0.9")]


def test_published_numbers_are_shown_before_anything_was_run(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED)
    gaps = {(s, m): Gap("missing", "not run yet") for s in range(10) for m in ("", "ssd", "finetune")}
    rows = markdown(table.render(asked, [group(asked, {}, gaps)], "markdown"))
    assert rows["ssd (not run yet)"]["accuracy/test in \\[1\\]"] == "74.54 ± 0.00%"
    assert rows["ssd (not run yet)"]["cost/seconds in \\[1\\]"] == "120.0 ± 5.5"
    assert rows["ssd (not run yet)"]["accuracy/test"] == "–"


def test_a_method_that_costs_more_than_retraining_is_marked(grid: Grid) -> None:
    costs = {(s, ""): {"retrain": 2.0} for s in range(10)}
    costs |= {(s, "ssd"): cost(0.5, 1.0) for s in range(10)} | {(s, "finetune"): cost(0.0, 3.0) for s in range(10)}
    text = table.render(grid, [whole(grid, costs=costs)], "markdown")
    rows = markdown(text, "digits, mlp, class 3: costs")
    assert list(rows["ssd"].values()) == [
        "ssd",
        "0.500 (25.0%)",
        "1.00 (50.0%)",
        "0.500 (25.0%)",
        "2.00",
        "2.00 ± 0.00",
        "0.750 ± 0.000×",
    ]
    assert list(rows["finetune"].values())[-1] == "1.50 ± 0.00×, more"
    assert "Warning: finetune costs more than the fastest retraining." in text
    found = json.loads(table.render(grid, [whole(grid, costs=costs)], "json"))["groups"][0]["costs"]
    assert (found["ssd"]["total"], found["ssd"]["ratio"]["x"], found["ssd"]["retrain"]["n"]) == (2.0, 0.75, 10)


def test_costs_are_compared_seed_by_seed_and_one_seed_has_no_spread(grid: Grid) -> None:
    costs = {(0, ""): {"retrain": 1.0}, (1, ""): {"retrain": 4.0}, (0, "ssd"): cost(0, 1.0), (1, "ssd"): cost(0, 1.0)}
    found = json.loads(table.render(grid, [whole(grid, 2, costs=costs)], "json"))["groups"][0]["costs"]["ssd"]
    assert found["ratio"]["x"] == pytest.approx((1 + 0.25) / 2)
    rows = markdown(table.render(grid, [whole(grid, 1, costs=costs)], "markdown"), "digits, mlp, class 3: costs")
    assert rows["ssd"]["prepare and edits / retraining"] == "1.00×"


def test_costs_that_were_not_kept_are_said_to_be_missing(grid: Grid) -> None:
    text = table.render(grid, [whole(grid, costs={(0, "ssd"): {"unlearn": 1.0}})], "markdown")
    assert "was not kept in this store" in text
    assert ": costs" not in text


def tuned(trials: int, *data: str, seeds: int = 5) -> dict[str, Any]:
    """Return what a tuning leaves."""
    on = [{"data": {"name": d}, "network": "mlp", "request": {"kind": "class", "value": 3}, "text": d} for d in data]
    return {
        "trials": trials,
        "on": on,
        "seeds": list(range(seeds)),
        "method": {"name": "ssd"},
        "history": [{"x": 1}] * 9,
    }


def test_a_method_without_fields_to_search_is_no_reason_to_warn_of_unequal_budgets(grid: Grid) -> None:
    found, text = {"ssd": tuned(50, "fashion_mnist")}, "the methods were not tuned with the same budget"
    composed = {"name": "pruned", "method": {"name": "finetune"}}
    for settings in ({"name": "assd"}, composed, {"name": "finetune"}):
        own = replace(grid, tuned=found, methods={**grid.methods, "finetune": settings})
        said = table.render(own, [whole(grid)], "markdown")
        assert ("Tuning of finetune: no field to search." in said) is (settings["name"] == "assd")
        assert ("Tuning of finetune: not tuned." in said) is (settings["name"] != "assd")
        assert (text in said) is (settings["name"] != "assd")


@pytest.mark.parametrize(
    ("found", "said", "unsaid"),
    [
        ({}, "No method was tuned", "Warning"),
        (
            {"ssd": tuned(50, "fashion_mnist"), "finetune": tuned(50, "fashion_mnist")},
            "Tuning of ssd and finetune: 50 settings tried on fashion\\_mnist, mlp, class 3, 5 seeds each.",
            "Warning",
        ),
        (
            {"ssd": tuned(50, "fashion_mnist", "digits")},
            "Warning: ssd was tuned on digits, the data reported here.",
            "No method was tuned",
        ),
        (
            {"ssd": tuned(50, "fashion_mnist"), "finetune": tuned(20, "fashion_mnist")},
            "Warning: the methods were not tuned with the same budget",
            "the data reported here",
        ),
        ({"ssd": tuned(50, "fashion_mnist")}, "Tuning of finetune: not tuned.", "the data reported here"),
    ],
)
def test_the_tuning_budget_is_told(grid: Grid, found: dict[str, Any], said: str, unsaid: str) -> None:
    text = table.render(replace(grid, tuned=found), [whole(grid)], "markdown")
    assert said in text
    assert unsaid not in text
    kept = json.loads(table.render(replace(grid, tuned=found), [whole(grid)], "json"))["groups"][0]["tuned"]
    assert {m: body["trials"] for m, body in kept.items()} == {m: body["trials"] for m, body in found.items()}
    assert "history" not in str(kept)


@pytest.mark.parametrize(("mark", "warns"), [("aa", True), ("bb", False)])
def test_a_project_that_was_tuned_on_is_known_by_what_its_files_hold(grid: Grid, mark: str, warns: bool) -> None:
    data = {"project": "shop", "digest": "aa"}
    places = {at: replace(cell, data=data) for at, cell in grid.places.items()}
    found = tuned(50, "x")
    found["on"][0]["data"] = data | {"digest": mark}
    text = table.render(replace(grid, places=places, tuned={"ssd": found}), [whole(grid)], "markdown")
    assert ("ssd was tuned on shop, the data reported here" in text) is warns


def test_mixed_versions_are_a_warning(grid: Grid) -> None:
    versions = {"torch": frozenset({"2.9", "2.1"}), "expunge": frozenset({"0.1.0"})}
    text = table.render(grid, [whole(grid, versions=versions)], "markdown")
    assert "Warning: rows were made with different versions of torch: 2.1 and 2.9." in text
    assert "versions of expunge" not in text


def test_warnings_stand_before_all_other_notes(grid: Grid) -> None:
    versions = {"torch": frozenset({"2.9", "2.1"})}
    notes = [n for n in table.render(grid, [whole(grid, versions=versions)], "markdown").splitlines() if n[:2] == "- "]
    assert [note.startswith("- Warning") for note in notes[:2]] == [True, False]


def test_caveats_of_the_scores_stand_under_the_table(grid: Grid) -> None:
    runs = {seed: run(seed, caveats=("Half of the forgotten samples have twins.",)) for seed in range(2)}
    assert "Half of the forgotten samples have twins." in table.render(grid, [group(grid, runs)], "markdown")


def test_requests_one_after_another_have_a_table_of_their_decay(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED)
    place = {"steps": 3}
    groups = [
        group(asked, {seed: run((seed + 5 * step) % 20) for seed in range(10)}, step=step, **place)
        for step in (1, 2, 3)
    ]
    text = table.render(asked, groups, "markdown")
    decay = markdown(text, "digits, mlp, class 3: accuracy, test set by request")
    assert list(decay["ssd"]) == ["model", "after request 1", "after request 2", "after request 3"]
    for step in (1, 2, 3):
        one = markdown(text, f"digits, mlp, class 3, after request {step} of 3")
        assert decay["ssd"][f"after request {step}"] == one["ssd"]["accuracy, test set"]
        assert decay["floor"][f"after request {step}"] == one["floor"]["accuracy, test set"]
        assert any("in \\[1\\]" in head for head in one["ssd"]) is (step == 3)
    assert "by request" not in table.render(asked, [whole(asked)], "markdown")
    assert [g["step"] for g in json.loads(table.render(asked, groups, "json"))["groups"]] == [1, 2, 3]


def test_numbers_and_families_can_be_chosen(grid: Grid) -> None:
    def heads(*names: str) -> list[str]:
        return list(markdown(table.render(grid, [whole(grid)], "markdown", metrics=list(names)))["ssd"])[1:]

    assert heads("loss/test", "accuracy") == ["loss, test set, nats", "accuracy, forget set", "accuracy, test set"]
    assert heads("accuracy", "accuracy/test") == ["accuracy, forget set", "accuracy, test set"]
    assert heads("weights") == ["weights, distance to retrained, L2 (ideal 0 L2)"]
    lines = records(table.render(grid, [whole(grid)], "csv", metrics=["loss"]))
    assert {name for _, name in lines} == {"loss/test"}


def test_by_default_people_get_a_few_numbers_and_programs_all(grid: Grid) -> None:
    people = list(markdown(table.render(grid, [whole(grid)], "markdown"))["ssd"])[1:]
    assert people == ["accuracy, forget set", "accuracy, test set", "loss attack: AUC", "time of the edit, s"]
    found = json.loads(table.render(grid, [whole(grid)], "json"))
    assert {n["name"] for n in found["groups"][0]["numbers"]} == set(NUMBERS)
    assert {name for _, name in records(table.render(grid, [whole(grid)], "csv"))} == set(NUMBERS)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("acuracy/test", "got 'acuracy/test': did you mean 'accuracy/test'"),
        ("acuracy", "got 'acuracy': did you mean 'accuracy'"),
        ("accuracy/", "did you mean 'accuracy'"),
    ],
)
def test_unknown_numbers_are_refused_with_a_suggestion(grid: Grid, name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        table.render(grid, [whole(grid)], "markdown", metrics=[name])


def test_before_anything_is_measured_only_families_can_be_checked(grid: Grid) -> None:
    empty = group(grid, {}, {(0, ""): Gap("missing", "not run yet")})
    assert table.render(grid, [empty], "markdown", metrics=["accuracy/whatever"])
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        table.render(grid, [empty], "markdown", metrics=["acuracy/test"])


def test_an_unknown_form_is_refused(grid: Grid) -> None:
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        table.render(grid, [], "markdwon")


def test_a_column_without_numbers_says_why(grid: Grid) -> None:
    runs = {seed: run(seed) for seed in range(2)}
    for found in runs.values():
        for values in found.values.values():
            values["loss/test"] = Unavailable("there is no test set.")
    text = table.render(grid, [group(grid, runs)], "markdown", metrics=["loss/test"])
    assert "No loss/test of ours: there is no test set." in text
    assert markdown(text)["ssd"]["loss, test set"] == "–"


def hostile(folder: Path) -> tuple[Grid, Group]:
    """Return a grid whose names and texts try to break out of every form."""
    asked = written(folder)
    place = replace(next(iter(asked.places)), data=HOSTILE)
    cell = next(iter(asked.places.values()))
    asked = replace(
        asked,
        file=asked.file.model_copy(update={"title": HOSTILE}),
        places={place: cell},
        methods={"ssd": asked.methods["ssd"], HOSTILE: asked.methods["finetune"]},
    )
    runs = {seed: run(seed).renamed("finetune", HOSTILE) for seed in range(10)}
    given = {"text": HOSTILE, "gaps": {(11, "ssd"): Gap("failed", HOSTILE)}, "place": place}
    made = group(asked, runs, given.pop("gaps"), {(s, ""): {"retrain": 1.0} for s in range(10)}, text=HOSTILE)
    return asked, replace(made, place=place)


class Reader(HTMLParser):
    """Collects tags and text of a fragment."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_a_whole_fragment_and_escapes_names(tmp_path: Path) -> None:
    asked, found = hostile(tmp_path)
    text = table.render(asked, [found], "html")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "i" not in reader.tags
    assert "<i>|x|</i>" in reader.text
    assert "\x1b" not in text
    assert "http" not in text
    rows = re.findall(r"<tr.*?</tr>", text, re.S)
    assert len({len(re.findall(r"<t[hd]", row)) for row in rows[:9]}) == 1


def test_latex_escapes_names_and_every_row_has_its_cells(tmp_path: Path) -> None:
    asked, found = hostile(tmp_path)
    text = table.render(asked, [found], "latex")
    body = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert body.count("{") == body.count("}")
    assert re.sub(r"\$\\?[a-z-]+\$|\$-\$", "", body).count("$") == 0
    assert "\x1b" not in text
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{l(r*)\}", part)
        assert columns is not None
        rows = [line for line in part.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns[1])}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{table}") == 2
    assert r"a\_b \& 10\% \textless{}i\textgreater{}" in text


def test_latex_of_a_row_without_numbers_spans_its_columns(grid: Grid) -> None:
    runs = {seed: run(seed, ROWS[:-1]) for seed in range(2)}
    gaps = {(s, "finetune"): Gap("declined", "100% no") for s in range(2)}
    text = table.render(grid, [group(grid, runs, gaps)], "latex")
    assert r"finetune & \multicolumn{4}{l}{declined: 100\% no} \\" in text
    assert r"$\pm$" in text
    assert "±" not in text.partition(r"\end{tabular}")[0]


def test_markdown_escapes_names_and_every_row_has_its_cells(tmp_path: Path) -> None:
    asked, found = hostile(tmp_path)
    text = table.render(asked, [found], "markdown")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "<i>" not in text
    assert "\x1b" not in text
    assert r"\|x\|" in text


@pytest.mark.parametrize("form", ["csv", "json"])
def test_programs_read_names_back(tmp_path: Path, form: str) -> None:
    asked, found = hostile(tmp_path)
    text = table.render(asked, [found], form)
    plain = " ".join(HOSTILE.replace("\x1b", " ").split())
    if form == "csv":
        assert plain in {model for model, _ in records(text)}
    else:
        rows = json.loads(text)["groups"][0]["rows"]
        assert HOSTILE in {row["model"] for row in rows}


def test_the_terminal_gets_tables_that_fit_and_no_control_characters(tmp_path: Path) -> None:
    asked, found = hostile(tmp_path)
    text = printed(asked, [found], metrics=["accuracy", "loss", "membership", "weights", "cost"])
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text
    assert "retrained" in text


def test_what_papers_say_stands_in_the_same_part_as_ours(tmp_path: Path) -> None:
    asked = written(tmp_path, PUBLISHED)
    text = printed(asked, [whole(asked)], metrics=["accuracy", "loss", "membership", "weights", "cost"])
    heads = [line for line in text.partition("Seeds 0–9")[0].splitlines() if line.startswith("model")]
    assert len(heads) == 2
    assert re.search(r"test +\[1\] +\[2\] +nats", heads[0])
    assert re.fullmatch(r"model +in s +\[1\] *", heads[1])
    assert text.count("\nfloor ") == 1  # none where it has no number


def test_columns_that_do_not_fit_get_a_table_of_their_own(grid: Grid) -> None:
    many = {f"odd/{i}": Number(f"number {i}", Goal.AS_RETRAINED, (0.0, 1.0)) for i in range(30)}
    runs = {}
    for seed in range(2):
        values = {m: {k: Value.single(on_test(m, seed)) for k in many} for m in ROWS}
        runs[seed] = with_gaps(replace(run(seed), values=values, numbers=many, gaps={}))
    text = printed(grid, [group(grid, runs)])
    assert max(map(len, text.splitlines())) <= 120
    heads = [word for line in text.splitlines() for word in line.split() if word.isdigit()]
    assert {str(i) for i in range(30)} <= set(heads)


def test_the_document_says_what_it_is(grid: Grid) -> None:
    found = json.loads(table.render(grid, [whole(grid)], "json"))
    assert (found["kind"], found["schema"], found["title"]) == ("expunge.table", 1, "A grid")
    part = found["groups"][0]
    assert part["place"] == {"data": "digits", "network": "mlp", "scenario": "class 3"}
    assert (part["step"], part["steps"], part["seeds"]) == (1, 1, list(range(10)))
    assert part["versions"] == {"expunge": ["0.1.0"]}
    rows = {row["model"]: row for row in part["rows"]}
    assert {row["model"]: row["role"] for row in part["rows"]} == {
        "original": "original",
        REFERENCE: "retrained",
        FLOOR: "floor",
        "no_op": "control",
        "head_mask": "control",
        "ssd": "method",
        "finetune": "method",
    }
    assert rows[REFERENCE]["gaps"] == {}
    assert rows["original"]["values"]["cost/seconds"] == {
        "unavailable": "a bare module was given, not an unlearn result"
    }
    sizes = [abs(round(1000 * on_test("ssd", s)) - round(1000 * on_test(REFERENCE, s))) / 1000 for s in range(10)]
    assert rows["ssd"]["gaps"]["accuracy/test"]["distance"] == pytest.approx(np.mean(sizes))
    assert part["floor"]["accuracy/test"]["n"] == 10


def test_shares_whose_interval_is_cut_are_written_by_its_ends(grid: Grid) -> None:
    runs = {seed: run(seed) for seed in range(2)}
    for seed, found in runs.items():
        found.values["ssd"]["accuracy/test"] = Value.single([0.4, 0.6][seed])
    cell = markdown(table.render(grid, [group(grid, runs)], "markdown"))["ssd"]["accuracy, test set"]
    assert cell.startswith("50.0% (0.0 to 100.0)")


@pytest.mark.parametrize("form", ["rich", "html"])
def test_colours_are_explained_where_there_are_any(grid: Grid, form: str) -> None:
    assert "Colour: how long the gap is in floors" in shown(grid, [whole(grid)], form)
    assert "Colour" not in shown(grid, [whole(grid)], form, metrics=["cost"])
    if form == "html":
        row = re.search(r"<tr[^>]*>\s*<th scope=\"row\">ssd.*?</tr>", table.render(grid, [whole(grid)], form), re.S)
        assert row is not None
        assert re.findall(r'<td class="d(\d)"', row[0]) == ["0", "4", "4"]  # of the set forgotten, of test, of the AUC


def logged(grid: Grid, seeds: int = 10) -> Group:
    """Return a group in which finetune records a gap, three numbers step by step, and things that are no numbers."""
    said = {"seen": "all", "whole": True, "lost": math.nan, "pair": [1, 2], "none": []}
    own = {s: {"gap": 0.25 - s / 4, "loss": [[4, 1.0], [8, float(s)]], **said} for s in range(seeds)}
    return whole(grid, seeds, logs={(s, "finetune"): log for s, log in own.items()} | {(0, "ssd"): {"kept": 2}})


@pytest.mark.parametrize(
    ("form", "head"),
    [
        ("rich", "log:"),
        ("markdown", "| log: gap |"),
        ("latex", "& log: gap "),
        ("csv", ",log: gap,"),
        ("json", '"logs": {"gap": {"x": '),
        ("html", ">log: gap</th>"),
    ],
)
def test_what_methods_record_gets_a_column_where_it_is_asked_for(grid: Grid, form: str, head: str) -> None:
    found = logged(grid)
    assert head not in shown(grid, [found], form)
    assert head in shown(grid, [found], form, logs=["gap"])


def test_a_logged_number_is_a_mean_over_seeds_and_the_last_of_a_row(grid: Grid) -> None:
    found, asked = logged(grid), ["gap", "loss", "kept"]
    gap, loss = interval([0.25 - s / 4 for s in range(10)]), interval(list(range(10)))
    rows = markdown(table.render(grid, [found], "markdown", logs=asked))
    assert rows["finetune"]["log: gap"] == f"−{-gap[0]:.3f} ± {gap[1]:.3f}"
    assert rows["finetune"]["log: loss"] == f"{loss[0]:.2f} ± {loss[1]:.2f}"
    assert (rows["finetune"]["log: kept"], rows["ssd"]["log: kept"]) == ("–", "2.00")
    assert all(rows[m][f"log: {n}"] == "–" for m in ("original", "retrained", "no\\_op", "floor") for n in asked)
    lines = records(table.render(grid, [found], "csv", logs=asked))
    assert float(lines["finetune", "log: gap"]["value"]) == pytest.approx(gap[0])
    assert float(lines["finetune", "log: gap"]["high"]) == pytest.approx(sum(gap))
    assert (lines["ssd", "log: kept"]["n"], lines["ssd", "log: kept"]["low"]) == ("1", "")
    assert ("ssd", "log: gap") not in lines
    told = json.loads(table.render(grid, [found], "json", logs=asked))["groups"][0]
    logs = {row["model"]: row["logs"] for row in told["rows"]}
    assert logs["finetune"]["gap"]["x"] == pytest.approx(gap[0])
    assert logs["ssd"] == {"kept": {"x": 2.0, "low": None, "high": None, "n": 1}}
    assert logs["retrained"] == {}
    assert any(note.startswith("Columns of a log") for note in told["notes"])


@pytest.mark.parametrize("name", ["seen", "whole", "lost", "pair", "none", "gaps"])
def test_what_no_method_records_as_a_number_is_no_column(grid: Grid, name: str) -> None:
    with pytest.raises(UserError, match=f"a number that a method of the grid records, got '{name}': (did|choose)"):
        table.render(grid, [logged(grid)], "markdown", logs=[name])


def test_without_any_log_it_is_said(grid: Grid) -> None:
    with pytest.raises(UserError, match="got 'gap': leave it out: no method here records any"):
        table.render(grid, [whole(grid)], "markdown", logs=["gap"])
