"""Predictions over targets, their errors and forecasts, as charts and on the page."""

import copy
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from audits import HOSTILE, build
from expunge.errors import Incompatible
from expunge.report import document as doc
from expunge.report import errors, findings, forecasts, layout, looks, predictions, render, tables
from htmls import Page

NS = "{http://www.w3.org/2000/svg}"
SHIFT = {"original": 0.1, "ssd": 1.0, "finetune": 0.4, "lfssd": 0.5, HOSTILE: 0.6, "retrained": 1.2}
SHIFT |= {"retrained (other seed)": 1.3}
NUMBERS = [
    ("error/mae/forget", "mean absolute error, forget set"),
    ("error/mae/test", "mean absolute error, test set"),
    ("error/mae_constant/forget", "mean absolute error of the retain median, forget set"),
    ("error/mae_constant/test", "mean absolute error of the retain median, test set"),
    ("wasserstein/forget", "W1 of predictions to retrained's, forget set"),
]


def errors_of(shift):
    return [round(shift * share / 50, 4) for share in range(101)]


def section(names=("original", "ssd", "retrained", "retrained (other seed)"), steps=1, seeds=5):
    """A section of real targets; each model says the target and a shift of its own."""
    found = copy.deepcopy(build()["sections"][0])
    roles = {m["name"]: m["role"] for m in found["models"]}
    keep = [m for m in found["models"] if m["name"] in names]
    shown = [m for m in names if roles[m] != "floor"]
    points = {"forget": [0.5, 1.0, 1.5, 2.0], "test": [0.0, 1.0, 4.0, 5.0, 6.0, 7.5]}
    scatter = {
        split: {
            "of": 1000 if split == "test" else 4,
            "groups": [{"target": targets, "said": {m: [t + SHIFT[m] for t in targets] for m in shown}}],
        }
        for split, targets in points.items()
    }
    distributions = {s: {"of": 9, "models": {m: errors_of(SHIFT[m]) for m in names}} for s in ("forget", "retain")}
    windows = None
    if steps > 1:
        target = [[np.sin(i + t).round(3) for t in range(steps)] for i in range(3)]
        said = {m: [[v + SHIFT[m] for v in row] for row in target] for m in shown}
        low, high = ({m: [[v + d for v in row] for row in said[m]] for m in shown} for d in (-0.2, 0.2))
        windows = {"of": 30, "steps": steps, "errors": [0.1, 0.2, 0.3], "target": target}
        windows |= {"said": said, "low": low, "high": high}
    values = {m["name"]: {k: number(at + SHIFT.get(m["name"], 0)) for at, (k, _) in enumerate(NUMBERS)} for m in keep}
    return found | {
        "kind": "range",
        "target": {"column": None, "low": 0.5, "high": 2.5},
        "seeds": seeds,
        "models": keep,
        "metrics": [dict(zip(("name", "label"), n, strict=True)) | OF for n in NUMBERS],
        "values": values,
        "gaps": {m: dict(v) for m, v in values.items() if m != "retrained"},
        "floor": {},
        "curves": {},
        "changed": {},
        "predictions": {"scatter": scatter, "errors": distributions, "windows": windows, "bytes": 12345},
    }


OF = {"unit": "target units", "goal": "as_retrained", "group": "error", "target": None}


def number(x):
    return {"x": x, "low": x - 0.1, "high": x + 0.1, "n": 5, "unit": "target units"}


def printed(part):
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    console.print(tables.terminal(part))
    return console.export_text()


def picture(draw, part):
    return draw(part, looks.looks([part]), "k")


def titles(svgs):
    return [ET.fromstring(svg).find(f"{NS}title").text for svg in svgs]


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]


def dots(svg):
    """The points of each path of dots, by colour."""
    paths = [e for e in ET.fromstring(svg).iter(f"{NS}path") if "round" in e.get("style", "")]
    return [e.get("d").count("M") for e in paths]


def test_there_is_a_panel_a_model_before_after_and_retrained_on_the_same_axes():
    found = picture(predictions.scatter, section())
    assert [t.split(" over")[0] for t in titles(found.svgs)] == [
        f"Predictions of {m}" for m in ("original", "ssd", "retrained")
    ]
    ticks = [[t for t in texts(svg) if t not in ("original", "ssd", "retrained")] for svg in found.svgs]
    assert ticks[0] == ticks[1] == ticks[2]
    assert all(dots(svg) == [6, 4] for svg in found.svgs)


