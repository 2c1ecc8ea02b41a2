"""Requests fulfilled: what becomes of the weights, of the state for the next, and of the ledger."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

from expunge import folders
from expunge.errors import UserError
from expunge.folders import Folder
from expunge.method import Nature
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.service import measure
from expunge.service.workspace import FIRST
from expunge.tensors import weights_digest
from expunge.train import fit, fresh
from expunge.unlearn import prepare, unlearn
from projects import parquet, rows
from services import Shop, same

ROUTED = ["started", "unlearned", "verified", "deployed"]


def edited(folder: Folder, *batches: list[str], known: int | None = None) -> tuple[torch.nn.Module, Any]:
    """Return what the project's method makes of a folder, batch after batch, without the service."""
    place, model, state = folder.project, folder.model(), folder.state
    train, method = place.train.subset(place.train.ids[:known]), place.method()
    for ids in batches:
        rest = train.without(ids)
        done = unlearn(method, model, place.task, forget=train.subset(ids), retain=rest, state=state, seed=0)
        train, model, state = rest, done.model, done.state
    return model, state


def test_an_edit_is_what_the_method_does_and_the_next_starts_from_it(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100", "101", "102")
    (outcome,) = shop.process()
    assert (outcome.step, outcome.how, outcome.requests, outcome.missed) == ("deployed", "edit", ("r1",), False)
    assert same(shop.served().model(), edited(shop.start(), ["100", "101", "102"])[0])
    assert shop.steps("r1") == ROUTED
    assert shop.status("r1").word == "closed"
    assert shop.remembered() == ["100", "101", "102"]
    shop.ask("r2", "110", "111")
    shop.process()
    model, state = edited(shop.start(), ["100", "101", "102"], ["110", "111"])
    assert same(shop.served().model(), model)
    assert all(torch.equal(shop.served().state.tensors[k], v) for k, v in state.tensors.items() if "samples" not in k)
    assert shop.process() == []
    shop.sound()


def test_a_batch_is_one_edit_of_all_its_samples(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100", "101")
    shop.ask("r2", "101", "102")  # one sample is named by both
    (outcome,) = shop.process()
    assert outcome.requests == ("r1", "r2")
    assert same(shop.served().model(), edited(shop.start(), ["100", "101", "102"])[0])
    assert [shop.event(r, "unlearned").body["samples"] for r in ("r1", "r2")] == [2, 2]
    assert shop.event("r1", "unlearned").body["batch_samples"] == 3
    shop.sound()


def test_a_batch_of_one_makes_a_version_each(pets: Any) -> None:
    shop: Shop = pets({"requests.batch": 1})
    shop.ask("r1", "100", "101")
    shop.ask("r2", "101", "102")
    assert [o.requests for o in shop.process()] == [("r1",), ("r2",)]
    assert same(shop.served().model(), edited(shop.start(), ["100", "101"], ["102"])[0])


def test_a_class_goes_alone_and_keeps_its_kind(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    shop.ask("r1", "100")
    shop.ask("r2", "cat", kind="class")
    shop.ask("r3", "102")
    seen = []
    monkeypatch.setattr(load("ssd"), "declines", lambda self, task, case, model: seen.append(case))
    assert [o.requests for o in shop.process()] == [("r1",), ("r2",), ("r3",)]
    kinds = [(c.kind, c.target, len(c.forget)) for c in dict.fromkeys(seen) if c is not None]
    assert kinds == [("ids", None, 1), ("class", 1, 20), ("ids", None, 1)]


def test_the_fall_of_test_accuracy_is_that_on_the_classes_that_stay(pets: Any) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    start = shop.start().model()
    shop.ask("r1", "cat", kind="class")
    assert [o.step for o in shop.process()] == ["deployed"]
    test, body = shop.project.test, shop.event("r1", "verified").body
    assert test is not None
    target = test.targets()
    right = [
        (m(test.read(range(len(test))).inputs).argmax(1) == target).double() for m in (start, shop.served().model())
    ]
    falls = [float((right[0] - right[1])[keep].mean()) for keep in (target != 1, target >= 0)]
    assert body["fall"] == pytest.approx(falls[0])
    assert body["test_accuracy"]["before"] - body["test_accuracy"]["after"] == pytest.approx(falls[1])
    assert falls[0] < falls[1]
    assert "label" not in body["groups"]  # the class that fell would be the one that was named


def test_a_class_that_is_retrained_without_is_held_on_the_classes_that_stay(pets: Any) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9, "policy.accuracy_drop": 0.1})
    shop.ask("r1", "cat", kind="class", route="retrain")
    shop.ask("r2", "100", route="retrain")
    (outcome,) = shop.process(how="retrain")
    body = shop.event("r1", "verified").body
    assert outcome.step == "deployed"
    assert body["test_accuracy"]["before"] - body["test_accuracy"]["after"] > 0.1 >= body["fall"]


def test_a_subject_is_found_by_its_column(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "ann", kind="subject")
    shop.process()
    assert shop.remembered() == [str(k) for k in range(100, 160, 5)]


def test_what_a_model_does_not_hold_is_absent(pets: Any) -> None:
    shop: Shop = pets()
    for id, value, kind in (("r1", "nobody", "subject"), ("r2", "fish", "class"), ("r3", "999", "ids")):
        shop.ask(id, value, kind=kind)
    assert [o.step for o in shop.process()] == ["absent"] * 3
    assert [shop.status(r).word for r in ("r1", "r2", "r3")] == ["closed"] * 3
    assert shop.space.current("model") == FIRST
    shop.ask("r4", "100")
    shop.ask("r5", "100", "101")
    shop.process()
    shop.ask("r6", "100")
    assert [o.step for o in shop.process()] == ["absent"]
    body = dict(shop.event("r6", "absent").body)
    assert len(body.pop("marks")) == 64
    assert body == {"samples": 0, "forgotten_before": 1, "not_trained_on": 0}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"policy.bounds": ["accuracy/test >= 0.99"]},
            r"Bound missed: accuracy/test >= 0.99, got .* Take other settings",
        ),
        (
            {"policy.accuracy_drop": 0.0, "method.alpha": 0.0, "method.dampening": 0.0},
            "Test accuracy fell by .* more than",
        ),
        ({"method.alpha": 1e9}, "ssd changed nothing for 2 of 60 samples: take other settings .* or the route retrain"),
        ({"policy.methods": ["retrain"]}, "a method that the policy allows: retrain, got 'ssd'"),
        ({"policy.largest_share": 0.02}, "a request for at most 2% of the training data, got 2 of 60 samples"),
    ],
)
def test_what_is_not_good_enough_leaves_the_served_model(pets: Any, changes: Any, sentence: str) -> None:
    shop: Shop = pets(changes)
    shop.ask("r1", "100", "101")
    found = shop.process()
    assert found.missed
    assert [o.step for o in found] == ["failed"]
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(found[0].text)
    assert shop.status("r1").word == "failed"
    assert shop.status("r1").open
    assert (shop.space.current("model"), shop.space.versions("model")) == (FIRST, [FIRST])
    assert same(shop.served().model(), shop.start().model())
    assert shop.remembered() == []
    assert "verified" not in shop.steps("r1")
    shop.sound()
    if not any(key.startswith("policy.") for key in changes):  # retrained instead, the same request is fulfilled
        assert [o.step for o in shop.process(how="retrain")] == ["deployed"]


