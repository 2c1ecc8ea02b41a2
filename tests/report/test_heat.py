"""Heat maps: every number once, bands that fit, hatched cells with their reason, the median over all numbers."""

import pytest

from books import METHODS, leaf, small
from expunge.report import distance, heat
from expunge.report import document as doc
from expunge.report.grids import Cell


@pytest.fixture
def place():
    return leaf("a, b, c")


def test_every_measured_number_but_costs_stands_in_one_band(place):
    shown = [c.name for band in heat.bands(place, METHODS) for c in band.columns]
    metrics = {m["name"] for m in doc.metrics(place.section) if m["group"] != "cost"}
    unmeasured = {"membership/" + a + "/tpr_at_fpr_0.001" for a in ("loss", "confidence", "correctness", "entropy")}
    assert len(shown) == len(set(shown))
    assert metrics - set(shown) == unmeasured | {
        f"membership/{a}/tpr_at_fpr_0.001" for a in ("modified_entropy", "paired")
    }


@pytest.mark.parametrize("widest", [7, 12, 22])
def test_bands_are_no_wider_than_asked_and_families_stand_over_their_columns(place, widest):
    for band in heat.bands(place, METHODS, widest):
        assert len(band.columns) <= widest
        assert sum(f.size for f in band.families) == len(band.columns)
        starts = [i for i, c in enumerate(band.columns) if c.first]
        assert starts == [sum(f.size for f in band.families[:i]) for i in range(len(band.families))]
        for _, spots in band.rows:
            assert [s.number for s in spots] == [c.name for c in band.columns]


def test_numbers_that_show_no_trace_come_last_and_single_ones_together(place):
    titles = [f.title for band in heat.bands(place, METHODS) for f in band.families]
    assert titles[-2:] == ["Other quantities", "Weights"]
    assert titles[0] == "Accuracy"


def test_a_long_head_loses_what_stands_in_brackets_then_its_end(place):
    labels = [c.label for band in heat.bands(place, METHODS) for c in band.columns]
    assert "CKA of features with retrained's, forget set" in labels
    assert max(map(len, labels)) <= heat.LONGEST


def test_a_spot_is_the_gap_in_yardsticks_with_its_class(place):
    band = heat.first(place, METHODS)
    row = {line.model: spots for line, spots in band.rows}["no_op"]
    spot = next(s for s in row if s.number == "accuracy/forget")
    metric = next(m for m in place.section["metrics"] if m["name"] == "accuracy/forget")
    times = distance.length(place.section, {"name": "no_op", "role": "control"}, metric)
    assert float(spot.text) == pytest.approx(times, abs=0.5)
    assert spot.distance == distance.distance_class(times) == 4
    assert spot.more == "+100.0"
    assert "yardstick" in spot.title


def test_costs_have_no_place_among_distances(place):
    assert not [c for c in heat.first(place, METHODS).columns if c.name.startswith("cost/")]


def test_a_number_without_value_or_yardstick_is_hatched_and_says_why(place):
    place.section["values"]["ssd"]["accuracy/forget"] = {"unavailable": "no labels"}
    del place.section["floor"]["accuracy/test_retain"]
    for part in ("values", "gaps"):
        place.section[part]["ssd"]["accuracy/test_retain"] |= {"low": None, "high": None, "n": 1}
    spots = {s.number: s for s in dict((line.model, s) for line, s in heat.first(place, METHODS).rows)["ssd"]}
    assert spots["accuracy/forget"].distance is None
    assert spots["accuracy/forget"].title.endswith("no labels")
    assert spots["accuracy/test_retain"].distance is None
    assert heat.NO_YARDSTICK in spots["accuracy/test_retain"].title


def test_the_overview_has_the_median_and_what_lies_beyond_and_says_where_nothing_is():
    rows = {line.model: spots for line, spots in heat.overview(small().leaves, METHODS)}
    assert list(rows)[-3:] == list(METHODS)
    leaf_ = small().leaves[0]
    model = next(m for m in leaf_.section["models"] if m["name"] == "ssd")
    told = distance.told(leaf_.section, model)
    assert rows["ssd"][0].more == f"{told.beyond} of {told.measured}"
    assert rows["ssd"][0].distance == distance.distance_class(heat.typical(leaf_.section, model))
    assert "2 of 3 seeds" in rows["ssd"][1].title
    assert rows["lfssd"][1].distance is None
    assert rows["lfssd"][1].title == "declined: it forgets whole classes only"


def test_nothing_measured_is_no_heat_map():
    gone = leaf("a, b, c", missing={m: Cell("missing", "not run yet") for m in METHODS})
    assert [line.absent for line, _ in heat.first(gone, METHODS).rows][-3:] == ["not run yet"] * 3
    gone.section["metrics"].clear()
    assert heat.first(gone, METHODS) is None
    assert heat.bands(gone, METHODS) == []
