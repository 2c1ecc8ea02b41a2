import json
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from expunge.report import charts
from expunge.report.svg import GREY, figure, inline, style

NS = "{http://www.w3.org/2000/svg}"


def every(document):
    look = charts.looks(document["sections"])
    for i, section in enumerate(document["sections"]):
        yield from charts.accuracies(section, look, f"s{i}-accuracy")
        for quantity in ("loss", "entropy"):
            yield from charts.distributions(section, quantity, look, f"s{i}-{quantity}")
        yield charts.roc(section, look, f"s{i}-roc")
        yield charts.changed(section, f"s{i}-changed")


def test_every_chart_is_labelled_xml_with_text_as_text(document):
    svgs = list(every(document))
    assert len(svgs) == 2 * 5 + 2 * (5 + 4) + 2 + 2
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.tag == f"{NS}svg"
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.find(f"{NS}title").text == root.get("aria-label")
        assert root.find(f".//{NS}text") is not None
        tags = {e.tag.removeprefix(NS) for e in root.iter()}
        assert not tags & {"script", "style", "metadata", "image", "foreignObject", "a"}


def test_ids_do_not_collide_and_every_reference_is_met(document):
    seen = set()
    for svg in every(document):
        root = ET.fromstring(svg)
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert len(set(ids)) == len(ids)
        assert not seen & set(ids)
        seen |= set(ids)
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= set(ids)


def test_charts_repeat_to_the_byte(document):
    assert list(every(document)) == list(every(document))


def test_hostile_names_stay_text(document):
    for svg in every(document):
        assert "<script" not in svg
        assert "\x1b" not in svg
    text = charts.roc(document["sections"][1], charts.looks(document["sections"]), "k")
    assert "&lt;script&gt;" in text


def test_names_that_matplotlib_would_treat_specially_are_shown(document):
    section = document["sections"][1]
    section = json.loads(json.dumps(section).replace('"ssd"', json.dumps("_x $\\frac$")))
    for svg in (charts.roc(section, charts.looks([section]), "k"), charts.changed(section, "k")):
        assert "_x $\\frac$" in "".join(ET.fromstring(svg).itertext())


def test_what_was_not_measured_makes_no_chart(document):
    section = document["sections"][0]
    section |= {"curves": {}, "changed": {}, "metrics": [m for m in section["metrics"] if m["group"] != "accuracy"]}
    look = charts.looks([section])
    assert charts.accuracies(section, look, "k") == []
    assert charts.distributions(section, "loss", look, "k") == []
    assert charts.roc(section, look, "k") is None
    assert charts.changed(section, "k") is None


def test_a_missing_accuracy_is_said(document):
    section = document["sections"][0]
    section["values"]["ssd"]["accuracy/forget"] = {"unavailable": "no labels"}
    assert "not available" in charts.accuracies(section, charts.looks([section]), "k")[0]


def test_a_model_looks_the_same_in_every_section_and_unlike_the_others(document):
    first, second = document["sections"]
    look = charts.looks([first, second])
    assert charts.looks([first])["ssd"] == look["ssd"]
    assert len({(v.colour, v.marker) for v in look.values()}) == len(look)
    assert len({v.marker for v in look.values()}) == len(look)
    assert look["no_op"].colour == look["head_mask"].colour == GREY


def test_matplotlib_options_are_left_as_found():
    before = dict(mpl.rcParams)
    with style("k"):
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before


def test_ink_follows_the_page():
    with style("k"):
        fig = figure(100, 100)
        fig.text(0.5, 0.5, "x")
        svg = inline(fig, "k", "a label")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "system-ui" in svg


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_edges_choose_the_axis(document, scale):
    section = document["sections"][0]
    edges = section["curves"]["loss"]["edges"]
    if scale == "log":
        section["curves"]["loss"]["edges"] = [1e-4 * 10 ** (i / 8) for i in range(len(edges))]
    found = charts.distributions(section, "loss", charts.looks([section]), "k")
    assert len(found) == 5
    assert not any("mathdefault" in svg for svg in found)


def test_a_distribution_is_drawn_as_the_shares_it_was_given(document):
    section = document["sections"][0]
    edges = [1e-4 * 10 ** (i / 2) for i in range(5)]
    shares = {m: {"forget": [0.5, 0.2, 0.2, 0.1], "test": [0.9, 0.1, 0, 0]} for m in ("original", "retrained")}
    section["curves"]["loss"] = {"edges": edges, "densities": shares}
    first = charts.distributions(section, "loss", charts.looks([section]), "k")[0]
    assert "in the lowest bin 50% of the forget set, 90% of the test set" in first
