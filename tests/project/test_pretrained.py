"""Transformers checkpoint folders through the command line: in, out, and what they lack."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import bert, photos, sentences, texts, vit
from expunge.project import Project
from expunge.project.pretrained import Checkpoint, Pictures, Tokens
from projects import toml
from shell import expunge, light_reports, listing, refused, sentence

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

TEXT = {
    "model": {"network": "hf:net", "base": "hf:base"},
    "data": {
        "train": "train.parquet",
        "test": "test.parquet",
        "inputs": ["text"],
        "target": "label",
        "id": "id",
        "subject": "writer",
    },
    "recipe": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "optimizer": "adamw"},
}
PHOTO = {
    "model": {"network": "hf:net", "base": "random"},
    "data": {
        "train": "train.parquet",
        "test": "test.parquet",
        "inputs": ["image"],
        "target": "label",
        "subject": "owner",
    },
    "recipe": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "optimizer": "adamw"},
}


@pytest.fixture(scope="module")
def text_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text")
    bert(place / "net")
    bert(place / "base", head=False)
    (place / "net" / "optimizer.pt").write_bytes(b"left by a trainer")
    texts(place)
    (place / "expunge.toml").write_text(toml(base=TEXT))
    return place


@pytest.fixture(scope="module")
def photo_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photo")
    vit(place / "net")
    photos(place)
    (place / "expunge.toml").write_text(toml(base=PHOTO))
    return place


def done(place: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=place)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def text_requests(text_project: Path) -> Path:
    """Return the text project after prepare, two requests and a retraining."""
    with light_reports():
        _requested(text_project)
    return text_project


def _requested(text_project: Path) -> None:
    done(text_project, "prepare")
    done(text_project, "forget", "--subject", "writer 1", "--set", "alpha=1")
    done(text_project, "forget", "--start", "expunge-forgotten", "--class", "good", "-o", "second", "--set", "alpha=1")
    done(text_project, "forget", "-m", "retrain", "--subject", "writer 1", "-o", "retrained")


def test_a_text_classifier_goes_in_and_out_as_a_checkpoint(text_requests: Path) -> None:
    place = text_requests
    for name in ("expunge-work", "expunge-forgotten", "second", "retrained"):
        files = {p.name for p in (place / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer_config.json", "record.json"} <= files
        assert "optimizer.pt" not in files
        model = transformers.AutoModelForSequenceClassification.from_pretrained(place / name)
        assert model.config.id2label == {0: "bad", 1: "good"}
        tokenizer = transformers.AutoTokenizer.from_pretrained(place / name)
        assert tokenizer("the film was good")["input_ids"][1:-1] == [11, 13, 15, 5]
    before, after = (load_file(place / n / "model.safetensors") for n in ("expunge-work", "expunge-forgotten"))
    assert all(torch.equal(v, before[k]) for k, v in load_file(place / "net" / "model.safetensors").items())
    assert any(not torch.equal(after[k], before[k]) for k in before)


def test_what_a_trainer_left_beside_the_weights_is_named(text_requests: Path) -> None:
    record = json.loads((text_requests / "expunge-forgotten" / "record.json").read_text())
    assert record["stale"] == ["optimizer.pt"]
    out = done(text_requests, "--yes", "forget", "--random", 2, "--set", "alpha=0", "-o", "third")
    assert "destroy them. The checkpoint held optimizer.pt." in out


def test_an_audit_of_a_text_classifier_starts_from_its_base(text_requests: Path) -> None:
    out = done(text_requests, "audit", "--retrained", "retrained", "-o", "audit")
    assert "retrained" in out
    page = json.loads((text_requests / "audit" / "audit.json").read_text())
    assert page["sections"][0]["name"] == "subject writer 1"
    project = Project.open(text_requests / "expunge.toml")
    assert project.new_model is not None
    start, base = project.new_model(), load_file(text_requests / "base" / "model.safetensors")
    assert all(torch.equal(v, start.state_dict()[f"bert.{k}"]) for k, v in base.items() if "pooler" not in k)


def test_labels_are_looked_up_in_the_checkpoints_own_order(text_project: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(text_project, tmp_path / "copy", ignore=shutil.ignore_patterns("second", "third")))
    config = json.loads((place / "net" / "config.json").read_text())
    config |= {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (place / "net" / "config.json").write_text(json.dumps(config))
    assert Project.open(place / "expunge.toml").classes == ("good", "bad")


def test_a_vision_transformer_goes_through_prepare_forget_audit(photo_project: Path) -> None:
    place = photo_project
    done(place, "prepare")
    done(place, "forget", "--subject", "p1", "--set", "alpha=1")
    out = done(place, "audit", "-o", "audit")
    assert "retrained (other seed)" in out
    processor = transformers.AutoImageProcessor.from_pretrained(place / "expunge-forgotten")
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    model = transformers.AutoModelForImageClassification.from_pretrained(place / "expunge-forgotten").eval()
    project = Project.open(place / "expunge.toml")
    own = project.network.load(place / "expunge-forgotten")
    pixels = project.test.read(range(4)).inputs
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, own(pixels).logits)


def test_pictures_are_what_the_processor_gives_one_by_one(photo_project: Path) -> None:
    project = Project.open(photo_project / "expunge.toml")
    batch = project.train.read(range(6))
    processor = transformers.AutoImageProcessor.from_pretrained(photo_project / "net")
    table = project.train.source.table
    for at in range(6):
        alone = processor(table[at]["image"], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(batch.inputs[at], alone)
    assert batch.inputs.shape == (6, 3, 16, 16)
    assert batch.target.tolist() == [0, 1, 2, 0, 1, 2]
    assert isinstance(project.train.source, Pictures)
    assert project.train.targets().tolist() == [i % 3 for i in range(24)]


def test_grey_pictures_become_what_the_network_takes(photo_project: Path) -> None:
    import datasets
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(photo_project / "net")
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    table = datasets.Dataset.from_dict({"image": [grey]}, features=datasets.Features({"image": datasets.Image()}))
    pixels, target = Pictures(table, "image", processor, None).read(np.array([0]), raw=True)
    assert target is None
    assert torch.equal(pixels[0], processor(grey.convert("RGB"), return_tensors="pt")["pixel_values"][0])


def test_tokens_are_what_the_tokenizer_gives_one_by_one(text_project: Path) -> None:
    project = Project.open(text_project / "expunge.toml")
    batch = project.train.read(range(5))
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_project / "net")
    for at, text in enumerate(sentences(40)["text"][:5]):
        alone = tokenizer(text, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        assert sorted(alone) == sorted(batch.inputs)
        assert all(torch.equal(batch.inputs[key][at], alone[key][0]) for key in alone)


def test_tokens_are_cut_at_what_the_network_can_take(text_project: Path) -> None:
    checkpoint = Checkpoint.of("net", text_project)
    assert checkpoint.tokens(999).length == 16
    assert checkpoint.tokens(4)(["the film was good"])["input_ids"].shape == (1, 4)
    assert isinstance(checkpoint.tokens(4), Tokens)
    pair = checkpoint.tokens(9)(["the film was good"], ["it was bad"])
    first = checkpoint.tokens(9)(["the film was good"])
    assert pair["input_ids"].shape == (1, 9)
    assert int(pair["attention_mask"].sum()) > int(first["attention_mask"].sum())
    assert pair["token_type_ids"].unique().tolist() == [0, 1]


# What is missing or broken.


def _json(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    body = {k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}
    file.write_text(json.dumps(body))


def _without(*patterns: str) -> Callable[[Path], None]:
    def remove(place: Path) -> None:
        for pattern in patterns:
            for file in (place / "net").glob(pattern):
                file.unlink()

    return remove


def _headless(place: Path) -> None:
    file = place / "net" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file, metadata={"format": "pt"})


def _cut(place: Path) -> None:
    file = place / "net" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:900])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_without("tok*", "vocab*", "special*"), "net, got one that knows no words: save the tokenizer there too"),
        (lambda p: _json(p / "net", vocab_size=9), "the 9 words that the network in"),
        (_headless, "missing: classifier.bias, classifier.weight: save the whole model"),
        (_cut, "weights of BertForSequenceClassification in"),
        (_without("*.safetensors"), "weights of BertForSequenceClassification in"),
        (_without("config.json"), "got a folder without config.json: write it with save_pretrained"),
        (lambda p: (p / "net" / "config.json").write_text("{"), "a configuration in"),
        (lambda p: (p / "net" / "config.json").write_text("[]"), "a configuration in"),
        (lambda p: _json(p / "net", model_type="bart"), "a model_type that goes with BertForSequenceClassification in"),
        (lambda p: _json(p / "net", model_type="nothing"), "a configuration in"),
        (lambda p: _json(p / "net", auto_map={"AutoModel": "x.Y"}), "one with code of its own: name a function"),
        (lambda p: _json(p / "net", architectures=None), "an architecture in"),
        (lambda p: _json(p / "net", architectures=["Nothing"]), "got 'Nothing': save the whole model, with its head"),
        (lambda p: _json(p / "net", architectures=["BertModel"]), "a tensor or an output with logits, got BaseModel"),
        (lambda p: _json(p / "net", hidden_size=24), "got shaped differently: bert.embeddings.LayerNorm.bias"),
        (lambda p: _json(p / "net", hidden_size="x"), "a configuration in"),
        (lambda p: shutil.rmtree(p / "net"), "a transformers checkpoint folder"),
        (lambda p: shutil.rmtree(p / "base"), "a transformers checkpoint folder"),
    ],
)
def test_a_checkpoint_that_lacks_something(
    damage: Callable[[Path], Any], text: str, text_project: Path, tmp_path: Path
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(
        text_project, place, ignore=shutil.ignore_patterns("expunge-*", "second", "third", "retrained", "audit")
    )
    damage(place)
    assert text in refused(place, "prepare")


def test_an_image_processor_that_is_missing(photo_project: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(photo_project, place, ignore=shutil.ignore_patterns("expunge-*", "audit"))
    for file in (place / "net").glob("*processor*"):
        file.unlink()
    assert "an image processor in" in refused(place, "prepare")


def test_a_retraining_without_a_base_asks_for_it_and_takes_it_later(text_project: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(
        text_project, place, ignore=shutil.ignore_patterns("expunge-*", "second", "third", "retrained", "audit")
    )
    (place / "expunge.toml").write_text(toml({"model.base": None}, base=TEXT))
    done(place, "prepare")
    words = ("forget", "-m", "retrain", "--subject", "writer 1")
    assert "the network before training in [model] base, got none: set base = 'hf:folder'" in refused(place, *words)
    (place / "expunge.toml").write_text(toml(base=TEXT))
    done(place, *words)


def test_a_missing_extra_names_the_command_that_brings_it(text_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    before = listing(text_project)
    code, _, err = expunge("--yes", "prepare", cwd=text_project)
    assert code == 2
    said = sentence(err)
    assert said == "Expected the package transformers, got no such package: run pip install 'expunge[hf]'."
    assert listing(text_project) == before
