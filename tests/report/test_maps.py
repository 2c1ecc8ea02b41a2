"""Maps of features: common axes, what left them, what stands in words, and what is no map."""

import copy
import json

import numpy as np
import pytest

from expunge import report
from expunge.errors import Incompatible
from expunge.report import looks, maps
from expunge.report.document import validate
from htmls import Page

LOG = {
    "representation_map": {
        "explained": [0.5, 0.25],
        "kinds": ["retain", "forget", "retain", "forget", "retain"],
        "before": [[0, 0], [4, 4], [1, 0], [4, 5], [0, 1]],
        "after": [[0, 0], [0.2, 0.1], [1, 0], [99, 5], [0, 1]],
    }
}


def places(n, middle, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, 2)) + middle).round(3).tolist()


@pytest.fixture
def drawn(document):
    """A document whose first section has maps, the charts that take most of the time left out."""
    for section in document["sections"]:
        section |= {"curves": {}, "changed": {}, "series": {}}
    retain = places(80, (0, 0))
    document["sections"][0]["maps"] = {
        "explained": [0.41, 0.22],
        "own": ["retrained"],
        "models": {
            "original": {"forget": places(20, (5, 5)), "retain": retain},
            "retrained": {"forget": places(20, (0, 1)), "retain": retain},
            "ssd": {"forget": places(20, (-400, 0)), "retain": retain},
        },
    }
    return document


def picture(document):
    section = document["sections"][0]
    return maps.charts(section, looks.looks([section]), "k")


def test_a_panel_a_model_stands_in_the_page_original_first_and_retrained_last(drawn):
    html = report.render(drawn)
    page = Page(html)
    assert page.open == []
    labels = [a["aria-label"] for t, a in page.found if t == "svg" and a.get("aria-label", "").startswith(maps.TITLE)]
    assert [label.partition(": ")[0].rpartition(", ")[2] for label in labels] == ["original", "ssd", "retrained"]
    assert "they hold 63% of its variance" in page.text
    assert "retrained has axes of its own, turned, mirrored and scaled" in page.text
    assert maps.TITLE not in report.render(drawn | {"sections": drawn["sections"][1:]})


def test_what_left_the_axes_is_counted_and_drawn_at_their_edge(drawn):
    found = picture(drawn)
    assert "20 samples beyond the axes are drawn at their edge." in found.text
    del drawn["sections"][0]["maps"]["models"]["ssd"]
    assert "beyond the axes" not in picture(drawn).text


def test_the_axes_follow_the_first_map_and_half_of_its_span_more():
    first = maps.Sheet("a", np.array([[0.0, 0.0]]), np.array([[10.0, 4.0]]), "#000000")
    far = maps.Sheet("b", np.array([[100.0, 5.0]]), np.array([[-2.0, 2.0]]), "#000000")
    low, high = maps._ends([first, far])
    assert low == pytest.approx([-2 - 0.6, -0.24])
    assert high == pytest.approx([15 + 0.6, 5 + 0.24])


def test_a_recorded_map_is_drawn_before_and_after():
    found = maps.recorded(LOG, "k")
    assert len(found.svgs) == 2
    assert "before" in found.svgs[0]
    assert "they hold 75% of its variance" in found.text
    assert "1 sample beyond the axes is drawn at their edge." in found.text
    assert maps.recorded({"loss": [[0, 1.0]]}, "k") is None
    assert maps.recorded(json.loads(json.dumps(LOG)), "k") == found


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("kinds"),
        lambda m: m["after"].pop(),
        lambda m: m.update(before=[["a", 0]] * 5),
        lambda m: m.update(explained=None),
    ],
)
def test_a_record_that_is_no_map_is_refused(change):
    log = copy.deepcopy(LOG)
    change(log["representation_map"])
    with pytest.raises(Incompatible, match="kinds, before, after and explained in representation_map"):
        maps.recorded(log, "k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["models"].update(stray={"forget": [], "retain": []}), "only a listed model, got stray"),
        (lambda m: m["models"]["ssd"].pop("retain"), "the key 'retain' in the map of 'ssd'"),
        (lambda m: m["models"]["ssd"].update(forget=[[1.0, None]]), "pairs of numbers in the map of 'ssd'"),
        (lambda m: m["models"]["ssd"].update(forget=[[1.0, float("nan")]]), "pairs of numbers in the map of 'ssd'"),
        (lambda m: m.pop("explained"), "the key 'explained' in maps of section 1"),
    ],
)
def test_maps_that_cannot_be_shown_are_refused(drawn, change, message):
    change(drawn["sections"][0]["maps"])
    with pytest.raises(Incompatible, match=message):
        validate(drawn)
