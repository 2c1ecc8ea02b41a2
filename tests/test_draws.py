"""Requests: how they are written, what they draw, and how several follow each other."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.draws import Request
from expunge.errors import UserError
from expunge.kinds import EXAMPLES
from expunge.noise import Noise, planted
from expunge.originals import original
from expunge.scenario import Scenario
from expunge.steps import step
from expunge.task import Classification, Regression
from expunge.train import Recipe
from expunge.zoo import Problem
from worlds import QUIET

TASK = Classification()
TEXTS = {
    "class=1": Request("class", 1),
    "class=1,fraction=0.5": Request("class", 1, fraction=0.5),
    "classes=2+0": Request("classes", (2, 0)),
    "classes=2+0,fraction=0.5": Request("classes", (2, 0), fraction=0.5),
    "subclass:who=p3": Request("subclass", "p3", "who"),
    "subclass:who=p3,fraction=0.5": Request("subclass", "p3", "who", fraction=0.5),
    "subject:who=Smith, John": Request("subject", "Smith, John", "who"),
    "subject:who=*": Request("subject", "*", "who"),
    "range=0..2": Request("range", "0..2"),
    "range:date=2016-08-01..2016-09-01": Request("range", "2016-08-01..2016-09-01", "date"),
    "random=0.1": Request("random", 0.1),
    "random=7": Request("random", 7),
    "hardest=3": Request("hardest", 3),
    "hardest=0.1": Request("hardest", 0.1),
    "mislabelled=0.1": Request("mislabelled", 0.1),
    "poison=0.1": Request("poison", 0.1),
    "poison=0.1, target=2, patch=3": Request("poison", 0.1, target=2, patch=3),
    "noised=0.1": Request("noised", 0.1),
    "noised=0.1, deviation=0.25": Request("noised", 0.1, deviation=0.25),
    "single=4": Request("single", 4),
    "sequential=5,times=3": Request("sequential", 5, times=3),
    "sequential=0.1,times=3": Request("sequential", 0.1, times=3),
    "sequential:class=2+0": Request("sequential", (2, 0)),
    "ids=train/3 + train/8": Request("ids", ("train/3", "train/8")),
    "ids=train/8+train/3": Request("ids", ["train/8", "train/3"]),
}


def samples(n=30, name="train", real=False):
    generator = torch.Generator().manual_seed(len(name))
    x = torch.rand(n, 1, 4, 4, generator=generator)
    who = [f"p{i % 6}" for i in range(n)]
    return Data.from_arrays(x, x[:, 0, 0, :1] if real else torch.arange(n) % 3, columns={"who": who}, name=name)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def problem(**more):
    sets = {"train": samples(), "holdout": samples(9, "holdout"), "test": samples(12, "test")}
    given = {"name": "p", "network": "linear", "task": TASK, "recipe": Recipe(epochs=2), "new_model": network}
    return Problem(**{**given, **sets, "classes": ("a", "b", "c"), **more})


def drawn(text, seed=0, **more):
    return Request.parse(text).draw(problem(**more), seed)


@pytest.mark.parametrize("text", TEXTS)
def test_it_is_read_and_kept_as_plain_values(text):
    request = Request.parse(text)
    assert request == TEXTS[text]
    assert hash(request) == hash(TEXTS[text])
    body = json.loads(json.dumps(request.to_json()))
    assert Request.from_json(body) == request


def test_of_several_classes_the_same_part_of_each_is_drawn():
    train, case = drawn("classes=2+0,fraction=0.4")
    labels = dict(zip(train.ids, train.targets().tolist(), strict=True))
    assert sorted(labels[i] for i in case.forget) == [0] * 4 + [2] * 4
    assert list(case.forget) == [i for i in train.ids if i in set(case.forget)]
    assert (case.kind, drawn("classes=2+0,fraction=0.4")[1]) == ("ids", case)
    assert drawn("classes=2+0,fraction=0.4", seed=1)[1].forget != case.forget
    assert drawn("class=2,fraction=0.4")[1].forget == tuple(i for i in case.forget if labels[i] == 2)
    whole = drawn("classes=2+0")[1]
    assert (len(whole.forget), whole.target) == (20, {"classes": [2, 0]})
    request = Request.parse("classes=2+0,fraction=0.4")
    assert (str(request), request.steps, request.measured) == ("classes 40 % of 2, 0", 1, (1,))
    for text in ("classes=2", "classes=1+1"):
        with pytest.raises(UserError, match="two classes or more, each once, got "):
            Request.parse(text)


def test_a_range_is_of_targets_or_of_a_column_its_upper_end_left_out():
    real = {"train": samples(real=True), "task": Regression(), "classes": ()}
    train, case = drawn("range=0.2..0.5", **real)
    values = dict(zip(train.ids, train.targets().reshape(-1).tolist(), strict=True))
    assert set(case.forget) == {i for i, y in values.items() if 0.2 <= y < 0.5}
    assert (case.kind, case.target) == ("range", {"column": None, "low": 0.2, "high": 0.5})
    assert len(Request.parse("range=0.2..0.5").parts(problem(**real), 0)) == 1
    train, case = drawn("range:who=p1..p3")
    assert {train.column("who")[train.ids.index(i)] for i in case.forget} == {"p1", "p2"}
    assert str(Request.parse("range:who=p1..p3")) == "range who p1..p3"
    with pytest.raises(UserError, match=r"a range \[5.0, 6.0\) with samples"):
        drawn("range=5..6", **real)


@pytest.mark.parametrize(
    "text", ["2016-08-01T05:00..2016-08-01 06:00", "2016-08-01 18:00..2016-08-01", "2016-08-01..2016-08-01"]
)
def test_a_stretch_of_time_is_told_by_its_moments_and_not_by_its_text(text):
    assert Request.parse(f"dates={text}").value == text


def test_options_at_their_default_are_left_out_so_that_a_new_one_changes_no_key():
    assert Request("class", 3).to_json() == {"kind": "class", "value": 3}
    assert Request("sequential", (2, 0)).to_json() == {"kind": "sequential", "value": [2, 0]}
    assert Request.parse("poison=0.1,target=2").to_json() == {"kind": "poison", "value": 0.1, "target": 2}
    assert Request.parse("noised=0.1").to_json() == {"kind": "noised", "value": 0.1}
    assert Request("ids", ("train/3", 8)).to_json() == {"kind": "ids", "value": ["train/3", "8"]}


def test_requests_have_names_of_their_own():
    names = [str(request) for request in TEXTS.values()]
    assert len(set(names)) == len(names)
    assert str(Request("random", 0.05)) == "random 5 %"
    assert str(Request("sequential", 20, times=5)) == "sequential 20 × 5"
    assert str(Request("poison", 0.1, target=2, patch=3)) == "poison 10 % to class 2, patch 3"
    assert str(Request("noised", 0.1, deviation=0.25)) == "noised 10 %, deviation 0.25"
    assert str(Request("ids", ("train/3",))) == "ids train/3"
    assert str(Request("ids", ("train/3", "train/8"))) == "ids train/3, train/8"
    many = ("train/3", "train/8", *(f"train/{i}" for i in range(100, 198)))
    assert str(Request("ids", many)) == "ids train/3, train/8 and 98 more"


def test_the_examples_of_messages_are_right():
    for kind, text in EXAMPLES.items():
        for example in text.split(" or "):
            assert Request.parse(example).kind == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clas=3", "a request KIND=VALUE or KIND:COLUMN=VALUE, got 'clas=3': did you mean 'class'"),
        ("3", "write for example class=3 or random=0.05"),
        ("class=three", "a number for class, got 'three': write for example class=3"),
        ("class=0.5", "a class index, got 0.5"),
        ("class:who=3", "a column with subclass and subject, or range, and no other kind, got 'class' with 'who'"),
        ("subject=p3", "got 'subject' without one: write for example subject:who=s3"),
        ("range=3", "a range LOW..HIGH, got '3': write for example range=0..2"),
        ("range=3..", "a range LOW..HIGH, got '3..'"),
        ("range=3..1", "a range LOW..HIGH with LOW below HIGH, got 3..1: give the lower end first"),
        ("range:date=2016-09-01..2016-09-01", "LOW below HIGH"),
        ("dates=2016-08-01", "a range LOW..HIGH, got '2016-08-01': write for example dates=2016-08-01..2016-08-31"),
        ("dates=2016-08-05..2016-08-01", "a stretch FROM..TO with TO not before FROM, got 2016-08-05..2016-08-01"),
        ("dates=2016/08/01..2016/08/05", "a date or time in '2016/08/01..2016/08/05', got '2016/08/01'"),
        ("dates=0..1", "a date or time in '0..1', got '0': write it as 2024-01-31"),
        ("dates=2016-08-01T00:00+00:00..2016-08-05", "dates both with a time zone, or none"),
        ("random=0", "a number of samples of 1 or more, or a share in .0, 1., got 0"),
        ("random=1.5", "a number of samples of 1 or more, or a share in .0, 1., got 1.5"),
        ("hardest=-3", "a number of samples of 1 or more"),
        ("sequential=nan", "a number of samples of 1 or more"),
        ("poison=2", "a share of samples to poison in .0, 1., got 2: write for example poison=0.05"),
        ("noised=1", "a share of samples to put noise on in .0, 1., got 1: write for example noised=0.05"),
        ("noised=0.1,deviation=0", "a deviation of the noise above 0, got 0"),
        ("noised=0.1,deviation=-0.5", "a deviation of the noise above 0, got -0.5"),
        ("random=5,deviation=0.5", "options of a random request, each once, got 'deviation' .*: leave it out"),
        ("noised=0.1,patch=2", "options of a noised request, each once, got 'patch'"),
        ("mislabelled=nan", "a share of labels to flip in .0, 1., got nan"),
        ("single=0", "a number of requests of 1 or more, got 0"),
        ("single=0.5", "a number of requests of 1 or more, got 0.5"),
        ("sequential:class=2+2", "two classes or more, each once"),
        ("sequential:class=2", "two classes or more, each once"),
        ("sequential:class=2+x", "a number for sequential, got 'x'"),
        ("sequential:class=2+0,times=3", "several classes, or a number of requests, got both: leave out times"),
        ("sequential=5,times=0", "times of 1 or more, got 0"),
        ("sequential=5,times=1.5", "times of 1 or more, got 1.5"),
        ("class=1,fraction=0", r"a fraction in \(0, 1\], got 0"),
        ("class=1,fraktion=0.5", "options of a class request, each once, got 'fraktion' .*: did you mean 'fraction'"),
        ("class=1,times=2", "options of a class request, each once, got 'times'"),
        ("class=1,fraction=0.5,fraction=0.2", "got 'fraction' .*: write it once"),
        ("random=5,fraction=0.5", "options of a random request, each once, got 'fraction' .*: leave it out"),
        ("poison=0.1,target=-1", "target of 0 or more, got -1"),
        ("poison=0.1,patch=0", "patch of 1 or more, got 0"),
        ("ids=a++b", "ids of training samples, each once, got an empty id: write for example ids=train/3.train/8"),
        ("ids=a+b+a+b", "ids of training samples, each once, got a, b more than once: name each sample once"),
        ("ids:who=a", "a column with subclass and subject, or range, and no other kind, got 'ids' with 'who'"),
        ("ids=a,fraction=0.5", "options of an ids request, each once, got 'fraction' .*: leave it out"),
    ],
)
def test_what_reads_otherwise_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        Request.parse(text)


@pytest.mark.parametrize(("value", "got"), [((), "none"), ("train/3", "'train/3'"), (3, "3"), ({"a"}, "{'a'}")])
def test_ids_come_as_a_list_in_an_order(value, got):
    with pytest.raises(UserError, match=f"ids of training samples, each once, got {got}: .*ids=train/3.train/8"):
        Request("ids", value)


def test_what_is_built_otherwise_is_refused():
    with pytest.raises(UserError, match="a known kind of request, got 'randon': did you mean 'random'"):
        Request("randon", 3)
    with pytest.raises(UserError, match="options of a random request, got times=3: leave it out: it belongs to seq"):
        Request("random", 3, times=3)
    with pytest.raises(UserError, match="keys of a request among kind, .*, got 'step': choose from|did you mean"):
        Request.from_json({"kind": "single", "value": 3, "step": 1})
    with pytest.raises(UserError, match="a request with kind and value, got kind: give both"):
        Request.from_json({"kind": "single"})


def test_classes_subclasses_and_their_fractions():
    _, case = drawn("class=1")
    assert (case.kind, case.target, len(case.forget)) == ("class", 1, 10)
    _, half = drawn("class=1,fraction=0.5")
    assert (half.kind, half.target, len(half.forget)) == ("class", 1, 5)
    assert set(half.forget) < set(case.forget)
    assert drawn("class=1,fraction=0.5", seed=1)[1].forget != half.forget
    _, fine = drawn("subclass:who=p3,fraction=0.4")
    assert (fine.kind, fine.target, len(fine.forget)) == ("subclass", {"column": "who", "value": "p3"}, 2)
    assert case.test == tuple(samples(12, "test").ids)


def test_a_subject_is_named_or_drawn_for_each_seed():
    _, named = drawn("subject:who=p3")
    assert named.forget == tuple(f"train/{i}" for i in range(3, 30, 6))
    cases = [drawn("subject:who=*", seed)[1] for seed in range(20)]
    assert {case.target["value"] for case in cases} == {f"p{i}" for i in range(6)}
    for case in cases:
        assert case.forget == drawn(f"subject:who={case.target['value']}")[1].forget
    data = problem().train
    again = Request.parse("subject:who=*").draw(problem(train=data.subset(data.ids[::-1])), 5)[1]
    assert again.target == cases[5].target


def test_named_samples_are_the_same_for_every_seed():
    train, case = drawn("ids=train/8+train/3")
    assert (case.kind, case.target, case.forget) == ("ids", None, ("train/8", "train/3"))
    assert train.ids == samples().ids
    assert drawn("ids=train/8+train/3", seed=1)[1] == case
    real = {"train": samples(real=True), "task": Regression(), "classes": ()}
    assert drawn("ids=train/8+train/3", **real)[1] == case
    assert Request("ids", ("train/8", "train/3")).check_size(3) == 2


def test_random_samples_by_number_and_by_share():
    assert len(drawn("random=7")[1].forget) == 7
    assert len(drawn("random=0.1")[1].forget) == 3
    assert drawn("random=7")[1].forget != drawn("random=7", seed=1)[1].forget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random=30", "1 to 29 samples to forget, got 30"),
        ("subject:when=p3", "a column 'when' in train, got who"),
        ("subject:when=*", "a column 'when' in train, got who"),
        ("class=7", "a sample of class 7 in train, got no sample that matches"),
        ("sequential:class=0+7", "a sample of class 7 in train"),
        ("sequential:class=0+1+2", "something to retain, got all 30 training samples"),
        ("single=30", "at most 29 samples to forget in all, got 30 × 1: ask for fewer requests, or for less each"),
        ("sequential=10,times=3", "at most 29 samples to forget in all, got 3 × 10"),
        ("sequential=30", "1 to 29 samples to forget, got 30"),
        ("ids=train/3+test/3", "forget ids that are in train, got unknown test/3: take ids from train.ids"),
        (f"ids={'+'.join(f'train/{i}' for i in range(30))}", "something to retain, got all 30 training samples"),
        ("poison=0.1,target=3", "a target class among 0, 1, 2, got 3"),
        ("hardest=3", r"the trained original, to tell the hardest samples, got none: pass original="),
    ],
)
def test_what_the_data_does_not_have_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        drawn(text)


def test_more_than_there_are_is_refused_of_the_hardest_before_anything_is_trained():
    with pytest.raises(UserError, match="1 to 29 samples to forget, got 30"):
        Request.parse("hardest=30").draw(problem(recipe=None), 0, original=network())


def test_the_training_data_does_not_depend_on_the_original():
    of = problem()
    for text in TEXTS:
        request = Request.parse(text)
        train = request.training(of, 3)
        changed = request.kind in ("mislabelled", "poison", "noised")
        assert request.changes_data == changed
        assert (train is of.train) != changed
        assert train.ids == of.train.ids
    assert [Request.parse(t).needs_original for t in ("hardest=3", "random=3")] == [True, False]
    drawn_with, _ = Request.parse("hardest=3").draw(
        of, 3, original=original(of, of.train, runtime=QUIET), runtime=QUIET
    )
    assert drawn_with is of.train


def test_flipped_and_poisoned_samples_are_the_forget_set():
    for text in ("mislabelled=0.2", "poison=0.2,target=2"):
        train, case = drawn(text)
        wrong = train.targets().numpy() != train.column("clean").astype(int)
        assert case.forget == tuple(i for i, w in zip(train.ids, wrong, strict=True) if w)
        assert len(case.forget) == 6
        assert drawn(text, seed=1)[1].forget != case.forget
    assert set(train.subset(case.forget).targets().tolist()) == {2}
    patch = train.subset(case.forget).read(range(6)).inputs[:, 0, 2:, 2:]
    assert (patch == problem().train.read(range(30)).inputs.max()).all()


def test_noisy_samples_are_the_forget_set_and_keep_their_labels():
    of = problem()
    for text, deviation in (("noised=0.2", Noise.on(of.train).deviation), ("noised=0.2,deviation=3", 3.0)):
        train, case = drawn(text)
        clean, noisy = planted(train).clean, planted(train).ids
        assert case.forget == tuple(noisy)
        assert len(case.forget) == 6
        assert torch.equal(train.targets(), of.train.targets())
        assert torch.equal(clean.read(range(30)).inputs, of.train.read(range(30)).inputs)
        assert train.source.deviation == deviation
        assert drawn(text, seed=1)[1].forget != case.forget
    with pytest.raises(UserError, match="one input of real numbers in train to put noise on, got torch.int64"):
        drawn("noised=0.2", train=Data.from_arrays(torch.zeros(9, 4, dtype=torch.int64), torch.arange(9) % 3))


def test_the_trigger_is_tried_on_test_data_with_the_patch_of_training():
    of, request = problem(), Request.parse("poison=0.2,target=2,patch=3")
    found = request.triggered(of)
    assert set(found.targets().tolist()) == {2}
    assert len(found) == 8
    assert (found.read(range(8)).inputs[:, 0, 1:, 1:] == of.train.read(range(30)).inputs.max()).all()
    assert request.backdoor(of).size == 3
    assert Request("random", 3).triggered(of) is None
    assert Request("random", 3).backdoor(of) is None
    with pytest.raises(UserError, match="test data to try a trigger on, got none"):
        request.triggered(replace(of, test=None))


def test_a_trigger_needs_images():
    rows = Data.from_arrays(torch.zeros(9, 4), torch.arange(9) % 3)
    with pytest.raises(UserError, match=r"images \(C, H, W\) of real numbers in train for a trigger patch"):
        drawn("poison=0.2", train=rows)
    with pytest.raises(UserError, match="class labels in train for a backdoor"):
        drawn("poison=0.2", train=samples(real=True), task=Regression())


@pytest.mark.parametrize(
    ("text", "sizes", "measured"),
    [
        ("class=1", [10], (1,)),
        ("mislabelled=0.1", [3], (1,)),
        ("single=4", [1, 1, 1, 1], (4,)),
        ("single=1", [1], (1,)),
        ("sequential=5,times=3", [5, 5, 5], (1, 2, 3)),
        ("sequential=0.1,times=2", [3, 3], (1, 2)),
        ("sequential=5", [5], (1,)),
        ("sequential:class=2+0", [10, 10], (1, 2)),
        ("ids=train/8+train/3+train/0", [3], (1,)),
    ],
)
def test_several_requests_make_up_the_forget_set(text, sizes, measured):
    request, of = Request.parse(text), problem()
    parts = request.parts(of, 0)
    assert [len(part) for part in parts] == sizes
    assert (request.steps, request.measured) == (len(sizes), measured)
    assert tuple(i for part in parts for i in part) == request.draw(of, 0)[1].forget
    assert parts == request.parts(of, 0)
    if request.kind in ("single", "sequential") and request.value != (2, 0):
        assert parts != request.parts(of, 1)


def test_more_requests_begin_with_the_same_ones():
    few, many = (Request("sequential", 5, times=times).parts(problem(), 0) for times in (2, 4))
    assert many[:2] == few
    assert Request("single", 5).parts(problem(), 0)[:2] == Request("single", 2).parts(problem(), 0)


def test_a_step_is_a_request_on_what_was_left_and_all_requests_so_far():
    of, request = problem(), Request.parse("sequential=5,times=3")
    (_, case), parts = request.draw(of, 0), request.parts(of, 0)
    steps = [step(case, parts, number) for number in (1, 2, 3)]
    assert [s.own.forget for s in steps] == parts
    assert [len(s.own.train) for s in steps] == [30, 25, 20]
    assert [s.union.forget for s in steps] == [parts[0], (*parts[0], *parts[1]), case.forget]
    assert [s.union.train for s in steps] == [case.train] * 3
    assert steps[2].union == case
    assert [(s.own.kind, s.own.target, s.union.target) for s in steps] == [
        ("random", 5, 5),
        ("random", 5, 10),
        ("random", 5, 15),
    ]
    for s in steps:
        assert s.own.retain == s.union.retain
        assert s.own.test == s.union.test == case.test
        assert s.own.holdout == case.holdout
    assert Scenario.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_classes_one_after_another_are_requests_of_kind_class():
    of, request = problem(), Request.parse("sequential:class=2+0")
    (_, case), parts = request.draw(of, 0), request.parts(of, 0)
    first, second = (step(case, parts, number) for number in (1, 2))
    assert (case.kind, case.target) == ("ids", {"classes": [2, 0]})
    assert (first.own.kind, first.own.target) == ("class", 2)
    assert first.own == first.union == Request("class", 2).draw(of, 0)[1]
    assert (second.own.kind, second.own.target, len(second.own.train)) == ("class", 0, 20)
    assert second.union == case


def test_of_one_request_the_only_step_is_the_scenario():
    _, case = drawn("class=1")
    only = step(case, [case.forget], 1)
    assert only.own is case
    assert only.union is case
    for number in (0, 2):
        with pytest.raises(UserError, match=f"a request from 1 to 1, got {number}"):
            step(case, [case.forget], number)
