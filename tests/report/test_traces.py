"""Curves of what edits recorded: what counts as one, what a mean over seeds is, what is drawn and written."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from matplotlib.colors import to_hex

from audits import HOSTILE, build
from books import METHODS, book, leaf
from expunge import stats
from expunge.errors import Incompatible, UserError
from expunge.report import cellpage, gridpage, page, recorded, standalone, traces
from expunge.report import format as fmt
from expunge.report.grids import Cell
from expunge.report.looks import Look
from expunge.report.svg import INK, inline, style
from expunge.report.traces import Chart, Line, Panel
from htmls import Page

NS = "{http://www.w3.org/2000/svg}"
LOOK = Look("#d55e00", "o", "-")


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]


def chart(*lines, name="kl", **more):
    panel = Panel(recorded.quantity(name, "nats"), tuple(lines))
    return Chart(((panel,),), **{"heads": ("digits, class 3",), **more})


def axes(found):
    with style("k"):
        fig = found.draw()
        fig.canvas.draw()
        return fig.axes


def svg(found):
    with style("k"):
        return inline(found.draw(), "k", found.told())


def curves(ax):
    return {to_hex(line.get_color()): line.get_xydata().tolist() for line in ax.lines}


def test_only_numbers_recorded_at_steps_are_curves():
    log = {
        "loss": [[1, 0.5], [2, 0.25]],
        "active": [[1, True], [2, False]],
        "counts": [[0, {"size": 3}], [1, {"size": 4}]],
        "frozen": ["weight", "bias"],
        "head": [3, 1, 2],
        "empty": [],
        "steps": 2,
        "words": [[1, "high"]],
    }
    assert recorded.series(log) == {"loss": [(1.0, 0.5), (2.0, 0.25)], "active": [(1.0, 1.0), (2.0, 0.0)]}


def test_what_is_not_finite_is_a_gap_and_nothing_else_is_no_curve():
    found = recorded.series({"loss": [[1, 0.5], [2, "nan"], [3, "inf"]], "lost": [[1, "nan"]]})
    assert found == {"loss": [(1.0, 0.5), (2.0, None), (3.0, None)]}
    assert math.isnan(recorded.points(found["loss"])[1][1])


def test_points_are_in_the_order_of_steps():
    assert recorded.points([(4, 2.0), (0, 1.0)]) == [(0.0, 1.0), (4.0, 2.0)]


def test_a_level_that_was_recorded_once_spans_its_curve_and_needs_one():
    assert "tau" not in recorded.series({"tau": 0.5, "loss": [[1, 2.0]]})
    both = recorded.series({"tau": 0.5, "forget_loss": [[5, 2.0], [0, 1.0]]})
    assert both["tau"] == [(0.0, 0.5), (5.0, 0.5)]
    own = recorded.series({"tau": [[0, 0.1]], "forget_loss": [[5, 2.0]]})
    assert own["tau"] == [(0.0, 0.1)]


def test_losses_share_a_panel_and_all_else_stands_alone():
    found = recorded.panels(["hinge_active", "min_loss", "kl", "tau", "unheard_of", "retain_loss", "alpha"])
    assert found == [("min_loss", "tau", "retain_loss"), ("alpha",), ("hinge_active",), ("kl",), ("unheard_of",)]


def test_names_of_one_panel_are_told_apart_without_colour():
    names = ["forget_loss", "retain_loss", "tau", "loss", "holdout_loss", "min_loss", "max_loss"]
    found = recorded.named(names)
    assert list(found) == names
    assert len({(look.marker, str(look.line)) for look in found.values()}) == len(names)


def test_ordered_values_go_from_dark_to_light_with_other_dashes_and_markers():
    found = recorded.ramp(5)
    light = [sum(int(look.colour[i : i + 2], 16) for i in (1, 3, 5)) for look in found]
    assert light == sorted(light)
    assert len({(look.marker, str(look.line)) for look in found}) == 5
    assert recorded.ramp(1) == found[:1]


def test_the_mean_is_over_the_steps_that_all_seeds_have_and_the_rest_is_left_single():
    long, short = [(20, 1.0), (40, 2.0), (60, 3.0), (80, 9.0)], [(20, 3.0), (40, 4.0)]
    found = traces.course([long, short])
    assert found.steps == (20, 40)
    assert list(found.means) == [stats.mean_t([1.0, 3.0]), stats.mean_t([2.0, 4.0])]
    assert found.rest == (((40, 2.0), (60, 3.0), (80, 9.0)),)


def test_seeds_without_a_common_step_are_left_single():
    found = traces.course([[(1, 1.0), (3, 1.5)], [(2, 3.0)]])
    assert (found.steps, found.means) == ((), ())
    assert found.rest == (((1, 1.0), (3, 1.5)), ((2, 3.0),))


def test_where_a_seed_is_not_finite_the_mean_is_not_either():
    found = traces.course([[(1, 1.0), (2, math.nan)], [(1, 3.0), (2, 4.0)]])
    assert found.means[0].x == 2.0
    assert math.isnan(found.means[1].x)


def test_a_line_is_the_mean_over_seeds_and_its_band_the_interval():
    runs = (((0, 1.0), (10, 2.0)), ((0, 3.0), (10, 5.0)))
    (ax,) = axes(chart(Line("a", LOOK, runs)))
    assert curves(ax) == {LOOK.colour: [[0, 2.0], [10, 3.5]]}
    (band,) = ax.collections
    ends = stats.mean_t([2.0, 5.0])
    drawn = band.get_paths()[0].vertices
    assert [ends.low, ends.high] == pytest.approx([drawn[:, 1].min(), drawn[:, 1].max()])
    assert ax.get_ylim()[1] < 6  # by the seeds' own values, not by what an interval of two seeds reaches


def test_the_interval_of_a_share_ends_at_none_and_at_all():
    (ax,) = axes(chart(Line("a", LOOK, (((0, 0.02), (1, 0.9)), ((0, 0.3), (1, 1.0)))), name="forget_accuracy"))
    drawn = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == (0.0, 100.0)


def test_each_seed_may_be_a_line_and_one_seed_has_no_band():
    runs = (((0, 1.0), (10, 2.0)), ((0, 3.0), (10, 5.0)))
    (ax,) = axes(chart(Line("a", LOOK, runs), each=True))
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0, 2.0], [3.0, 5.0]]
    assert len(ax.collections) == 0
    (ax,) = axes(chart(Line("a", LOOK, runs[:1])))
    assert len(ax.collections) == 0


def test_shares_are_percent_and_a_small_change_does_not_look_like_a_gulf():
    (ax,) = axes(chart(Line("", LOOK, (((0, 0.99), (1, 1.0)),)), name="hinge_active"))
    assert curves(ax) == {LOOK.colour: [[0, 99.0], [1, 100.0]]}
    low, high = ax.get_ylim()
    assert high - low > traces.LEAST
    assert [t.get_text() for t in ax.get_yticklabels()][-1].endswith("%")


@pytest.mark.parametrize(
    ("name", "scale", "values", "want"),
    [
        ("kl", "auto", (1.0, 500.0), "log"),
        ("kl", "auto", (1.0, 50.0), "linear"),
        ("kl", "auto", (0.0, 1.0, 500.0), "log"),  # where it begins at 0 the line begins at the next point
        ("kl", "auto", (-1.0, 500.0), "linear"),
        ("kl", "linear", (1.0, 500.0), "linear"),
        ("kl", "log", (1.0, 2.0), "log"),
        ("objective", "log", (-1.0, -2.0), "linear"),  # there is no logarithm to draw
        ("alpha", "auto", (1e-4, 0.5), "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_values_span_much(name, scale, values, want):
    (ax,) = axes(chart(Line("", LOOK, (tuple(enumerate(values)),)), name=name, scale=scale))
    assert ax.get_yscale() == want


def test_what_a_logarithmic_axis_does_not_show_is_told():
    def lost(values, **more):
        return chart(Line("", LOOK, (tuple(enumerate(values)),)), **more).lost()

    want = "KL(q ‖ p): 1 value of 0 or below, which a logarithmic axis does not show."
    assert lost((0.0, 1.0, 500.0)) == [want]
    assert lost((0.0, 1.0, 5.0)) == lost((1.0, 500.0)) == []
    assert lost((-1.0, -2.0), scale="log") == ["KL(q ‖ p): nothing above 0, so that its axis is linear."]


def test_a_row_shares_its_axis_and_a_panel_without_lines_says_so():
    quantity = recorded.quantity("kl")
    row = [Panel(quantity, (Line("", LOOK, (((0, y), (1, 2 * y)),)),)) for y in (1.0, 8.0)]
    found = Chart(((*row, Panel(quantity, ())),), heads=("a", "b", "c"))
    first, second, empty = axes(found)
    assert first.get_ylim() == second.get_ylim()
    assert [t.get_text() for t in empty.texts] == ["not recorded"]
    assert (first.get_ylabel(), second.get_ylabel()) == (quantity.axis, "")


def test_a_figure_names_quantity_unit_steps_lines_and_note():
    runs = (((20, 1.0), (40, 2.5)),)
    found = chart(Line("λ = 0.5", LOOK, runs), Line("λ = 0.9", recorded.ramp(2)[1], runs), note="Made of one seed.")
    shown = texts(svg(found))
    assert {"digits, class 3", "KL(q ‖ p), nats", "steps", "λ = 0.5", "λ = 0.9", "Made of one seed."} <= set(shown)
    assert "digits, class 3: KL(q ‖ p): λ = 0.5 2.500 nats; λ = 0.9 2.500 nats" in found.told()


def test_a_label_stands_once_in_the_legend():
    line = Line("a label", LOOK, (((0, 1.0), (1, 2.0)),))
    rows = ((Panel(recorded.quantity("kl"), (line,)),), (Panel(recorded.quantity("lr"), (line,)),))
    assert texts(svg(Chart(rows, heads=("x",)))).count("a label") == 1


def test_an_edit_in_a_page_has_a_panel_a_quantity_and_names_its_unit():
    log = {"forget_loss": [[0, 0.1], [4, 0.9]], "tau": 0.5, "alpha": [[2, 0.4], [4, 0.2]], "once": [[4, 1.0]]}
    drawn = traces.edit([recorded.series(log)], "m1-trace", "nats")
    shown = texts(drawn)
    assert {"loss, nats", "forget loss", "τ", "α", "steps"} <= set(shown)
    assert "once" not in shown  # a single point is no curve
    assert 'id="m1-trace-' in drawn
    assert "τ 0.500 nats" in drawn


def test_without_two_points_there_is_nothing_to_draw():
    assert traces.edit([{"loss": [(4.0, 1.0)]}], "k") is None
    assert traces.edit([], "k") is None


def cells_page(series, method="ssd"):
    """The page of cells of a place in which one method's seeds recorded something."""
    whole = book(leaf("digits, mlp, class 3"))
    for seed in (0, 1, 2):
        whole.leaves[0].cells[seed, method] = Cell("done", series=series(seed))
    return Page(cellpage.render(whole, whole.leaves[0], gridpage.chosen(whole), []))