def test_the_points_are_told_in_words():
    found = picture(predictions.scatter, section())
    assert "forget set off by 1.00 at the median" in titles(found.svgs)[1]
    assert "Drawn are 6 of 1,000 samples of the test set, evenly over their sorted targets." in found.text
    assert "of the forget set, evenly" not in found.text
    assert "as they do under retrained" in found.text


def test_only_a_range_of_targets_is_shaded():
    part = section()
    assert "shaded range of targets was forgotten" in picture(predictions.scatter, part).text
    assert predictions.forgotten_range(part) == (0.5, 2.5)
    for other in ({"kind": "ids"}, {"target": {"column": "date", "low": "2016", "high": "2017"}}, {"target": None}):
        assert predictions.forgotten_range(part | other) is None
        assert "shaded" not in picture(predictions.scatter, part | other).text


def test_predictions_that_lie_far_off_stand_at_the_edge_and_are_counted():
    part = section()
    before = texts(picture(predictions.scatter, part).svgs[0])
    part["predictions"]["scatter"]["forget"]["groups"][0]["said"]["ssd"] = [1e9, 2.0, -1e9, 2.0]
    found = picture(predictions.scatter, part)
    assert "2 predictions beyond the axes are drawn at their edge." in found.text
    assert "1e+09" not in "".join(texts(found.svgs[0]))
    assert len(texts(found.svgs[0])) < len(before) + 6


def test_models_beyond_the_room_are_named():
    names = ("original", "ssd", "finetune", "lfssd", "retrained")
    part = section(names)
    assert predictions.chosen(part, names, 4) == (["original", "finetune", "ssd", "retrained"], ["lfssd"])
    found = picture(forecasts.strips, section(names, steps=5))
    assert found.text.endswith("Not drawn, for want of room: lfssd.")
    assert found.models == ("original", "finetune", "ssd", "retrained")


def test_without_a_retrained_model_nothing_is_called_ideal():
    part = section(("original", "ssd"), steps=4)
    for draw in (predictions.scatter, errors.errors, forecasts.strips):
        found = picture(draw, part)
        assert "deally" not in found.text
    assert "run expunge audit" in picture(predictions.scatter, part).text


def test_errors_have_a_panel_a_set_and_the_second_retrained_model_beside_the_first():
    found = picture(errors.errors, section())
    assert [texts(svg)[-1] for svg in found.svgs] == ["forget set, 9 samples", "retain set, 9 samples"]
    assert found.models == ("original", "ssd", "retrained", "retrained (other seed)")
    assert "ssd 1.00" in titles(found.svgs)[0]


def test_the_distance_of_the_distributions_is_told_where_it_was_measured():
    part = section()
    assert "ideal 0: original 4.10 ± 0.10 target units, ssd 5.00 ± 0.10 target units" in (
        picture(errors.errors, part).text
    )
    assert "retrained (other seed) 5.30" in picture(errors.errors, part).text
    for values in part["values"].values():
        values["wasserstein/forget"] = {"unavailable": "it is the reference itself"}
    assert "Wasserstein" not in picture(errors.errors, part).text


def test_errors_that_differ_by_much_are_drawn_on_a_logarithmic_axis():
    part = section()
    assert "0.5" in texts(picture(errors.errors, part).svgs[0])
    part["predictions"]["errors"]["forget"]["models"]["ssd"] = [1e4 * (1 + share) for share in range(101)]
    assert {"1", "10000"} <= set(texts(picture(errors.errors, part).svgs[0]))


def test_a_model_without_any_error_is_drawn():
    part = section()
    for split in part["predictions"]["errors"].values():
        split["models"] = dict.fromkeys(split["models"], [0.0] * 101)
    assert len(picture(errors.errors, part).svgs) == 2


