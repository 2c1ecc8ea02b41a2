"""Planes of what is kept over what is forgotten: lines in order, marks, intervals, references, labels."""

import xml.etree.ElementTree as ET

import pytest
from matplotlib.colors import to_hex

from expunge.report import frontiers
from expunge.report.frontiers import Axis, Chart, Family, Plane, Spot
from expunge.report.svg import BLUE, GREY, INK, inline, style
from expunge.stats import Interval

NS = "{http://www.w3.org/2000/svg}"
ACROSS, UP = Axis("accuracy, forget set", "1"), Axis("loss, test set", "nats")


def spot(x, y, label="", half=0.01, n=5):
    return Spot(label, Interval(x, x - half, x + half, n), Interval(y, y - half, y + half, n))


def line(name, shift=0.0):
    values = ((0.0, 0.9, "0.5"), (0.2, 0.8, "0.9"), (0.6, 0.4, "0.98"))
    return Family(name, tuple(spot(x + shift, y, label) for x, y, label in values))


@pytest.fixture
def families():
    alone = Family("ssd", (spot(0.3, 0.5),))
    return (
        line("kl"),
        line("l2", 0.1),
        alone,
        Family("original", (spot(1.0, 0.3),)),
        Family("retrained", (spot(0.0, 0.3),)),
    )


@pytest.fixture
def chart(families):
    return Chart((Plane("class 3", families),), ACROSS, UP, "λ_n", "Five seeds.")


def axes(found):
    with style("k"):
        return found.draw().axes


def texts(found):
    with style("k"):
        svg = inline(found.draw(), "k", found.told())
    return [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]


def test_points_of_a_family_are_joined_in_their_order_and_grow_along_it(chart):
    (ax,) = axes(chart)
    joined = [each.get_xydata().tolist() for each in ax.lines if len(each.get_xdata()) == 3]
    assert joined[0] == [[0.0, 0.9], [20.0, 0.8], [60.0, 0.4]]  # shares in percent
    assert len(joined) == 2
    marks = [each.get_markersize() for each in ax.lines if each.get_marker() == "o"][:3]
    assert marks == sorted(marks)
    assert len(set(marks)) == 3


def test_references_are_marked_as_everywhere_and_single_methods_in_grey(chart):
    (ax,) = axes(chart)
    marks = {(each.get_marker(), to_hex(each.get_color()).upper()) for each in ax.lines}
    assert {("D", BLUE), ("X", INK)} <= marks
    assert {marker for marker, colour in marks if colour == GREY.upper()} == {"P", "None"}


def test_dotted_lines_cross_in_the_retrained_model(chart):
    (ax,) = axes(chart)
    across = [each for each in ax.lines if list(each.get_xdata()) == [0.0, 0.0] and list(each.get_ydata()) == [0, 1]]
    up = [each for each in ax.lines if list(each.get_ydata()) == [0.3, 0.3] and list(each.get_xdata()) == [0, 1]]
    assert len(across) == len(up) == 1
    assert to_hex(across[0].get_color()).upper() == BLUE


def test_intervals_are_cut_at_the_frame_and_one_seed_has_none(families):
    wide = Family("wide", (spot(0.5, 0.5, half=40.0),))
    (ax,) = axes(Chart((Plane("a", (*families, wide)),), ACROSS, UP, "λ"))
    low, high = ax.get_xlim()
    assert max(max(each.get_xdata()) for each in ax.lines) <= high
    assert low < 0 < 100 < high < 140
    one = Family("one", (Spot("", Interval(0.5, -float("inf"), float("inf"), 1), Interval(0.5, 0.4, 0.6, 5)),))
    (ax,) = axes(Chart((Plane("a", (one,)),), ACROSS, UP, "λ"))
    assert sorted(len(each.get_xdata()) for each in ax.lines) == [1, 2]  # the mark and one arm


def test_the_figure_names_axes_units_families_values_and_note(chart):
    shown = texts(chart)
    assert {"class 3", "accuracy, forget set, %", "loss, test set, nats", "Five seeds."} <= set(shown)
    assert all(shown.count(name) == 1 for name in ("kl", "l2", "ssd", "original", "retrained"))
    assert shown.count("0.5") == shown.count("0.98") == 2


def test_the_text_alternative_has_every_point(chart):
    told = chart.told()
    assert told.startswith(
        "loss, test set over accuracy, forget set. class 3: kl: λ_n = 0.5 0.900 ± 0.010 nats over 0.0"
    )
    assert "ssd: 0.500 ± 0.010 nats over 30.0 ± 1.0%" in told


def test_each_place_has_a_plane_and_a_family_looks_alike_in_all(families):
    found = Chart(tuple(Plane(f"class {i}", families[i:]) for i in range(4)), ACROSS, UP, "λ_n")
    planes = axes(found)
    assert [ax.get_title(loc="left") for ax in planes[:4]] == [f"class {i}" for i in range(4)]
    assert not any(ax.axison for ax in planes[4:])
    dashes = {ax.get_title(loc="left"): {e.get_color() for e in ax.lines if len(e.get_xdata()) == 3} for ax in planes}
    assert dashes["class 1"] < dashes["class 0"]


def test_labels_cover_no_other_label(chart):
    with style("k"):
        fig = chart.draw()
        fig.canvas.draw()
        boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert len(boxes) == 6
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert overlaps == []


def test_where_labels_find_no_room_near_their_points_they_are_left_out():
    crowd = tuple(Family(f"f{i}", tuple(spot(0.5, 0.5, str(k)) for k in range(5))) for i in range(4))
    far = Family("far", (spot(0.0, 0.0), spot(1.0, 1.0)))
    (ax,) = axes(Chart((Plane("a", (*crowd, far)),), ACROSS, UP, "λ"))
    assert 0 < len(ax.texts) < 20


def test_a_reference_that_is_not_there_is_no_line_of_the_legend(families):
    shown = texts(Chart((Plane("a", families[:2]),), ACROSS, UP, "λ"))
    assert not {"original", "retrained"} & set(shown)
    assert frontiers.REFERENCES == ("original", "retrained")
