import copy
import io
import re

import pytest
from rich.console import Console

from expunge.report import tables
from expunge.report.findings import sentences


def cell(section, model, metric):
    row = next(r for r in tables.rows(section) if r.model == model)
    return next(c for c in row.cells if c.metric == metric)


def printed(section, width):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(tables.terminal(section, width))
    return console.export_text()


def test_the_distance_is_the_mean_size_not_the_size_of_the_mean(document):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.02, "low": None, "high": None, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": 0.0, "distance": 0.5}
    found = cell(section, "ssd", "accuracy/test")
    assert (found.distance, found.times) == (4, "25×")
    assert any("50.0" in str(s) for s in sentences(section) if s.model == "ssd")


@pytest.mark.parametrize(
    ("gap", "distance"), [(0.0, 0), (0.01, 0), (-0.015, 1), (0.02, 1), (0.039, 2), (-0.08, 3), (0.081, 4), (0.9, 4)]
)
def test_the_class_counts_floors(document, gap, distance):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.01, "low": None, "high": None, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": gap}
    assert cell(section, "ssd", "accuracy/test").distance == distance


def test_without_a_yardstick_there_is_a_gap_but_no_class(document):
    there = cell(document["sections"][1], "ssd", "accuracy/test")
    assert (there.gap, there.distance, there.times) == ("−1.0", None, "")


def test_the_reference_and_costs_have_no_gap(document):
    section = document["sections"][0]
    assert cell(section, "retrained", "accuracy/test").gap == ""
    section["gaps"]["ssd"]["cost/seconds"] = {"x": -40.0, "low": None, "high": None, "n": 1, "unit": "s"}
    there = cell(section, "ssd", "cost/seconds")
    assert (there.gap, there.distance) == ("", None)


def test_what_is_unavailable_keeps_its_reason(document):
    section = document["sections"][0]
    there = cell(section, "original", "cost/seconds")
    assert (there.text, there.available, there.title) == ("–", False, "nothing was unlearned")
    assert cell(section, "unsir", "accuracy/test").title == "declined: it forgets whole classes only"


def test_unknown_metrics_show_after_the_known_and_costs_last(document):
    names = [c.metric for c in tables.rows(document["sections"][0])[0].cells]
    assert names[0] == "accuracy/forget"
    assert names[-4:] == ["probe/linear", "odd/new", "cost/seconds", "cost/peak_memory"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits(document, wide, width):
    for section in [*document["sections"], *wide["sections"]]:
        text = printed(section, width)
        assert max(map(len, text.splitlines())) <= width
        assert "retrained" in text
        assert "\x1b" not in text
        assert "in the report also" in " ".join(text.split())


def test_the_terminal_prints_half_intervals_only_where_there_are_several(document):
    assert "99.8±0.1" in printed(document["sections"][0], 120)
    assert "±" not in printed(document["sections"][1], 120).partition("percent where")[0]


def test_markdown_escapes_names(document):
    text = tables.markdown(document["sections"][1])
    assert "<script>" not in text
    assert "\x1b" not in text
    section = copy.deepcopy(document["sections"][0]) | {"name": "a|b\n# c"}
    assert tables.markdown(section).startswith("### a\\|b \\# c\n")


def test_markdown_rows_have_one_cell_for_each_head(document):
    for section in document["sections"]:
        for block in tables.markdown(section).split("\n\n"):
            if block.startswith("|"):
                assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}) == 1


def test_a_number_with_an_ideal_shows_no_gap_that_repeats_it(wide):
    section = wide["sections"][0]
    there = cell(section, "finetune", "paired/gap")
    assert (there.text, there.gap, there.times) == ("85.0 ± 6.9%", "", "12×")
    assert cell(section, "finetune", "membership/paired/auc").gap == "+18.4"  # from one half


def test_retrained_shows_the_ideal_where_it_is_one_by_definition(wide):
    section = wide["sections"][0]
    found = [cell(section, "retrained", m) for m in ("paired/gap", "membership/paired/auc", "similarity/cka/forget")]
    assert [(c.text, c.ideal, c.available) for c in found] == [
        ("0%", True, False), ("50%", True, False), ("100%", True, False),
    ]  # fmt: skip
    assert found[0].title == "it is the reference itself: the ideal by definition"


def test_units_stand_in_the_head(wide):
    section = wide["sections"][0]
    assert cell(section, "retrained", "relearn/steps").text == "40 ± 3"
    section["values"]["ssd"]["relearn/steps"] |= {"x": 250.0, "low": 250.0, "high": None, "n": 1}
    assert cell(section, "ssd", "relearn/steps").text == "≥ 250"
    assert "≥250" in printed(section, 400)


def test_a_cell_says_where_a_model_forgets_too_much(wide):
    section = wide["sections"][0]
    found = {c.metric for r in tables.rows(section) if r.model == "amnesiac" for c in r.cells if c.over}
    assert "membership/paired/auc" in found
    assert not [c for r in tables.rows(section) if r.model in ("no_op", "sisa", "finetune") for c in r.cells if c.over]


def test_the_hidden_text_tells_n_the_gap_and_the_yardstick(wide):
    there = cell(wide["sections"][0], "finetune", "accuracy/test")
    assert there.title.startswith("n = 103; −0.5 points from retrained, interval ")
    assert "; yardstick: half interval of " in there.title
    assert cell(wide["sections"][0], "retrained", "cost/changed").title == "no interval, n = 1"


def test_a_short_table_has_ten_columns_at_most_and_counts_the_rest(wide):
    section = wide["sections"][0]
    assert len(tables.columns(section)) == 10
    text = " ".join(printed(section, 200).split())
    assert "in the report also: 54 more numbers" in text
    section["metrics"] = [m for m in section["metrics"] if m["group"] in ("accuracy", "cost")]
    text = " ".join(printed(section, 200).split())
    assert "in the report also: accuracy/holdout, cost/changed" in text


def test_markdown_of_many_numbers_is_one_table(wide):
    text = tables.markdown(wide["sections"][0])
    assert text.count("| model |") == 1
    assert "In the report also: 54 more numbers." in text
    assert "> Nothing is said of broken: its outputs on forget hold NaN." in text
    assert "> Bound missed: no." in text
    assert "(ideal 0%)" in text
    assert "- filter (suppresses outputs; the weights still hold the samples): " in text
    assert len(text) < 8000


def test_markdown_of_few_numbers_has_a_table_a_group(document):
    assert tables.markdown(document["sections"][0]).count("| model |") == 6
