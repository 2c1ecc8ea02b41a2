"""What the report says in words."""

import re

import pytest

from expunge.report.findings import caveats, gathers, nature, paid, sentences

RANKING = re.compile(r"\b(best|better|wins?|winner|worst|worse|beats?|outperforms?|superior|leads?|ranked)\b", re.I)


def said(section, model):
    return next(s for s in sentences(section) if s.model == model)


def test_every_method_and_control_has_one_sentence(document):
    section = document["sections"][0]
    assert [s.model for s in sentences(section)] == [
        "", "finetune", "ssd", "lfssd", "unsir", "no_op", "head_mask", "",
    ]  # fmt: skip


def test_a_declined_method_says_why(document):
    assert said(document["sections"][0], "unsir").text == "declined this task: it forgets whole classes only."


def test_a_method_without_numbers_says_so(document):
    section = document["sections"][0]
    section["gaps"]["ssd"] = {}
    section["values"]["ssd"] = {"accuracy/forget": {"unavailable": "no labels."}}
    assert said(section, "ssd").text == "no distance to retrained could be measured (no labels)."


def test_other_tasks_tell_what_they_have(document):
    section = document["sections"][0]
    for model in section["gaps"]:
        section["gaps"][model] = {k: v for k, v in section["gaps"][model].items() if k.startswith(("loss/", "odd/"))}
    text = said(section, "ssd").text
    assert text.startswith(
        "1.590 nats from retrained in loss, forget set, 0.128 in loss, test set and 0.500 widgets in"
    )


@pytest.mark.parametrize("seeds", [1, 5, 9, 10, 30])
def test_few_seeds_rank_nothing_and_no_number_ranks_in_words(document, seeds):
    section = document["sections"][0] | {"seeds": seeds}
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.5}
    texts = [str(s) for s in sentences(section)]
    assert (texts[-1].split(":")[0] == f"{seeds} seed{'s' * (seeds > 1)} rank{'s' * (seeds == 1)} nothing") == (
        seeds < 10
    )
    assert not [t for t in texts if RANKING.search(t)]


def test_a_sentence_names_the_distance_and_the_first_the_floor(document):
    section = document["sections"][0]
    assert str(sentences(section)[0]) == (
        "Two retrained models differ by 0.0 points on the forgotten samples, 0.3 on the test set, 0.1 on the retained "
        "samples and 0.9 in the AUC of the loss attack."
    )
    assert str(said(section, "ssd")) == (
        "ssd (approximate edit): 0.3 points from retrained on the forgotten samples, 1.0 on the test set, 0.7 on the "
        "retained samples and 2.3 in the AUC of the loss attack. On 12 of 12 quantities it is farther from "
        "retrained than the yardstick, most in loss, forget set (14×)."
    )


def test_a_missing_floor_is_not_passed_over(document):
    assert "How far two retrained models differ was not measured." in map(str, sentences(document["sections"][1]))
    section = document["sections"][0]
    del section["floor"]["accuracy/test"], section["floor"]["accuracy/retain"]
    text = str(sentences(section)[0])
    assert text.endswith("differ by 0.0 points on the forgotten samples and 0.9 in the AUC of the loss attack.")


def test_every_model_is_said_to_be_what_it_is(wide):
    models = {m["name"]: nature(m) for m in wide["sections"][0]["models"]}
    assert models["ssd"] == "approximate edit"
    assert models["sisa"] == "exact: trained without the forgotten samples"
    assert models["filter"] == models["head_mask"] == "suppresses outputs; the weights still hold the samples"
    assert models["no_op"] == "nothing was removed"
    assert models["retrained"] == ""


def test_of_a_flawed_model_nothing_is_said(wide):
    assert said(wide["sections"][0], "broken").text == "nothing can be said of it: its outputs on forget hold NaN."


def test_a_control_counts_what_tells_it_and_the_false_alarms(document):
    text = said(document["sections"][0], "no_op").text
    assert text.startswith("a control that must look bad on something. On 10 of 12 quantities it is farther")
    assert "than the yardstick (the floor, else half the interval), farthest in " in text
    assert "; one more retrained model may be on half." in text
    assert re.search(r"Corrected for 12 tests, it is told from retrained on \d+; a second .* is on 0 of 12\.$", text)


def test_a_control_that_looks_like_retrained_is_reported(document):
    section = document["sections"][0]
    for gap in section["gaps"]["no_op"].values():
        gap["x"] = 0.0
    assert "On none of 12 quantities is it farther" in said(section, "no_op").text
    assert said(section, "no_op").text.endswith("these numbers cannot tell it from removal.")


