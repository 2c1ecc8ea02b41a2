"""Figures over a finished grid: which lines, columns and points they have, what is said to be missing, what refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches import fill
from expunge import stats
from expunge.bench import figures, shown, stages, sweeps
from expunge.bench.collect import Gap, Group, groups
from expunge.bench.grid import Grid, load
from expunge.bench.shown import Made, Wanted
from expunge.bench.store import Store
from expunge.errors import UserError
from expunge.methods import build
from expunge.metric import Unavailable
from expunge.report import frontiers, recorded, traces

GRID = """
title = "Ascents"
seeds = 2
metrics = ["accuracy", "loss"]
scenarios = ["class=3", "sequential:class=3+5"]
[data.digits]
limit = 100
[networks.mlp]
recipe = {epochs = 1, batch_size = 50}
[methods."fast"]
name = "gradient_ascent"
lr = 0.05
[methods."slow"]
name = "gradient_ascent"
lr = 0.001
[methods."plus slow"]
name = "neg_grad_plus"
lr = 0.001
[methods."plus fast"]
name = "neg_grad_plus"
lr = 0.05
[methods.ssd]
"""
KL = {"fast": 900.0, "slow": 3.0, "plus slow": 5.0, "plus fast": 700.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Grid, list[Group]]]:
    """A small grid and its groups, computed once."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    grid = load(folder / "grid.toml")
    assert not fill(grid, folder / "store").failed
    yield grid, groups(grid, Store.open(folder / "store"), logs=True)
    for kept in (stages._PROBLEMS, stages._PRINTS, stages._MODELS, stages._DRAWN, stages._REFERENCES):
        kept.found.clear()


@pytest.fixture
def grid(finished: tuple[Grid, list[Group]]) -> Grid:
    return finished[0]


@pytest.fixture
def read(finished: tuple[Grid, list[Group]]) -> list[Group]:
    """The groups with what a distribution-anchored edit would have recorded in place of what was."""
    return [replace(group, logs=logs(group)) for group in finished[1]]


