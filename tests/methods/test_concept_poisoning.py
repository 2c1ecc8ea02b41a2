"""Concept poisoning: C14, beside a hand-written loop, what it leaves alone, its state, records and refusals."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.concepts.bank import Bank
from expunge.data import Data
from expunge.errors import Declined, UserError
from expunge.evidence import collect
from expunge.method import State
from expunge.methods import load
from expunge.report.concepts import gathered, page
from expunge.runtime import Runtime
from expunge.scenario import forget_class, forget_random
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Prepared, Unlearned, prepare, unlearn
from expunge.zoo.tabular import Table, Tabular

TASK = Classification()
METHOD = load("concept_poisoning")
QUIET = Runtime(batch_size=50, progress=False, device="cpu")
D = torch.float64
LABELS = {"mode": "none", "donor": 2}
QUICK = {"clusters": 3, "windows": 6, "examples": 8, "redraws": 2, "level": 1.0, "least": 0.5, "images": 30}


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(6, 3))


def pictures(n: int = 90, seed: int = 0) -> Data:
    """Return images of three classes: a horizontal bar, a vertical bar, a square, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    x, y = 0.2 * torch.randn(n, 1, 12, 12, generator=generator), torch.arange(n) % 3
    for i, (a, b) in enumerate(torch.randint(0, 7, (n, 2), generator=generator).tolist()):
        height, width = ((1, 6), (6, 1), (4, 4))[i % 3]
        x[i, 0, a : a + height, b : b + width] += 2
    words = [("bar", "bar; tall", "square")[c] for c in y.tolist()]
    return Data.from_arrays(x, y, columns={"concepts": words})


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fit(network(), TASK, pictures(), Recipe(epochs=12, lr=0.1, batch_size=16), runtime=QUIET)


def request(
    model: nn.Module, data: Data | None = None, *, label: int = 1, state: State | None = None, **options: Any
) -> Unlearned:
    data = pictures() if data is None else data
    case = forget_class(data, label)
    how = METHOD(**{"epochs": 2, **options})
    sets = {"forget": data.subset(case.forget), "retain": data.without(case.forget), "scenario": case}
    return unlearn(how, model, TASK, **sets, state=state, runtime=QUIET, seed=2)


def studied(model: nn.Module, data: Data | None = None, **options: Any) -> Prepared:
    how = METHOD(**{**QUICK, **options})
    return prepare(how, model, TASK, train=pictures() if data is None else data, runtime=QUIET, seed=2)


def both(model: nn.Module, data: Data | None = None, **options: Any) -> Unlearned:
    ready = studied(model, data, **options)
    return request(model, data, state=ready.state, **{**QUICK, **options})


def tensors(state: State) -> dict[str, Tensor]:
    return {name: state.tensors[name] for name in state.tensors if not name.startswith("samples/")}


# C14


