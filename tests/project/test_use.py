"""One's own model and data through init, prepare, forget and audit, in the forms that people keep them in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.project import Project
from projects import FEATURES, KINDS, SOURCE, Copy, Small, csv, parquet, pictures, rows, toml, trained
from shell import expunge, listing

SUBJECT = ("forget", "--subject", "ann")
OWN = {f"data.{key}": None for key in ("test", "inputs", "target", "id", "subject")} | {"data.train": "shop:data"}


def done(place: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=place)
    assert code == 0, err
    return out


@pytest.mark.usefixtures("whole_reports")
def test_the_whole_job_from_init_on(fresh: Copy) -> None:
    place = fresh()
    (place / "expunge.toml").unlink()
    words = ("--network", "shop:build", "--weights", "model.safetensors", "--train", "train.parquet")
    more = ("--test", "test.parquet", "--inputs", ",".join(FEATURES), "--target", "kind", "--id", "key")
    out = done(place, "init", *words, *more)
    assert out == "Wrote expunge.toml: edit it, then run expunge prepare.\n"
    file = place / "expunge.toml"
    text = file.read_text().replace("# [recipe]", "[recipe]").replace("# epochs = 10", "epochs = 1")
    file.write_text(text.replace("# subject = ", "subject = ").replace('"customer"', '"owner"'))
    out = done(place, "prepare")
    assert "Prepared ssd on 60 samples" in out
    assert "Outputs taken for classes: 0 bird, 1 cat, 2 dog. If that is not their order, set classes in [data]." in out
    work = place / "expunge-work"
    assert sorted(p.name for p in work.iterdir()) == ["model.safetensors", "record.json", "state.safetensors"]
    kept, given = load_file(work / "model.safetensors"), load_file(place / "model.safetensors")
    assert all(torch.equal(kept[k], given[k]) for k in given)
    out = done(place, *SUBJECT)
    assert "Edited for 12 of 60 samples by ssd" in out
    out = done(place, "audit")
    assert "subject ann" in out
    assert "retrained (other seed)" in out
    done(place, "forget", "--class", "dog", "-o", "dogless")
    assert "class dog" in (place / "dogless" / "report.html").read_text()


def _lightning(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "state_dict": {f"model.{k}": v for k, v in weights.items()},
        "optimizer_states": [{"state": {}}],
        "callbacks": {"ema": 1},
        "epoch": 3,
    }


def _averaged(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {f"module.{k}": v for k, v in weights.items()} | {"n_averaged": torch.tensor(7)}


@pytest.mark.parametrize(
    ("wrap", "stale", "warned"),
    [
        (lambda w: w, [], ""),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, [], ""),
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, [], ""),
        (lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()}, [], ""),
        (lambda w: {f"net.encoder.{k}": v for k, v in w.items()}, [], ""),
        (_lightning, ["optimizer_states", "callbacks"], ""),
        (lambda w: {"model": w, "optimizer": {}, "ema": w, "step": 4}, ["optimizer", "ema"], ""),
        (_averaged, [], "an average kept by AveragedModel; its counter n_averaged is left out"),
        (lambda w: {k: v.half() for k, v in w.items()}, [], "the weights are torch.float16, the network torch.float32"),
    ],
    ids=["plain", "DDP", "compiled", "both", "other", "lightning", "checkpoint", "averaged", "half"],
)
def test_state_dicts_of_other_programs(
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]], stale: list[str], warned: str, fresh: Copy
) -> None:
    place = fresh({"model.weights": "m.pt"})
    weights = load_file(place / "model.safetensors")
    torch.save(wrap(weights), place / "m.pt")
    code, _, err = expunge("prepare", cwd=place)
    assert code == 0, err
    assert warned in err
    kept = load_file(place / "expunge-work" / "model.safetensors")
    tolerance = {"atol": 1e-3, "rtol": 1e-3} if "float16" in warned else {"atol": 0, "rtol": 0}
    assert kept.keys() == weights.keys()
    assert all(torch.allclose(kept[k], weights[k], **tolerance) for k in weights)
    out = done(place, *SUBJECT)
    named = f" The checkpoint held {', '.join(stale)}." if stale else ""
    assert f"still carry the forgotten data: destroy them.{named}\n" in out


def test_a_function_that_returns_the_trained_network(fresh: Copy) -> None:
    place = fresh({"model.weights": None})
    loads = "    model = Small()\n    from safetensors.torch import load_file\n"
    loads += f"    model.load_state_dict(load_file({str(place / 'model.safetensors')!r}))\n    return model\n"
    (place / "shop.py").write_text(SOURCE.replace("    return Small()\n", loads))
    done(place, "prepare")
    kept, given = (load_file(p / "model.safetensors") for p in (place / "expunge-work", place))
    assert all(torch.equal(kept[k], given[k]) for k in given)
    done(place, *SUBJECT)
    done(place, "audit")  # drawn anew from its modules: nobody named a base


BODIES = {
    "pairs": "return [(torch.ones(3) * (i % 3), i % 3) for i in range(30)]",
    "dicts": "return [{'x': torch.ones(3) * (i % 3), 'label': i % 3} for i in range(30)]",
    "Data": "from expunge.data import Data; return Data.from_arrays(torch.randn(30, 3), [0, 1, 2] * 10)",
    "torch": "return torch.utils.data.TensorDataset(torch.randn(30, 3), torch.arange(30) % 3)",
}


@pytest.mark.parametrize("kind", BODIES)
def test_functions_that_return_samples(kind: str, fresh: Copy) -> None:
    place = fresh(OWN)
    (place / "shop.py").write_text(f"{SOURCE}\n\ndef data():\n    torch.manual_seed(0)\n    {BODIES[kind]}\n")
    done(place, "prepare")
    assert "Edited for 10 of 30 samples" in done(place, "forget", "--class", "1")
    (place / "ids.txt").write_text("train/0\ntrain/7\n")
    assert "Edited for 2 of 30 samples" in done(place, "forget", "--ids", "ids.txt", "-o", "two")


def test_a_function_that_returns_a_table_uses_the_columns(fresh: Copy) -> None:
    place = fresh({"data.train": "shop:data", "data.classes": list(KINDS)})
    body = "    import datasets\n    return datasets.Dataset.from_parquet('train.parquet', cache_dir='cache')\n"
    (place / "shop.py").write_text(f"{SOURCE}\n\ndef data():\n{body}")
    done(place, "prepare")
    assert "Edited for 12 of 60 samples" in done(place, *SUBJECT)


@pytest.mark.parametrize("form", ["csv", "folder", "pattern", "absolute", "csv folder"])
def test_one_table_in_several_forms_prepares_alike(form: str, fresh: Copy, prepared: Path) -> None:
    place = fresh()
    (place / "part").mkdir()
    columns = rows(60)
    half = [{k: v[s] for k, v in columns.items()} for s in (slice(0, 31), slice(31, 60))]
    if form in ("csv", "csv folder"):
        for name, part in zip(("a", "b"), half if form == "csv folder" else [columns], strict=form == "csv folder"):
            csv(place / "part" / f"{name}.csv", part)
        train = "part/a.csv" if form == "csv" else "part"
    else:
        for name, part in zip(("train-0", "train-1"), half, strict=True):
            parquet(place / "part" / f"{name}.parquet", part)
        train = {"folder": "part", "pattern": "part/train-*.parquet"}.get(form, f"{place}/part/train-?.parquet")
    (place / "expunge.toml").write_text(toml({"data.train": train}))
    done(place, "prepare")
    project = Project.open(place / "expunge.toml")
    whole = Project.open(prepared / "expunge.toml")
    assert project.train.ids == whole.train.ids
    assert torch.equal(project.train.read(range(60)).inputs, whole.train.read(range(60)).inputs)
    assert torch.equal(project.train.targets(), whole.train.targets())


NUMBERED = """
class Wide(Small):
    def __init__(self):
        super().__init__(kinds=11)


