from expunge.report import layout


def names(metrics):
    return [m["name"] for m in metrics]


def test_the_numbers_that_tell_most_are_those_that_were_measured(wide):
    section = wide["sections"][0]
    assert names(layout.key(section)) == [
        "accuracy/forget", "accuracy/test_retain", "paired/gap", "membership/loss/auc", "probe/one_shot",
        "relearn/steps", "canaries/forgotten", "cost/seconds",
    ]  # fmt: skip
    for values in section["values"].values():
        for name in ("accuracy/test_retain", "probe/one_shot", "canaries/forgotten", "paired/gap"):
            values[name] = {"unavailable": "not of this kind"}
    found = names(layout.key(section))
    assert found[1:3] == ["accuracy/test", "paired/shift"]
    assert "probe/membership" in found
    assert "canaries/forgotten" not in found


def test_a_number_that_a_method_has_comes_before_one_that_only_others_have(wide):
    section = wide["sections"][0]
    for name in [m["name"] for m in section["models"] if m["role"] == "method"]:
        section["values"].get(name, {})["probe/one_shot"] = {"unavailable": "no"}
    assert "probe/membership" in names(layout.key(section))


def test_every_measured_number_stands_in_one_table_and_the_others_with_their_reason(wide):
    section = wide["sections"][0]
    shown = [n for block in layout.blocks(section) for n in names(block.metrics)]
    assert sorted(shown) == sorted(names(layout.measured(section)))
    assert len(set(shown)) == len(shown)
    assert len(shown) == 64
    few = "a false-positive rate of 0.001 needs 1000 unseen samples, there are 59"
    assert len(layout.unmeasured(section)[few]) == 6
    assert len(shown) + sum(map(len, layout.unmeasured(section).values())) == len(section["metrics"])


def test_of_many_numbers_the_secondary_groups_are_folded(wide):
    blocks = layout.blocks(wide["sections"][0])
    assert [b.title for b in blocks if not b.folded] == ["Accuracy", "Membership"]
    assert blocks[-1].title == "Cost"
    assert {"Other rates of the attacks", "Divergence", "Relearn", "Other quantities"} <= {b.title for b in blocks}
    first = next(b for b in blocks if b.title == "Membership")
    assert names(first.metrics)[0] == "membership/loss/auc"
    assert names(first.metrics)[-1] == "membership/svc"
    assert len(first.parts) == 1
    rates = next(b for b in blocks if b.title.startswith("Other rates"))
    assert [p.title for p in rates.parts] == ["balanced accuracy", "TPR at 1 % FPR"]
    assert rates.parts[0].heads[0] == "loss attack"


def test_of_few_numbers_nothing_is_folded(document):
    blocks = layout.blocks(document["sections"][0])
    assert [b.title for b in blocks] == ["Accuracy", "Membership", "Loss", "Other quantities", "Cost"]
    assert not [b for b in blocks if b.folded]


def test_no_table_is_too_wide(wide):
    section = wide["sections"][0]
    section["metrics"] += [section["metrics"][0] | {"name": f"odd/{i}", "group": "odd"} for i in range(20)]
    for values in section["values"].values():
        values |= {f"odd/{i}": values.get("accuracy/forget", {"unavailable": "no"}) for i in range(20)}
    odd = next(b for b in layout.blocks(section) if b.title == "Odd")
    assert [len(p.metrics) for p in odd.parts] == [7, 7, 6]


def test_heads_leave_out_what_stands_above_the_table():
    assert layout.shortened(["loss, forget set"], "loss") == ("", ["forget set"])
    assert layout.shortened(["a: x", "b: y"], "g") == ("", ["a: x", "b: y"])
    assert layout.shortened(["same", "same"], "g") == ("", ["same", "same"])
    js = ["JS divergence from retrained, forget set", "JS divergence from retrained, test set"]
    assert layout.shortened(js, "divergence") == ("JS divergence from retrained", ["forget set", "test set"])
