import xml.etree.ElementTree as ET

import numpy as np
import pytest

from audits import few
from expunge.report import looks, roc

NS = "{http://www.w3.org/2000/svg}"


def titles(section):
    svgs = roc.panels(section, looks.looks([section]), "k")
    return [ET.fromstring(svg).find(f"{NS}title").text.split(",")[0] for svg in svgs]


def test_each_attack_has_a_panel_in_the_order_of_the_tables(wide):
    section = few(wide)
    found = titles(section)
    assert found[0] == "ROC curves of the loss attack"
    assert len(found) == 6
    assert found[-1] == "ROC curves of the paired attack"


def test_an_attack_of_two_values_comes_last(wide):
    section = few(wide)
    section["curves"]["roc"]["loss"] = {
        m: {"fpr": [0, 0.2, 1], "tpr": [0, 0.6, 1]} for m in section["curves"]["roc"]["loss"]
    }
    assert titles(section)[-1] == "ROC curves of the loss attack"


def test_the_areas_are_told(wide):
    section = few(wide)
    section["values"]["ssd"]["membership/loss/auc"] = {"x": 0.731, "low": None, "high": None, "n": 1, "unit": "1"}
    assert "ssd 73.1%" in roc.panels(section, looks.looks([section]), "k")[0]


@pytest.mark.parametrize(("unseen", "least"), [(59, 1 / 59), (4, 0.1), (450, 1 / 450), (60_000, 1e-4)])
def test_the_axes_begin_at_one_over_the_unseen_samples(unseen, least):
    steps = np.arange(unseen + 1) / unseen
    curves = {"a": {"fpr": steps[::7].tolist()}, "b": {"fpr": steps.tolist()}}
    assert roc.resolved(curves) == pytest.approx(least)


def test_shares_rounded_another_way_are_no_step():
    assert roc.resolved({"a": {"fpr": [0.0, 0.1, 0.1 + 1e-12, 0.3]}}) == pytest.approx(0.1)


def test_a_curve_without_a_rate_between_the_ends_begins_at_a_tenth():
    assert roc.resolved({"a": {"fpr": [0.0, 1.0]}}) == 0.1


def test_thinning_keeps_the_ends_and_moves_no_curve():
    rng = np.random.default_rng(0)
    fpr, tpr = (np.sort(np.concatenate([[0, 1], rng.random(3000)])) for _ in range(2))
    x, y = roc.thinned(fpr.tolist(), tpr.tolist(), 1e-3)
    assert (x[0], y[0], x[-1], y[-1]) == (1e-4, 1e-4, 1, 1)
    assert len(x) < 400
    pixels = roc.SIZE / np.log(1000)
    at = np.interp(np.log(np.maximum(fpr, 1e-3)), np.log(np.maximum(x, 1e-3)), np.log(np.maximum(y, 1e-3)))
    off = np.abs(at - np.log(np.maximum(tpr, 1e-3))) * pixels
    assert np.median(off[fpr > 1e-3]) < roc.PIXEL
