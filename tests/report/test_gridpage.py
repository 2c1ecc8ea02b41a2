"""The pages of a grid: they hang together, say everything, escape everything, and are the same each time."""

import re

import pytest

from audits import HOSTILE
from books import METHODS, book, empty, hostile, large, leaf, small, stepwise
from expunge.report import gridpage
from expunge.report.grids import Cell
from htmls import Page, check


@pytest.fixture(scope="module")
def pages():
    whole, before = small(), small()
    found = gridpage.pages(whole)
    assert whole == before
    return found


@pytest.fixture(scope="module")
def parsed(pages):
    return check(pages)


@pytest.fixture(scope="module")
def index(parsed):
    return parsed["index.html"]


def alone(whole):
    return Page(gridpage.render(whole, gridpage.chosen(whole)))


def test_there_is_an_index_a_page_a_place_and_a_page_of_its_cells(pages):
    places = ["digits-mlp-class-3-1", "digits-mlp-random-5-%-1"]
    assert sorted(pages) == sorted(["index.html", *(f"{p}.html" for p in places), *(f"cells/{p}.html" for p in places)])
    for html in pages.values():
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
        assert not re.search(r"@import|url\((?!#)", html)


def test_every_link_leads_somewhere(parsed):
    assert len(parsed["index.html"].links) > 300


def test_the_index_says_what_was_run_and_what_was_not(index):
    for part in (
        "A grid Made for tests.",
        "24 cells: 20 done, 3 declined, 1 failed.",
        "failed 1 out of memory ssd: random 5 %",
        "declined 3 it forgets whole classes only lfssd: random 5 %",
        "All places at once",
        "4 of 103 forget samples stand in the retain set too",
        "3 seeds rank nothing",
        "expunge bench report",
        "torch 2.6.0",
        "How to read this",
        "2 of 3 seeds",
    ):
        assert part in index.text, part


def test_what_holds_for_every_place_is_told_once(index):
    assert index.text.count("4 of 103 forget samples stand in the retain set too") == 1


def test_published_numbers_stand_beside_ours(index):
    assert "A paper, 2024, table 1" in index.text
    assert "Other data." in index.text
    assert "accuracy, forget set 2.0 ± 1.0% 0.0" in index.text


