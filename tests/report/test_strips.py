"""Every seed as a point, and numbers over the steps of a request."""

import xml.etree.ElementTree as ET

import pytest

from books import METHODS, book, leaf, small, stepwise
from expunge.report import decay, gridpage, looks, strips
from expunge.report.grids import Cell

NS = "{http://www.w3.org/2000/svg}"


def drawn(place):
    whole = book(place)
    look = gridpage.chosen(whole)
    links = {name: f"cells/x.html#{anchor}" for name, anchor in whole.anchors.items()}
    return ET.fromstring(strips.chart(place, look, looks.symbols(look)[1], links, "k"))


@pytest.fixture(scope="module")
def place():
    return small().leaves[0]


@pytest.fixture(scope="module")
def root(place):
    return drawn(place)


def test_each_seed_of_each_model_and_number_is_a_mark_that_leads_to_its_cell(place, root):
    marks = {a.get("href"): 0 for a in root.iter(f"{NS}a")}
    for a in root.iter(f"{NS}a"):
        marks[a.get("href")] += 1
    metrics, names = strips.shown(place), strips.models(place)
    there = sum(len(strips.values(place, model, m["name"])) for model in names for m in metrics)
    assert sum(marks.values()) == there
    anchors = book(place).anchors
    assert set(marks) == {f"cells/x.html#{anchors[n]}-s{seed}" for n in names for seed in (0, 1, 2)}


def test_a_mark_says_what_it_is(place, root):
    titles = [e.text for e in root.iter(f"{NS}title")]
    x = 100 * place.runs[1]["values"]["ssd"]["accuracy/test_retain"]["x"]
    assert f"ssd, seed 1: {x:.1f}%" in titles


def test_marks_of_one_panel_lie_in_the_order_of_their_numbers(place, root):
    name = "probe/one_shot"
    found = [strips.values(place, model, name) for model in METHODS]
    label = {f"{m}, seed {s}": x for m, by in zip(METHODS, found, strict=True) for s, x in by.items()}
    uses = {}
    for use in root.iter(f"{NS}use"):
        title = use.find(f"{NS}title")
        if title is not None and title.text.split(":")[0] in label:
            uses.setdefault(title.text.split(":")[0], []).append(float(use.get("x")))
    panel = [m["name"] for m in strips.shown(place)].index(name)
    at = {who: xs[panel] for who, xs in uses.items()}
    assert sorted(at, key=at.get) == sorted(at, key=lambda who: label[who])


def test_published_values_are_rings(place):
    with_rings, without = drawn(place), drawn(leaf("digits, mlp, class 3"))
    rings = [len(list(root.iter(f"{NS}use"))) for root in (with_rings, without)]
    assert rings[0] == rings[1] + 1


def test_a_number_that_a_model_lacks_is_a_dash(root):
    assert "–" in [e.text for e in root.iter(f"{NS}text")]  # retrained has no distance to itself


def test_one_seed_and_nothing_at_all():
    assert len(list(drawn(leaf("a, b, c", seeds=(7,))).iter(f"{NS}a"))) > 20
    nothing = leaf("a, b, c", missing={m: Cell("missing") for m in METHODS})
    nothing.section["metrics"].clear()
    assert strips.chart(nothing, {}, {}, {}, "k") == ""


def test_courses_go_over_the_steps_that_were_measured():
    whole = stepwise(3)
    found = decay.courses(whole.leaves, gridpage.chosen(whole), "k")
    assert "accuracy, forget set" in [c.label for c in found]
    for course in found:
        assert course.steps == (1, 2)
        assert ET.fromstring(course.svg).get("aria-label").startswith(f"{course.label}, at the last point: ")
        assert "retrained" in dict(course.rows) or course.name in ("paired/gap", "canaries/forgotten")
        assert all(len(texts) == 2 for _, texts in course.rows)


def test_one_step_is_no_course_and_an_interval_stays_in_its_range():
    whole = stepwise(3)
    assert decay.courses(whole.leaves[:1], gridpage.chosen(whole), "k") == []
    for each in whole.leaves[:2]:
        each.section["values"]["ssd"]["cost/seconds"] |= {"x": 1.0, "low": -3.0, "high": 5.0, "n": 3}
    found = next(c for c in decay.courses(whole.leaves, gridpage.chosen(whole), "k") if c.name == "cost/seconds")
    assert "1.00 s (0.00 to 5.00)" in dict(found.rows)["ssd"]