def test_the_page_of_cells_shows_how_an_edit_went_where_anything_was_recorded():
    found = cells_page(lambda seed: {"forget_loss": [(1.0, 0.5 + seed), (2.0, 1.5 + seed)]})
    assert found.text.count("How the edit went what it recorded over its steps") == 1
    assert len(METHODS) > 1
    assert "bands their 95% t intervals" in found.text
    labels = [attrs["aria-label"] for tag, attrs in found.found if attrs.get("role") == "img"]
    assert labels == ["Over steps, at the last point. forget loss: 2.500 nats"]
    assert "How the edit went" not in cells_page(lambda _: {}).text


def test_a_recorded_name_is_escaped():
    found = cells_page(lambda seed: {HOSTILE: [(1.0, 0.5), (2.0, 1.5)]})
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.found}
    assert fmt.plain(recorded.quantity(HOSTILE).label)[:20] in found.text


def reported(found):
    """The text of a report whose one section, without any other chart, has these traces."""
    section = build()["sections"][0] | {"curves": {}, "series": {}, "changed": {}, "metrics": [], "traces": found}
    section |= {"values": {}, "gaps": {}, "floor": {}}
    return Page(page.render(build() | {"sections": [section]})).text


def test_a_report_shows_one_edit_open_and_several_folded():
    names = [m["name"] for m in build()["sections"][0]["models"] if m["role"] == "method"]
    one = {"loss": [[1, 0.5], [2, 0.25]]}
    assert "How the edit went What the method recorded while it took its steps." in reported({names[0]: one})
    folded = reported({name: one for name in names})
    assert all(f"How the edit of {name} went" in folded for name in names)
    assert len(names) > 1
    assert "How the edit" not in reported({names[0]: {"loss": [[1, 0.5]]}})


