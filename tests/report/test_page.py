import json
import re
import subprocess
import sys

import pytest

from audits import HOSTILE, few
from expunge import report
from expunge.errors import Incompatible, UserError
from expunge.report import distance, looks
from htmls import Page


def light(document):
    """Leave most charts out, which take most of the time."""
    for section in document["sections"]:
        section |= {"curves": {}, "changed": {}, "series": {}}


def test_the_page_is_well_formed_and_loads_nothing(html):
    page = Page(html)
    assert page.open == []
    for tag, attrs in page.found:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"}
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            if attrs.get(name):
                assert attrs[name].startswith(("#", "data:image/png;base64,")), (tag, attrs)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]{1,3})", html)) <= {"#s1", "#s2"}


def test_the_page_forbids_what_it_does_not_need(html):
    metas = [attrs for tag, attrs in Page(html).found if tag == "meta"]
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert any(m.get("name") == "viewport" for m in metas)


def test_hostile_values_are_text(html):
    assert "<script" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert not [a for _, attrs in Page(html).found for a in attrs if "script" in a]


def test_ids_are_unique_and_links_inside_the_page_lead_somewhere(html):
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.found if attrs.get("id")]
    assert len(set(ids)) == len(ids)
    links = {v[1:] for _, attrs in page.found for k, v in attrs.items() if k in {"href", "xlink:href"}}
    assert {link for link in links if link} <= set(ids)


def test_everything_in_the_document_shows(document, html):
    text = Page(html).text
    for part in (
        document["title"],
        document["lead"],
        "4 March 2025, 12:30 UTC",
        "torch 2.6.0",
        "expunge audit --project",
        "Every training sample of class 3 is forgotten.",
        "50,000",
        "10.0% of the training samples are forgotten",
        "something new",
        "it forgets whole classes only",
        "nothing was unlearned",
        "The threshold α lies above n/n_f for 3 of 62 tensors.",
        '["a",null]',
        "train/17",
        "How to read this",
        "Approximate unlearning gives no guarantee",
        "Fewer than 10 seeds stand behind class 3 and people",
    ):
        assert part in text, part


def test_gaps_are_coloured_and_numbered(html):
    cells = re.findall(r'<span class="gap d([0-4])">([^<]+)<i>([^<]+)</i>', html)
    assert {c for c, _, _ in cells} == set("01234")
    assert all(times.endswith("×") for _, _, times in cells)


def test_without_a_yardstick_the_legend_gives_way(document):
    document["sections"] = document["sections"][1:]
    light(document)
    html = report.render(document)
    assert "there is no yardstick" in html
    assert 'class="legend"' not in html


def test_sample_images_are_optional_and_must_be_embedded(document, html):
    assert html.count("<img") == 2
    document["sections"][1]["samples"][0]["image"] = "https://example.org/x.png"
    with pytest.raises(Incompatible, match=r"an image embedded as data:image/png;base64"):
        report.render(document)
    document["sections"][1]["samples"] = []
    light(document)
    assert "<img" not in report.render(document)


def test_the_least_document_renders(document):
    section = document["sections"][0]
    section["models"] = [m for m in section["models"] if m["role"] in {"original", "retrained"}]
    names = {m["name"] for m in section["models"]}
    for part in ("values", "gaps"):
        section[part] = {k: v for k, v in section[part].items() if k in names}
    for key in ("curves", "changed", "samples", "target"):
        del section[key]
    for model in section["models"]:
        model.pop("notes"), model.pop("settings"), model.pop("declined")
    section |= {"floor": {}, "seeds": 12}
    document |= {"sections": [section], "command": None, "created": "not a date"}
    html = report.render(document)
    assert "not a date" in html
    assert "seeds stand behind" not in html


def test_other_pages_are_linked_above_the_title_and_models_look_as_they_do_there(document):
    light(document)
    document["sections"] = document["sections"][:1]
    look = looks.looks([{"models": [{"name": "lfssd", "role": "method"}]}, *document["sections"]])
    html = report.render(document, look=look, links=[("← All <of> them", "index.html#p1")])
    assert '<a href="index.html#p1">← All &lt;of&gt; them</a>' in html.partition("<h1>")[0]
    symbols = [m for m in re.findall(r'<symbol id="look(\d+)" .*?</symbol>', html)]
    assert len(symbols) == len(look)
    assert list(look)[0] == "lfssd"
    assert "<nav" not in report.render(document)


def test_every_model_has_a_place_in_the_page(html):
    ids = [attrs["id"] for _, attrs in Page(html).found if re.fullmatch(r"s1-m\d+", attrs.get("id", ""))]
    assert ids == [f"s1-m{i}" for i in range(1, 10)]


