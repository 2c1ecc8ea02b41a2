"""The page of exact unlearning: its code runs, and says what the page says."""

import re
from pathlib import Path

from expunge.exact import costs

PAGE = (Path(__file__).parents[2] / "docs" / "s3t.md").read_text(encoding="utf-8")


def test_the_code_runs_and_says_what_the_page_says(capsys):
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, scope)
    first, checked, revoked, sisa, s3t = capsys.readouterr().out.splitlines()
    depths, read = re.fullmatch(r"(\[\d, \d\]) stages are served of each shard; (\d) samples were read", first).groups()
    assert sum(map(int, re.findall(r"\d", depths))) == 3  # of 4
    assert read == "0"
    assert checked == "True True"
    assert int(revoked.split()[0]) >= 2
    lasts = [int(re.search(r": (\d+) requests", line).group(1)) for line in (sisa, s3t)]
    assert 40 < lasts[0] < 52  # 45.67 ± 23.23 a run
    assert 68 < lasts[1] < 76  # 71.95 ± 23.80


def test_the_number_in_the_text_is_that_of_the_formula():
    assert "(2.19 at L = 4 and" in PAGE
    assert round(costs.work(4), 2) == 2.19
    assert costs.work(4, equal="samples") < 1