def test_forecasts_show_target_predictions_and_intervals():
    found = picture(forecasts.strips, section(steps=7))
    assert len(found.svgs) == 3
    assert [t.split(",")[0] for t in titles(found.svgs)] == [
        f"Sample {i} of the forget set over 7 steps" for i in (1, 2, 3)
    ]
    assert "ssd 1" in titles(found.svgs)[0]
    assert "3 of the 30 samples of the forget set, evenly over the error of original" in found.text
    assert "the bands reach from the lowest to the highest quantile" in found.text
    bands = [e for e in ET.fromstring(found.svgs[0]).iter() if "opacity:0.13" in e.get("style", "")]
    assert len(bands) == 3
    assert picture(forecasts.strips, section()) is None


def test_forecasts_without_quantiles_have_no_bands():
    part = section(steps=7, seeds=1)
    part["predictions"]["windows"] |= {"low": {}, "high": {}}
    found = picture(forecasts.strips, part)
    assert "bands" not in found.text
    assert "opacity:0.13" not in found.svgs[0]


def test_a_long_series_says_that_it_was_cut():
    part = section(steps=7)
    part["predictions"]["windows"]["steps"] = 720
    assert "Of 720 steps the first 7 are drawn." in picture(forecasts.strips, part).text


def test_a_section_of_classes_has_none_of_it(document):
    part = document["sections"][0]
    assert not doc.is_real(part)
    assert [picture(draw, part) for draw in (predictions.scatter, errors.errors, forecasts.strips)] == [None] * 3


def test_charts_repeat_to_the_byte_and_share_no_id():
    every = [picture(draw, section(steps=4)) for draw in (predictions.scatter, errors.errors, forecasts.strips)]
    assert every == [picture(d, section(steps=4)) for d in (predictions.scatter, errors.errors, forecasts.strips)]
    page = Page(render(document_of(section(steps=4))))
    assert len(set(page.ids)) == len(page.ids)
    assert page.open == []


def document_of(*parts):
    return build() | {"sections": list(parts)}


def test_the_page_draws_them_says_that_they_are_data_and_speaks_of_no_class():
    text = Page(render(document_of(section(steps=4)))).text
    for said in (
        "Predictions over targets",
        "Errors of forgotten, retained and unseen samples",
        "Some forgotten samples, step by step",
        "12,345 bytes, without ids",
        "Always saying the same gives: mean absolute error of the retain median 2.10 target units "
        "(forget set) and 3.10 (test set).",
    ):
        assert said in text, said
    shown = text.partition("In short")[2].replace("Every training sample of class 3 is forgotten.", "")
    assert re.findall(r"[^.]*(?:class|accurac)[^.]*", shown.replace("class 3", "")) == []
    assert "Loss of forgotten and of unseen samples" not in text


def test_classes_are_spoken_of_where_a_section_has_some(document, html):
    both = Page(render(document_of(section(), document["sections"][0]))).text
    assert "merely masked" in both
    assert "Predictions over targets" in both
    assert "Predictions over targets" not in Page(html).text


def test_what_is_said_in_short_is_said_of_errors():
    said = str(findings.sentences(section())[1])
    assert "in the error on the forgotten samples" in said
    assert "between the distributions of predictions on the forget set" in said
    alone = section(("original", "ssd"))
    alone["gaps"] = {}
    said = str(findings.sentences(alone)[0])
    assert "mean absolute error 1.00 ± 0.10 target units on the forgotten samples (original 0.100 ± 0.100" in said
    for values in alone["values"].values():
        values.clear()
    assert "no error was measured" in str(findings.sentences(alone)[0])


def test_what_is_the_same_for_every_model_is_no_column_and_not_counted():
    part = section()
    heads = [m["name"] for block in layout.blocks(part) for m in block.metrics]
    assert heads == ["error/mae/forget", "error/mae/test", "wasserstein/forget"]
    assert "On 3 of 3 quantities" in str(findings.sentences(part)[1])


def test_the_constant_has_a_row_in_every_short_table():
    part = section()
    text = printed(part)
    row = next(line for line in text.splitlines() if line.startswith("(constant)"))
    assert row.split() == ["(constant)", "2.10", "3.10", "–"]
    assert "(constant): always saying the same, the best of that kind for the retain set" in " ".join(text.split())
    assert "_constant" not in text
    tables_of = tables.markdown(part)
    assert "| (constant): always the same | 2.10 ± 0.10 | 3.10 ± 0.10 |" in tables_of
    assert tables_of.count("(constant)") == 1  # not under the distance of distributions, which no constant has
    part["metrics"] = [m for m in part["metrics"] if "_constant" not in m["name"]]
    assert "(constant)" not in printed(part) + tables.markdown(part)