@pytest.mark.parametrize(
    ("traces_", "match"),
    [
        ({"nobody": {"loss": [[1, 0.5]]}}, "in traces of section 1 only a listed model"),
        ({"ssd": {"loss": [[1, "high"]]}}, "pairs of a step and a number or null for trace loss of 'ssd'"),
        ({"ssd": {"loss": [[1, math.inf]]}}, "pairs of a step and a number or null"),
        ({"ssd": {"loss": 3}}, "pairs of a step and a number or null"),
        (["loss"], "an object for traces of section 1"),
    ],
)
def test_a_document_with_other_traces_is_refused(traces_, match):
    document = build()
    document["sections"][0]["traces"] = traces_
    with pytest.raises(Incompatible, match=match):
        page.render(document)


@pytest.fixture
def drawn():
    return chart(Line("λ = 0.5", LOOK, (((20, 1.0), (40, 2.0)), ((20, 1.5), (40, 2.5)))), note="A note.")


def test_a_file_needs_nothing_of_a_page(drawn, tmp_path):
    standalone.write(tmp_path / "a.svg", drawn.draw, title="A <grid>", told=drawn.told())
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert not re.search(r"var\(|currentColor|system-ui", text)
    assert float(root.get("width")) == drawn.size[0]
    assert root.find(f"{NS}title").text.startswith("A <grid>. Over steps")
    paper = root.find(f"{NS}path")
    assert paper.get("fill") == standalone.PAPER
    assert {"λ = 0.5", "A note."} <= set(texts(text))


