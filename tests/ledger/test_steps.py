"""Steps of a request: what may follow what, held to a table of its own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.files import canonical
from expunge.ledger.events import Event
from expunge.ledger.steps import MODEL_STEPS, STEPS, ModelStatus, Status, advance, allowed

RECEIVED = {
    "kind": "ids", "count": 2, "route": None, "received": "2025-03-01", "due": "2025-03-31", "key": 1,
    "commitment": "c",
}  # fmt: skip


def event(step, model=None, actor="ann", seq=1, **body):
    body = RECEIVED | body if step == "received" else body
    if step in ("held", "refused", "failed", "erased"):
        body = {"reason": "because"} | body
    return Event(seq, "r", model, step, "2025-03-01T12:00:00.000000+00:00", actor, body, "", "")


def folded(*steps, **body):
    """Fold steps: ``step`` of the request, ``model.step`` of a model, ``model.started-retrain`` with how."""
    status = None
    for seq, text in enumerate(("received", *steps), 1):
        model, _, name = text.rpartition(".")
        step, _, how = name.partition("-")
        extra = {"how": how or "edit"} if step == "started" else {}
        actor = "bob" if step == "approved" else "ann"
        status = advance(status, event(step, model or None, actor, seq, **extra, **(body if seq == 1 else {})))
    return status


EDITED = ("m.started", "m.unlearned", "m.verified", "m.deployed")
RETRAINED = ("m.started-retrain", "m.unlearned", "m.verified", "m.deployed")


def test_an_edit_from_receipt_to_close():
    status = folded(*EDITED, "closed")
    assert (status.word, status.open, status.closed) == ("closed", False, True)
    model = status.models["m"]
    assert model == ModelStatus("deployed", how="edit", done=frozenset({"edit"}), undo=True, attempt=2, seq=5)
    assert (status.seq_first, status.seq_last, status.opened_by, status.due) == (1, 6, "ann", "2025-03-31")


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((), "received"),
        (("held",), "held"),
        (("held", "released"), "received"),
        (("m.scheduled",), "scheduled"),
        (EDITED[:1], "started"),
        (EDITED[:2], "unlearned"),
        (EDITED[:3], "verified"),
        (EDITED, "open"),
        ((*EDITED, "n.started"), "started"),
        ((*EDITED, "n.started", "n.failed", "o.scheduled"), "failed"),
        (("refused",), "refused"),
        (("refused", "held"), "refused"),
        ((*EDITED, "closed", "held"), "closed"),
        ((*EDITED, "closed", "m.rolled_back"), "open"),
    ],
)
def test_one_word_for_a_list(steps, word):
    assert folded(*steps).word == word


def test_each_model_has_its_own_outcome():
    status = folded(*EDITED, "n.absent", "o.started", "o.failed")
    assert "closed" not in allowed(status)
    assert not status.fulfilled("edit")
    assert "closed" in allowed(folded(*EDITED, "n.absent"))
    assert folded(*EDITED, "n.absent").fulfilled("edit")


@pytest.mark.parametrize("route", ["retrain", "edit-then-retrain"])
def test_a_route_that_retrains_stays_open_until_the_retrained_model_is_served(route):
    with pytest.raises(UserError, match=f"every model done as the route '{route}' asks to close request 'r'"):
        folded(*EDITED, "closed", route=route)
    assert folded(*EDITED, "m.scheduled", *RETRAINED, "closed", route=route).closed
    assert folded(*RETRAINED, "closed", route="edit").closed


def test_the_policys_route_holds_where_the_request_names_none():
    with pytest.raises(UserError, match="as the route 'retrain' asks"):
        advance(folded(*EDITED), event("closed", seq=9, route="retrain"))
    assert advance(folded(*EDITED), event("closed", seq=9, route="edit")).closed


@pytest.mark.parametrize("step", ["started", "purged", "erased", "closed"])
def test_a_hold_forbids_what_cannot_be_undone(step):
    status = folded(*EDITED, "closed", "held") if step in ("erased", "purged") else folded(*EDITED, "held")
    model = "m" if step in MODEL_STEPS else None
    with pytest.raises(UserError, match=rf"got '{step}' while it is held \(because\)"):
        advance(status, event(step, model, how="retrain"))
    freed = advance(status, event("released"))
    assert step in allowed(freed, model)


def test_an_edit_that_runs_may_finish_under_a_hold():
    status = folded("m.started", "held", "m.unlearned", "m.verified", "m.deployed")
    assert status.models["m"].done == {"edit"}


def test_approval_is_another_operators_once_before_the_first_attempt():
    assert folded("approved").approved_by == "bob"
    with pytest.raises(UserError, match="another operator than 'ann', who received it, to approve request 'r'"):
        advance(folded(), event("approved", actor="ann"))
    assert "approved" not in allowed(folded("approved"))
    assert "approved" not in allowed(folded("m.started", "m.failed"))
    assert "approved" in allowed(folded("m.scheduled"))


def test_what_a_model_has_forgotten_is_not_refused():
    assert "refused" in allowed(folded("m.started", "m.failed"))
    assert "refused" not in allowed(folded("m.started"))
    assert "refused" not in allowed(folded(*EDITED))
    assert "refused" in allowed(folded(*EDITED, "m.rolled_back"))


def test_a_rollback_takes_back_the_last_deployment_only():
    both = folded(*EDITED, *RETRAINED)
    assert both.models["m"].done == {"edit", "retrain"}
    back = advance(both, event("rolled_back", "m"))
    assert back.models["m"].done == {"edit"}
    assert (both.models["m"].undo, back.models["m"].undo) == (2, 1)
    assert set(allowed(back, "m")) == {"started", "scheduled", "absent", "rolled_back", "purged"}
    first = advance(back, event("rolled_back", "m"))
    assert (first.models["m"].done, first.models["m"].undo) == (frozenset(), 0)
    assert set(allowed(first, "m")) == {"started", "scheduled", "absent"}


def test_a_purge_of_some_older_versions_leaves_the_others_to_be_rolled_back_to():
    both = folded(*EDITED, *RETRAINED)
    one = advance(both, event("purged", "m", destroyed=["v000000"]))
    assert one.models["m"].undo == 1
    assert "rolled_back" in allowed(one, "m")
    none = advance(one, event("purged", "m", destroyed=["v000004"]))
    assert none.models["m"].undo == 0
    assert "rolled_back" not in allowed(none, "m")


def test_absence_is_rolled_back_and_opens_what_was_closed_for_it():
    status = folded("m.absent", "closed")
    assert set(allowed(status, "m")) == {"rolled_back"}
    back = advance(status, event("rolled_back", "m"))
    assert back.open
    assert not back.models["m"].freed
    assert set(allowed(back, "m")) == {"started", "scheduled", "absent"}
    assert "rolled_back" not in allowed(folded("m.absent", "closed", "erased"), "m")


def test_what_waits_for_a_retraining_can_be_rolled_back_or_purged_meanwhile():
    waiting = folded(*EDITED, "m.scheduled")
    assert set(allowed(waiting, "m")) == {"started", "absent", "rolled_back", "purged"}
    purged = advance(waiting, event("purged", "m"))
    assert purged.models["m"].done == {"edit"}
    assert purged.models["m"].step == "scheduled"
    assert set(allowed(purged, "m")) == {"started", "absent"}


@pytest.mark.parametrize(("before", "how"), [(EDITED, "edit"), (RETRAINED, "edit"), (RETRAINED, "retrain")])
def test_what_is_done_is_not_done_again(before, how):
    with pytest.raises(
        UserError, match=f"how='retrain', once, after request 'r' with model 'm' is done, got how='{how}'"
    ):
        advance(folded(*before), event("started", "m", how=how))


def test_after_an_erasure_only_old_versions_are_purged():
    status = folded(*EDITED, "closed", "erased")
    assert allowed(status) == ()
    assert allowed(status, "m") == ("purged",)
    with pytest.raises(UserError, match="no further step for request 'r', got 'held'"):
        advance(status, event("held"))
    assert "erased" not in allowed(folded(*EDITED))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event("unlearnt", "m"), "a step for request 'r' with model 'm', got 'unlearnt': did you mean 'unlearned'"),
        (event("started", how="edit"), "the name of a model with the step 'started' of request 'r', got None"),
        (event("held", "m"), "no model with the step 'held' of request 'r' with model 'm', got 'm'"),
        (event("held", reason=" "), "a reason for the step 'held' of request 'r', got ' ': say why"),
        (event("started", "m"), "how='edit' or 'retrain' with the step 'started'"),
        (event("scheduled", "m", how="soon"), "how='edit' or 'retrain' with 'scheduled'"),
        (event("absent", "m", version=7), "a version of request 'r' with model 'm', a text, got 7"),
        (
            event("verified", "m"),
            "one of the steps scheduled, started, absent for request 'r' with model 'm', got 'ver",
        ),
        (event("received"), "one of the steps held, approved, refused for request 'r', got 'received'"),
        (event("closed"), "one of the steps held, approved, refused for request 'r', got 'closed'"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_naming_those_that_do(bad, message):
    with pytest.raises(UserError, match=message):
        advance(folded(), bad)


def test_the_first_step_is_received_with_all_it_needs():
    with pytest.raises(UserError, match="one of the steps received for request 'r', got 'held'"):
        advance(None, event("held"))
    with pytest.raises(UserError, match="got no usable count, key: add it"):
        advance(None, event("received", count="2", key=None))
    with pytest.raises(UserError, match="a route for request 'r', got 'edits'"):
        advance(None, event("received", route="edits"))


def test_a_status_is_json_and_back():
    for status in (folded(), folded(*EDITED, "n.absent", "held"), folded(*EDITED, *RETRAINED, "closed", "erased")):
        assert Status.read(json.loads(canonical(status.document()))) == status


MODELS = ("m", "n")
PLAIN = {  # what may follow a step of a model, from the demand
    None: "scheduled started absent", "scheduled": "started absent", "started": "unlearned failed absent",
    "unlearned": "verified failed", "verified": "deployed failed", "deployed": "started scheduled rolled_back purged",
    "failed": "started scheduled absent", "rolled_back": "started scheduled absent",
    "absent": "started",
}  # fmt: skip


class Table:
    """The rules once more, as flags and lists, to hold the fold to."""

    def __init__(self):
        self.flags, self.steps, self.done, self.tried = set(), {}, {"m": [], "n": []}, False
        self.undo = dict.fromkeys(MODELS, 0)
        self.last_how = {}

    def accepts(self, step, model, how, actor):
        flags = self.flags
        if "held" in flags and step in ("started", "purged", "erased", "closed", "held"):
            return False
        if "erased" in flags:
            return step == "purged" and self.undo[model] > 0 and not self.runs(model)
        if step in ("held", "released"):
            return (step == "released") == ("held" in flags)
        over = {"closed", "refused"} & flags
        if step == "erased":
            return bool(over)
        if step in ("rolled_back", "purged"):
            kept = self.undo[model] > 0 and not self.runs(model)
            return kept or (step == "rolled_back" and self.steps.get(model) == "absent")
        if over:
            return False
        if model is not None:
            if step == "started" and self.done[model] and (how == "edit" or "retrain" in self.done[model]):
                return False
            return step in PLAIN[self.steps.get(model)].split()
        if step == "approved":
            return actor == "bob" and "approved" not in flags and not self.tried
        if step == "refused":
            return not any(self.done[m] or self.runs(m) for m in MODELS)
        return bool(self.steps) and all(
            (self.done[m] or self.steps[m] == "absent") and not self.runs(m) for m in self.steps
        )

    def runs(self, model):
        return self.steps.get(model) in ("started", "unlearned", "verified")

    def take(self, step, model, how):
        if model is None:
            self.flags -= {"held"} if step == "released" else set()
            self.flags |= {step} - {"released"}
            return
        absent = self.steps.get(model) == "absent"
        self.steps[model] = self.steps[model] if step == "purged" else step
        if step == "started":
            self.tried, self.last_how[model] = True, how
        elif step == "deployed":
            self.done[model].append(self.last_how[model])
            self.undo[model] += 1
        elif step == "purged":
            self.undo[model] = 0
        elif step == "rolled_back":
            self.flags.discard("closed")
            if not absent:
                self.done[model].pop()
                self.undo[model] -= 1


MOVES = [
    (step, model, how, actor)
    for step in STEPS[1:]
    for model in (MODELS if step in MODEL_STEPS else (None,))
    for how in (("edit", "retrain") if step == "started" else (None,))
    for actor in (("ann", "bob") if step == "approved" else ("ann",))
]
RARE = ("held", "refused", "erased", "absent", "failed")  # lead off the way: mostly taken where nothing else may be


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 999)), min_size=25, max_size=25))
def test_the_fold_refuses_and_accepts_as_an_independent_table(draws):
    status, table = folded(), Table()
    for seq, (wild, number) in enumerate(draws, 2):
        likely = [m for m in MOVES if table.accepts(*m)]
        chosen = likely if wild == 0 else [m for m in likely if m[0] not in RARE] or likely
        for move in MOVES:  # every step is tried, one is taken
            step, model, how, actor = move
            extra = {"how": how} if how else {}
            try:
                after = advance(status, event(step, model, actor, seq, **extra))
            except UserError:
                after = None
            assert (after is not None) == table.accepts(*move), (move, status)
            assert (step in allowed(status, model)) or after is None
            if after is not None:
                assert Status.read(after.document()) == after
            if chosen and move == chosen[number % len(chosen)]:
                taken = after
        if not chosen:
            return
        step, model, how, _ = chosen[number % len(chosen)]
        table.take(step, model, how)
        status = taken
        assert status.open == (not {"closed", "refused"} & table.flags)
        assert {m: set(s.done) for m, s in status.models.items()} == {m: set(table.done[m]) for m in table.steps}
