import copy
import math

import pytest

from expunge.errors import Incompatible
from expunge.report.document import validate


def test_a_whole_document_passes_and_is_left_as_it_is(document):
    before = copy.deepcopy(document)
    assert validate(document) is None
    assert document == before


@pytest.mark.parametrize("key", ["title", "lead", "created", "versions", "sections"])
def test_a_missing_key_is_named(document, key):
    del document[key]
    message = rf"^Expected the key '{key}' in the document, got only .*: write the document again with this version"
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
        (lambda d, _: d.update(schema=2), "schema 1 or older, got 2: update expunge"),
        (lambda d, _: d.update(sections=[]), "at least one section"),
        (lambda _, s: s.update(seeds="5"), "'seeds' in section 1 as int, got str"),
        (lambda _, s: s["models"][0].update(role="control group"), "a known role .* did you mean 'control'"),
        (lambda _, s: s["models"].append(s["models"][0]), "unique names of models"),
        (lambda _, s: s["values"].update(stray={}), "only a listed model, got stray"),
        (lambda _, s: s["gaps"]["ssd"].update(stray={"x": 1}), "only a listed metric, got stray"),
        (lambda _, s: s["values"]["ssd"].update({"odd/new": {"y": 1}}), "a number x or a reason for odd/new"),
        (lambda _, s: s["values"]["ssd"]["odd/new"].update(high=math.inf), "finite numbers for odd/new"),
        (lambda _, s: s["curves"]["roc"]["ssd"]["fpr"].pop(), "as many numbers in curve roc/ssd/rates"),
        (lambda _, s: s["curves"]["loss"]["edges"].pop(), "as many numbers in curve loss/original/forget"),
        (lambda _, s: s["changed"].update(stray={}), "in changed of section 1 only a listed model, got stray"),
    ],
)
def test_what_cannot_be_shown_is_refused(document, change, message):
    change(document, document["sections"][0])
    with pytest.raises(Incompatible, match=message):
        validate(document)
