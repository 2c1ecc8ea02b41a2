"""The page of a qualification: what it says of each kind and size, of missing numbers, and that it stands alone."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import pytest
from rich.console import Console

from expunge.report import qualifycharts, qualifypage
from htmls import Page, check
from report.qualifications import NAMED, class_kind, findings, judged, random_kind, record, size, undecided_kind


def rows(html: str) -> list[list[str]]:
    """Return the cells of every row of every table as text."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", html, flags=re.DOTALL)
    return [[Page(cell).text for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, flags=re.DOTALL)] for row in found]


def row(html: str, *first: str) -> list[str]:
    """Return the row that starts with these cells."""
    (found,) = [cells for cells in rows(html) if cells[: len(first)] == list(first)]
    return found


def terminal(body: dict[str, Any], width: int = 120) -> list[str]:
    printed = io.StringIO()
    console = Console(width=width, file=printed)
    for part in qualifypage.terminal(body):
        console.print(part)
    return printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def html() -> str:
    return qualifypage.render(record(), command="expunge qualify --method ssd")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_stands_alone_and_is_the_same_each_time(html: str) -> None:
    check({"qualification.html": html})
    assert qualifypage.render(record(), command="expunge qualify --method ssd") == html


def test_it_says_first_what_an_officer_is_to_know_of_each_kind(page: Page) -> None:
    short = page.text.partition("In short")[2].partition("How far from retrained")[0]
    random, _, whole = short.partition("A whole class (class=3)")
    assert (
        "Random samples indistinguishable within margin In these tests the model after unlearning could not" in random
    )
    assert whole.strip().startswith("distinguishable These tests tell the model after unlearning from models")
    assert "Qualification of ssd on digits" in page.text
    assert "340 requests to forget, simulated on 64 models" in page.text  # 20 and 5 times 64
    assert "22 November 2025, 23:40 UTC" in page.text


def test_the_colour_of_a_verdict_is_one_of_three_and_that_of_no_evidence_is_not_that_of_success() -> None:
    html = qualifypage.render(record([random_kind(), class_kind(), undecided_kind()]))
    tones = re.findall(r'<span class="pill (\w+)">([^<]*)</span>', html.partition('id="sizes"')[0])
    assert tones == [
        ("good", "indistinguishable within margin"),
        ("bad", "distinguishable"),
        ("open", "insufficient evidence"),
    ]
    assert len(set(re.findall(r"\.pill\.(?:good|bad|open) { background: ([^;]+);", html))) == 3
    body = record([random_kind()])
    body["kinds"][0]["verdict"]["value"] = "of another version"
    assert '<span class="pill good">' not in qualifypage.render(body)


def test_the_table_has_a_line_for_each_size_with_what_stands_beside_its_numbers(html: str) -> None:
    ten = row(html, "10", "64")
    assert ten[2:6] == ["+0.110 +0.036 to +0.184", "0.370 retrained 0.328", "0.410", "3 of 64 4.7% (1.0 to 13.1)"]
    assert ten[6:] == ["1.5%", "62 of 64 96.9%", "−0.4 −0.5 to −0.3 retrained −0.3", "−0.1 −0.1 to −0.0", "0.021"]
    assert row(html, "1", "20")[3] == "– needs 29 requests"
    assert row(html, "1", "20")[7] == "9 of 20 45.0% too small to tell"
    assert row(html, "18", "64")[2] == "+1.900 +1.756 to +2.044"
    assert len([cells for cells in rows(html) if len(cells) == 11]) == 1 + 6
    assert "mean gap, nats" in html
    assert "at least 90% of such requests" in Page(html).text
    assert "with 95% confidence" in Page(html).text


def test_each_test_of_a_verdict_stands_with_its_p_margin_power_and_numbers(html: str) -> None:
    margins = [cells for cells in rows(html) if cells[0].startswith("accuracy, forget")]
    assert margins[0][1:] == ["0.9", "<0.001", "±3.0 points", "2.1 points", "20", "", "12"]
    assert margins[1][1:] == ["<0.001", "0.99", "±3.0 points", "2.1 points", "20", "", "–"]
    rank = row(html, "rank among retrained models rank of one model", "0.72")
    assert rank[2:] == ["", "", "2.41 standard deviations of a retrained model", "1", "64", "19"]
    text = Page(html).text
    assert "n = 20 replicates, K = 64 retrained models to rank among, level 0.05" in text
    assert "would have been seen with a chance of 95%" in text
    assert "farther than other retrained models: p = 0.001, corrected for 3 tests" in text


def test_the_outcome_of_each_control_is_what_the_verdict_says_of_it(html: str) -> None:
    first, second = [cells for cells in rows(html) if cells[0].startswith("head_mask")]
    assert first[0] == "head_mask the model with its outputs masked alone"
    assert first[2:] == ["does not apply it masks one class.", "–"]
    assert second[2:] == ["came out right", "<0.001"]
    assert [cells[1:3] for cells in rows(html) if cells[0] == "retrained a second retrained model"] == [
        ["is not to be told apart", "came out right"]
    ] * 2
    failing = {"no_op": findings(), "retrained": findings(far=True)}
    kind = random_kind() | judged(findings(), failing, {})
    wrong = qualifypage.render(record([kind]))
    passed = row(wrong, "no_op the model left as it was")[2]
    assert passed == "failed the model left as it was passed all 3 tests that could have rejected it."
    assert row(wrong, "retrained a second retrained model")[2].startswith(
        "failed a second retrained model was found distinguishable by"
    )
    assert row(wrong, first[0])[2].startswith("not run put the model with its outputs masked alone through")