@cache
def digits(seed: int) -> tuple[nn.Module, Data, Data]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = torch.tensor(x[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y[order]).long()
    train, test = Data.from_arrays(x[:1300], y[:1300]), Data.from_arrays(x[1300:], y[1300:], name="test")
    torch.manual_seed(seed)
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
    start = nn.Sequential(nn.Flatten(), *layers)
    return fit(start, TASK, train, Recipe(epochs=20, lr=0.1, batch_size=32), runtime=QUIET, seed=seed), train, test


def right(model: nn.Module, data: Data) -> float:
    said = collect(model, TASK, data, runtime=QUIET)
    return float((said.prediction == said.target).double().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_forget_digits_and_whole_donors_do_not(seed: int):
    model, train, test = digits(seed)
    case = forget_class(train, 4)
    forget, retain = train.subset(case.forget), train.without(case.forget)
    fours = test.subset([i for i, y in zip(test.ids, test.targets().tolist(), strict=True) if y == 4])
    made = {}
    for mode in ("none", "whole"):
        how = METHOD(mode=mode, donor=9, layers="last", epochs=30, lr=0.01, threshold=None)
        given = {"forget": forget, "retain": retain, "scenario": case, "runtime": QUIET, "seed": seed}
        made[mode] = unlearn(how, model, TASK, **given).model
    assert right(made["none"], forget) == 0
    assert right(made["none"], fours) == 0
    assert right(made["none"], test.without(fours.ids)) >= 0.94
    assert right(made["whole"], forget) >= 0.97
    seen = [collect(made["none"], TASK, data, taps=["5:input"], runtime=QUIET) for data in (train, test)]
    features = [said.features["5:input"].numpy() for said in seen]
    probe = LogisticRegression(max_iter=3000, class_weight="balanced").fit(features[0], seen[0].target.numpy() == 4)
    found = balanced_accuracy_score(seen[1].target.numpy() == 4, probe.predict(features[1]))
    assert found >= 0.94  # the class is still there, below the head


# training


def test_labels_alone_are_a_hand_written_loop():
    data, model = blobs(), fit(deep(), TASK, blobs(), Recipe(epochs=4, lr=0.05))
    case = forget_class(data, 1)
    given = {"forget": data.subset(case.forget), "retain": data.without(case.forget), "scenario": case, "seed": 2}
    how = METHOD(**LABELS, epochs=3, lr=0.02, batch_size=18, weight_decay=0.01, threshold=None)
    orders: list[Tensor] = []
    real = torch.randperm

    def noted(*args: Any, **named: Any) -> Tensor:
        orders.append(real(*args, **named))
        return orders[-1]

    torch.randperm = noted  # type: ignore[assignment]
    try:
        done = unlearn(how, model, TASK, **given, runtime=QUIET)
    finally:
        torch.randperm = real
    want = copy.deepcopy(model).eval()
    inputs = torch.cat([data.subset(case.forget).read(range(20)).inputs, given["retain"].read(range(40)).inputs])
    target = torch.cat([torch.full((20,), 2), given["retain"].targets()])
    optimizer = torch.optim.SGD(want.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    assert len(orders) == 3
    for order in orders:
        for at in order.split(18):  # 60 as 18, 18, 18 and 6
            optimizer.zero_grad()
            F.cross_entropy(want(inputs[at]), target[at]).backward()
            optimizer.step()
    for name, value in want.state_dict().items():
        torch.testing.assert_close(done.model.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert done.log["steps"] == 12


def test_it_stops_when_the_class_is_gone_twice_in_a_row(trained: nn.Module):
    done = request(trained, **LABELS, epochs=30, lr=0.05, threshold=0.05)
    left = [value for _, value in done.log["taken_for_class"]]
    assert done.log["stopped"] == "threshold"
    assert left[0] > 0.5  # before the first epoch
    assert max(left[-2:]) <= 0.05
    assert not any(a <= 0.05 and b <= 0.05 for a, b in zip(left[1:-2], left[2:-1], strict=True))
    assert done.log["epochs"] == len(left) - 1 < 30
    on = request(trained, **LABELS, epochs=9, lr=0.05, threshold=None)
    assert on.log["stopped"] == "epochs"
    assert on.log["epochs"] == 9


@pytest.mark.parametrize("norm", ["frozen", "moving"])
def test_what_is_not_named_stays_to_the_bit(trained: nn.Module, norm: str):
    done = request(trained, **LABELS, layers="last", lr=0.1, norm=norm)
    for name, value in trained.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], value) is not name.startswith("2."), name
    part = request(trained, **LABELS, layers=("0.0",), lr=0.1, norm=norm).model.state_dict()
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(part[name], value)}
    assert moved == {"0.0.weight", "0.0.bias"}
    assert all(p.requires_grad for p in done.model.parameters())


def test_statistics_move_only_where_asked(trained: nn.Module):
    still = request(trained, **LABELS).model.state_dict()
    moved = request(trained, **LABELS, norm="moving").model.state_dict()
    assert torch.equal(still["0.1.running_mean"], trained.state_dict()["0.1.running_mean"])
    assert not torch.equal(moved["0.1.running_mean"], trained.state_dict()["0.1.running_mean"])


def test_labels_of_the_forget_set_change_nothing(trained: nn.Module):
    data = pictures()
    case = forget_class(data, 1)
    sets = {"retain": data.without(case.forget), "scenario": case, "runtime": QUIET, "seed": 2}
    forget = data.subset(case.forget)
    other = Data.from_arrays(forget.read(range(30)).inputs, torch.arange(30) % 3, ids=forget.ids)
    for how in (METHOD(**LABELS, epochs=2), METHOD(mode="whole", donor=0, labels="random", epochs=2)):
        made = [unlearn(how, trained, TASK, forget=f, **sets).model for f in (forget, other, forget.unlabelled())]
        assert len({weights_digest(m) for m in made}) == 1


def test_kept_labels_forget_nothing(trained: nn.Module):
    data = pictures()
    done = request(trained, mode="none", donor=2, labels="keep", epochs=3)
    forget = data.subset(forget_class(data, 1).forget)
    assert right(done.model, forget) >= right(trained, forget) - 0.04


# concepts


def test_patches_of_the_donors_concepts_forget_the_class(trained: nn.Module):
    data = pictures()
    done = both(trained, donor=2, epochs=25, lr=0.05, patches=2, size=4, shown=3, threshold=None)
    case = forget_class(data, 1)
    assert right(trained, data.subset(case.forget)) > 0.9
    assert right(done.model, data.subset(case.forget)) < 0.3
    assert right(done.model, data.without(case.forget)) > 0.8
    pages = done.log["concept_pages"]
    assert {(p["class"], p["role"]) for p in pages} == {(1, "class"), (2, "donor")}
    chosen = [p for p in pages if p["role"] == "class" and p["chosen"]]
    assert all(p["attribution"] > 0 for p in chosen)
    assert all(len(p["windows"]) == 3 and p["name"] for p in pages)
    assert len(done.log["poisoned"]) == 3
    strengths = [p["attribution"] for p in pages if p["role"] == "class"]
    assert strengths == sorted(strengths, reverse=True)
    assert len(done.log["manifest"]["id"]) == 30
    assert done.log["manifest"]["concepts"] == [p["name"] for p in chosen]
    assert all({"original", "poisoned", "donor", "heat"} <= set(e) for e in done.log["poisoned"])
    assert done.log["donor"] == 2
    assert "trained on once more" in done.note


def test_labels_alone_take_the_donor_that_concepts_choose(trained: nn.Module):
    data = pictures()
    bank = Bank(("a", "b", "c"), torch.eye(6, dtype=D)[:3], torch.zeros(3, dtype=D), ({}, {}, {}))
    values = torch.tensor([[2.0, 0.9, 0.1], [0.0, 1.8, 0.0], [0.1, 2.0, 2.2]])
    own = {**bank.tensors(), "attribution": values, "present": values}
    meta = {**bank.meta(), "tap": "2:input", "study": {"fidelity": 1.0}}
    how = METHOD(**{**QUICK, "mode": "none", "epochs": 1, "level": 1.0})
    ready = prepare(how, trained, TASK, train=data, runtime=QUIET)
    state = State({**ready.state.tensors, **own}, {**ready.state.meta, **meta})
    done = request(trained, label=1, state=state, **{**QUICK, "mode": "none", "epochs": 1})
    assert done.log["donor"] == 2
    assert (
        "Class 2 donates to class 1, by the rule shared, via concept b, as the rule confusion found none." in done.note
    )


def test_the_next_state_is_that_of_the_retained_samples_alone(trained: nn.Module):
    data = pictures()
    done = both(trained, donor=2)
    again = prepare(
        METHOD(**{**QUICK, "donor": 2}),
        done.model,
        TASK,
        train=data.without(forget_class(data, 1).forget),
        runtime=QUIET,
        seed=2,
    )
    assert tensors(done.state).keys() == tensors(again.state).keys()
    assert all(torch.equal(value, tensors(again.state)[name]) for name, value in tensors(done.state).items())
    assert not done.state.tensors["attribution"][1].any()
    assert all("nearest" not in fact for fact in done.state.meta["facts"])


def test_concepts_come_from_a_column(trained: nn.Module):
    ready = studied(trained, source="column", column="concepts", rank="network")
    names = ready.state.meta["names"]
    assert names == ["bar", "square", "tall"]
    for i, f in enumerate(ready.state.meta["facts"]):
        assert f["examples"] == (30 if names[i] != "bar" else 60)
        assert f["accuracy"] >= 0.7
    assert ready.state.tensors["attribution"].shape == (3, 3)
    with pytest.raises(UserError, match=r"Expected a column 'colour' in train, got concepts"):
        studied(trained, source="column", column="colour")


def test_words_of_few_samples_or_of_nearly_all_are_dropped_and_the_others_stand(trained: nn.Module):
    data = pictures()
    words = [("bar; thing", "rare; thing" if i < 6 else "thing", "square; thing")[i % 3] for i in range(90)]
    given = Data.from_arrays(data.read(range(90)).inputs, data.targets(), columns={"concepts": words})
    ready = studied(trained, given, source="column", column="concepts")
    assert ready.state.meta["names"] == ["bar", "square"]
    assert ready.log["dropped"] == [
        {"name": "rare", "why": "2 of 90 samples have it: 8 with it and 8 without are needed"},
        {"name": "thing", "why": "90 of 90 samples have it: 8 with it and 8 without are needed"},
    ]
    with pytest.raises(UserError, match=r"a concept of 40 samples or more in the column .*, got bar: 30 of 90 samples"):
        studied(trained, given, source="column", column="concepts", examples=40)


def test_a_donor_is_found_by_default_for_every_class(trained: nn.Module):
    bank = Bank(("a", "b", "c"), torch.eye(6, dtype=D)[:3], torch.zeros(3, dtype=D), ({}, {}, {}))
    ready = studied(trained, mode="none")
    meta = {**ready.state.meta, **bank.meta(), "tap": "2:input", "study": {"fidelity": 1.0}}
    alone, much = 2 * torch.eye(3), torch.tensor([[3.0, 0, 0], [0, 3, 1], [-1, 0.5, 3]])
    tensors = {**ready.state.tensors, **bank.tensors(), "attribution": alone, "present": much}
    done = request(trained, label=1, state=State(tensors, meta), **{**QUICK, "mode": "none", "epochs": 1})
    assert done.log["donor"] == 2
    assert "Class 2 donates to class 1, as of all others its samples show concept b most: no concept" in done.note
    assert ready.state.tensors["present"].shape == ready.state.tensors["attribution"].shape


def test_concepts_come_from_a_file(trained: nn.Module, tmp_path: Path):
    bank = Bank(("a", "b"), torch.eye(6, dtype=D)[:2], torch.zeros(2, dtype=D), ({}, {}))
    State(bank.tensors(), bank.meta()).save(tmp_path / "bank.safetensors")
    ready = studied(trained, source="file", bank=str(tmp_path / "bank.safetensors"))
    assert ready.state.meta["names"] == ["a", "b"]
    assert torch.equal(ready.state.tensors["concepts.vectors"], bank.vectors)
    narrow = Bank(("a",), torch.ones(1, 5, dtype=D), torch.zeros(1, dtype=D), ({},))
    State(narrow.tensors(), narrow.meta()).save(tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"Expected representations \(N, 5\), as the bank's, got shape \(1, 6\)"):
        studied(trained, source="file", bank=str(tmp_path / "narrow.safetensors"))


def test_an_edit_stands_where_the_rest_cannot_be_studied(trained: nn.Module):
    data, case = pictures(), forget_class(pictures(), 1)
    retain = data.subset([i for i in data.ids if i in set(case.retain[:12])])
    ready = studied(trained)
    how = METHOD(**{**QUICK, "donor": 2, "epochs": 1, "examples": 40})
    sets = {"forget": data.subset(case.forget), "retain": retain, "scenario": case, "state": ready.state}
    done = unlearn(how, trained, TASK, **sets, runtime=QUIET)
    assert "could not be studied for a next request: Expected" in done.note
    assert done.changed is not None
    assert done.changed.count > 0
    assert "attribution" not in done.state.tensors


def test_a_note_says_that_concepts_of_a_file_are_of_other_weights(trained: nn.Module, tmp_path: Path):
    first = studied(trained)
    bank = Bank.read(first.state.tensors, first.state.meta)
    State(bank.tensors(), bank.meta()).save(tmp_path / "bank")
    done = both(trained, source="file", bank=str(tmp_path / "bank"), donor=2)
    assert "before this edit moved the representation" in done.note
    assert torch.equal(done.state.tensors["concepts.vectors"], bank.vectors)


@pytest.mark.parametrize("rank", ["head", "network"])
def test_attributions_are_the_heads_or_the_networks(trained: nn.Module, rank: str):
    ready = studied(trained, rank=rank)
    assert ready.log["ranked_by"] == rank
    assert ready.log["concepts"] == len(ready.state.meta["names"])
    assert 0 <= ready.log["fidelity"] <= 1
    assert ready.state.tensors["attribution"].shape == (3, ready.log["concepts"])
    assert bool(torch.isfinite(ready.state.tensors["attribution"]).all())


def test_what_the_concepts_leave_of_the_classs_logit_is_recorded(trained: nn.Module):
    ready = studied(trained, rank="network", donor=2)
    done = request(trained, state=ready.state, **{**QUICK, "rank": "network", "donor": 2, "epochs": 1})
    assert done.log["residual"] == ready.log["residual"][1]
    assert any("of the class's logit unexplained" in f for f in page(gathered(done.log) or {}, "key")["facts"])


def test_rows_have_columns_swapped():
    data = blobs(90)
    model = fit(deep(), TASK, data, Recipe(epochs=12, lr=0.05))
    done = both(model, data, donor=2, epochs=20, lr=0.05, size=2)
    case = forget_class(data, 1)
    assert right(done.model, data.subset(case.forget)) < right(model, data.subset(case.forget)) - 0.3
    assert right(done.model, data.without(case.forget)) > 0.8
    assert len(done.log["manifest"]["columns"]) == 2
    assert all(p["windows"] == [] for p in done.log["concept_pages"])


def test_tables_of_categories_are_rows():
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = {"real": torch.randn(90, 3) + F.one_hot(y, 3) * 2, "categories": torch.stack([y, torch.arange(90) % 4], dim=1)}
    data = Data.from_arrays(x, y)
    model = fit(Tabular(Table(3, ("kind", "other"), (3, 4)), 3), TASK, data, Recipe(epochs=6, lr=0.05), runtime=QUIET)
    done = both(model, data, donor=2, epochs=2, size=2)
    assert done.log["manifest"]["mode"] == "localized"
    assert 1 <= len(done.log["manifest"]["columns"]) <= 2
    alone = request(model, data, **LABELS)
    assert alone.log["taken_for_class"][0][1] > 0.9


# refusals and notes


def test_a_part_of_a_class_is_said_to_pull_against_the_rest(trained: nn.Module):
    data = pictures()
    case = forget_class(data, 1, fraction=0.5)
    sets = {"forget": data.subset(case.forget), "retain": data.without(case.forget), "scenario": case}
    done = unlearn(METHOD(**LABELS, epochs=1), trained, TASK, **sets, runtime=QUIET)
    assert "15 samples of class 1 stay under their own label" in done.note


def test_donors_that_cannot_donate_are_refused(trained: nn.Module):
    for donor in (1, 3):
        with pytest.raises(
            UserError, match=rf"Expected a donor from 0 to 2 other than the class 1 to forget, got {donor}"
        ):
            request(trained, mode="none", donor=donor)
    few = pictures().subset([f"train/{i}" for i in range(90) if i % 3 < 2])
    with pytest.raises(UserError, match=r"Expected retained samples of class 2, which donates, got none: name another"):
        request(trained, few, **LABELS)


def test_what_does_not_apply_is_declined(trained: nn.Module):
    data = pictures()
    case = forget_random(data, 5)
    sets = {"forget": data.subset(case.forget), "retain": data.without(case.forget), "scenario": case}
    with pytest.raises(Declined, match="it relabels one class, and the forget set is of kind 'random'"):
        unlearn(METHOD(**LABELS), trained, TASK, **sets, runtime=QUIET)
    assert "has no classes" in str(METHOD().declines(Regression(), None, trained))


def test_what_is_missing_is_asked_for(trained: nn.Module):
    with pytest.raises(UserError, match="the state that concept_poisoning prepared"):
        request(trained)
    ready = prepare(METHOD(**LABELS), trained, TASK, train=pictures(), runtime=QUIET)
    with pytest.raises(UserError, match=r"Expected a study of concepts in the state, got none: prepare anew"):
        request(trained, state=ready.state)
    flat = nn.Sequential(nn.Flatten(), nn.Conv1d(1, 3, 144))

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(1)[:, None]).squeeze(2)

    with pytest.raises(
        UserError, match=r"whose input is the representation, .* set concept_poisoning.tap to one of inner"
    ):
        studied(Odd())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "left"}, "concept_poisoning.mode localized or center"),
        ({"labels": "flip"}, "concept_poisoning.labels targeted or random or keep"),
        ({"threshold": 2.0}, "concept_poisoning.threshold from 0 to 1"),
        ({"patches": 0}, "concept_poisoning.patches of 1 or more"),
        ({"layers": ()}, "concept_poisoning.layers all, last or names"),
        ({"source": "column"}, "source='column' and column together"),
        ({"bank": "x"}, "source='file' and bank together"),
        ({"examples": 3}, "concept_poisoning.examples of 4 or more"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        METHOD(**settings)


def test_settings_of_the_edit_share_what_was_prepared():
    one, other = METHOD(mode="none", epochs=3), METHOD(mode="random", labels="random", patches=3, size=4)
    assert one.preparation() == other.preparation()
    assert METHOD(clusters=7).preparation() != one.preparation()
    assert METHOD(**LABELS).preparation() != one.preparation()
