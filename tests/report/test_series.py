import xml.etree.ElementTree as ET

import pytest

from audits import few
from expunge.report import looks, series

NS = "{http://www.w3.org/2000/svg}"


def drawn(section):
    return {c.name: c for c in series.charts(section, looks.looks([section]), "k")}


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]


def point(at, x, **rest):
    return {"at": at, "x": x, "low": None, "high": None, "n": 1, "unit": "1"} | rest


def only(section, name, by_model):
    section["series"] = {m: {name: points} for m, points in by_model.items()}
    return drawn(section)


def test_each_kind_of_series_has_its_chart(wide):
    found = drawn(few(wide))
    assert list(found) == [
        "probe/shots", "relearn/curve", "robustness/change", "subgroups/label", "subgroups/label/accuracy",
        "weights/layers",
    ]  # fmt: skip
    assert [c.wide for c in found.values()] == [False, False, True, False, False, True]
    assert [len(c.svgs) for c in found.values()] == [1, 1, 1, 3, 0, 1]
    assert found["probe/shots"].family == "probe"
    assert all(c.text for c in found.values() if c.svgs)


def test_a_curve_over_numbers_names_its_axes_and_its_last_values(wide):
    chart = drawn(few(wide))["probe/shots"]
    assert {"labelled samples a class", "recall of the forgotten class", "1", "10"} <= set(texts(chart.svgs[0]))
    assert "at the last point: original 99.0 ± 4.0%" in chart.svgs[0] or "original 99.0% (" in chart.svgs[0]


def test_groups_are_bars_though_classes_are_numbers(wide):
    chart = drawn(few(wide))["subgroups/label"]
    titles = [texts(svg)[-1] for svg in chart.svgs]
    assert "original" not in titles  # its change is 0
    assert titles[0] == "retrained"
    assert {"0", "8", "9", "points"} <= set(texts(chart.svgs[0]))
    assert "none" not in texts(chart.svgs[0])  # it has no number in any model
    assert "ssd: class 0 " in chart.svgs[titles.index("ssd")]


def test_a_change_names_what_was_before(wide):
    chart = drawn(few(wide))["robustness/change"]
    assert {"int8", "noise", "finetune", "ssd"} <= set(texts(chart.svgs[0]))
    assert "before" not in texts(chart.svgs[0])
    assert "ssd: before 0.0" in chart.svgs[0]


def test_what_groups_changed_to_is_a_table(wide):
    chart = drawn(few(wide))["subgroups/label/accuracy"]
    assert chart.places == ("0", "1", "2", "4", "5", "6", "7", "8", "9")
    assert {len(cells) for _, cells in chart.rows} == {9}
    assert chart.title == "By class: accuracy"


def test_of_many_groups_the_largest_changes_are_shown(wide):
    points = [point(f"g{i}", -0.001 * i) for i in range(60)]
    chart = only(few(wide), "subgroups/site", {"ssd": points})["subgroups/site"]
    shown = texts(chart.svgs[0])
    assert {"g59", "g36"} <= set(shown)
    assert "g35" not in shown
    assert "24 of 60 groups are shown" in chart.text


def test_an_unknown_series_is_a_line_over_numbers_and_bars_over_names(wide):
    section = few(wide)
    line = only(section, "odd/line", {"ssd": [point(1, 3.0, unit="bits"), point(2.5, 2.0, unit="bits")]})["odd/line"]
    assert line.title == "Odd: line"
    assert "at the last point: ssd 2.00 bits" in line.svgs[0]
    bars = only(section, "odd/bars", {"ssd": [point("a", 0.3)], "sisa": [point("b", 0.1)]})["odd/bars"]
    assert len(bars.svgs) == 2
    assert "–" in texts(bars.svgs[0])


def test_many_names_make_a_profile(wide):
    chart = only(few(wide), "odd/layers", {"ssd": [point(f"l{i}", i / 20) for i in range(20)]})["odd/layers"]
    assert chart.wide
    assert "largest in: ssd l19" in chart.svgs[0]


@pytest.mark.parametrize("points", [[], [{"at": 1, "unavailable": "too few"}]])
def test_a_series_without_a_number_makes_no_chart(wide, points):
    assert only(few(wide), "probe/shots", {"ssd": points}) == {}


def test_places_far_apart_or_from_zero_on_do_not_overlap(wide):
    section = few(wide)

    def ticks(places):
        chart = only(section, "relearn/curve", {"ssd": [point(at, 0.5 + at / 1000) for at in places]})["relearn/curve"]
        numbers = [e for e in ET.fromstring(chart.svgs[0]).iter(f"{NS}text") if e.text in {f"{p:g}" for p in places}]
        return sorted(float(e.get("x")) for e in numbers)

    for places in ([0, 1, 2, 5, 10, 20, 50], [1, 2, 5, 10, 20, 50, 100]):
        at = ticks(places)
        assert len(at) == len(places)
        assert min(b - a for a, b in zip(at, at[1:], strict=False)) > 15


def test_the_classes_that_a_forgotten_class_goes_to_are_bars_with_retrained_marked(wide):
    section = few(wide)
    points = [point(f"class {c}", x) for c, x in enumerate((0.1, 0.9))]
    found = only(section, "predictions/classes", {"ssd": points, "retrained": points[::-1]})["predictions/classes"]
    assert found.title == "Where the forgotten class goes"
    assert len(found.svgs) == 2
    assert {"class 0", "class 1"} <= set(texts(found.svgs[0]))
    assert "blue mark, it is the retrained model" in found.text
