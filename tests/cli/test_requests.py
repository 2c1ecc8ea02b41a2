"""``expunge requests`` before any model is touched: what is received, listed, shown, decided on, refused."""

from __future__ import annotations

import csv
import inspect
import json
import re
import sqlite3
import subprocess
import sys
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.models import OptionInfo

from expunge.cli import _requests as shared
from expunge.cli import _requests_words as words_of
from expunge.cli.requests import COMMANDS
from expunge.ledger import Ledger
from expunge.project.config import RequestsSection
from projects import shop, toml
from shell import Run, refused, sentence

TODAY = shared.today()
ODD = 'it\'s "q"\nnew\x00null, comma; half'


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project of pets, to be copied."""
    return shop(tmp_path_factory.mktemp("pets") / "shop")


@pytest.fixture
def here(pets: Path, tmp_path: Path, run: Run) -> Path:
    """Return the folder that commands run in: a project of pets."""
    for path in pets.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def added(run: Run, *words: object) -> dict[str, Any]:
    code, out, err = run("--json", "requests", "add", *words)
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def listed(run: Run, *words: object) -> list[dict[str, Any]]:
    code, out, err = run("--json", "requests", "list", *words)
    assert code == 0, err
    return json.loads(out)["requests"]  # type: ignore[no-any-return]


def named(folder: Path, id: str) -> tuple[str, ...]:
    with Ledger.open(folder / "expunge-requests", readonly=True) as ledger:
        return ledger.request(id).values


def test_requests_are_looked_up_and_named_in_order(run: Run, here: Path) -> None:
    (here / "ids.txt").write_text("100\n 104 \n\n")
    first = added(run, "--subject", "ann")
    assert first["requests"][0]["request"] == f"r-{TODAY:%Y%m%d}-0001"
    assert (first["requests"][0]["samples"], first["added"], first["looked_up"]) == (12, 1, True)
    assert added(run, "--class", "bird")["requests"][0]["samples"] == 20
    assert added(run, "--class", "0", "--route", "retrain")["requests"][0]["route"] == "retrain"
    code, out, _ = run("requests", "add", "mine", "--ids", "ids.txt", "--days", 3, "--note", "by letter")
    assert code == 0
    assert f"Received mine: 2 ids, due {TODAY + timedelta(days=3)}; 2 training samples match." in out
    assert [r["request"] for r in listed(run)] == ["mine", *(f"r-{TODAY:%Y%m%d}-000{n}" for n in (1, 2, 3))]
    assert named(here, "mine") == ("100", "104")


def test_the_same_again_changes_nothing_and_another_under_its_id_is_refused(run: Run, here: Path) -> None:
    assert added(run, "one", "--id", 100, "--id", 101)["added"] == 1
    again = added(run, "one", "--id", 101, "--id", 100, "--received", "2020-01-01")
    assert (again["added"], again["requests"][0]["new"]) == (0, False)
    assert listed(run)[0]["received"] == TODAY.isoformat()
    code, _, err = run("requests", "add", "one", "--id", 102)
    assert code == 2
    assert "the same content as before under 'one', got another content" in sentence(err)


def test_many_come_from_a_file_all_or_none(run: Run, here: Path) -> None:
    rows: list[list[object]] = [
        ["request", "id", "ids", "subject", "class", "received", "note"],
        ["a", 100, "", "", "", "2024-02-29", ODD],
        ["", "", "101; 102", "", "", "", ""],
        [],
        ["b", "", "", "ann", "", "", ""],
        ["", "", "", "", "dog", "", ""],
    ]
    with (here / "many.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    body = added(run, "--from", "many.csv", "--route", "retrain")
    stem = f"r-{TODAY:%Y%m%d}-"
    assert [r["request"] for r in body["requests"]] == ["a", f"{stem}0001", "b", f"{stem}0002"]
    assert [r["samples"] for r in body["requests"]] == [1, 2, 12, 20]
    assert {r["route"] for r in body["requests"]} == {"retrain"}
    assert (body["requests"][0]["received"], body["requests"][0]["due"]) == ("2024-02-29", "2024-03-30")
    with Ledger.open(here / "expunge-requests", readonly=True) as ledger:
        assert ledger.request("a").note == ODD
    lines = [{"request": "c", "ids": [103, "104"], "note": ODD}, {"id": "105", "days": 5, "route": "edit"}]
    (here / "many.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    body = added(run, "--from", "many.jsonl")
    assert [r["samples"] for r in body["requests"]] == [2, 1]
    assert body["requests"][1]["due"] == (TODAY + timedelta(days=5)).isoformat()
    assert len(listed(run)) == 6


def test_odd_ids_are_kept_as_they_are(run: Run, here: Path) -> None:
    long = "x" * (9 * 2**20)
    with (here / "odd.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["request", "id"], ["odd", ODD], ["long", long], ["html", "<script>x</script>"]])
    body = added(run, "--from", "odd.csv", "--unchecked")
    assert (body["added"], body["looked_up"]) == (3, False)
    assert named(here, "odd") == (ODD,)
    assert named(here, "long") == (long,)
    assert named(here, "html") == ("<script>x</script>",)
    code, out, _ = run("requests", "show", "odd", "--reveal")
    assert repr(ODD) in out.replace("\n", "")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("request,id\na,100\nb,\n", "line 3 of x.csv, exactly one of ids, id, subject, class, got none"),
        ("request,id,subject\na,100,ann\n", "line 2 of x.csv, exactly one of ids, id, subject, class, got id and subj"),
        ("request,id\na,100\n../b,101\n", "line 3 of x.csv, a request id of 1 to 200"),
        ('request,id\n"a","1\n00"\nb,101,7\n', "2 fields a line, as the header has, got 3 in line 4"),
        ("request,id\na,100\nb,nope\n", "ids of the training data in line 3 of x.csv, got unknown nope"),
        ("request,id\na,100\na,101\n", "each request once in x.csv, got 'a' on line 3 of x.csv and line 2"),
        ("request,ids\na,100;100\n", "line 2 of x.csv, each value once"),
        ("request,id\na,100\n", None),
        ("request,name\na,100\n", "known columns on line 1 of x.csv, got 'name'"),
        ("id,id\n1,2\n", "each column once on line 1 of x.csv"),
        ("request,id,received\na,100,2999-01-01\n", "line 2 of x.csv, a day for received that has come"),
        ("request,id,received\na,100,01.02.2024\n", "a day for received, as 2025-01-31, got '01.02.2024'"),
        ("request,id,days\na,100,soon\n", "a whole number of days from 0 to 36500, got 'soon'"),
        ("request,id,route\na,100,edti\n", "got 'edti': did you mean 'edit'"),
        ('request,id\na,"100\n', "CSV in line 2 of x.csv, got unexpected end of data"),
        ("request,id\n", "requests in x.csv, one a line, got none"),
    ],
)
def test_a_bad_line_of_csv_is_named(run: Run, here: Path, text: str, want: str | None) -> None:
    (here / "x.csv").write_text(text)
    if want is None:  # the lines that the others spoil
        assert added(run, "--from", "x.csv")["added"] == 1
    else:
        assert want in refused(here, "requests", "add", "--from", "x.csv")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"id": 100}\n{"id": \n', "a JSON object on line 2 of x.jsonl"),
        ("[1]\n", "a JSON object on line 1 of x.jsonl, got list"),
        ('{"id": 100, "id2": 1}\n', "known columns on line 1 of x.jsonl, got 'id2'"),
        ('{"ids": [100, 1.5]}\n', "line 1 of x.jsonl, a text for ids, got 1.5: quote it"),
        ('{"id": true}\n', "a text for id, got True"),
        ('{"ids": []}\n', "line 1 of x.jsonl, at least one value"),
        ("[" * 100_000 + "\n", "a JSON object on line 1 of x.jsonl"),
    ],
)
def test_a_bad_line_of_json_is_named(here: Path, text: str, want: str) -> None:
    (here / "x.jsonl").write_text(text)
    assert want in refused(here, "requests", "add", "--from", "x.jsonl")


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (("r",), "exactly one of --ids, --id, --subject, --class, --from, got none: say who is to be forgotten"),
        (("r", "--id", 100, "--subject", "ann"), "got --id and --subject"),
        (("r", "--from", "many.csv"), "no REQUEST with --from, got 'r'"),
        (("--from", "many.txt"), "a file of requests that ends with .csv or .jsonl, got 'many.txt'"),
        (("--from", "none.csv"), "a file of requests at none.csv, got nothing there"),
        (("--ids", "none.txt"), "a text file with one id a line at none.txt, got nothing there"),
        (("--ids", "bytes.txt"), "bytes that are no UTF-8 text"),
        (("--id", "nope", "--id", 100), "ids of the training data, got unknown nope: check the spelling"),
        (("--subject", "<img src=x>"), "a subject of the training data, got unknown <img src=x>"),
        (("--class", "7"), "a class, got unknown 7"),
        (("--class", "bidr"), "a class: a number, or one of bird, cat, dog"),
        (("--id", 100, "--id", 100), "each value once in request 'unnamed', got '100' twice"),
        (("../../etc/passwd", "--id", 100), "a request id of 1 to 200 letters"),
        (("<b>", "--id", 100), "a request id of 1 to 200 letters"),
        ((".hidden", "--id", 100), "a request id of 1 to 200 letters"),
        (("a\0b", "--id", 100), "a request id of 1 to 200 letters"),
        (("--id", 100, "--received", TODAY + timedelta(days=2)), "a day for --received that has come"),
        (("--id", 100, "--received", "20240101"), "a day for --received, as 2025-01-31, got '20240101'"),
        (("--id", 100, "--operator", " "), "a name for who writes"),
    ],
)
def test_what_cannot_be_received_is_refused_in_a_sentence(here: Path, words: tuple[Any, ...], want: str) -> None:
    (here / "bytes.txt").write_bytes(b"\xff\xfe1")
    (here / "many.txt").write_text("")
    assert want in refused(here, "requests", "add", *words)


def test_where_the_data_is_gone_nothing_is_looked_up(run: Run, here: Path) -> None:
    (here / "train.parquet").unlink()
    code, out, _ = run("requests", "add", "r", "--id", "whatever")
    assert code == 0
    assert "Not looked up: the training data is not at hand." in out


@pytest.mark.parametrize(
    "command", [("list",), ("show", "r"), ("hold", "r", "--reason", "x"), ("anchor",), ("verify",)]
)
def test_no_ledger_and_no_project_are_told_in_a_sentence(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    want = "a project: a file expunge.toml here, --project before the command, or --workspace after it, got none"
    assert want in refused(tmp_path, "requests", *command)
    want = "a file nowhere/ledger.sqlite3, got none: check --workspace, or add a first request to make it"
    assert want in refused(tmp_path, "requests", *command, "--workspace", "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger.sqlite3").write_text("no database" * 100)
    assert "a sound database other/ledger.sqlite3" in refused(tmp_path, "requests", *command, "-w", "other")


def test_a_network_disk_and_a_project_file_that_is_wrong_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "expunge.toml").write_text(toml({"requests.day": 3}))
    assert "'requests.day': did you mean 'days'" in refused(here, "requests", "list")
    (here / "expunge.toml").write_text(toml({"requests.days": "3"}))
    assert "days" in refused(here, "requests", "list")
    (here / "expunge.toml").write_text(toml({"requests.workspace": "/proc/no"}))
    assert "/proc/no" in refused(here, "requests", "add", "r", "--id", 100)
    (here / "expunge.toml").write_text(toml())
    monkeypatch.setattr("expunge.ledger.database.file_system", lambda folder: "nfs4")
    want = "SQLite's WAL does not work on a network disk"
    assert want in refused(here, "requests", "add", "r", "--id", 100)


def test_the_list_is_by_due_day_and_shows_what_is_overdue_in_red(run: Run, here: Path) -> None:
    late = TODAY - timedelta(days=40)
    for id, day, days in (("b", TODAY, 9), ("@late", late, 30), ("a", TODAY, 9)):
        added(run, id, "--id", 100, "--received", day, "--days", days)
    rows = listed(run)
    assert [(r["request"], r["days_left"], r["overdue"]) for r in rows] == [
        ("@late", -10, True), ("a", 9, False), ("b", 9, False),
    ]  # fmt: skip
    table = words_of.listed(rows, most=2)
    assert [[cell.style for cell in column._cells] for column in table.columns[:1]] == [["red", ""]]
    code, out, _ = run("requests", "list", "--most", 2)
    assert code == 0
    assert "10 overdue" in out
    assert "And 1 more" in out
    assert "3 open requests: 3 received. 1 overdue." in out
    assert run("requests", "refuse", "@late", "--reason", "exempt by law")[0] == 0
    code, out, _ = run("requests", "list", "--csv", "open.csv")
    assert code == 0
    assert "2 open requests: 2 received." in out
    code, out, _ = run("requests", "list", "--csv", "all.csv", "--all")
    found = list(csv.DictReader((here / "all.csv").open(newline="")))
    assert [(r["request"], r["step"], r["days_left"]) for r in found] == [
        ("'@late", "refused", ""), ("a", "received", "9"), ("b", "received", "9"),
    ]  # fmt: skip
    code, _, err = run("requests", "list", "--csv", "all.csv")
    assert code == 2
    assert "a path that is free to write" in sentence(err)


def test_nobody_is_named_unless_revealed(run: Run, here: Path) -> None:
    added(run, "r", "--subject", "dora", "--note", "dora wrote a letter")
    for words in (("list",), ("show", "r")):
        for root in ((), ("--json",)):
            code, out, _ = run(*root, "requests", *words)
            assert code == 0
            assert "dora" not in out
    code, out, _ = run("requests", "show", "r", "--reveal")
    assert "It names: dora." in out
    assert "dora wrote a letter" in out
    assert b"dora" not in b"".join(p.read_bytes() for p in (here / "expunge-requests").iterdir())


def test_operators_decide(run: Run, here: Path) -> None:
    (here / "expunge.toml").write_text(toml({"requests.approval": True}))
    added(run, "r", "--id", 100, "--operator", "ada")
    assert "Next: somebody other than ada approves: expunge requests approve r." in run("requests", "show", "r")[1]
    assert "received (approval)" in run("requests", "list")[1]
    code, _, err = run("requests", "approve", "r", "--operator", "ada")
    assert code == 2
    assert "another operator than 'ada'" in sentence(err)
    code, out, _ = run("requests", "approve", "r", "--operator", "bob")
    assert code == 0
    assert "r: approved by bob." in out
    assert "Next: expunge requests process." in out
    code, out, _ = run("requests", "hold", "r", "--reason", "a lawsuit\x1b[31m")
    assert "expunge requests release r ends that" in out
    code, out, _ = run("requests", "show", "r")
    assert "\x1b" not in out
    code, _, err = run("requests", "hold", "r", "--reason", "again")
    assert code == 2
    assert "'held'" in sentence(err)
    assert run("requests", "release", "r")[0] == 0
    assert run("requests", "hold", "r", "--reason", " ")[0] == 2
    code, _, err = run("requests", "erase", "r")
    assert code == 2
    assert "got no terminal: run expunge --yes requests erase r" in sentence(err)
    code, _, err = run("--yes", "requests", "erase", "r")
    assert code == 2  # it is open
    assert run("requests", "refuse", "r", "--reason", "exempt by law")[0] == 0
    code, out, _ = run("--yes", "requests", "erase", "r")
    assert code == 0
    assert "what it named is destroyed" in out
    assert "was erased before" in run("requests", "erase", "r")[1]
    code, _, err = run("requests", "show", "r", "--reveal")
    assert code == 2
    assert "what request 'r' named, got that it was erased" in sentence(err)
    assert run("requests", "verify")[0] == 0
    steps = [e["step"] for e in json.loads(run("--json", "requests", "show", "r")[1])["timeline"]]
    assert steps == ["received", "approved", "held", "released", "refused", "erased"]


def test_an_anchor_shows_a_tail_that_was_removed(run: Run, here: Path) -> None:

    added(run, "a", "--id", 100)
    kept = {p.name: p.read_bytes() for p in (here / "expunge-requests").glob("*.sqlite3*")}
    added(run, "b", "--id", 101)
    code, out, _ = run("requests", "anchor", "-o", "head.txt")
    assert code == 0
    assert (here / "head.txt").read_text() == out
    assert out.startswith("2:")
    for head in (out.strip(), "head.txt"):
        assert run("requests", "verify", "--head", head)[0] == 0
    assert "a head of the form NUMBER:64" in sentence(run("requests", "verify", "--head", "2:ab")[2])
    for path in (here / "expunge-requests").glob("*.sqlite3*"):
        path.unlink()
    for name, content in kept.items():
        (here / "expunge-requests" / name).write_bytes(content)
    assert run("requests", "verify")[0] == 0
    code, out, _ = run("requests", "verify", "--head", "head.txt")
    assert code == 1
    assert "event 2: removed from the end" in out
    with sqlite3.connect(here / "expunge-requests" / "ledger.sqlite3") as db:
        db.execute("DROP TRIGGER events_update")
        db.execute("UPDATE events SET actor = 'somebody else'")
    db.close()
    code, out, _ = run("--json", "requests", "verify")
    assert code == 1
    assert {p["what"] for p in json.loads(out)["problems"]} >= {"schema", "event"}


def test_two_ways_to_verify_are_not_mixed(here: Path) -> None:
    assert "a PACK or --workspace, got both" in refused(here, "requests", "verify", "pack", "-w", "x")
    assert "--key with a PACK" in refused(here, "requests", "verify", "--key", "x.pem")
    assert "an evidence pack, a folder, at pack, got nothing there" in refused(here, "requests", "verify", "pack")


def test_commands_that_need_no_model_do_not_load_torch(here: Path) -> None:
    words = [
        ["add", "r", "--id", "100", "--unchecked"], ["add", "--id", "x", "--unchecked"], ["list"], ["show", "r"],
        ["hold", "r", "--reason", "x"], ["release", "r"], ["list", "--csv", "x.csv"], ["anchor"],
        ["refuse", "r", "--reason", "x"],
    ]  # fmt: skip
    code = f"""
