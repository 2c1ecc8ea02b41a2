"""The page of the data sets says what is so, and its code runs."""

import re
from pathlib import Path

from expunge import zoo
from expunge.draws import Request

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_table_lists_every_data_set_with_its_network_and_columns():
    rows = [row for row in PAGE.splitlines() if row.startswith("| `")]
    found = {}
    for row in rows:
        names, _, _, network, columns, _ = row.strip("| ").split(" | ")
        for name in re.findall(r"`(\w+)`", names):
            found[name] = re.findall(r"`(\w+)`", network), set(re.findall(r"`(\w+)`", columns))
    assert sorted(found) == zoo.datasets()
    for name, (network, columns) in found.items():
        assert network == [zoo.network(name)]
        assert set(zoo.known(name).columns) - {"fine_name"} <= columns


def test_the_code_runs_and_says_what_the_page_says(capsys):
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, {})
    windows, *norms = capsys.readouterr().out.splitlines()
    assert windows == "14 windows have an hour of these days in them"
    start, original, retrained = norms
    assert start == retrained != original
    for text in re.findall(r"`(dates=[^`]*)`", PAGE):
        assert Request.parse(text).kind == "dates"