def test_what_failed_before_goes_alone(pets: Any) -> None:
    shop: Shop = pets({"method.alpha": 1e9})
    shop.ask("r1", "100")
    shop.ask("r2", "101")
    assert [o.requests for o in shop.process()] == [("r1", "r2")]
    assert [o.requests for o in shop.process()] == [("r1",), ("r2",)]


def test_a_method_that_breaks_is_told_and_leaves_no_attempt_open(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100")

    def broken(self: Any, session: Any, state: Any) -> Any:
        raise ZeroDivisionError("sample 100 divided by 0")

    monkeypatch.setattr(load("ssd"), "unlearn", broken)
    with pytest.raises(ZeroDivisionError):
        shop.process()
    assert (
        shop.event("r1", "failed").body["reason"] == "ZeroDivisionError: its sentence may name samples, and is not kept"
    )
    monkeypatch.undo()
    shop.sound()


def test_retraining_leaves_out_all_that_was_to_be_forgotten(pets: Any) -> None:
    shop: Shop = pets({"requests.route": "retrain", "requests.cadence": 30})
    shop.ask("r1", "100", "101", route="edit")
    shop.ask("r2", "110", "999")
    assert [(o.step, o.how) for o in shop.process()] == [("deployed", "edit"), ("scheduled", "retrain")]
    assert shop.process() == []
    assert shop.status("r2").word == "scheduled"
    shop.later(29)
    assert shop.process() == []
    shop.later(1)
    (outcome,) = shop.process()
    assert (outcome.step, outcome.how, outcome.requests) == ("deployed", "retrain", ("r2",))
    place = shop.project
    rest = place.train.without(["100", "101", "110"])
    start = fresh(shop.start().model(), new_model=place.new_model, seed=0)
    want = fit(start, place.task, rest, place.recipe, holdout=None, seed=0)
    assert same(shop.served().model(), want)
    body = shop.event("r2", "unlearned").body
    assert body["nature"] == Nature.EXACT
    assert body["proof"]["trained"]["samples"] == body["proof"]["trained"]["read"] == 57
    assert body["proof"]["excluded"] == 4  # the two of r1, the one of r2, and the one that was never there
    ready = prepare(place.method(), want, place.task, train=rest, seed=0)
    state = shop.served().state
    assert all(torch.equal(state.tensors[k], v) for k, v in ready.state.tensors.items() if "samples" not in k)
    assert shop.status("r2").word == "closed"
    shop.ask("r3", "120", route="edit")
    shop.process()
    assert shop.event("r3", "unlearned").body["so_far"] == {"requests": 1, "samples": 1, "stale": 1}
    shop.sound()


def test_now_approximately_and_soon_exactly(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100", "101", route="edit-then-retrain")
    assert [(o.step, o.how) for o in shop.process()] == [("deployed", "edit"), ("scheduled", "retrain")]
    assert shop.status("r1").open
    assert shop.remembered() == ["100", "101"]
    shop.later(30)
    (outcome,) = shop.process()
    assert outcome.how == "retrain"
    assert shop.status("r1").word == "closed"
    assert set(shop.event("r1", "verified").body["gaps"]) > {"accuracy/test"}
    assert shop.steps("r1") == [*ROUTED, "scheduled", "purged", *ROUTED]  # 14 days to undo


def test_where_an_edit_fails_the_retraining_still_comes(pets: Any) -> None:
    shop: Shop = pets({"method.alpha": 1e9})
    shop.ask("r1", "100", "101", route="edit-then-retrain")
    assert [o.step for o in shop.process()] == ["failed"]
    shop.later(30)
    assert [(o.step, o.how) for o in shop.process()] == [("failed", "edit"), ("deployed", "retrain")]
    assert shop.status("r1").word == "closed"
    assert shop.remembered() == ["100", "101"]


def test_what_another_edit_forgot_is_still_retrained_for(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100")
    shop.process()
    shop.ask("r2", "100", route="edit-then-retrain")
    assert [o.step for o in shop.process()] == ["scheduled"]
    shop.later(30)
    assert [(o.step, o.how) for o in shop.process()] == [("deployed", "retrain")]
    assert shop.status("r2").word == "closed"


def test_a_retrained_model_is_held_to_what_can_still_be_measured(pets: Any) -> None:
    held = ["accuracy/test >= 0.3", "accuracy/forget <= 1", "gap accuracy/test <= 0.5", "gap accuracy/forget <= 1"]
    changes = {"policy.bounds": held}
    shop: Shop = pets(changes)
    shop.ask("r1", "100", "101", route="edit-then-retrain")
    shop.process()
    columns = {k: v[2:] for k, v in rows(60).items()}
    parquet(shop.folder / "train.parquet", columns)  # the owner took the two out of the data
    shop.later(30)
    assert [o.step for o in shop.process()] == ["deployed"]
    body = shop.event("r1", "verified").body
    assert [(b["bound"], b["held"]) for b in body["bounds"]] == [
        ("accuracy/test >= 0.3", True),
        ("accuracy/forget <= 1", False),
        ("gap accuracy/test <= 0.5", True),
        ("gap accuracy/forget <= 1", False),
    ]
    assert "accuracy/forget" not in body["metrics"]["after"]
    assert "accuracy/test" in body["gaps"]
    assert [name for name in body["gaps"] if "forget" in name] == []  # nobody was: another sample stands in for them


def test_samples_that_are_gone_from_the_data_are_not_taken_for_absent(pets: Any) -> None:
    shop: Shop = pets()
    columns = {k: v[2:] for k, v in rows(60).items()}
    parquet(shop.folder / "train.parquet", columns)
    shop.ask("r1", "100", "102")
    shop.ask("r2", "nobody", kind="subject")
    first, second = shop.process()
    assert (first.step, second.step) == ("failed", "failed")
    assert "got 1 of the request's samples that are not there: restore them" in first.text
    assert "got 2 prepared samples, which may be the request's, that are not there" in second.text
    (outcome,) = shop.process(how="retrain")
    assert (outcome.step, outcome.how) == ("deployed", "retrain")
    assert shop.event("r1", "unlearned").body["proof"]["excluded"] == 2
    assert shop.event("r1", "unlearned").body["not_at_hand"] == 1


def test_samples_that_came_in_later_are_never_learned(pets: Any) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    parquet(shop.folder / "train.parquet", rows(70))  # ten more than the model was trained on
    shop.ask("r1", "165", "166", "500")
    shop.ask("r2", "101", "102", "167")
    found = shop.process()
    assert [(o.step, o.requests) for o in found] == [("absent", ("r1",)), ("deployed", ("r2",))]
    assert shop.event("r1", "absent").body["not_trained_on"] == 2
    assert same(shop.served().model(), edited(shop.start(), ["101", "102"], known=60)[0])
    assert shop.remembered() == ["101", "102", "165", "166", "167"]
    shop.ask("r3", "103", "168", route="retrain")
    shop.process(how="retrain")
    body = shop.event("r3", "unlearned").body
    assert body["proof"]["trained"]["samples"] == body["proof"]["trained"]["read"] == 63
    assert body["proof"]["excluded"] == 7
    with shop.ledger() as ledger:
        assert ledger.remembered(["500", "168", "169"]) == ["500", "168"]


def test_training_data_under_other_ids_is_not_taken_for_nothing(pets: Any) -> None:
    shop: Shop = pets()
    parquet(shop.folder / "train.parquet", rows(60, first=5000))
    shop.ask("r1", "101")
    with pytest.raises(UserError, match="got 60 samples under ids that it does not know: check .data. train and id"):
        shop.process()
    assert shop.status("r1").word == "received"


def test_what_cannot_be_looked_up_holds_nobody_else_up(pets: Any) -> None:
    shop: Shop = pets({"data.subject": None})
    shop.ask("r1", "ann", kind="subject")
    shop.ask("r2", "ann", kind="subject", route="retrain")
    shop.ask("r3", "101", "102")
    found = shop.process()
    assert [(o.step, o.how, o.requests) for o in found] == [
        ("failed", "edit", ("r1",)),
        ("deployed", "edit", ("r3",)),
        ("failed", "retrain", ("r2",)),
    ]
    expected = "Expected a column that names the subject: set subject = 'column' in [data] of the project file."
    assert shop.event("r1", "failed").body["reason"] == expected


def test_no_launcher_starts_several(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "count", 2)
    with pytest.raises(UserError, match="one process to fulfil requests, got 2: start it without a launcher"):
        pets().process()


def test_who_waits(pets: Any) -> None:
    shop: Shop = pets({"requests.approval": True})
    for at in (1, 2, 3):
        shop.ask(f"r{at}", str(100 + at))
    assert shop.process() == []
    with shop.ledger() as ledger:
        ledger.actor = "bob"
        ledger.record("r1", "approved")
        ledger.record("r2", "approved")
        ledger.record("r1", "held", {"reason": "a court asked"})
    assert shop.process(only=["r1"]) == []
    assert [o.requests for o in shop.process()] == [("r2",)]
    with shop.ledger() as ledger:
        ledger.record("r1", "released")
    assert shop.process(only=["r3"]) == []
    assert shop.process(only=["r1"], how="edit")[0].requests == ("r1",)
    with pytest.raises(UserError, match="the id of a request in"):
        shop.process(only=["r9"])


def test_a_hold_that_comes_between_is_kept(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop: Shop = pets({"requests.batch": 1})
    shop.ask("r1", "100")
    shop.ask("r2", "101")
    every = measure.measure

    def meanwhile(*given: Any, **more: Any) -> Any:
        with shop.ledger() as ledger:
            ledger.record("r1", "held", {"reason": "a court asked"})
            ledger.record("r2", "held", {"reason": "a court asked"})
        return every(*given, **more)

    monkeypatch.setattr("expunge.service.attempt.measure", meanwhile)
    assert [o.requests for o in shop.process()] == [("r1",)]  # what runs may end
    assert (shop.status("r1").word, shop.status("r1").closed, shop.steps("r2")) == ("held", False, [])


def test_an_old_state_is_prepared_anew(pets: Any) -> None:
    shop: Shop = pets({"requests.refresh_every": 1})
    shop.ask("r1", "100", "101")
    (outcome,) = shop.process()
    assert outcome.advice == ("the state is 1 request old: the next edit prepares it anew (refresh_every = 1).",)
    assert "prepared" not in shop.event("r1", "unlearned").body
    folder = shop.served()
    place, model = folder.project, folder.model()
    shop.ask("r2", "102", "103")
    shop.process()
    assert shop.event("r2", "unlearned").body["prepared"]["why"] == "1 request since the last time"
    left = place.train.without(["100", "101"])
    ready = prepare(place.method(), model, place.task, train=left, seed=0)
    forget = left.subset(["102", "103"])
    done = unlearn(place.method(), model, place.task, forget=forget, state=ready.state, seed=0)
    assert same(shop.served().model(), done.model)


def test_another_method_is_prepared_first(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100")
    shop.process()
    text = (
        (shop.folder / "expunge.toml")
        .read_text()
        .replace('name = "ssd"\nalpha = 0.003\ndampening = 0.003', 'name = "finetune"')
    )
    (shop.folder / "expunge.toml").write_text(text)
    shop.ask("r2", "101")
    shop.process()
    body = shop.event("r2", "unlearned").body
    assert (body["method"]["name"], body["prepared"]["why"]) == ("finetune", "the state was one of ssd")
    assert shop.served().method.name == "finetune"


def test_several_models_each_have_their_outcome(pets: Any) -> None:
    other: Shop = pets(name="other")
    parquet(other.folder / "train.parquet", {k: v[10:] for k, v in rows(60).items()})
    shutil.rmtree(other.folder / "expunge-work")
    shop: Shop = pets({"requests.models": None})
    text = (shop.folder / "expunge.toml").read_text()
    (shop.folder / "expunge.toml").write_text(
        f'{text}\n[requests.models]\na = "expunge.toml"\nb = "../other/expunge.toml"\n'
    )
    shop.ask("r1", "100", "101")
    found = shop.process()
    assert [(o.model, o.step) for o in found] == [("a", "deployed"), ("b", "refused")]
    assert "a folder written by prepare or forget at" in found[1].text
    assert found.missed
    assert shop.status("r1").open
    shutil.copytree(shop.folder / "expunge-work", other.folder / "expunge-work")
    parquet(other.folder / "train.parquet", rows(60))
    assert [(o.model, o.step) for o in shop.process()] == [("b", "deployed")]
    assert shop.status("r1").word == "closed"
    assert shop.remembered("a") == shop.remembered("b") == ["100", "101"]


def test_nothing_personal_is_kept_but_in_the_sealed_payload(pets: Any) -> None:
    shop: Shop = pets({"policy.bounds": ["accuracy/test >= 0.3"]})
    columns = rows(60)
    columns["key"] = [f"canary-{k}" for k in columns["key"]]
    columns["owner"] = [f"zebedee-{o}" for o in columns["owner"]]
    parquet(shop.folder / "train.parquet", columns)
    place = shop.project
    ready = prepare(place.method(), place.trained(place.runtime(), 0), place.task, train=place.train, seed=0)
    start = shop.start()
    shutil.rmtree(start.path)
    note = folders.record("prepare", place, 0, place.method().settings()) | {"weights": weights_digest(ready.model)}
    folders.write(start.path, place, ready.model, ready.state, note, {}, overwrite=False)
    shop.ask("r1", "zebedee-ann", kind="subject", route="edit-then-retrain")
    shop.ask("r2", "canary-101", "canary-102")
    shop.ask("r3", "canary-1")
    shop.process()
    shop.later(30)
    shop.process()
    assert [shop.status(r).word for r in ("r1", "r2", "r3")] == ["closed"] * 3
    for path in (p for p in shop.space.folder.rglob("*") if p.is_file()):
        assert not [word for word in (b"canary-", b"zebedee") if word in path.read_bytes()], path


def test_the_record_says_what_was_done_and_what_it_shows(pets: Any, all_metrics: None) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100", "101", "102")
    shop.process()
    body = shop.event("r1", "unlearned").body
    assert body["before"] == shop.start().record["weights"]
    assert body["after"] == weights_digest(shop.served().model()) == shop.served().record["weights"]
    assert (body["method"]["name"], body["nature"], body["seed"]) == ("ssd", Nature.EDIT, 0)
    assert body["citation"]["year"] == 2024
    assert {"python", "torch", "expunge", "code", "digest"} <= body["environment"].keys()
    assert body["data"]["samples"] == 57
    found = shop.event("r1", "verified").body
    assert {"accuracy/retain", "flips/lost/test", "membership/loss/auc"} <= found["metrics"]["after"].keys()
    assert found["groups"]["label"]["0"]["accuracy"][3] >= 10
    assert "owner" not in found["groups"]
    assert shop.event("r1", "deployed").body["weights"] == body["after"]
    record = json.loads((shop.served().path / "record.json").read_text())
    assert (record["scenario"], record["forgotten"], record["requests"]) == (None, [], ["r1"])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("ledger", "expunge-requests/ledger.sqlite3"),
        ("start", "a folder written by prepare or forget at .*expunge-work, got nothing there"),
        ("data", "the training data of model, got none at train.parquet: restore it"),
        ("forget", "a folder of expunge prepare at .*expunge-work, got one of expunge forget"),
        ("bound", "a bound on a number that is measured, got 'accuracy/tset'"),
        ("recipe", "a .recipe. to retrain by, got none"),
    ],
)
def test_what_cannot_begin_is_refused_and_nothing_recorded(pets: Any, harm: str, sentence: str) -> None:
    shop: Shop = pets({"policy.bounds": ["accuracy/tset >= 0.1"]} if harm == "bound" else {})
    shop.ask("r1", "100")
    if harm == "recipe":
        text = (shop.folder / "expunge.toml").read_text()
        (shop.folder / "expunge.toml").write_text(text[: text.index("[recipe]")] + text[text.index("[method]") :])
        assert "a [recipe] to retrain by" in shop.process(how="retrain")[0].text
        return
    if harm == "forget":
        record = shop.folder / "expunge-work" / "record.json"
        record.write_text(record.read_text().replace('"step": "prepare"', '"step": "prepare", "forgotten": ["7"]'))
    elif harm != "bound":
        path = {"ledger": "expunge-requests", "start": "expunge-work", "data": "train.parquet"}[harm]
        shutil.rmtree(shop.folder / path) if harm != "data" else (shop.folder / path).unlink()
    with pytest.raises(UserError, match=sentence):
        shop.process()
    if harm != "ledger":
        assert shop.steps("r1") == []