def logs(group: Group) -> dict[tuple[int, str], dict[str, Any]]:
    """Logs of two checks and three epochs, larger at larger rates and by a half in seed 1."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for seed in (0, 1):
        found[seed, "ssd"] = {"alpha": 10.0, "counts": [[0, {"size": 3}]]}
        for method, kl in KL.items():
            own = kl * (1 + 0.5 * seed)
            found[seed, method] = {
                "kl": [[20, own], [40, own / 2]],
                "forget_loss": [[0, 0.1], [10, 0.4], [20, 0.6], [40, 0.9]],
                "retain_loss": [[10, 0.2], [20, 0.2], [40, 0.1]],
                "hinge_active": [[10, 1.0], [20, 1.0], [40, 0.5]],
                "tau": 0.8,
                "epochs": 3,
            }
    return found


@pytest.fixture
def make(grid: Grid, read: list[Group]) -> Callable[..., Made]:
    """Return a figure of the first place, unless others are named."""

    def made(found: list[Group] | None = None, **wanted: Any) -> Made:
        return figures.make(grid, read[:1] if found is None else found, Wanted(**wanted))

    return made


def trace(made: Made) -> traces.Chart:
    assert isinstance(made.chart, traces.Chart)
    return made.chart


def frontier(made: Made) -> frontiers.Chart:
    assert isinstance(made.chart, frontiers.Chart)
    return made.chart


def without(group: Group, *cells: tuple[int, str], status: str = "failed", reason: str = "out of memory") -> Group:
    """The group with cells that are not there."""
    runs = {
        seed: scores.only([m for m in scores.values if (seed, m) not in cells]) for seed, scores in group.runs.items()
    }
    logs = {key: log for key, log in group.logs.items() if key not in cells}
    return replace(group, runs=runs, logs=logs, gaps={**group.gaps, **dict.fromkeys(cells, Gap(status, reason))})


def test_a_name_along_a_setting_is_a_line_a_value_and_a_column_a_family(make: Callable[..., Made]) -> None:
    found = trace(make(show=[["kl"]]))
    assert found.heads == ("gradient_ascent", "neg_grad_plus")
    ((first, second),) = found.rows
    assert [line.label for line in first.lines] == ["η = 0.001", "η = 0.05"]  # by value, not by the grid's order
    assert first.lines[0].runs == ([(20.0, 3.0), (40.0, 1.5)], [(20.0, 4.5), (40.0, 2.25)])
    assert [line.look for line in first.lines] == [line.look for line in second.lines] == recorded.ramp(2)
    assert "digits, mlp, class 3. Lines are means over 2 seeds" in found.note


def test_methods_that_recorded_nothing_of_it_are_told(make: Callable[..., Made]) -> None:
    assert make(show=[["kl"]]).said == ("Nothing recorded of kl: ssd.",)


def test_methods_that_do_not_go_along_a_setting_are_lines_under_their_names(make: Callable[..., Made]) -> None:
    found = trace(make(show=[["kl"], ["hinge_active"]], methods=["fast", "plus slow"]))
    assert found.heads == ("digits, mlp, class 3",)
    assert [[line.label for line in panel.lines] for (panel,) in found.rows] == [["fast", "plus slow"]] * 2
    assert [panel.quantity.unit for (panel,) in found.rows] == ["nats", "1"]


def test_several_names_in_a_panel_are_its_lines_and_each_method_a_column(make: Callable[..., Made]) -> None:
    found = trace(make(show=[["forget_loss", "retain_loss", "tau"], ["hinge_active"]]))
    assert found.heads[:2] == ("gradient_ascent, η = 0.001", "gradient_ascent, η = 0.05")
    assert [line.label for line in found.rows[0][0].lines] == ["forget loss", "retain loss", "τ"]
    assert found.rows[0][0].lines[2].runs[0] == [(0.0, 0.8), (40.0, 0.8)]
    assert found.rows[0][0].quantity.axis == "loss, nats"
    assert [line.label for line in found.rows[1][0].lines] == [""]
    one = trace(make(show=[["forget_loss", "tau"]], methods=["fast"]))
    assert one.heads == ("digits, mlp, class 3",)
    assert one.note.startswith("fast at digits, mlp, class 3. ")


def test_by_default_all_that_is_recorded_is_shown(make: Callable[..., Made]) -> None:
    found = trace(make(methods=["fast"]))
    assert [panel.quantity.label for (panel,) in found.rows] == ["loss", "steps with the hinge active", "KL(q ‖ p)"]


def test_over_epochs_what_was_recorded_at_their_ends_stands_at_their_numbers(make: Callable[..., Made]) -> None:
    found = trace(make(show=[["forget_loss", "tau"]], methods=["fast"], over="epochs"))
    assert found.over == "epochs"
    losses, tau = found.rows[0][0].lines
    assert [step for step, _ in losses.runs[0]] == [0.0, 1.0, 2.0, 3.0]
    assert [step for step, _ in tau.runs[0]] == [0.0, 3.0]


def test_over_epochs_what_was_recorded_within_them_is_refused(make: Callable[..., Made], read: list[Group]) -> None:
    read[0].logs[0, "fast"]["kl"][0][0] = 15  # type: ignore[index]
    with pytest.raises(UserError, match=r"kl of fast recorded at the ends of epochs.*got steps within epochs: draw"):
        make(show=[["kl"]], over="epochs")
    for log in read[0].logs.values():
        log["epochs"] = 7  # type: ignore[index]
    with pytest.raises(UserError, match="got nothing: draw it over steps"):
        make(show=[["forget_loss"]], over="epochs")


def test_a_seed_may_have_its_own_line(make: Callable[..., Made]) -> None:
    found = trace(make(show=[["kl"]], each=True, scale="log"))
    assert (found.each, found.scale) == (True, "log")
    assert "A line for each of 2 seeds." in found.note


def test_seeds_that_went_on_alone_are_told(make: Callable[..., Made], read: list[Group]) -> None:
    assert "Thin lines" not in trace(make(show=[["kl"]])).note
    read[0].logs[0, "fast"]["kl"].append([60, 1.0])
    assert "Thin lines: single seeds beyond the last point that all have." in trace(make(show=[["kl"]])).note


def test_cells_that_are_not_there_are_told_in_the_figure_too(make: Callable[..., Made], read: list[Group]) -> None:
    group = without(read[0], (1, "fast"))
    made = make([without(group, (0, "slow"), (1, "slow"), status="missing", reason="not run yet")], show=[["kl"]])
    want = ["fast at class 3: seed 1 failed: out of memory.", "slow at class 3: not run yet."]
    assert list(made.said[:2]) == want
    assert all(text in trace(made).note for text in want)
    both = made.chart.rows[0][0].lines  # type: ignore[union-attr]
    assert [len(line.runs) for line in both] == [1]


def test_a_note_tells_a_few_and_counts_the_rest() -> None:
    assert shown.noted([f"m{i}." for i in range(7)])[-2:] == ["m3.", "3 more missing."]
    assert shown.noted(["m0."]) == ["m0."]


def test_finished_seeds_without_a_record_and_values_that_are_not_finite_are_told(
    make: Callable[..., Made], read: list[Group]
) -> None:
    del read[0].logs[1, "fast"]["kl"]
    read[0].logs[0, "slow"]["kl"][1][1] = "inf"
    made = make(show=[["kl"]])
    assert "fast at class 3: no kl recorded by seed 1." in made.said
    assert "Left out: 1 value, NaN or infinite." in made.said
    assert math.isnan(trace(made).rows[0][0].lines[0].runs[0][1][1])


def test_places_stand_side_by_side_under_their_short_names(make: Callable[..., Made], read: list[Group]) -> None:
    found = trace(make(read, show=[["kl"]], methods=["fast", "slow"]))
    assert found.heads == ("class 3", "sequential classes 3, 5")
    assert "digits" not in found.note


def test_of_requests_one_after_another_the_last_step_is_meant_unless_another_is_named(
    grid: Grid, read: list[Group]
) -> None:
    def steps(*texts: str) -> list[tuple[str, int]]:
        found = shown.shown(grid, read, Wanted(at=texts)).places
        return [(group.place.scenario, group.step) for group in found]

    assert [group.step for group in read] == [1, 1, 2]
    last = ("sequential classes 3, 5", 2)
    assert steps() == [("class 3", 1), last]
    assert steps("sequential") == [last]
    assert steps("after request 1") == [("sequential classes 3, 5", 1)]
    assert steps("mlp, class 3", "sequential") == [("class 3", 1), last]


def test_a_frontier_joins_methods_along_the_setting_beside_the_references(
    make: Callable[..., Made], read: list[Group]
) -> None:
    found = frontier(make(of="frontier"))
    (plane,) = found.planes
    assert [family.name for family in plane.families] == [
        "gradient_ascent", "neg_grad_plus", "ssd", "original", "retrained",
    ]  # fmt: skip
    assert [[spot.label for spot in family.spots] for family in plane.families[:3]] == [["0.001", "0.05"]] * 2 + [[""]]
    assert (found.across.label, found.up.label, found.setting) == (
        "accuracy, forget set",
        "accuracy, test, the rest",
        "η",
    )
    for family, models in zip(plane.families, (("slow", "fast"), ("plus slow", "plus fast"), ("ssd",)), strict=False):
        for spot, model in zip(family.spots, models, strict=True):
            xs = [run.values[model]["accuracy/test_retain"].x for run in read[0].runs.values()]  # type: ignore[union-attr]
            mean = stats.mean_t(xs)
            assert spot.y == stats.Interval(mean.x, max(mean.low, 0.0), min(mean.high, 1.0), 2)
    assert "digits, mlp, class 3. Means over 2 seeds with their 95% t intervals" in found.note


def test_one_seed_has_no_interval_over_its_samples(make: Callable[..., Made], read: list[Group]) -> None:
    found = frontier(make([replace(read[0], runs={0: read[0].runs[0]})], of="frontier"))
    assert {spot.x.n for family in found.planes[0].families for spot in family.spots} == {1}
    assert all(math.isinf(spot.y.low) for family in found.planes[0].families for spot in family.spots)
    assert "One seed: no intervals." in found.note


def test_the_two_numbers_of_a_frontier_can_be_chosen(make: Callable[..., Made]) -> None:
    found = frontier(make(of="frontier", show=[["loss/forget", "loss/test"]]))
    assert (found.across.unit, found.up.unit) == ("nats", "nats")


def lacking(group: Group, name: str, *models: str) -> Group:
    """The group with a number that these models, or all, do not have."""
    gone = Unavailable("too few")
    runs = {}
    for seed, scores in group.runs.items():
        rows = {m: row | {name: gone} if m in models or not models else row for m, row in scores.values.items()}
        runs[seed] = replace(scores, values=rows)
    return replace(group, runs=runs)


def test_of_several_places_the_numbers_are_ones_that_all_have(make: Callable[..., Made], read: list[Group]) -> None:
    found = frontier(make([read[0], lacking(read[2], "accuracy/test_retain")], of="frontier"))
    assert found.up.label == "accuracy, test set"
    assert [plane.head for plane in found.planes] == ["class 3", "sequential classes 3, 5"]


def test_models_without_a_number_and_places_without_a_line_are_told(
    make: Callable[..., Made], read: list[Group]
) -> None:
    bare = without(read[2], *((seed, method) for seed in (0, 1) for method in ("slow", "plus slow")))
    made = make([lacking(read[0], "accuracy/forget", "ssd"), bare], of="frontier")
    assert "No accuracy/forget at class 3: ssd." in made.said
    assert "slow at sequential classes 3, 5: failed: out of memory." in made.said
    assert "sequential classes 3, 5: no two points along lr yet." in made.said
    assert "ssd" not in [family.name for family in frontier(made).planes[0].families]
    with pytest.raises(UserError, match=r"two finished methods that differ in lr alone, with .*expunge bench status"):
        make([bare], of="frontier")


def test_a_figure_is_written_as_its_file_says(make: Callable[..., Made], tmp_path: Path) -> None:
    for of in ("trace", "frontier"):
        make(of=of, methods=["fast", "slow"]).write(tmp_path / f"{of}.svg")
        text = (tmp_path / f"{of}.svg").read_text(encoding="utf-8")
        assert "<title>Ascents. " in text
        assert "0.05" in text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"show": [["kk"]]}, "a name that methods recorded step by step, got 'kk': did you mean 'kl'"),
    ({"show": [["counts"]]}, "got 'counts'"),
    ({"methods": ["ssd"]}, "something recorded step by step by ssd, got nothing: take methods that do"),
    ({"show": [["kl", "hinge_active"]]}, "recorded names of one unit in a panel.*give each its own --show"),
    ({"methods": ["slw"]}, "a method of the grid, or a pattern of some, got 'slw': did you mean 'slow'"),
    ({"at": ["class 4"]}, "a text in the name of a place, got 'class 4': take a part of 'digits, mlp, class 3'"),
    ({"along": "lam"}, "a setting of the grid's methods that is a number, got 'lam'"),
    ({"along": "epochs"}, "methods that differ in epochs alone, got none: go along lr"),
    ({"of": "frontier", "methods": ["ssd", "slow"]}, "methods that differ in one setting alone among slow, ssd"),
    ({"of": "frontier", "show": [["accuracy/forget"]]}, "two numbers for a frontier, got accuracy/forget"),
    ({"of": "frontier", "show": [["accuracy/forget", "accuracy/tst"]]}, "did you mean 'accuracy/test'"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "match"), REFUSED)
def test_what_cannot_be_drawn_is_refused_with_what_can(
    make: Callable[..., Made], wanted: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        make(**wanted)


def test_nothing_finished_and_too_many_panels_are_refused(
    make: Callable[..., Made], read: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = without(read[0], (0, "fast"), (1, "fast"))
    with pytest.raises(UserError, match="finished cells of fast at digits, mlp, class 3, got none: expunge bench stat"):
        make([gone], methods=["fast"])
    monkeypatch.setattr("expunge.bench.curves.MOST", 3)
    with pytest.raises(UserError, match="at most 3 panels, got 1 row of 4 columns: choose with --method"):
        make(show=[["forget_loss", "tau"]])


def test_one_of_several_settings_must_be_named(grid: Grid, read: list[Group]) -> None:
    settings = build({"name": "gradient_ascent", "lr": 0.001, "momentum": 0.5}).settings()
    more = replace(grid, methods={**grid.methods, "plus fast": settings})
    with pytest.raises(UserError, match="one setting to go along, got lr, momentum: choose one, as in --along lr"):
        figures.make(more, read[:1], Wanted(of="frontier"))
    assert frontier(figures.make(more, read[:1], Wanted(of="frontier", along="momentum"))).setting == "μ"
    found = trace(figures.make(more, read[:1], Wanted(show=[["kl"]])))
    assert [line.label for line in found.rows[0][0].lines] == ["fast", "slow", "plus slow", "plus fast"]


def asked(*parts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"m{i}": build(part).settings() for i, part in enumerate(parts)}


def composed(anchor: str, lr: float, objective: str = "entropy") -> dict[str, Any]:
    return {"name": "compose", "objective": objective, "anchor": {"name": anchor, "lr": lr}}


def test_a_setting_of_a_part_inside_is_found_by_its_last_name() -> None:
    found = asked(composed("none", 0.1), composed("none", 0.01), composed("retain_repair", 0.1), {"name": "ssd"})
    assert sweeps.swept(found) == ["lr"]
    sweep = sweeps.sweep(found, "lr")
    assert sweep.values == {"m0": 0.1, "m1": 0.01, "m2": 0.1}
    assert sweep.ordered() == {"none": ["m1", "m0"], "retain_repair": ["m2"]}
    assert sweep == sweeps.sweep(found, "anchor.lr")
    assert (sweep.symbol, sweep.label("m1")) == ("η", "η = 0.01")


def test_families_are_called_by_what_tells_them_apart() -> None:
    def names(*parts: dict[str, Any]) -> list[str]:
        return list(sweeps.sweep(asked(*parts), "lr").ordered())

    pair = [composed("none", 0.1), composed("none", 0.01)]
    other = [composed("none", rate, "uniform") for rate in (0.1, 0.01)]
    assert names(*pair) == ["compose (entropy, none)"]
    assert names(*pair, *other) == ["entropy", "uniform"]
    assert names(*pair, {"name": "finetune", "lr": 0.1}) == ["entropy", "finetune"]
    slow = [{"name": "finetune", "lr": rate, "epochs": 9} for rate in (0.1, 0.01)]
    assert names(*slow, *pair, composed("retain_repair", 0.1)) == ["finetune", "none", "retain_repair"]
    assert names(*slow, {"name": "finetune", "lr": 0.1, "epochs": 2}) == ["epochs = 9", "epochs = 2"]


def test_families_are_called_as_the_grid_calls_them() -> None:
    made = {
        f"{head}, λ = {lam}": {"name": "compose", "objective": "entropy", "anchor": {"name": anchor, "lam": lam}}
        for head, anchor in (("Gaussian", "kl_gaussian"), ("repair, as it is", "retain_repair"))
        for lam in (0.5, 0.9)
    }
    assert list(sweeps.sweep(made, "lam").ordered()) == ["Gaussian", "repair, as it is"]
    alike = {f"both, {at}": settings for at, settings in enumerate(made.values())}
    assert list(sweeps.sweep(alike, "lam").ordered()) == ["kl_gaussian", "retain_repair"]


def test_a_method_and_a_part_of_the_same_name_are_two_families() -> None:
    found = {f"m{n}": {"name": "fisher", "lam": n} for n in (1, 2)}
    found |= {f"m{n}": {"name": "compose", "anchor": {"name": "fisher", "lam": n}} for n in (3, 4)}
    paths = {"m1": "lam", "m3": "anchor.lam"}
    names = sweeps._named({name: sweeps.flat(found[name]) for name in paths}, paths)
    assert names == {"m1": "fisher", "m3": "compose, fisher"}


def test_a_name_that_several_settings_of_a_method_have_needs_its_path() -> None:
    found = {f"m{n}": {"name": "both", "one": {"lr": n}, "other": {"lr": 9}} for n in (1, 2)}
    assert sweeps.swept(found) == ["lr"]
    with pytest.raises(UserError, match=r"one setting lr of m1, got 2: choose one\.lr or other\.lr"):
        sweeps.sweep(found, "lr")


def test_a_word_in_place_of_a_number_is_off_the_line() -> None:
    found = asked({"name": "ssd", "alpha": "auto"}, {"name": "ssd", "alpha": 5}, {"name": "ssd", "alpha": 9})
    assert sweeps.swept(found) == ["alpha"]
    assert sweeps.sweep(found, "alpha").values == {"m1": 5.0, "m2": 9.0}
