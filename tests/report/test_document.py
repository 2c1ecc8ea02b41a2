import copy
import math

import pytest

from expunge.errors import Incompatible
from expunge.report import render
from expunge.report.document import series, validate


@pytest.mark.parametrize("kind", ["document", "wide"])
def test_a_whole_document_passes_and_is_left_as_it_is(request, kind):
    document = request.getfixturevalue(kind)
    before = copy.deepcopy(document)
    assert validate(document) is None
    assert document == before


@pytest.mark.parametrize(
    ("schema", "remedy"),
    [(1, "make the document again with this version of expunge"), (3, "update expunge"), (None, "make the document")],
)
def test_another_schema_is_refused_in_one_sentence(document, schema, remedy):
    document["schema"] = schema
    with pytest.raises(Incompatible, match=rf"^Expected an audit document of schema 2, got {schema}: {remedy}[^.]*\.$"):
        validate(document)


@pytest.mark.parametrize("key", ["title", "lead", "created", "versions", "sections"])
def test_a_missing_key_is_named(document, key):
    del document[key]
    message = rf"^Expected the key '{key}' in the document, got only .*: make the document again with this version"
    with pytest.raises(Incompatible, match=message):
        validate(document)


@pytest.mark.parametrize(
    "key", ["name", "kind", "text", "counts", "seeds", "models", "metrics", "values", "gaps", "floor"]
)
def test_a_missing_key_of_a_section_is_named(document, key):
    del document["sections"][1][key]
    with pytest.raises(Incompatible, match=f"the key '{key}' in section 2"):
        validate(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, _: d.update(kind="expunge.state"), "a document of kind 'expunge.audit', got 'expunge.state'"),
        (lambda d, _: d.update(sections=[]), "at least one section"),
        (lambda _, s: s.update(seeds="5"), "'seeds' in section 1 as int, got str"),
        (lambda _, s: s["models"][0].update(role="control group"), "a known role .* did you mean 'control'"),
        (lambda _, s: s["models"].append(s["models"][0]), "unique names of models"),
        (lambda _, s: s["values"].update(stray={}), "only a listed model, got stray"),
        (lambda _, s: s["gaps"]["ssd"].update(stray={"x": 1}), "only a listed metric, got stray"),
        (lambda _, s: s["values"]["ssd"].update({"odd/new": {"y": 1}}), "a number x or a reason for odd/new"),
        (lambda _, s: s["values"]["ssd"]["odd/new"].update(high=math.inf), "finite numbers for odd/new"),
        (lambda _, s: s["curves"]["roc"]["loss"]["ssd"]["fpr"].pop(), "as many numbers in curve loss/ssd/rates"),
        (lambda _, s: s["curves"]["loss"]["edges"].pop(), "as many numbers in curve loss/original/forget"),
        (lambda _, s: s["changed"].update(stray={}), "in changed of section 1 only a listed model, got stray"),
    ],
)
def test_what_cannot_be_shown_is_refused(document, change, message):
    change(document, document["sections"][0])
    with pytest.raises(Incompatible, match=message):
        validate(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["metrics"][0].pop("target"), "the key 'target' in a metric of section 1"),
        (
            lambda s: s["metrics"][0].update(target="0"),
            "'target' in a metric of section 1 as a number or null, got str",
        ),
        (lambda s: s["models"][0].pop("nature"), "the key 'nature' in a model of section 1"),
        (lambda s: s["models"][0].update(flaw=None), "'flaw' in a model of section 1 as str, got NoneType"),
        (lambda s: s.update(series={"stray": {}}), "in series of section 1 only a listed model, got stray"),
        (lambda s: s["series"]["ssd"].update(a={}), "series a of 'ssd' in section 1 as list, got dict"),
        (lambda s: s["series"]["ssd"]["probe/shots"][0].pop("at"), "the key 'at' in series probe/shots of 'ssd'"),
        (lambda s: s["series"]["ssd"]["probe/shots"][1].pop("x"), "a number x or a reason for 2 in series probe/shots"),
        (lambda s: s["series"]["ssd"]["probe/shots"][1].update(low=math.nan), "finite numbers for 2 in series probe"),
        (lambda s: s.update(caveats=[3]), "caveats of section 1 as sentences, got int"),
        (lambda s: s["bounds"][0].pop("met"), "the key 'met' in a bound of section 1"),
        (lambda s: s["bounds"][0].update(x="1"), "'x' in a bound of section 1 as a number or null, got str"),
    ],
)
def test_what_schema_2_brought_is_checked(wide, change, message):
    change(wide["sections"][0])
    with pytest.raises(Incompatible, match=message):
        validate(wide)


def test_series_caveats_and_bounds_may_be_left_out(wide):
    section = wide["sections"][0]
    for key in ("series", "caveats", "bounds"):
        del section[key]
    validate(wide)
    assert section["name"] in render(wide)


def test_a_series_is_read_in_the_order_of_the_tables_without_what_is_unavailable(wide):
    section = wide["sections"][0]
    found = series(section, "subgroups/label")
    assert list(found)[:4] == ["original", "retrained", "retrained (other seed)", "head_mask"]
    assert [p["at"] for p in found["ssd"]] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    section["series"]["ssd"]["subgroups/label"] = [{"at": 1, "unavailable": "too few"}]
    assert "ssd" not in series(section, "subgroups/label")