def test_attacks_stand_beside_chance_or_their_floor(html: str) -> None:
    found = {cells[0]: cells[1:] for cells in rows(html.partition('id="k2"')[0]) if len(cells) == 3}
    assert found["likelihood-ratio attack by sample (U-LiRA), balanced accuracy"] == [
        "51.3% (49.2 to 53.4)",
        "50%, a guess",
    ]
    assert found["U-LiRA on the tenth of samples it does best on"] == ["63.1%", "61.8%, by chance"]
    own = ["0.214 (0.184 to 0.244)", "0.208 (0.178 to 0.238), the floor"]
    assert found["divergence of margins (KLoM), forget set"] == own
    assert found["divergence of margins (KLoM), retain set"][1] == "0.197 (0.177 to 0.217), the floor"
    assert found["forgetting quality, at most 1, more is better"] == ["0.187", "0.203, retrained beside retrained"]
    pair = ["55.0% (53.0 to 57.0)", "71.0% (69.0 to 73.0), retrained"]
    assert found["attack with the models before and after, AUC"] == pair
    alike = found["likelihood-ratio attack on all samples alike, balanced accuracy"]
    assert alike == ["50.2% (48.2 to 52.2)", "50%, a guess"]
    assert found["retained told from test samples, AUC"][1] == "53.1% (52.1 to 54.1), retrained"


def test_a_floor_of_klom_that_is_one_number_stands_beside_every_part() -> None:
    kind = random_kind()
    kind["attacks"] |= {"klom": {"forget": 0.4, "test": 0.3}, "klom_floor": 0.25}
    html = qualifypage.render(record([kind]))
    assert row(html, "divergence of margins (KLoM), forget set")[1:] == ["0.400", "0.250, the floor"]
    assert row(html, "divergence of margins (KLoM), test set")[1:] == ["0.300", "0.250, the floor"]


def test_requests_in_a_row_stand_where_there_were_some(html: str) -> None:
    said = str(random_kind()["in_row"]["text"])
    assert said.startswith("After 4 requests of 10 samples in a row")
    assert " ".join(said.split()) in Page(html).text
    assert row(html, "8", "20.3% (11.3 to 32.2)")[2] == "30.3%"  # the 95% point of Beta(14, 51)
    kind = random_kind()
    kind["in_row"] |= {"text": ""}
    text = Page(qualifypage.render(record([kind]))).text
    assert "Up to 4 requests in a row, of 10 samples each, keep to the tolerance of 10.0%." in text
    kind["in_row"] |= {"longest": None}
    text = Page(qualifypage.render(record([kind]))).text
    assert "No number of requests of 10 samples that was tried is shown to keep to the tolerance of 10.0%." in text
    without = qualifypage.render(record([class_kind()]))
    check({"qualification.html": without})
    assert "Requests in a row" not in without


def test_it_says_what_it_cannot_exclude_when_it_expires_and_how_it_was_made(html: str, page: Page) -> None:
    limits = page.text.partition("What this cannot exclude")[2].partition("When it expires")[0]
    assert "A bound holds for 90% of requests with 95% confidence: a single request may lie beyond it." in limits
    expires = page.text.partition("When it expires")[2].partition("How it was made")[0]
    assert "mlp, classification 9f2ab07c51d84e06" in expires
    assert "1,437 training samples 41c70b5e6a" in expires
    assert "alpha = 6.75, dampening = 0.172, order = null" in expires
    made = page.text.partition("How it was made")[2]
    assert "models 64 trained on each 718 of 1,437 samples seed 0 models a minute 47.1" in made
    assert "optimiser sgd" in made
    costs = {cells[0]: cells[1] for cells in rows(html) if len(cells) == 2}
    assert costs["together"] == "194 s"  # 81.2, 96.4, 12.7 and 3.4
    assert costs["training one model of the pool, to compare"] == "1.27 s"
    assert "expunge qualify --method ssd" in made
    assert "expunge 0.3.0 · torch 2.8.0" in made


def test_what_is_not_known_is_a_dash() -> None:
    body = record([undecided_kind()], model=None)
    del body["data"]
    body["cost"] = dict.fromkeys(body["cost"]) | {"pool": 2.0}
    body["pool"]["models_per_minute"] = None
    html = qualifypage.render(body)
    check({"qualification.html": html})
    assert row(html, "12", "8") == ["12", "8", *["–"] * 9]
    assert row(html, "rank rank of one model")[4] == "none with so few"
    assert row(html, "divergence of margins (KLoM)") == ["divergence of margins (KLoM)", "–", "–"]
    text = Page(html).text
    assert text.count("not recorded") == 4
    assert "models retrained without the samples – " in text
    assert "together 2.00 s" in text
    assert "No attack by sample: 9 of 12 forgotten samples are named by fewer than 4 requests." in text
    assert "None" not in text
    assert "<svg viewBox" not in html.partition("<main>")[2]  # no chart of nothing
    body["kinds"][0] |= {"attacks": None, "controls": None}
    assert "No attack was run." in qualifypage.render(body)


