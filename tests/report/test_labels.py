"""Labels beside points: near, apart from each other and from every mark, inside the frame."""

import itertools

import pytest

from expunge.report import labels

FRAME = (0.0, 0.0, 400.0, 300.0)


def boxes(points, sizes, offsets):
    return [
        (x + o.across - w / 2, y + o.up - h / 2, x + o.across + w / 2, y + o.up + h / 2)
        for (x, y), (w, h), o in zip(points, sizes, offsets, strict=True)
        if o is not None
    ]


def meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("step", [0.0, 4.0, 15.0])
def test_labels_of_a_crowd_cover_neither_each_other_nor_a_mark_and_stay_inside(step):
    points = [(60 + step * i, 150 + step * (i % 3)) for i in range(12)]
    sizes = [(50 + 5 * (i % 4), 11) for i in range(12)]
    found = labels.place(points, sizes, FRAME, 5)
    there = boxes(points, sizes, found)
    assert len(there) >= 8
    assert not [pair for pair in itertools.combinations(there, 2) if meet(*pair)]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    assert not [(b, m) for b in there for m in marks if meet(b, m)]
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 400 and b[3] <= 300 for b in there)


def test_a_lonely_label_stands_beside_its_point_without_a_line():
    (found,) = labels.place([(200, 150)], [(40, 11)], FRAME, 5)
    assert not found.far
    assert found.across - 20 < 15


def test_a_label_in_a_corner_is_turned_inwards():
    (found,) = labels.place([(398, 298)], [(40, 11)], FRAME, 5)
    assert found.across < 0
    assert found.up < 0


def test_where_there_is_no_room_there_is_no_label():
    assert labels.place([(10, 10)], [(60, 11)], (0, 0, 30, 30), 5) == [None]


def test_marks_of_others_are_left_free():
    (free,) = labels.place([(200, 150)], [(40, 11)], FRAME, 5)
    (blocked,) = labels.place([(200, 150)], [(40, 11)], FRAME, 5, marks=[(200 + free.across, 150 + free.up)])
    assert (blocked.across, blocked.up) != (free.across, free.up)


def test_a_longer_text_is_wider_and_no_higher():
    assert labels.extent("finetune", 10)[0] > labels.extent("ssd", 10)[0] > 0
    assert labels.extent("g", 10)[1] == labels.extent("x", 10)[1]
    assert labels.extent("", 10)[1] > 0