def test_the_same_document_gives_the_same_bytes(document, html):
    assert html == report.render(json.loads(json.dumps(document)))


def test_a_report_is_not_overwritten_unasked(tmp_path, document):
    light(document)
    path = tmp_path / "report.html"
    report.write(path, document)
    first = path.read_bytes()
    assert first.startswith(b"<!doctype html>")
    with pytest.raises(UserError, match="an existing file or folder"):
        report.write(path, document | {"title": "other"})
    assert path.read_bytes() == first
    report.write(path, document | {"title": "other"}, overwrite=True)
    assert b"<h1>other</h1>" in path.read_bytes()


def test_half_surrogates_can_be_written(tmp_path, document):
    light(document)
    report.write(tmp_path / "r.html", document | {"title": "a\ud800b"})
    assert re.search("<h1>a.?b</h1>", (tmp_path / "r.html").read_text(encoding="utf-8"))


def test_torch_is_not_imported():
    code = "import sys, expunge.report; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_of_seventy_numbers_is_small_and_folded(wide_html):
    assert len(wide_html.encode()) < 800_000
    page = Page(wide_html)
    assert page.open == []
    assert len([1 for tag, _ in page.found if tag == "details"]) >= 15
    assert not [attrs for tag, attrs in page.found if tag == "details" and "open" in attrs]
    for tag, attrs in page.found:
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_a_wide_page_says_everything(wide, wide_html):
    text = Page(wide_html).text
    for part in (
        *(m["label"] for m in wide["sections"][0]["metrics"] if m["group"] in ("paired", "relearn", "canaries", "tow")),
        *wide["sections"][0]["caveats"],
        "Before you read the numbers",
        "One training seed: intervals are over samples",
        "met, unsure Bound met: it is.",
        "missed Bound missed: no.",
        "The numbers that tell most",
        "beyond yardstick",
        "told apart",
        "ideal 50%",
        "Divergence 3 numbers; farthest from retrained: finetune, JS divergence from retrained, forget set",
        "suppresses outputs; the weights still hold the samples",
        "Exact: the forgotten samples had no part in training these weights.",
        "Not in the tables: broken (its outputs on forget hold NaN), unsir (it forgets whole classes only).",
        "TPR at 0.1 % FPR: a false-positive rate of 0.001 needs 1000 unseen samples, there are 59",
        "More attacks 3 further curves",
        "Relearning the forgotten",
        "Who paid most: class 8",
        "By class: accuracy of 9 groups, as numbers",
        "Over-forgetting is a finding, not a success.",
    ):
        assert part in text, part


def test_the_second_retrained_model_shows_the_false_alarms(wide, wide_html):
    section = wide["sections"][0]
    floor = next(m for m in section["models"] if m["role"] == "floor")
    found = distance.told(section, floor)
    assert f"<td>{found.beyond} of {found.measured}</td>" in wide_html
    assert f"<td>{found.sure} of {found.tested}</td>" in wide_html


def test_without_a_retrained_model_nothing_is_compared(wide):
    section = few(wide, "original", "ssd")
    section |= {"gaps": {}, "floor": {}}
    light(wide)
    text = Page(report.render(wide)).text
    assert "No model was retrained, so that nothing is compared." in text
    for part in ("How far from retrained", "beyond yardstick", "farthest from retrained", "yardstick: "):
        assert part not in text.partition("How to read this")[0]


def test_a_page_says_nothing_of_what_it_has_not(wide):
    section = few(wide)
    for key in ("bounds", "caveats", "series", "curves", "changed"):
        del section[key]
    section["seeds"] = 12
    section["models"] = [m for m in section["models"] if not m["flaw"]]
    html = report.render(wide)
    for part in ("Bounds that were set", "What attackers find", "Below the output", "Who paid", "What was changed"):
        assert part not in html
    assert "Only one model was retrained" not in html  # its floor is known


@pytest.mark.parametrize("where", ["caveat", "bound", "place", "flaw", "nature", "series"])
def test_hostile_texts_of_schema_2_stay_text(wide, where):
    section = few(wide)
    section["curves"] = {}
    model = next(m for m in section["models"] if m["name"] == "ssd")
    if where == "caveat":
        section["caveats"] = [HOSTILE]
    elif where == "bound":
        section["bounds"][0]["text"] = HOSTILE
    elif where == "place":
        section["series"]["ssd"]["robustness/change"][1]["at"] = HOSTILE
    elif where == "series":
        section["series"]["ssd"][f"subgroups/{HOSTILE}"] = section["series"]["ssd"]["subgroups/label"]
    else:
        model[where] = HOSTILE
    html = report.render(wide)
    assert "<script" not in html
    assert "\x1b" not in html
    assert "alert(" in html
