import pytest

from expunge.report import format as fmt


def entry(x, low=None, high=None, n=1, unit="1"):
    return {"x": x, "low": low, "high": high, "n": n, "unit": unit}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (entry(0.973, 0.969, 0.977, 5), "97.3 ± 0.4%"),
        (entry(0.973), "97.3%"),
        (entry(0.973, 0.973, 0.973, 1), "97.3%"),
        (entry(0.973, None, 0.98, 5), "97.3%"),
        (entry(1.0, 0.962, 1.0, 100), "100.0% (96.2 to 100.0)"),
        (entry(0.5, 0.49999, 0.50001, 5), "50.0 ± <0.1%"),
        (entry(1.0, 1.0, 1.0, 5), "100.0 ± 0.0%"),
        (entry(2.31, 2.2, 2.42, 5, "nats"), "2.310 ± 0.110 nats"),
        (entry(41.27, 39.2, 43.34, 5, "s"), "41.3 ± 2.1 s"),
        (entry(0.0123, unit="s"), "0.012 s"),
        (entry(1234.5, unit="s"), "1,234 s"),
        (entry(0.0, unit="s"), "0.000 s"),
        (entry(0.00002, unit="s"), "<0.001 s"),
        (entry(4.4e8, unit="bytes"), "420 MiB"),
        (entry(3 * 2**20, unit="bytes"), "3.0 MiB"),
        (entry(0.25, unit="bits"), "0.250 bits"),
        (entry(3.0, unit=""), "3.00"),
    ],
)
def test_a_value_prints_in_its_unit(given, text):
    assert fmt.value(given) == text


def test_one_observation_never_has_an_interval():
    for compact in (True, False):
        assert "±" not in fmt.value(entry(0.5, 0.5, 0.5, 1), compact=compact)


def test_a_terminal_gets_percent_without_the_sign():
    assert fmt.value(entry(0.973, 0.969, 0.977, 5), compact=True) == "97.3±0.4"
    assert fmt.value(entry(1.0, 0.964, 1.0, 103), compact=True) == "100.0−3.6"  # no share above 100
    assert fmt.value(entry(0.9, 0.0, 1.0, 2), compact=True) == "90.0+10.0−90.0"


@pytest.mark.parametrize(
    ("given", "text", "compact"),
    [
        (entry(0.973, 0.969, 0.977, 500), "97.3% (96.9 to 97.7)", "97.3 (96.9 to 97.7)"),
        (entry(0.0, 0.0, 0.036, 103), "0.0% (0.0 to 3.6)", "0.0 (0.0 to 3.6)"),
        (entry(0.973), "97.3%", "97.3"),
        (entry(200.0, 200.0, None, 1, "steps"), "≥ 200 steps", "≥200"),
    ],
)
def test_an_interval_over_samples_is_written_by_its_ends(given, text, compact):
    assert fmt.value(given, ends=True) == text
    assert fmt.value(given, ends=True, compact=True) == compact


@pytest.mark.parametrize(
    ("given", "text", "compact", "ends"),
    [
        (entry(0.012, 0.002, 0.022, 10), "+1.2 ± 1.0", "+1.2±1.0", "+1.2 (+0.2 to +2.2)"),
        (entry(-0.012, -0.015, 0.001, 90), "−1.2 ± 0.8", "−1.2±0.8", "−1.2 (−1.5 to +0.1)"),
        (entry(-0.012), "−1.2", "−1.2", "−1.2"),
        (entry(0.0, -0.01, 0.01, 5), "0.0 ± 1.0", "0.0±1.0", "0.0 (−1.0 to +1.0)"),
    ],
)
def test_a_difference_carries_its_sign_and_its_interval(given, text, compact, ends):
    assert fmt.difference(given) == text
    assert fmt.difference(given, compact=True) == compact
    assert fmt.difference(given, ends=True) == ends


def test_a_difference_prints_with_the_decimals_of_another_number():
    assert fmt.difference(entry(25.0, 5.0, 45.0, 5, "s"), like=123.0) == "+25 ± 20"


@pytest.mark.parametrize(
    ("x", "unit", "text"),
    [
        (0.012, "1", "+1.2"),
        (-0.012, "1", "−1.2"),
        (0.0, "1", "0.0"),
        (-0.0001, "1", "−<0.1"),
        (0.5, "nats", "+0.500"),
    ],
)
def test_a_gap_carries_its_sign(x, unit, text):
    assert fmt.gap(entry(x, unit=unit)) == text


def test_names_lose_control_and_direction_marks():
    assert fmt.plain("a\x1b[31m\x00b\u202ec\ud800\n d") == "a [31m b c d"
    assert fmt.plain("abcdef", 4) == "abc…"