@pytest.mark.parametrize(("ending", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_ending_says_the_form_and_the_same_chart_gives_the_same_bytes(drawn, tmp_path, ending, head):
    files = [tmp_path / f"{name}{ending}" for name in "ab"]
    for file in files:
        standalone.write(file, drawn.draw, title="A grid", told=drawn.told())
    assert files[0].read_bytes().startswith(head)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_on_paper_rules_are_light_and_words_dark(drawn, tmp_path):
    seen = []

    def draw():
        seen.append(drawn.draw())
        return seen[0]

    standalone.write(tmp_path / "a.png", draw, title="", told="")
    (ax,) = seen[0].axes
    assert {to_hex(line.get_color()) for line in ax.yaxis.get_gridlines()} == {standalone.LIGHT}
    assert ax.yaxis.label.get_color() == INK


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_another_ending_is_refused(drawn, tmp_path, name):
    with pytest.raises(UserError, match=r"a file that ends in \.svg, \.png or \.pdf, got .*: choose one of them"):
        standalone.write(tmp_path / name, drawn.draw, title="", told="")
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.svg").write_text("before")

    def draw():
        raise ValueError("no ink")

    with pytest.raises(ValueError, match="no ink"):
        standalone.write(tmp_path / "a.svg", draw, title="", told="")
    assert [p.name for p in tmp_path.iterdir()] == ["a.svg"]
    assert (tmp_path / "a.svg").read_text() == "before"