def test_every_chart_has_a_table_and_a_label(parsed):
    index = parsed["index.html"]
    charts = [attrs for tag, attrs in index.found if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 4  # a trade-off and a strip for each place
    assert all(c["aria-label"] for c in charts)
    assert index.text.count("The same as a table") == 4
    for page in parsed.values():
        for tag, attrs in page.found:
            assert tag != "svg" or attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_cells_of_the_heat_map_lead_to_the_number_they_are_of(pages, parsed):
    whole = small()
    place, number = whole.leaves[0], whole.leaves[0].numbers["accuracy/forget"]
    href = f"{place.cell_page}#{whole.anchors['ssd']}-{number}"
    assert href in parsed["index.html"].links
    row = re.search(rf'<tr id="{href.partition("#")[2]}".*?</tr>', pages[place.cell_page], re.DOTALL)[0]
    assert "accuracy, forget set" in row
    assert f"#s1-m{[m for m in whole.models].index('ssd') + 1}" in "".join(parsed["index.html"].links)


def test_a_cell_that_is_hatched_says_why(index):
    reasons = [a["title"] for tag, a in index.found if tag == "a" and "title" in a and "declined" in a["title"]]
    assert "declined: it forgets whole classes only" in reasons
    assert "declined: it forgets whole classes only" in index.text


def test_the_page_of_cells_has_a_place_for_every_seed_and_method(parsed):
    whole = small()
    for place in whole.leaves:
        page = parsed[place.cell_page]
        assert {f"{whole.anchors[m]}-s{seed}" for m in METHODS for seed in (0, 1, 2)} <= set(page.ids)
    text = parsed[whole.leaves[1].cell_page].text
    for part in (
        "failed (seed 1): out of memory",
        "declined (seeds 0, 1, 2): it forgets whole classes only",
        "measured/0ssd",
    ):
        assert part in text, part
    assert "unlearn, s" in text
    assert "reference" in text


def test_a_seed_that_failed_has_no_number_of_another(pages):
    whole = small()
    place = whole.leaves[1]
    row = re.search(
        rf'<tr id="{whole.anchors["ssd"]}-{place.numbers["accuracy/forget"]}".*?</tr>',
        pages[place.cell_page],
        re.DOTALL,
    )[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells[2] == "–"
    assert 'title="failed: out of memory"' in row
    assert cells[1] != "–" != cells[3]


def test_the_same_book_gives_the_same_bytes(pages):
    whole = small()
    assert gridpage.render(whole, gridpage.chosen(whole)) == pages["index.html"]


def test_hostile_values_are_text():
    whole = hostile()
    pages = gridpage.pages(whole)
    check(pages)
    assert set(pages) == {"index.html", "hostile.html", "cells/hostile.html"}
    for html in pages.values():
        assert "<script" not in html
        assert "\x1b" not in html
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
        assert not [a for _, attrs in Page(html).found for a in attrs if "script" in a]
    assert HOSTILE[:8] in Page(pages["index.html"]).text


def test_a_grid_of_which_nothing_is_finished_says_so():
    pages = check(gridpage.pages(book(empty("a, b, class 3"), empty("a, b, class 5"))))
    assert len(pages) == 3
    text = pages["index.html"].text
    assert "24 cells: 24 not run yet." in text
    assert "Nothing is measured here yet." in text
    assert "How far from retrained" not in text
    assert "originals and retrained models: everywhere" in text


def test_a_grid_without_places_is_a_page():
    assert "A grid" in alone(book()).text


def test_one_seed_and_one_place():
    page = alone(book(leaf("a, b, class 3", seeds=(4,))))
    assert "1 seed ranks nothing" in page.text
    assert "All places at once" not in page.text


def test_a_method_that_declined_everywhere_is_named_not_drawn():
    page = alone(book(leaf("a, b, c", missing={"ssd": Cell("declined", "no classes")})))
    assert "declined: no classes" in page.text
    assert "declined 3 no classes ssd: everywhere" in page.text


def test_a_task_without_accuracy():
    place = leaf("a, b, c")
    for section in (place.section, *place.runs.values()):
        section["metrics"] = [m for m in section["metrics"] if m["group"] not in ("accuracy", "membership", "probe")]
    assert "loss, forget set, nats" in alone(book(place)).text


def test_requests_one_after_another_are_curves_and_the_last_step_measured_is_shown():
    whole = stepwise(3)
    pages = check(gridpage.pages(whole))
    page = pages["index.html"]
    assert "While requests follow each other" in page.text
    assert "How far from retrained, after request 2 of 3" in page.text
    assert "After request 1 of 3" in page.text
    assert "After request 3 of 3" in page.text
    assert "after 1 after 2" in page.text
    assert page.text.count("The same as a table") == 3


def test_papers_may_speak_of_models_that_a_grid_lacks():
    place = small().leaves[0]
    place.published[0].values["scrub"] = {"accuracy/forget": [0.5]}
    assert "scrub accuracy, forget set 50.0% – –" in alone(book(place)).text


def test_methods_look_alike_on_all_pages_whether_they_ran_or_not():
    whole = book(leaf("a, b, c", missing={"finetune": Cell("missing", "not run yet")}), leaf("a, b, d"))
    look = gridpage.chosen(whole)
    assert [look[m].colour for m in METHODS] == [gridpage.chosen(small())[m].colour for m in METHODS]


def test_several_versions_are_a_warning():
    one, other = leaf("a, b, c"), leaf("a, b, d")
    other.versions["torch"] = "2.7.0"
    assert "The numbers were made with several versions of torch: 2.6.0, 2.7.0." in alone(book(one, other)).text


TUNED = {
    "chosen": {"alpha": 6.75},
    "value": 1.87,
    "default_value": 2.04,
    "trials": 50,
    "seeds": [100, 101],
    "on": [{"text": "digits, mlp, class 5"}],
}


def test_what_tuning_found_is_told_in_short():
    found = small()
    whole = book(*found.leaves[:1], tuned={"ssd": TUNED, "lfssd": {"method": {}}})
    text = alone(whole).text
    assert "ssd alpha = 6.75 1.87 2.04 50 100, 101 digits, mlp, class 5" in text
    assert "lfssd – – – – – –" in text
    assert "tuning.html" not in gridpage.pages(book(tuned={"ssd": TUNED}))  # it tells of no trial


def trial(number, alpha, value):
    return {
        "number": number,
        "state": "complete",
        "value": value,
        "chosen": {"alpha": alpha},
        "values": [value],
        "lengths": [{"accuracy/forget": value}],
        "seconds": 0.1,
        "why": "",
    }


def test_the_trials_of_tuning_are_a_page_that_the_index_leads_to():
    whole = TUNED | {
        "about": "Mean distance to retrained.",
        "best": 1,
        "budget": {"complete": 3, "pruned": 0, "refused": 0, "edits": 6, "seconds": 1.5},
        "compared": {
            "values": {"no_op": 9.0},
            "lengths": {"no_op": [{"accuracy/forget": 9.0}]},
            "scales": [{"accuracy/forget": 0.1}],
        },
        "default": {"alpha": 10.0},
        "expunge": "0.1.0",
        "fixed": {},
        "history": [trial(0, 10.0, 2.04), trial(1, 6.75, 1.87), trial(2, 3.0, 4.0)],
        "importance": {},
        "method": {"name": "ssd", "alpha": 6.75},
        "objective": "retrained",
        "space": {"alpha": {"low": 0.1, "high": 100.0, "log": True, "whole": False, "symbol": "α"}},
    }
    pages = check(gridpage.pages(book(empty("a, b, c"), tuned={"lfssd": TUNED, "ssd": whole})))
    assert "tuning.html#t1" in pages["index.html"].links
    assert "index.html#tuning" in pages["tuning.html"].links
    assert "alpha" in pages["tuning.html"].text


def test_thirty_methods_by_sixty_numbers_stay_small_enough_to_open():
    whole = large(30)
    html = gridpage.render(whole, gridpage.chosen(whole))
    assert len(html.encode()) < 1_500_000
    page = Page(html)
    assert page.open == []
    bands = [a for tag, a in page.found if tag == "table" and "heat all" in a.get("class", "")]
    assert len(bands) == 3
