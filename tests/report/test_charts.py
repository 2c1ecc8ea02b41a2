import json
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from audits import build, few, widest
from expunge.report import charts, layout, looks, roc, series
from expunge.report.svg import GREY, Dot, compact, figure, inline, style

NS = "{http://www.w3.org/2000/svg}"


def every(document):
    look = looks.looks(document["sections"])
    for i, section in enumerate(document["sections"]):
        yield charts.overview(section, layout.key(section), look, f"s{i}-key")
        for quantity in ("loss", "entropy"):
            yield from charts.distributions(section, quantity, look, f"s{i}-{quantity}")
        yield from roc.panels(section, look, f"s{i}-roc")
        for chart in series.charts(section, look, f"s{i}-series"):
            yield from chart.svgs
        yield charts.changed(section, f"s{i}-changed")


@pytest.fixture(scope="module")
def drawn():
    return [list(every(each)) for each in (build(), widest())]


def test_every_chart_is_labelled_xml_with_text_as_text(drawn):
    small, large = drawn
    assert len(small) == 2 + 2 * (5 + 4) + 2 + 2
    # An overview, two quantities of nine models, attacks, curves, a change, eleven models' groups, two strips.
    assert len(large) == 1 + 2 * 9 + 6 + 2 + 1 + 11 + 2
    for svg in small + large:
        root = ET.fromstring(svg)
        assert root.tag == f"{NS}svg"
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.find(f"{NS}title").text == root.get("aria-label")
        assert root.find(f".//{NS}text") is not None
        tags = {e.tag.removeprefix(NS) for e in root.iter()}
        assert not tags & {"script", "style", "metadata", "image", "foreignObject", "a"}


def test_ids_do_not_collide_and_every_reference_is_met(drawn):
    for svgs in drawn:
        seen = set()
        for svg in svgs:
            root = ET.fromstring(svg)
            ids = [e.get("id") for e in root.iter() if e.get("id")]
            assert len(set(ids)) == len(ids)
            assert not seen & set(ids)
            seen |= set(ids)
            assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= set(ids)


def test_charts_repeat_to_the_byte(document, drawn):
    assert list(every(document)) == drawn[0]


def test_hostile_names_stay_text(document, drawn):
    for svg in drawn[0]:
        assert "<script" not in svg
        assert "\x1b" not in svg
    assert "&lt;script&gt;" in charts.changed(document["sections"][1], "k")


def test_names_that_matplotlib_would_treat_specially_are_shown(document, wide):
    for section, name in ((document["sections"][1], "ssd"), (few(wide), "ssd")):
        section = json.loads(json.dumps(section).replace(f'"{name}"', json.dumps("_x $\\frac$")))
        look = looks.looks([section])
        drawn = [charts.overview(section, layout.key(section), look, "k"), charts.changed(section, "k")]
        drawn += [c.svgs[0] for c in series.charts(section, look, "k") if c.name == "robustness/change"]
        for svg in drawn:
            assert "_x $\\frac$" in "".join(ET.fromstring(svg).itertext())


def test_what_was_not_measured_makes_no_chart(document):
    section = document["sections"][0]
    section |= {"curves": {}, "changed": {}}
    look = looks.looks([section])
    assert charts.overview(section, [], look, "k") is None
    assert charts.distributions(section, "loss", look, "k") == []
    assert roc.panels(section, look, "k") == []
    assert series.charts(section, look, "k") == []
    assert charts.changed(section, "k") is None


def test_a_missing_number_is_a_dash_and_a_flawed_model_no_row(wide):
    section = wide["sections"][0]
    section["values"]["ssd"]["accuracy/forget"] = {"unavailable": "no labels"}
    svg = charts.overview(section, layout.key(section)[:1], looks.looks([section]), "k")
    texts = [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]
    assert texts.count("–") == 1
    assert "sisa" in texts
    assert "broken" not in texts
    assert "unsir" not in texts


def test_a_model_looks_the_same_in_every_section_and_unlike_the_others(document, wide):
    first, second = document["sections"]
    look = looks.looks([first, second])
    assert looks.looks([first])["ssd"] == look["ssd"]
    for found in (look, looks.looks(wide["sections"])):
        assert len({(v.colour, v.marker) for v in found.values()}) == len(found)
    assert len({v.marker for v in look.values()}) == len(look)
    assert look["no_op"].colour == look["head_mask"].colour == GREY
    assert look["no_op"].behind


