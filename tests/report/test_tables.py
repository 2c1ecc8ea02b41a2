import copy
import io
import re

import pytest
from rich.console import Console

from expunge.report import tables
from expunge.report.distance import yardstick

RANKING = re.compile(r"\b(best|better|wins?|winner|worst|worse|beats?|outperforms?|superior|leads?|ranked)\b", re.I)


def said(section, model):
    return next(s for s in tables.sentences(section) if s.model == model)


def cell(section, model, metric):
    row = next(r for r in tables.rows(section) if r.model == model)
    return next(c for c in row.cells if c.metric == metric)


def printed(section, width):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(tables.terminal(section, width))
    return console.export_text()


def test_a_sentence_names_the_distance_and_the_floor(document):
    assert str(said(document["sections"][0], "ssd")) == (
        "ssd: 0.3 points from retrained on the forgotten samples, 1.0 on the test set, 0.7 on the retained samples "
        "and 2.3 in the AUC of the loss attack; two retrained models differ by 0.0, 0.3, 0.1 and 0.9."
    )


def test_every_method_and_control_has_one_sentence(document):
    section = document["sections"][0]
    assert [s.model for s in tables.sentences(section)] == [
        "finetune", "ssd", "lfssd", "unsir", "no_op", "head_mask", "",
    ]  # fmt: skip


def test_a_control_is_introduced_as_one_that_must_look_bad(document):
    text = said(document["sections"][0], "no_op").text
    assert text.startswith("a control that must look bad on something: ")
    assert "On 10 of 12 quantities it is farther from retrained than the yardstick" in text


def test_a_control_that_looks_like_retrained_is_reported(document):
    section = document["sections"][0]
    for gap in section["gaps"]["no_op"].values():
        gap["x"] = 0.0
    assert "On none of 12 quantities is it farther" in said(section, "no_op").text
    assert said(section, "no_op").text.endswith("these numbers cannot tell it from removal.")


def test_a_declined_method_says_why(document):
    assert said(document["sections"][0], "unsir").text == "declined this task: it forgets whole classes only."


def test_a_method_without_numbers_says_so(document):
    section = document["sections"][0]
    section["gaps"]["ssd"] = {}
    section["values"]["ssd"] = {"accuracy/forget": {"unavailable": "no labels."}}
    assert said(section, "ssd").text == "no distance to retrained could be measured (no labels)."


def test_a_missing_floor_is_not_passed_over(document):
    assert "how far two retrained models differ was not measured" in said(document["sections"][1], "ssd").text
    section = document["sections"][0]
    del section["floor"]["accuracy/test"], section["floor"]["accuracy/retain"]
    text = said(section, "ssd").text
    assert "differ by 0.0 on the forgotten samples and 0.9 in the AUC of the loss attack." in text


def test_other_tasks_tell_what_they_have(document):
    section = document["sections"][0]
    for model in section["gaps"]:
        section["gaps"][model] = {k: v for k, v in section["gaps"][model].items() if k.startswith(("loss/", "odd/"))}
    text = said(section, "ssd").text
    assert text.startswith(
        "1.590 nats from retrained in loss, forget set, 0.128 in loss, test set and 0.500 widgets in"
    )


def test_forgetting_more_than_retrained_is_over_forgetting(document):
    section = document["sections"][0]
    section["floor"]["accuracy/forget"] |= {"x": 0.009}
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.02}
    assert "This is over-forgetting" in said(section, "ssd").text
    assert cell(section, "ssd", "accuracy/forget").over
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.005}
    assert "over-forgetting" not in said(section, "ssd").text
    assert not cell(section, "ssd", "accuracy/forget").over


@pytest.mark.parametrize("seeds", [1, 5, 9, 10, 30])
def test_few_seeds_rank_nothing_and_no_number_ranks_in_words(document, seeds):
    section = document["sections"][0] | {"seeds": seeds}
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.5}
    texts = [str(s) for s in tables.sentences(section)]
    assert (texts[-1].split(":")[0] == f"{seeds} seed{'s' * (seeds > 1)} rank{'s' * (seeds == 1)} nothing") == (
        seeds < 10
    )
    assert not [t for t in texts if RANKING.search(t)]


@pytest.mark.parametrize(
    ("gap", "distance"), [(0.0, 0), (0.01, 0), (-0.015, 1), (0.02, 1), (0.039, 2), (-0.08, 3), (0.081, 4), (0.9, 4)]
)
def test_the_class_counts_floors(document, gap, distance):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.01, "low": None, "high": None, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": gap}
    assert cell(section, "ssd", "accuracy/test").distance == distance


def test_a_floor_of_one_difference_gives_way_to_a_longer_interval(document):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.001, "low": None, "high": None, "n": 1, "unit": "1"}
    length, name = yardstick(section, "ssd", "accuracy/test")
    assert name == "half interval"
    assert length > 0.001


def test_the_distance_is_the_mean_size_not_the_size_of_the_mean(document):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.02, "low": None, "high": None, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": 0.0, "distance": 0.5}
    found = cell(section, "ssd", "accuracy/test")
    assert (found.distance, found.times) == (4, "25×")
    assert any("50.0" in str(s) for s in tables.sentences(section) if s.model == "ssd")


def test_a_floor_of_zero_gives_way_to_the_interval(document):
    section = document["sections"][0]
    gap = {"x": 0.03, "low": 0.01, "high": 0.05, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/forget"] = gap
    assert section["floor"]["accuracy/forget"]["x"] == 0
    length, name = yardstick(section, "ssd", "accuracy/forget")
    assert (round(length, 6), name) == (0.02, "half interval")
    section["gaps"]["ssd"]["accuracy/forget"] = gap | {"n": 1}
    section["values"]["ssd"]["accuracy/forget"] |= {"n": 1}
    assert yardstick(section, "ssd", "accuracy/forget") == (0.001, "printed digit")


def test_without_a_yardstick_there_is_a_gap_but_no_class(document):
    there = cell(document["sections"][1], "ssd", "accuracy/test")
    assert (there.gap, there.distance, there.times) == ("−1.0", None, "")


def test_the_reference_has_no_gap_and_costs_have_no_class(document):
    section = document["sections"][0]
    assert cell(section, "retrained", "accuracy/test").gap == ""
    section["gaps"]["ssd"]["cost/seconds"] = {"x": -40.0, "low": None, "high": None, "n": 1, "unit": "s"}
    there = cell(section, "ssd", "cost/seconds")
    assert (there.gap, there.distance) == ("−40.000", None)


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
def test_the_terminal_table_fits(document, width):
    for section in document["sections"]:
        text = printed(section, width)
        assert max(map(len, text.splitlines())) <= width
        assert "retrained" in text
        assert "\x1b" not in text
        assert "in the report also" in " ".join(text.split()) or "1% FPR" in text
        assert width > 80 or "1% FPR" not in text


def test_the_terminal_prints_half_intervals_only_where_there_are_several(document):
    assert "99.8±0.1" in printed(document["sections"][0], 120)
    assert "±" not in printed(document["sections"][1], 120)


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