import sys
from expunge.cli import app
for words in {words}:
    app(["requests", *words], standalone_mode=False)
    assert "torch" not in sys.modules, words
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_several_processes_add_at_once(here: Path) -> None:
    code = """
from expunge.cli import app
import sys
for n in range(5):
    app(["requests", "add", "--unchecked", "--id", f"{sys.argv[1]}-{n}"], standalone_mode=False)
"""
    each = [subprocess.Popen([sys.executable, "-c", code, str(k)], cwd=here, stdout=subprocess.PIPE) for k in range(3)]
    said = "".join(process.communicate()[0].decode() for process in each)
    assert [process.returncode for process in each] == [0, 0, 0]
    with Ledger.open(here / "expunge-requests", readonly=True) as ledger:
        ids = [s.request for s in ledger.all()]
        assert sorted(v for id in ids for v in ledger.request(id).values) == sorted(
            f"{k}-{n}" for k in range(3) for n in range(5)
        )
        assert ledger.check() == []
    assert all(f"Received {id}:" in said for id in ids)


def test_the_quick_reading_of_the_project_file_is_the_true_one() -> None:
    fields = RequestsSection.model_fields
    assert set(shared.KINDS) == set(fields)
    section = RequestsSection()
    assert {name: getattr(section, name) for name in shared.DEFAULTS} == dict(shared.DEFAULTS)
    assert {name: type(getattr(section, name)) for name in fields} == dict(shared.KINDS)
    assert typing.get_args(fields["route"].annotation) == shared.ROUTES


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_and_options_are_few(run: Run, name: str) -> None:
    hints = typing.get_type_hints(COMMANDS[name], include_extras=True)
    infos = [m for hint in hints.values() for m in getattr(hint, "__metadata__", ())]
    assert sum(isinstance(info, OptionInfo) for info in infos) <= 12
    assert all(info.help for info in infos)
    assert len(inspect.signature(COMMANDS[name]).parameters) == len(infos) + 1
    code, out, _ = run("requests", name, "--help")
    assert code == 0
    assert len(out) > 300
    assert "Raises" not in out
    assert "[[" not in out
    assert " in ." not in out  # a name in square brackets would be taken for a style


def test_the_table_of_the_project_page_is_the_section() -> None:
    page = (Path(__file__).parents[2] / "docs" / "project.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| `(.+?)` \|", page[page.index("## Requests") : page.index("## Canaries")], re.MULTILINE
    )
    section = RequestsSection().model_dump()
    assert {name: json.loads(value) for name, value in rows} == {k: v for k, v in section.items() if k != "models"}