def test_every_look_has_a_symbol_and_a_line(wide):
    look = looks.looks(wide["sections"])
    text, ids = looks.symbols(look)
    root = ET.fromstring(f"<svg>{text}</svg>")
    assert [e.get("id") for e in root] == [i for name in look for i in (ids[name], f"{ids[name]}l")]
    lines = [e.find("path") for e in root if e.get("id").endswith("l")]
    assert sum("stroke-dasharray" in e.attrib for e in lines) == len(look) - 2  # original and retrained are solid
    assert "var(--retrained" in ET.tostring(root.find(f"symbol[@id='{ids['retrained']}']")).decode()


def test_matplotlib_options_are_left_as_found():
    before = dict(mpl.rcParams)
    with style("k"):
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before


def test_ink_follows_the_page():
    with style("k"):
        fig = figure(100, 100)
        fig.text(0.5, 0.5, "x")
        fig.add_subplot().plot([0, 1], color="#010203")
        svg = inline(fig, "k", "a label")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "system-ui" in svg


def test_dots_stand_where_the_axes_put_them_and_lead_somewhere():
    with style("k"):
        fig = figure(200, 100)
        ax = fig.add_subplot()
        ax.set(xlim=(0, 1), ylim=(0, 1))
        dots = [
            Dot(ax, 0, 0, "look1", "first <b>", "cells/x.html#m1", size=8),
            Dot(ax, 1, 1, "look2", "second", opacity=0.5),
        ]
        root = ET.fromstring(inline(fig, "k", "a label", dots))
    first, second = (e for e in root.iter(f"{NS}use") if e.find(f"{NS}title") is not None)
    box = ax.get_window_extent()
    assert float(first.get("x")) + 4 == pytest.approx(box.x0, abs=0.06)
    assert float(first.get("y")) + 4 == pytest.approx(100 - box.y0, abs=0.06)
    assert float(second.get("x")) + 6 == pytest.approx(box.x1, abs=0.06)
    assert float(second.get("y")) + 6 == pytest.approx(100 - box.y1, abs=0.06)
    assert (first.get("href"), second.get("href")) == ("#look1", "#look2")
    assert [e.find(f"{NS}title").text for e in (first, second)] == ["first <b>", "second"]
    assert (first.get("opacity"), second.get("opacity")) == (None, "0.5")
    (link,) = root.iter(f"{NS}a")
    assert (link.get("href"), link.get("tabindex")) == ("cells/x.html#m1", "-1")


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 1 2  L 1 2.04  L 5 2  z", "M1 2h4z"),
        ("M 10.06 0  L 0.33 0  L 0.33 -7.26 ", "M10.1 0h-9.8v-7.3"),
        ("M 0 0  L 0.36 0.36  L 0.72 0.72  L 1.08 1.08 ", "M0 0l.4 .4l.3 .3l.4 .4"),  # rounded points, no drift
        ("M 0 3.25  C 0.86 3.251  1.69 2.9  2.3 2.3  z ", "M0 3.2C.9 3.3 1.7 2.9 2.3 2.3z"),
        ("167.283", "167.3"),
    ],
)
def test_paths_are_short_and_end_where_they_ended(path, short):
    assert re.sub(r"\s+", " ", compact(path)) == short


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_edges_choose_the_axis(document, scale):
    section = document["sections"][0]
    edges = section["curves"]["loss"]["edges"]
    if scale == "log":
        section["curves"]["loss"]["edges"] = [1e-4 * 10 ** (i / 8) for i in range(len(edges))]
    found = charts.distributions(section, "loss", looks.looks([section]), "k")
    assert len(found) == 5
    assert not any("mathdefault" in svg for svg in found)


def test_a_distribution_is_drawn_as_the_shares_it_was_given(document):
    section = document["sections"][0]
    edges = [1e-4 * 10 ** (i / 2) for i in range(5)]
    shares = {m: {"forget": [0.5, 0.2, 0.2, 0.1], "test": [0.9, 0.1, 0, 0]} for m in ("original", "retrained")}
    section["curves"]["loss"] = {"edges": edges, "densities": shares}
    first = charts.distributions(section, "loss", looks.looks([section]), "k")[0]
    assert "in the lowest bin 50% of the forget set, 90% of the test set" in first
