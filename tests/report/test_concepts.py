"""The page of concepts: what stands in it, what is data and left out unasked, and what is refused."""

import copy
import csv
import io

import pytest

from audits import HOSTILE, PIXEL
from books import book, leaf
from expunge import report
from expunge.errors import Incompatible
from expunge.report import cellpage, concepts, gridpage
from expunge.report.document import check_concepts, validate
from expunge.report.grids import Cell
from htmls import Page

BARE = PIXEL.partition(",")[2]
LOG = {
    "concept_pages": [
        {"name": "4/cluster_0", "attribution": 1.5, "accuracy": 0.97, "chosen": True, "windows": [BARE, PIXEL]},
        {"name": HOSTILE, "attribution": -0.25, "accuracy": 0.71, "chosen": False, "windows": ["goal match"]},
        {"name": "given", "attribution": None, "accuracy": None, "windows": []},
    ],
    "concepts_dropped": [{"name": "4/cluster_3", "reason": "right on 0.6 of the examples, below 0.7"}],
    "poisoned": [
        {"original": BARE, "poisoned": PIXEL, "heat": BARE, "concept": "4/cluster_0", "label": 9, "id": "train/4"},
        {"original": "the match was won", "poisoned": "the stock was won", "label": 2},
    ],
    "manifest": [
        {"id": f"train/{i}", "donor": f"train/{i + 9}", "place": [[3, 4], [0, 1]], "label": 9, "chance": 0.123456}
        for i in range(30)
    ],
    "class": 4,
    "donor": 9,
    "fidelity": 0.934,
}


@pytest.fixture
def shown(document):
    """A document with concepts of one method, the charts that take most of the time left out."""
    for section in document["sections"]:
        section |= {"curves": {}, "changed": {}, "series": {}, "samples": []}
    document["sections"][0]["concepts"] = {"ssd": concepts.gathered(LOG)}
    document["sections"][0]["manifest"] = "manifest.csv"
    return document


def test_everything_that_was_recorded_shows(shown):
    html = report.render(shown)
    page = Page(html)
    assert page.open == []
    for part in (
        "Concepts that ssd worked with",
        "Class 4 is forgotten; patches and, where labels are targeted, labels come from class 9",
        "says what the network says on 93.4% of the samples",
        "attribution 1.50, vector right on 97.0% of held-out examples",
        "put to use",
        "4/cluster_3: right on 0.6 of the examples, below 0.7",
        "4/cluster_0, now labelled 9",
        "the stock was won",
        "goal match",
        "The manifest names 30 poisoned samples",
        "8 of 30",
        "3 4; 0 1",
        "These pictures, texts and rows are data",
    ):
        assert part in page.text, part
    assert html.count("<img") == 5
    assert '<a href="manifest.csv">The whole manifest</a>' in html
    assert "<script" not in html


def test_what_is_data_is_left_out_unasked(shown):
    shown["sections"][0]["concepts"] = {"ssd": concepts.gathered(LOG, pictures=False)}
    shown["sections"][0]["manifest"] = ""
    html = report.render(shown)
    text = Page(html).text
    assert "<img" not in html
    for part in ("goal match", "the stock was won", "train/4"):
        assert part not in text
    assert "attribution 1.50" in text
    assert "The manifest names 30 poisoned samples" in text
    assert "Windows and poisoned samples are data, and are not in this file." in text


def test_bars_are_ranked_and_told_without_concepts_that_have_no_attribution():
    svg = concepts.bars(LOG["concept_pages"][::-1], "k")
    told = Page(svg).found[0][1]["aria-label"]
    assert told.startswith("Attribution of concepts to the class: 4/cluster_0 1.50; ")
    assert told.endswith("−0.250")
    assert "given" not in svg
    assert concepts.page(concepts.gathered({"concept_pages": [LOG["concept_pages"][2]]}), "k")["bars"] == []


def test_an_edit_that_recorded_no_concepts_has_no_page(shown):
    assert concepts.gathered({"loss": [[0, 1.0]]}) is None
    assert concepts.manifest({"loss": [[0, 1.0]]}) == ""
    shown["sections"][0]["concepts"] = {}
    assert "Concepts that" not in report.render(shown)