def test_the_constant_of_quantiles_stands_beside_the_loss_in_its_own_unit():
    part = section()
    for name, unit in (("loss/test", "loss"), ("error/pinball_constant/test", "loss")):
        what = "pinball loss of the retain quantiles, test set" if "pinball" in name else "loss, test set"
        group = {"unit": unit, "group": name.partition("/")[0]}
        part["metrics"].append({"name": name, "label": what} | OF | group)
        for values in part["values"].values():
            values[name] = number(0.75 if "pinball" in name else 0.5) | {"unit": unit}
    assert layout.constants(part)["loss/test"]["x"] == 0.75
    assert "3.10 (test set); pinball loss of the retain quantiles 0.750 loss (test set)." in layout.constant(part)
    assert "| (constant): always the same | 0.750 ± 0.100 |" in tables.markdown(part)


def test_numbers_of_classes_are_not_missed_where_targets_are_real():
    part = section()
    part["metrics"] += [
        {"name": name, "label": name, "unit": "1", "group": "accuracy", "target": None} for name in ("accuracy/a", "b")
    ]
    for values in part["values"].values():
        values["accuracy/a"] = {"unavailable": "the task has no classes"}
        values["b"] = {"unavailable": "no column"}
    assert layout.unmeasured(part) == {"no column": ["b"]}
    assert layout.unmeasured({k: v for k, v in part.items() if k != "predictions"}) == {
        "no column": ["b"],
        "the task has no classes": ["accuracy/a"],
    }


def test_groups_of_samples_are_bars_whatever_their_names():
    part = section()
    points = [{"at": at, "x": 0.1 * at, "low": 0.0, "high": 0.2, "n": 9, "unit": "target units"} for at in (0.5, 1.5)]
    part["series"] = {m: {"segments/age": points} for m in ("original", "ssd", "retrained")}
    html = render(document_of(part))
    assert "By age: mean score" in html
    assert "Below the output" not in html


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["scatter"]["test"]["groups"][0]["said"]["ssd"].pop(), "as many numbers in test by 'ssd'"),
        (lambda p: p["scatter"]["test"]["groups"][0]["said"].update(nobody=[0] * 6), "only a listed model"),
        (lambda p: p["scatter"]["test"]["groups"][0]["target"].__setitem__(0, float("nan")), "finite numbers for"),
        (lambda p: p["errors"]["forget"]["models"].update(nobody=[0.0]), "only a listed model"),
        (lambda p: p["errors"]["forget"]["models"].update(ssd=["a"]), "finite numbers for errors of forget by 'ssd'"),
        (lambda p: p["errors"]["forget"]["models"].update(ssd=[]), "as many numbers in errors of forget by 'ssd'"),
        (lambda p: p["windows"]["said"]["ssd"].pop(), "as many numbers in windows by 'ssd'"),
        (lambda p: p["windows"]["low"]["ssd"][0].pop(), "as many numbers in windows by 'ssd'"),
        (lambda p: p.pop("bytes"), "the key 'bytes'"),
        (lambda p: p["windows"].pop("steps"), "the key 'steps'"),
    ],
)
def test_a_broken_document_is_refused(change, said):
    part = section(steps=4)
    change(part["predictions"])
    with pytest.raises(Incompatible, match=re.escape(said)):
        doc.validate(document_of(part))


def test_hostile_names_stay_text():
    found = build()["sections"][1]
    part = section(("original", "ssd", "retrained"), steps=4)
    raw = copy.deepcopy(part)
    raw["models"] = [{**m, "name": HOSTILE} if m["name"] == "ssd" else m for m in part["models"]]
    moved = {k: renamed(v) for k, v in raw.items() if k in ("values", "gaps", "predictions")}
    page = render(document_of(raw | moved))
    assert found["name"].startswith("people")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def renamed(value):
    if isinstance(value, dict):
        return {HOSTILE if k == "ssd" else k: renamed(v) for k, v in value.items()}
    return [renamed(v) for v in value] if isinstance(value, list) else value
