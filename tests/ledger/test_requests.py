"""What a request may hold: anything as data, nothing as a name."""

from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.ledger.requests import MOST, Request, check_name

DAYS = {"received": date(2025, 3, 1), "due": date(2025, 3, 31)}


@given(st.lists(st.text(st.characters()), min_size=1, unique=True), st.text())
def test_any_text_comes_back_from_the_payload_as_it_was(values, note):
    request = Request("r", "ids", tuple(values), "edit", note=note, **DAYS)
    assert Request.read("r", request.public(), request.payload()) == request


def test_quotes_line_breaks_null_bytes_and_half_surrogates_are_data():
    values = ("a'b\"c", "x\ny\r\n", "nul\0byte", "\ud800", "=SUM(A1)", "<script>", "../../etc", "")
    request = Request("r", "subject", values, **DAYS)
    assert Request.read("r", request.public(), request.payload()).values == values


def test_what_is_public_names_nobody():
    request = Request("r", "subject", ("Ada Lovelace",), note="called twice", **DAYS)
    assert request.public() == {
        "kind": "subject", "count": 1, "route": None, "received": "2025-03-01", "due": "2025-03-31",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".hidden", "-rf", "", "a b", "a\n", "é", "x" * 201, "a\0", "a'b", 7, None]
)
def test_a_name_that_could_be_a_path_or_an_option_is_refused(name):
    with pytest.raises(UserError, match="Expected a request id of 1 to 200 letters, digits"):
        check_name(name, "a request id")


@pytest.mark.parametrize("name", ["r", "2025-03-01.42", "ada@example.org", "a+b:c_d", "x" * 200, "a..b"])
def test_usual_names_are_accepted(name):
    check_name(name, "a request id")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "id"}, "a kind for request 'r', got 'id': did you mean 'ids'"),
        ({"route": "edits"}, "a route for request 'r', got 'edits': did you mean 'edit'"),
        ({"values": ()}, "at least one value in request 'r', got none"),
        ({"values": ("a", "b", "a")}, "each value once in request 'r', got 'a' twice"),
        ({"values": "abc"}, "texts in request 'r', got another type"),
        ({"values": ("a", 7)}, "texts in request 'r', got another type"),
        ({"note": None}, "texts in request 'r', got another type"),
        ({"due": date(2025, 2, 28)}, "due on the day it was received or later, got 2025-02-28 after 2025-03-01"),
        ({"received": datetime(2025, 3, 1)}, "two days in request 'r', got datetime.datetime"),
        ({"received": "2025-03-01"}, "two days in request 'r', got '2025-03-01'"),
    ],
)
def test_a_wrong_field_is_refused_in_a_sentence(fields, message):
    given = {"kind": "ids", "values": ("a",), **DAYS, **fields}
    with pytest.raises(UserError, match=message):
        Request("r", **given)


def test_ten_megabytes_are_accepted_and_one_byte_more_is_refused():
    assert len(Request("r", "ids", ("x" * MOST,), **DAYS).values[0]) == MOST
    with pytest.raises(UserError, match="at most 10,485,760 bytes of values and note in request 'r', got 10,485,761"):
        Request("r", "ids", ("x" * MOST,), note="y", **DAYS)


def test_the_same_values_in_another_order_are_the_same_request():
    one, other = (Request("r", "ids", values, **DAYS) for values in (("a", "b"), ("b", "a")))
    assert one.same(other)
    assert one.same(Request("r", "ids", ("a", "b"), received=DAYS["received"], due=date(2025, 4, 30)))
    for changed in ({"values": ("a",)}, {"kind": "class"}, {"note": "n"}, {"route": "edit"}, {"id": "s"}):
        fields = {"id": "r", "kind": "ids", "values": ("a", "b"), **DAYS, **changed}
        assert not one.same(Request(**fields))