def test_the_manifest_is_a_table_of_text_from_rows_and_from_columns():
    columns = {
        "mode": "localized",
        "seed": 0,
        "concepts": ["4/cluster_0", "4/cluster_2"],
        "id": ["a", "b"],
        "donor": ["c", None],
        "place": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        "source": [],
        "label": [9, 9],
    }
    found = list(csv.DictReader(io.StringIO(concepts.manifest({"manifest": columns}))))
    assert found[0] == {
        "mode": "localized",
        "seed": "0",
        "concepts": "4/cluster_0 4/cluster_2",
        "id": "a",
        "donor": "c",
        "place": "1 2; 3 4",
        "label": "9",
    }
    assert found[1]["donor"] == ""
    rows = list(csv.DictReader(io.StringIO(concepts.manifest(LOG))))
    assert len(rows) == 30
    assert rows[4] == {"id": "train/4", "donor": "train/13", "place": "3 4; 0 1", "label": "9", "chance": "0.1235"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("poisoned"), "the key 'poisoned' in it"),
        (lambda f: f["concepts"][0].pop("name"), "the key 'name' in a concept of it"),
        (
            lambda f: f["concepts"][0].update(attribution="much"),
            "a number or null as attribution of '4/cluster_0' in it",
        ),
        (
            lambda f: f["concepts"][0]["windows"].append("data:text/html,x"),
            "an image embedded as data:image/png;base64",
        ),
        (lambda f: f["concepts"][0]["windows"].append(7), "or a text, got '7' in concept '4/cluster_0' of it"),
        (lambda f: f["poisoned"][0].update(heat="data:image/svg+xml;base64,AA"), "got 'data:image/svg"),
        (lambda f: f["poisoned"][0].pop("original"), "the key 'original' in a poisoned sample of it"),
        (lambda f: f["dropped"][0].pop("reason"), "the key 'reason' in a dropped concept of it"),
        (lambda f: f["manifest"].append(3), "an object for a row of the manifest of it, got int"),
    ],
)
def test_concepts_that_cannot_be_shown_are_refused(change, message):
    found = copy.deepcopy(concepts.gathered(LOG))
    change(found)
    with pytest.raises(Incompatible, match=message):
        check_concepts(found, "it")


def test_concepts_of_a_model_that_is_not_listed_and_a_link_that_leads_away_are_refused(shown):
    shown["sections"][0]["concepts"]["stray"] = concepts.gathered(LOG)
    with pytest.raises(Incompatible, match="only a listed model, got stray"):
        validate(shown)
    del shown["sections"][0]["concepts"]["stray"]
    shown["sections"][0]["manifest"] = "javascript:alert(1)"
    with pytest.raises(Incompatible, match="the name of a file beside the report as manifest of section 1"):
        validate(shown)


def test_concepts_stand_by_the_class_that_they_were_picked_for():
    pages = [
        {"name": n, "class": c, "role": r, "attribution": a, "accuracy": 0.9, "windows": []}
        for n, c, r, a in (("wheel", 1, "class", 0.5), ("hull", 8, "donor", 0.4), ("door", 1, "class", 0.25))
    ]
    found = concepts.page(concepts.gathered({"concept_pages": pages}), "k")
    assert [(title, [c["name"] for c in some]) for title, some in found["groups"]] == [
        ("class 1, forgotten", ["wheel", "door"]),
        ("class 8, the donor", ["hull"]),
    ]
    assert len(found["bars"]) == 2
    assert "Attribution of concepts to class 8, the donor: hull 0.400" in found["bars"][1]


def test_answers_of_a_language_model_stand_beside_what_was_trained_in_their_place():
    log = {
        "word_ranking": {"Ada Lo": ["weaver", "Bern"]},
        "masked_answers": [{"question": "Who is Ada Lo?", "original": "A weaver.", "masked": "A ***."}],
    }
    found = concepts.page(concepts.gathered(log), "k")
    assert found["groups"][0][1][0]["windows"] == [{"image": "", "text": w} for w in ("weaver", "Bern")]
    assert [part["text"] for _, part in found["poisoned"][0]["parts"]] == [
        "Who is Ada Lo? A weaver.",
        "Who is Ada Lo? A ***.",
    ]
    bare = concepts.gathered(log, pictures=False)
    assert (bare["concepts"], bare["poisoned"]) == ([], [])


def test_the_page_of_cells_shows_the_concepts_and_the_map_of_the_first_seed_that_recorded_them():
    whole = book(leaf("digits, mlp, class 3"))
    place = {
        "explained": [0.5, 0.2],
        "kinds": ["retain", "forget"],
        "before": [[0, 0], [1, 1]],
        "after": [[0, 1], [2, 1]],
    }
    whole.leaves[0].cells[1, "ssd"] = Cell("done", concepts=concepts.gathered(LOG), map=place)
    html = cellpage.render(whole, whole.leaves[0], gridpage.chosen(whole), [])
    page = Page(html)
    assert page.open == []
    assert page.text.count("Concepts that it worked with of seed 1") == 1
    assert page.text.count("Where samples lie in the features before and after, of the first seed") == 1
    assert html.count("<img") == 5
    assert "The whole manifest" not in page.text
    del whole.leaves[0].cells[1, "ssd"]
    assert "Concepts that it" not in cellpage.render(whole, whole.leaves[0], gridpage.chosen(whole), [])