def test_a_control_told_no_more_than_a_second_retrained_model_is_reported(document):
    section = document["sections"][0]
    section["gaps"]["head_mask"] = {k: dict(v) for k, v in section["gaps"]["retrained (other seed)"].items()}
    far = {"x": 0.5, "low": 0.49, "high": 0.51, "n": 5, "unit": "1"}
    for model in ("head_mask", "retrained (other seed)"):
        section["gaps"][model]["accuracy/test"] = dict(far)
    text = said(section, "head_mask").text
    assert "On 2 of 12 quantities" in text
    assert text.endswith("no more than a retrained model may show: these numbers cannot tell it from removal.")


def test_a_control_beyond_on_less_than_half_and_told_by_no_test_is_reported(document):
    section = document["sections"][0]
    for i, gap in enumerate(section["gaps"]["no_op"].values()):
        gap |= {"x": 0.3, "low": -0.9, "high": 1.5, "distance": 0.3} if i < 5 else {"x": 0.0, "distance": 0.0}
    text = said(section, "no_op").text
    assert re.search(r"On [1-6] of 12 quantities", text)
    assert "it is told from retrained on 0;" in text
    assert text.endswith("no more than a retrained model may show: these numbers cannot tell it from removal.")


def test_a_control_that_tests_tell_is_not_excused(document):
    section = document["sections"][0]
    for i, gap in enumerate(section["gaps"]["no_op"].values()):
        if i:
            gap |= {"x": 0.0, "distance": 0.0}
    text = said(section, "no_op").text
    assert re.search(r"On 1 of 12 quantities.*told from retrained on 1;", text)
    assert "cannot tell it" not in text


def test_over_forgetting_is_said_with_the_attack_that_shows_it_most(wide):
    section = wide["sections"][0]
    text = said(section, "amnesiac").text
    assert "This is over-forgetting: the forgotten samples look less like members than unseen ones (" in text
    assert "AUC, forgotten canaries against unseen ones 13.9 ± 6.7%, and 5 other attacks)" in text
    assert "itself a trace" in text
    others = [said(section, m).text for m in ("finetune", "ssd", "sisa", "filter")]
    assert not [t for t in others if "over-forgetting" in t]


def test_fewer_right_than_retrained_is_over_forgetting(document):
    section = document["sections"][0]
    section["floor"]["accuracy/forget"] |= {"x": 0.009}
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.02}
    assert "it gets fewer of the forgotten samples right than a model that never saw" in said(section, "ssd").text
    section["gaps"]["ssd"]["accuracy/forget"] |= {"x": -0.005}
    assert "over-forgetting" not in said(section, "ssd").text


def test_who_paid_most_is_named_with_how_many_were_looked_at(wide):
    section = wide["sections"][0]
    point = next(p for p in section["series"]["ssd"]["subgroups/label"] if p["at"] == 8)
    point |= {"x": -0.081, "low": -0.111, "high": -0.051}
    base = next(p for p in section["series"]["retrained"]["subgroups/label"] if p["at"] == 8)
    base |= {"x": -0.004, "low": -0.03, "high": 0.02}
    assert paid(section, "ssd") == (
        "Who paid most: class 8, −8.1 points of accuracy (−11.1 to −5.1; retrained −0.4), of 9 groups looked at."
    )
    assert paid(section, "ssd") in said(section, "ssd").text
    point |= {"high": -0.001, "low": -0.161}
    assert paid(section, "ssd").endswith("of 9 groups looked at; of so many, one may look so by chance.")
    point |= {"high": 0.001}
    assert "class 8" not in paid(section, "ssd")


def test_a_gain_or_a_loss_without_interval_is_no_payment(wide):
    section = wide["sections"][0]
    section["series"]["ssd"] = {
        "subgroups/site": [
            {"at": "a", "x": 0.2, "low": 0.1, "high": 0.3, "n": 40, "unit": "1"},
            {"at": "b", "x": -0.2, "low": None, "high": None, "n": 1, "unit": "1"},
            {"at": "c", "unavailable": "fewer than 10 samples: 3"},
        ],
        "subgroups/site/accuracy": [{"at": "a", "x": -0.9, "low": -1, "high": -0.8, "n": 40, "unit": "1"}],
    }
    assert paid(section, "ssd") == ""


def test_caveats_come_from_the_document_and_from_what_it_lacks(wide):
    section = wide["sections"][0]
    found = caveats(section)
    assert found[0] == "Nothing is said of broken: its outputs on forget hold NaN."
    assert found[1].startswith("4 of 103 forget samples stand in the retain set too")
    assert found[2].startswith("One training seed: intervals are over samples")
    assert found[3].startswith("The forget set has 103 samples: the attacks' AUCs are known to ±9.7 points only")
    assert len(found) == 4


