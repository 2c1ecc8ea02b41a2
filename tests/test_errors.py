import pickle

import pytest

from expunge import errors

SENTENCE = "Expected a number, got 'x': give one."


@pytest.mark.parametrize(
    "kind", [errors.MissingNeed, errors.Incompatible, errors.CorruptArtefact, errors.Declined, errors.NotFinite]
)
def test_a_user_error_is_one_sentence_of_three_parts(kind):
    error = kind("a number", "'x'", "give one")
    assert str(error) == SENTENCE
    assert isinstance(error, errors.UserError)
    assert isinstance(error, errors.ExpungeError)


def test_a_missing_extra_names_the_command_that_installs_it():
    with pytest.raises(errors.UserError, match=r"run pip install 'expunge\[tune\]'\.$"):
        raise errors.MissingExtra("optuna", "tune")


@pytest.mark.parametrize(("phase", "attribute"), [("prepare", "prepares"), ("unlearn", "unlearns")])
def test_an_undeclared_need_names_method_phase_and_cure(phase, attribute):
    error = errors.UndeclaredNeed("retain", "ssd", phase)
    wanted = f"Method ssd read session.retain in {phase} without declaring it: add retain to its `{attribute}` needs."
    assert str(error) == wanted
    assert not isinstance(error, errors.UserError)  # a fault of the method, not of its user


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("sdd", ["ssd", "retrain"], "did you mean 'ssd'"),
        ("retrian", ["ssd", "retrain"], "did you mean 'retrain'"),
        ("zzz", ["ssd", "no_op"], "choose from no_op, ssd"),
        ("zzz", iter(["b", "a"]), "choose from a, b"),
        (object, ["a"], "choose from a"),  # what is given in place of a name
    ],
)
def test_suggest(name, known, said):
    assert errors.suggest(name, known) == said


@pytest.mark.parametrize(
    ("n", "most", "said"),
    [(0, 5, ""), (2, 2, "0, 1"), (3, 2, "0, 1 and 1 more"), (7, 5, "0, 1, 2, 3, 4 and 2 more")],
)
def test_listing_counts_what_it_leaves_out(n, most, said):
    assert errors.listing(range(n), most) == said


def test_a_message_survives_a_copy_of_the_exception():
    error = errors.ExpungeError("plain")
    assert str(pickle.loads(pickle.dumps(error))) == "plain"
