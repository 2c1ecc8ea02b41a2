"""The trade-off: which sides it has, what dominates what, times over the fastest retraining, and its chart."""

import xml.etree.ElementTree as ET

import pytest

from books import METHODS, book, large, leaf
from expunge.report import gridpage, looks, pareto, tradeoff
from expunge.report.grids import Cell

NS = "{http://www.w3.org/2000/svg}"


def drawn(found, place, methods=METHODS):
    whole = book(place, methods=methods)
    look = gridpage.chosen(whole)
    links = {name: f"cells/x.html#{anchor}" for name, anchor in whole.anchors.items()}
    return ET.fromstring(tradeoff.chart(found, look, looks.symbols(look)[1], links, "k"))


@pytest.fixture(scope="module")
def place():
    return leaf("a, b, c")


@pytest.fixture(scope="module")
def found(place):
    return pareto.trade(place, METHODS)


def test_the_sides_are_the_forget_set_and_the_rest_of_the_test_set(found):
    assert found.forget["name"] == "accuracy/forget"
    assert found.kept["name"] == "accuracy/test_retain"
    assert [m.line.model for m in found.marks] == ["retrained (other seed)", "head_mask", "no_op", *METHODS]


def test_sizes_are_means_over_seeds_of_gaps_without_their_sign(place, found):
    mark = next(m for m in found.marks if m.line.model == "lfssd")
    sizes = [100 * abs(run["gaps"]["lfssd"]["accuracy/forget"]["x"]) for run in place.runs.values()]
    assert [s.forget for s in mark.seeds] == pytest.approx(sizes)
    assert mark.forget.x == pytest.approx(sum(sizes) / 3)
    assert mark.forget.low >= 0
    assert mark.forget.n == 3


def test_times_are_over_the_fastest_retraining_of_the_same_seed(place, found):
    again = ("retrained", "retrained (other seed)")
    costs = [{m: run["values"][m]["cost/seconds"]["x"] for m in ("ssd", *again)} for run in place.runs.values()]
    fastest = [min(cost[m] for m in again) for cost in costs]
    assert found.fastest == pytest.approx(sum(fastest) / 3)
    mark = next(m for m in found.marks if m.line.model == "ssd")
    assert mark.time.x == pytest.approx(sum(cost["ssd"] / t for cost, t in zip(costs, fastest, strict=True)) / 3)


def test_where_no_cost_was_measured_the_cells_tell_the_time():
    place = leaf("a, b, c")
    for run in place.runs.values():
        for values in run["values"].values():
            values.pop("cost/seconds", None)
    assert pareto.trade(place, METHODS).fastest is None
    for seed in place.runs:
        place.cells[seed, ""] = Cell("done", seconds={"retrain": 2.0 + seed})
    found = pareto.trade(place, METHODS)
    fastest = [2.0 + seed for seed in place.runs]
    assert found.fastest == pytest.approx(sum(fastest) / 3)
    assert next(m for m in found.marks if m.line.model == "ssd").time.x == pytest.approx(
        sum(0.02 / t for t in fastest) / 3
    )


def test_only_methods_stand_on_the_front_and_those_who_are_not_beaten(found):
    fronted = {m.line.model for m in found.marks if m.front}
    ours = {m.line.model: (m.forget.x, m.kept.x) for m in found.marks if m.line.role == "method"}
    assert fronted
    for name, point in ours.items():
        beaten = any(all(a <= b for a, b in zip(o, point, strict=True)) and o != point for o in ours.values())
        assert (name in fronted) is not beaten
    assert {m.line.model for m in found.marks if m.lasting} >= fronted  # a third side beats nobody


def test_a_task_without_accuracy_is_told_by_its_loss():
    place = leaf("a, b, c")
    for section in (place.section, *place.runs.values()):
        section["metrics"] = [m for m in section["metrics"] if m["group"] != "accuracy"]
    found = pareto.trade(place, METHODS)
    assert (found.forget["name"], found.kept["name"]) == ("loss/forget", "loss/test_retain")
    assert drawn(found, place).find(f".//{NS}text") is not None


def test_without_one_side_or_without_methods_there_is_no_trade():
    place = leaf("a, b, c")
    place.section["metrics"] = [m for m in place.section["metrics"] if not m["name"].endswith("/forget")]
    assert pareto.trade(place, METHODS) is None
    assert pareto.trade(leaf("a, b, c", missing={m: Cell("missing") for m in METHODS}), METHODS) is None


def test_the_chart_has_every_mark_with_its_title_and_names_every_method(place, found):
    root = drawn(found, place)
    titles = [e.text for e in root.iter(f"{NS}title")]
    for mark in found.marks:
        assert [t for t in titles if t.startswith(f"{mark.line.model}: ")]
        for seen in mark.seeds:
            assert f"{mark.line.model}, seed {seen.seed}" in titles
    texts = {e.text for e in root.iter(f"{NS}text")}
    assert set(METHODS) <= texts
    links = {e.get("href") for e in root.iter(f"{NS}a")}
    assert links == {f"cells/x.html#m{i}" for i in range(3, 9)}
    assert {e.get("tabindex") for e in root.iter(f"{NS}a")} == {"-1"}


def test_marks_stand_where_the_axes_put_them(place, found):
    root = drawn(found, place)
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    uses = [e for e in root.iter(f"{NS}use") if e.find(f"{NS}title") is not None]
    assert uses
    for use in uses:
        assert 0 < float(use.get("x")) < width
        assert 0 < float(use.get("y")) < height
    marks = {m.line.model: m for m in found.marks}
    middle = {
        name: next(float(u.get("x")) for u in uses if u.find(f"{NS}title").text.startswith(f"{name}: "))
        for name in ("lfssd", "finetune", "no_op")
    }
    ordered = sorted(middle, key=lambda name: marks[name].forget.x)
    assert sorted(middle, key=middle.get) == ordered


def test_one_seed_has_no_cross_and_no_faint_mark():
    place = leaf("a, b, c", seeds=(0,))
    found = pareto.trade(place, METHODS)
    root = drawn(found, place)
    assert not [e for e in root.iter(f"{NS}use") if e.get("opacity")]


def test_thirty_methods_are_drawn_and_most_are_named():
    whole = large(30)
    found = pareto.trade(whole.leaves[0], whole.methods)
    root = drawn(found, whole.leaves[0], whole.methods)
    texts = [e.text for e in root.iter(f"{NS}text") if (e.text or "").startswith("method")]
    assert len(texts) >= 20