def test_an_interval_over_seeds_is_not_blamed_on_the_number_of_samples(wide):
    found = caveats(wide["sections"][0] | {"seeds": 5})
    assert found[-1].startswith("Over 5 seeds: the attacks' AUCs are known to ±9.7 points only (median)")
    assert not any("103 samples" in c for c in found)


def test_a_flaw_is_said_once(wide):
    section = wide["sections"][0]
    section["caveats"] = ["Nothing is said of broken: its outputs on forget hold NaN."]
    assert sum("broken" in c for c in caveats(section)) == 1
    section["caveats"] = ["On 1 of 5 seeds: Nothing is said of broken: its outputs on forget hold NaN."]
    assert sum("broken" in c for c in caveats(section)) == 1


def test_a_missing_floor_or_reference_is_a_caveat(wide):
    section = wide["sections"][0] | {"floor": {}}
    assert any(c.startswith("Only one model was retrained, so there is no floor") for c in caveats(section))
    section["models"] = [m for m in section["models"] if m["role"] not in ("retrained", "floor")]
    assert any(c.startswith("No model was retrained without the forgotten samples") for c in caveats(section))
    assert not any("no floor" in c for c in caveats(section))


def test_auc_known_well_or_not_measured_is_no_caveat(wide):
    section = wide["sections"][0] | {"seeds": 10}
    for values in section["values"].values():
        for name in [n for n in values if n.endswith("/auc") or n == "canaries/forgotten"]:
            if "x" in values[name]:
                values[name] |= {"low": values[name]["x"] - 0.04, "high": values[name]["x"] + 0.04}
    assert not any("AUC" in c for c in caveats(section))
    for values in section["values"].values():
        for name in [n for n in values if n.endswith("/auc") or n == "canaries/forgotten"]:
            if "x" in values[name]:
                values[name] |= {"low": None, "high": None, "n": 1}
    assert any("too few to know an attack's AUC to ±5 points: that takes about 260" in c for c in caveats(section))
    for values in section["values"].values():
        for name in [n for n in values if n.endswith("/auc") or n == "canaries/forgotten"]:
            values[name] = {"unavailable": "no unseen sample"}
    assert not any("AUC" in c for c in caveats(section))


@pytest.mark.parametrize("seeds", [1, 5])
def test_nothing_in_words_ranks(wide, seeds):
    section = wide["sections"][0] | {"seeds": seeds}
    assert not [s for s in [*map(str, sentences(section)), *caveats(section)] if RANKING.search(s)]


def gather(section, **shares):
    """Let these models send this share of a forgotten class's unseen samples to one other class."""
    for model, x in shares.items():
        point = {"x": x, "low": x - 0.05, "high": min(1.0, x + 0.05), "n": 100, "unit": "1"}
        section["values"][model]["predictions/one_class"] = point
    return section


def test_a_class_that_goes_to_one_other_class_is_told_where_retrained_spreads_it(document):
    section = gather(document["sections"][0], ssd=0.98, retrained=0.41, finetune=0.5, lfssd=0.95)
    assert gathers(section, "ssd").startswith("Of the forgotten class's unseen samples 98.0")
    assert "under retrained 41.0" in gathers(section, "ssd")
    assert gathers(section, "finetune") == gathers(section, "retrained") == gathers(section, "no_op") == ""
    assert gathers(gather(section, retrained=0.9), "lfssd") == ""  # two classes look alike: retrained does the same
    assert "go to one other class" in said(gather(section, retrained=0.41), "ssd").text


def poisoning(section, **settings):
    for model in section["models"]:
        if model["name"] in settings:
            model["settings"] = {"name": "concept_poisoning", **settings[model["name"]]}
    return [c for c in caveats(section) if "changes labels alone" in c]


def test_poisoning_by_concepts_without_its_row_of_labels_alone_is_a_caveat(document):
    section = document["sections"][0]
    patched, flipped = {"mode": "localized", "labels": "targeted"}, {"mode": "none", "labels": "targeted"}
    assert poisoning(section) == []
    (alone,) = poisoning(section, ssd=patched)
    assert alone.startswith('ssd stands without a row that changes labels alone (mode = "none"): what the concepts add')
    (both,) = poisoning(section, ssd=patched, lfssd=patched)
    assert both.startswith("ssd and lfssd stand without")
    assert poisoning(section, ssd=patched, lfssd=flipped) == []
    assert poisoning(section, ssd=patched, lfssd={"mode": "none", "labels": "random"}) != []
    assert poisoning(section, ssd=flipped, lfssd=flipped) == []
