"""The project file: what it refuses and on which line, whatever stands in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.project import Project
from expunge.project.config import Config, RequestsSection, read
from expunge.project.template import template
from projects import BASE, Copy, toml
from shell import expunge, refused

QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def said(folder: Path, text: str | bytes) -> str:
    file = folder / "expunge.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refusal:
        read(file)
    return str(refusal.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[modle]\nx = 1", "known keys in line 1 of expunge.toml, got 'modle': did you mean 'model'"),
        ("\n[model]\n# netwrk\nnetwrk = 'a'", "known keys in line 4 of expunge.toml, got 'model.netwrk': did you mean"),
        ("[data.image]\nsise = [1, 2]", "line 2 of expunge.toml, got 'data.image.sise': did you mean 'size'"),
        ("[data.image.x]\ny = 1", "line 1 of expunge.toml, got 'data.image.x': choose from channels, mean, size, std"),
        ("[data]\nimage = {sise = 1}", "known keys in line 2 of expunge.toml, got 'data.image.sise'"),
        ("[a.b.c]\nd = 1", "known keys in line 1 of expunge.toml, got 'a': choose from data, method, metrics, model"),
        ("[recipe]\nepoch = 3", "known keys in line 2 of expunge.toml, got 'recipe.epoch': did you mean 'epochs'"),
        ("[recipe]\npenalties = []", "known keys in line 2 of expunge.toml, got 'recipe.penalties'"),
        ("model = 3", "model in line 1 of expunge.toml to be right, got 3 (should be a table, [model])"),
        ("method = 'ssd'", "method in line 1 of expunge.toml to be right, got 'ssd' (should be a table, [method])"),
        ("[[data]]\nname = 'x'", "data in line 1 of expunge.toml to be right, got [{'name': 'x'}]"),
        ("recipe = [1]", "recipe in line 1 of expunge.toml to be right, got [1] (should be a table"),
        ("[data]\nlimit = '3'", "data.limit in line 2 of expunge.toml to be right, got '3' (should be a valid integer"),
        ("[data]\ninputs = 'a'", "data.inputs in line 2 of expunge.toml to be right, got 'a' (should be a valid list)"),
        ("[data]\ninputs = [1, 'b']", "data.inputs in line 2 of expunge.toml to be right, got 1"),
        ("[data]\ninputs = ['a', 'a']", "got ['a', 'a'] ('a' more than once): mend the value"),
        ("[data]\nclasses = ['a', 'a']", "data.classes in line 2 of expunge.toml"),
        ("[data]\ntrain = ''", "got '' (a text that is not empty, without null bytes, was expected)"),
        ('[data]\ntrain = "a\\u0000"', "data.train in line 2 of expunge.toml to be right"),
        ("[data]\nname = 2020-01-01", "got datetime.date(2020, 1, 1) (should be a valid string)"),
        ("[data]\nformat = 'json'", "(should be 'auto', 'parquet', 'csv', 'images' or 'python')"),
        ("[data.image]\nsize = [1]", "data.image.size in line 2 of expunge.toml"),
        ("[data.text]\nlength = 99999999999", "(should be less than or equal to 1048576)"),
        ("[task]\nkind = 'classificaton'", "(should be 'classification', 'binary', 'multilabel', 'regression'"),
        ("[method]\nalpha = 2020-01-01", "alpha holds a date or time; write a number or a text"),
        ("[method]\nalpha = nan", "alpha holds nan; write a finite number"),
        ("[method]\n[method.inner.more]\nz = inf", "inner.more.z holds inf; write a finite number"),
        ("[method]\nalpha = 99999999999999999999", "alpha holds a number beyond 64 bits"),
        ("[recipe]\nepochs = inf", "epochs holds inf; write a finite number"),
        ("[runtime]\nbatch_size = 0", "runtime.batch_size in line 2 of expunge.toml to be right, got 0 (should be gr"),
        ("[runtime]\nbatch_size = true", "got True (should be a valid integer)"),
        ("[runtime]\nbatch_size = 99999999999999999999", "(should be less than or equal to 9223372036854775807)"),
        ("[policy]\nlargest_share = 1", "policy.largest_share in line 2 of expunge.toml to be right, got 1"),
        ("[policy]\naccuracy_drop = nan", "got nan (should be a finite number)"),
        ("[requests]\nroute = 'delete'", "(should be 'edit', 'retrain' or 'edit-then-retrain')"),
        (
            "[requests]\n\ndays = 0",
            "requests.days in line 3 of expunge.toml to be right, got 0 (should be greater than",
        ),
        (
            "[requests]\nbatch = 0",
            "requests.batch in line 2 of expunge.toml to be right, got 0 (should be greater than",
        ),
        ("[requests]\ncadence = -1", "requests.cadence in line 2 of expunge.toml to be right, got -1"),
        ("[requests]\nundo_days = 1.5", "requests.undo_days in line 2 of expunge.toml to be right, got 1.5"),
        ("[requests]\nrefresh_every = -1", "requests.refresh_every in line 2 of expunge.toml to be right, got -1"),
        ("[requests]\napproval = 'no'", "requests.approval in line 2 of expunge.toml to be right, got 'no'"),
        ("[requests]\nworkspace = ''", "requests.workspace in line 2 of expunge.toml to be right, got ''"),
        ("[requests]\nstart = 3", "requests.start in line 2 of expunge.toml to be right, got 3"),
        ("[requests]\nrout = 'edit'", "got 'requests.rout': did you mean 'route'"),
        ("[requests.models]\na = 3", "requests.models.a in line 2 of expunge.toml to be right, got 3"),
        (
            "[requests.models]\n'../a' = 'b'",
            "requests.models in line 1 of expunge.toml to be right, got {'../a': 'b'} (",
        ),
        ("[data", "TOML in FOLDER/expunge.toml, got Expected ']' at the end of a table declaration"),
        ("a = 1\na = 2", "TOML in FOLDER/expunge.toml, got Cannot overwrite a value"),
        ("x = " + "[" * 5000, "TOML in FOLDER/expunge.toml, got maximum recursion depth exceeded"),
        ("x = " + "9" * 5000, "TOML in FOLDER/expunge.toml, got Exceeds the limit (4300 digits)"),
        (b"\xff\xfe[\x00", "TOML in FOLDER/expunge.toml, got 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert expected in said(tmp_path, text)


def test_a_folder_or_nothing_is_no_project_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a project file .*, got a folder: write one with expunge init"):
        read(tmp_path)
    with pytest.raises(UserError, match="a project file .*nowhere, got nothing there"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["\ufeff[task]\n", "[task]\r\nkind = 'regression'\r\n", "", "# nothing\n"])
def test_files_of_other_editors_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "expunge.toml").write_bytes(text.encode())
    assert read(tmp_path / "expunge.toml").task.kind in ("classification", "regression")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method.name": 3}, "a mapping with the method's name under 'name', got {'name': 3"),
        ({"method.name": None}, "a mapping with the method's name under 'name'"),
        ({"method.name": "sdd"}, "a known method, got 'sdd': did you mean 'ssd'"),
        ({"method.alhpa": 1.0}, "a field of ssd, got 'alhpa': did you mean 'alpha'"),
        ({"method.alpha": "much"}, "a value that fits ssd.alpha, got 'much'"),
        ({"method.alpha": -1.0}, "ssd.alpha of 0 or more"),
        ({"method.alpha": ["ssd"]}, "a value that fits ssd.alpha, got ['ssd']"),
        ({"recipe.epochs": "3"}, "Recipe.epochs as a whole number, got '3'"),
        ({"recipe.epochs": -3}, "Recipe.epochs of 0 or more"),
        ({"recipe.milestones": ["a"]}, "Recipe.milestones as a tuple of epochs"),
        ({"recipe.optimizer": "adam"}, "Recipe.optimizer 'sgd' or 'adamw', got 'adam'"),
        ({"policy.methods": ["lfssd"]}, "a method that the policy allows: lfssd, got 'ssd'"),
        ({"runtime.batchsize": 3}, "known keys in line 23 of expunge.toml, got 'runtime.batchsize': did you mean"),
    ],
)
def test_values_that_a_method_or_recipe_refuses(changes: dict[str, Any], text: str, fresh: Copy) -> None:
    assert text in refused(fresh(changes), "prepare")


# Whatever is written there, it is read or refused.


KEYS = {
    table: [name for name in getattr(field.annotation, "model_fields", {})] or ["name", "alpha", "epochs", "lr"]
    for table, field in Config.model_fields.items()
}
LEAVES = st.one_of(
    st.none().map(lambda _: "nan"),
    st.integers().map(str),
    st.floats().map(lambda v: str(v).replace("+", "")),
    st.booleans().map(lambda v: str(v).lower()),
    st.sampled_from(
        ["2020-01-01", "07:32:00", "1979-05-27T07:32:00Z", '"train"', "'ssd'", "'a:b'", "'hf:x'", '"\\u0000"']
    ),
    st.text(max_size=8).map(json.dumps),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]"),
        st.dictionaries(st.sampled_from(["name", "alpha", "x"]), inner, max_size=2).map(
            lambda v: "{" + ", ".join(f"{k} = {x}" for k, x in v.items()) + "}"
        ),
    ),
    max_leaves=4,
)
NAMES = st.one_of(
    st.sampled_from([k for keys in KEYS.values() for k in keys]), st.text("abc_-", min_size=1, max_size=5)
)
TABLES = st.one_of(
    st.sampled_from([*KEYS, "data.image", "data.text", "data.image.more", "recipe.x"]),
    st.text("abc.", min_size=1, max_size=5).map(lambda t: t.strip(".").replace("..", ".") or "a"),
)
ROWS = st.lists(st.tuples(NAMES, VALUES), max_size=4, unique_by=lambda row: row[0])
FILES = st.lists(st.tuples(TABLES, ROWS), max_size=4, unique_by=lambda table: table[0]).map(
    lambda tables: "\n".join(f"[{name}]\n" + "\n".join(f"{k} = {v}" for k, v in rows) for name, rows in tables)
)


def opened(file: Path) -> None:
    """Read a project file and open what needs no data, as prepare does."""
    project = Project.open(file)
    for part in ("recipe", "task", "train_is_here", "trains", "name"):
        getattr(project, part)
    project.method()
    project.runtime(device="cpu")


def only_refused(file: Path) -> None:
    """Hold whatever `opened` raises to a sentence for the user."""
    said = ""
    try:
        opened(file)
    except UserError as error:
        said = str(error)
    assert said == "" or (said.startswith("Expected ") and said.endswith("."))


@QUICK
@given(FILES)
def test_generated_project_files_are_read_or_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "expunge.toml"
    file.write_text(text, encoding="utf-8")
    only_refused(file)


@QUICK
@given(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=12))
def test_mangled_project_files_are_read_or_refused(tmp_path: Path, at: int, gone: int, put: bytes) -> None:
    body = template(train="t.parquet", test="e.parquet").encode()
    at %= len(body)
    file = tmp_path / "expunge.toml"
    file.write_bytes(body[:at] + put + body[at + gone :])
    only_refused(file)


@QUICK
@given(st.sampled_from(sorted(f"{t}.{k}" for t, keys in BASE.items() for k in keys)), VALUES)
def test_one_other_value_is_refused_by_the_command_or_prepared(
    pets: Path, tmp_path: Path, key: str, value: str
) -> None:
    body = toml().splitlines()
    at = next(n for n, line in enumerate(body) if line.startswith(f"{key.partition('.')[2]} = "))
    body[at] = f"{key.partition('.')[2]} = {value}"
    file = pets / "other.toml"
    if len(value) > 6 and "epochs" in key:  # a number of epochs that nobody lives to see
        return
    file.write_text("\n".join(body), encoding="utf-8")
    code, _, err = expunge("--project", file, "prepare", "--plan", "-o", tmp_path / "none", cwd=pets)
    file.unlink()
    assert code in (0, 2), err
    assert "Traceback" not in err
    assert not (tmp_path / "none").exists()


WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(WORDS, WORDS, WORDS, st.lists(WORDS, max_size=3), WORDS, WORDS, WORDS)
def test_a_template_says_what_it_was_given(
    network: str, weights: str, train: str, inputs: list[str], target: str, ids: str, subject: str
) -> None:
    text = template(
        network=network, weights=weights, train=train, inputs=tuple(inputs), target=target, ids=ids, subject=subject
    )
    body = tomllib.loads(text)
    assert body["model"] == {"network": network, "weights": weights}
    assert body["data"] == {"train": train, "inputs": inputs, "target": target, "id": ids, "subject": subject}


@given(WORDS)
def test_a_template_of_a_named_data_set_has_no_files(name: str) -> None:
    body = tomllib.loads(template(network="", name=name, train=None, weights=None))
    assert body["data"] == {"name": name}


def test_every_commented_key_of_the_template_is_a_key(tmp_path: Path) -> None:
    rows = template(weights=None, ids=None).splitlines()
    keys = [r[2:] if r.startswith(("# [", "# base", "# ")) and _sets(r[2:]) else r for r in rows]
    file = tmp_path / "expunge.toml"
    file.write_text("\n".join(keys))
    found = read(file)
    assert found.recipe is not None
    assert found.recipe["canaries"] == 50
    assert found.data.canaries == "canaries.json"
    assert found.policy.methods == ["ssd", "retrain"]
    assert found.data.image.size == [224, 224]
    assert found.runtime.workdir == "expunge-checkpoints"
    assert found.model.base == "hf:pretrained-folder"
    assert found.data.subject == "customer"
    assert found.requests == RequestsSection(models=found.requests.models)  # what the comments say is the default
    assert list(found.requests.models) == ["shop", "search"]


def _sets(row: str) -> bool:
    """Return whether a comment is a table or a setting, rather than prose."""
    return row.startswith("[") or row.split(" = ")[0].isidentifier() and " = " in row


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(UserError, match="texts that UTF-8 can write, got"):
        template(network="\udcff")