def test_no_sample_is_named(html: str) -> None:
    assert NAMED in json.dumps(record())
    assert NAMED not in html


def test_names_are_text_whatever_they_hold() -> None:
    body = record(project="<b>bold</b> & co")
    body["kinds"][1]["words"] = "A class <script>alert(1)</script>"
    body["kinds"][1]["verdict"]["reasons"] = ["<i>why</i>"]
    html = qualifypage.render(body, command='expunge "<u>"')
    page = check({"qualification.html": html})["qualification.html"]
    assert "Qualification of ssd on <b>bold</b> & co" in page.text
    assert "A class <script>alert(1)</script> distinguishable" in page.text
    assert "<b>bold" not in html
    assert "<i>why" not in html
    assert "<u>" not in html


def test_charts_of_gaps_say_their_numbers_and_are_logarithmic_where_sizes_differ_much() -> None:
    svg = qualifycharts.gaps(random_kind(), "nats", "g")
    assert svg is not None
    assert "10 samples: +0.110 (+0.036 to +0.184) nats, floor 0.410 nats, bound 0.370 nats" in svg
    assert "1 sample: +0.310 (−0.212 to +0.832) nats, floor 2.900 nats, bound not known" in svg
    ticks = re.findall(r">(−?[\d.]+)</text>", svg)
    assert ticks == ["1", "10", "72", "−1", "−0.1", "0", "0.1", "1"]
    near = qualifycharts.gaps(class_kind(), "nats", "g")
    assert near is not None
    assert re.findall(r">(−?[\d.]+)</text>", near)[3:] == ["−2", "0", "2"]


def test_charts_of_failures_show_the_original_and_chance() -> None:
    kind = random_kind()
    svg = qualifycharts.failures(kind, "f")
    assert svg is not None
    assert "1 sample: 5.0% (0.1 to 24.9); 10 samples: 4.7% (1.0 to 13.1)" in svg
    for one in kind["sizes"]:
        one |= {"failed_original": None, "by_chance": None}
    without = qualifycharts.failures(kind, "f")
    assert without is not None
    assert svg.count("<path") - without.count("<path") == 3  # a line each, and the marker of the original's
    assert ("var(--retrained" in svg, "var(--retrained" in without) == (True, False)
    later = qualifycharts.in_row(kind, "r")
    assert later is not None
    assert "8: 20.3% (11.3 to 32.2); tolerance 10.0%" in later
    assert "requests in a row, of 10 samples each" in later


def test_one_size_alone_is_drawn_and_close_sizes_are_not_labelled_twice() -> None:
    lone = class_kind() | {"sizes": [size(36, 0.2, 0.4, 0.5, 3)]}
    for svg in (qualifycharts.gaps(lone, "nats", "g"), qualifycharts.failures(lone, "f")):
        assert svg is not None
        assert re.findall(r">(\d\d)</text>", svg)[0] == "36"
    close = class_kind() | {"sizes": [size(n, 0.2, 0.4, 0.5, 3) for n in (70, 72, 140)]}
    svg = qualifycharts.failures(close, "f")
    assert svg is not None
    assert re.findall(r">(\d+)</text>", svg) == ["70", "140"]


def test_officers_read_the_sentence_after_the_verdict_or_the_only_one() -> None:
    assert qualifypage.officer({"value": "distinguishable", "officer": "Do not use it."}) == "Do not use it."
    assert qualifypage.officer({"value": "distinguishable", "officer": None}) == ""


def test_effects_that_no_model_would_show_and_small_ones_are_words() -> None:
    kind = random_kind()
    kind["verdict"]["findings"][0] |= {"smallest": math.inf, "p": 0.0004, "within": 0.0123456}
    cells = row(qualifypage.render(record([kind])), "accuracy, forget mean difference, held against a margin")
    assert cells[1:5] == ["<0.001", "0.0123", "±3.0 points", "none with so few"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_terminal_fits_and_ends_with_the_verdicts(width: int) -> None:
    body = record([random_kind(), class_kind(), undecided_kind()], project="a\x1b[31mred")
    lines = terminal(body, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    assert "\x1b" not in text
    assert lines[0].rstrip() == "Qualification of ssd on a [31mred"
    ten = next(line.split() for line in lines if " 10 " in line)
    assert ten[-8:] == ["10", "+0.110±0.074", "0.370", "0.410", "3/64", "62/64", "−0.4±0.1", "0.021"]
    assert next(line.split() for line in lines if " 12 " in line)[-8:] == ["12", *["–"] * 7]
    assert [line.rstrip() for line in lines[-3:]] == [
        "Random samples: indistinguishable within margin",
        "A whole class (class=3): distinguishable",
        "All samples of one person: insufficient evidence",
    ]