def wide():
    return Wide()
"""


def test_numbers_written_as_texts_are_classes_in_the_order_of_numbers(fresh: Copy) -> None:
    place = fresh({"model.network": "shop:wide", "model.weights": None, "data.test": None})
    (place / "shop.py").write_text(SOURCE + NUMBERED)
    parquet(place / "train.parquet", rows(66) | {"kind": [str(i % 11) for i in range(66)]})
    project = Project.open(place / "expunge.toml")
    assert project.classes == tuple(map(str, range(11)))
    assert project.train.targets().tolist() == [i % 11 for i in range(66)]
    done(place, "prepare")
    assert "Edited for 6 of 66 samples" in done(place, "forget", "--class", "10")


def test_whole_numbers_may_leave_out_the_last_class(fresh: Copy) -> None:
    place = fresh({"data.test": None})
    parquet(place / "train.parquet", rows(60) | {"kind": [i % 2 for i in range(60)]})
    assert "Outputs taken for classes" not in done(place, "prepare")
    assert "Edited for 30 of 60 samples" in done(place, "forget", "--class", "1")


REGRESSION = {
    "task.kind": "regression",
    "data.target": "age",
    "data.inputs": ["height", "weight"],
    "model.network": "shop:line",
}
LINE = "\n\ndef line():\n    return nn.Linear(2, 1)\n"


def test_a_regression_on_a_csv_file(fresh: Copy) -> None:
    place = fresh(REGRESSION | {"data.train": "train.csv", "model.weights": None})
    (place / "shop.py").write_text(SOURCE + LINE)
    csv(place / "train.csv", rows(60))
    done(place, "prepare")
    assert "Edited for 12 of 60 samples" in done(place, *SUBJECT)
    assert "subject ann" in done(place, "audit")
    place.joinpath("expunge.toml").write_text(
        toml(REGRESSION | {"data.train": "train.csv", "model.weights": None, "policy.accuracy_drop": 0.1})
    )
    code, out, _ = expunge("forget", "--subject", "bob", "-o", "bounded", cwd=place)
    assert code == 3
    assert "could not be measured: the task has no classes, or test no labels." in out


CONV = """
class Eye(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        self.body(torch.zeros(1, 3, 8, 8))

    def forward(self, x):
        return self.body(x)


def eye():
    return Eye()
"""


@pytest.mark.usefixtures("whole_reports")
def test_folders_of_images_with_the_same_file_names(fresh: Copy) -> None:
    changes = OWN | {"model.network": "shop:eye", "model.weights": None, "data.train": "pics", "data.test": "exam"}
    place = fresh(changes)
    (place / "shop.py").write_text(SOURCE + CONV)
    pictures(place / "pics")
    pictures(place / "exam", n=8)
    file = place / "expunge.toml"
    file.write_text(f"{file.read_text()}\n[data.image]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n")
    assert "Outputs taken for classes: 0 bird, 1 cat." in done(place, "prepare")
    (place / "ids.txt").write_text("bird/00.png\ncat/03.png\n")
    assert "Edited for 2 of 24 samples" in done(place, "forget", "--ids", "ids.txt", "--set", "alpha=1")
    out = done(place, "audit", "--show-samples")
    assert "Report: expunge-audit/report.html" in out
    assert (place / "expunge-audit" / "report.html").read_text().count("data:image/png") == 2


def test_columns_of_a_subclass_and_a_holdout(fresh: Copy) -> None:
    place = fresh({"data.subclass": "breed", "data.holdout": "hold.parquet", "data.columns": ["date"]})
    breed, date = [f"{i % 4}" for i in range(60)], ["2024-01-01"] * 60
    parquet(place / "train.parquet", rows(60) | {"breed": breed, "date": date})
    bare = {k: v for k, v in rows(20, seed=3).items() if k not in ("owner", "key")}
    parquet(place / "hold.parquet", bare)  # nobody in it can be forgotten: it may do without ids and owners
    done(place, "prepare")
    assert "Edited for 15 of 60 samples" in done(place, "forget", "--subclass", "2")
    record = json.loads((place / "expunge-forgotten" / "record.json").read_text())
    assert record["scenario"]["holdout"][0] == "holdout/0"
    assert len(record["scenario"]["test"]) == 30


def test_a_named_data_set_in_a_project_file(tmp_path: Path) -> None:
    done(tmp_path, "init", "--name", "digits", "--network", "mlp")
    file = tmp_path / "expunge.toml"
    text = file.read_text().replace('name = "digits"\n', 'name = "digits"\nlimit = 60\n')
    file.write_text(text.replace("# [recipe]", "[recipe]").replace("# epochs = 10", "epochs = 1"))
    done(tmp_path, "prepare")
    assert "Edited for 6 of 60 samples" in done(tmp_path, "forget", "--class", "3")


def test_numeric_columns_keep_their_order_and_type(prepared: Path) -> None:
    project = Project.open(prepared / "expunge.toml")
    batch = project.train.read([0, 5])
    expected = np.stack([rows(60)[f] for f in FEATURES], axis=1)[[0, 5]]
    assert batch.inputs.dtype == torch.float32
    assert np.array_equal(batch.inputs.numpy(), expected)
    assert isinstance(project.network.original(), torch.nn.Module)
    own = trained(rows(60))
    assert isinstance(own, Small)
    assert torch.equal(project.network.original()(batch.inputs), own(batch.inputs))


# Dry runs.


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "-o", "new"),
        ("--yes", "prepare"),
        ("prepare", "-m", "lfssd", "-o", "new"),
        ("forget", "--subject", "ann"),
        ("forget", "--class", "dog", "-m", "retrain"),
        ("forget", "--random", "3", "-m", "finetune"),
        ("audit", "--unlearned", "one", "-o", "new"),
    ],
)
def test_a_dry_run_writes_nothing_and_says_what_it_would(words: tuple[str, ...], ready: Copy) -> None:
    place = ready({"runtime.workdir": "half"})
    if words[0] == "audit":
        done(place, *SUBJECT, "-o", "one")
    before = listing(place)
    found = json.loads(done(place, "--json", *words, "--plan"))
    assert listing(place) == before
    assert found["problem"] == ""
    assert found["seconds"] > 0
    assert found["samples_read"] == sum(n * found["sizes"][name] for name, n in found["passes"].items())
    if words[0] == "--yes":
        body = {k: v for k, v in zip(("file", "bytes"), found["files"][0].values(), strict=True)}
        assert body == {"file": "expunge-work/model.safetensors", "bytes": 4 * 59}
    out = done(place, *words, "--plan")
    assert "Nothing is written." in out
    assert "needs missing" in out
    assert listing(place) == before


def test_a_dry_run_counts_ids_and_exits_with_2_where_the_run_would(ready: Copy) -> None:
    place = ready()
    (place / "ids.txt").write_text("100\n101\nx1\nx2\n")
    before = listing(place)
    code, out, err = expunge("--json", "forget", "--ids", "ids.txt", "--plan", cwd=place)
    assert code == 2
    found = json.loads(out)
    assert found["ids"]["ids matched"] == "2 of 4"
    assert "unknown x1, x2" in found["problem"]
    code, out, _ = expunge("forget", "--random", 3, "-m", "head_mask", "--plan", cwd=place)
    assert code == 2
    assert "would be refused" in out
    assert "it masks one class" in " ".join(out.split())
    assert listing(place) == before


def test_a_dry_run_of_a_training_says_that_its_time_is_not_in_it(fresh: Copy) -> None:
    place = fresh({"model.weights": "train"})
    before = listing(place)
    found = json.loads(done(place, "--json", "prepare", "--plan"))
    assert "the network is trained first" in found["ids"]["training"]
    assert found["passes"] == {"train": 1.0}
    assert listing(place) == before
