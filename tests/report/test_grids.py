"""What a grid's report is made of: rows, cells that are not done, names and places in the pages."""

from books import METHODS, book, empty, leaf, small, stepwise
from expunge.report.grids import Cell, lines

DECLINED = Cell("declined", "it forgets whole classes only")
FAILED = Cell("failed", "out of memory")


def test_rows_are_the_floor_the_controls_and_every_method_of_the_grid_in_its_order():
    found = lines(leaf("a, b, c"), METHODS)
    assert [line.model for line in found] == ["retrained (other seed)", "head_mask", "no_op", *METHODS]
    assert [line.role for line in found] == ["floor", "control", "control", "method", "method", "method"]
    assert not any(line.absent or line.partly for line in found)


def test_a_method_that_declined_everywhere_is_a_row_with_its_reason():
    line = lines(leaf("a, b, c", missing={"lfssd": DECLINED}), METHODS)[-1]
    assert (line.model, line.entry) == ("lfssd", None)
    assert line.absent == "declined: it forgets whole classes only"


def test_a_method_that_some_seeds_lack_says_how_many_it_has_and_why():
    line = lines(leaf("a, b, c", missing={(1, "ssd"): FAILED}), METHODS)[-2]
    assert not line.absent
    assert line.partly == "2 of 3 seeds (seed 1 failed: out of memory)"


def test_a_model_with_a_flaw_has_no_numbers():
    found = leaf("a, b, c")
    next(m for m in found.section["models"] if m["name"] == "ssd")["flaw"] = "its outputs hold NaN"
    assert lines(found, METHODS)[-2].absent == "nothing is said: its outputs hold NaN"


def test_what_was_not_run_is_no_row_less():
    assert [line.absent for line in lines(empty("a, b, c"), METHODS)] == ["not run yet"] * 3


def test_cells_are_counted_once_a_place_and_are_as_far_as_their_first_open_step():
    assert small().statuses() == {"done": 20, "declined": 3, "failed": 1}
    found = stepwise(3)
    assert found.statuses() == {"missing": 12}
    assert len(found.places) == 1


def test_places_of_models_and_numbers_in_the_pages_are_the_same_in_all():
    found = small()
    assert list(found.anchors) == found.models
    assert found.models[:3] == ["original", "retrained", "retrained (other seed)"]
    assert found.models[-3:] == list(METHODS)
    assert len(set(found.anchors.values())) == len(found.models)
    numbers = found.leaves[0].numbers
    assert len(set(numbers.values())) == len(numbers) == len(found.leaves[0].section["metrics"])


def test_versions_of_all_places_stand_side_by_side():
    one, other = leaf("a, b, c"), leaf("a, b, d")
    other.versions["torch"] = "2.7.0"
    assert book(one, other).versions == {"expunge": "0.1.0", "torch": "2.6.0, 2.7.0"}
