"""Networks and weights that cannot be used: each one sentence, and nothing is written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from projects import SOURCE, Copy, Small
from shell import refused

PLAIN = {name: tensor.clone() for name, tensor in Small().state_dict().items()}
FILE = {"model.weights": "m.pt"}


class Foreign:
    """A class that only this module knows."""


@pytest.mark.parametrize(
    ("network", "source", "text"),
    [
        ("nothere:build", None, "to import nothere for 'nothere:build', got no module nothere: put it on PYTHONPATH"),
        ("shop:biuld", None, "a function biuld in shop ("),
        ("shop:build", "import nosuchlib\n", "got no module nosuchlib: install nosuchlib."),
        (
            "shop:build",
            "raise RuntimeError('one\\ntwo')\n",
            "to import shop for 'shop:build', got RuntimeError: one two",
        ),
        ("shop:build", "def build(:\n", "got SyntaxError: invalid syntax (shop.py, line 1): mend it"),
        ("shop:build", "import sys\nsys.exit(3)\n", "to import shop for 'shop:build', got SystemExit: 3"),
        ("shop:build", "build = 3\n", "a function at 'shop:build', got int: name a function"),
        ("shop:build", "def build(): return 3\n", "a torch.nn.Module from 'shop:build', got int: return the network"),
        ("shop:build", SOURCE + "def build(): return Small\n", "a torch.nn.Module from 'shop:build', got type"),
        ("shop:build", "def build(size): pass\n", "got TypeError: build() missing 1 required positional argument"),
        (
            "shop:build",
            SOURCE + "def build(): return Small().cuda()\n",
            "let it build on the CPU (map_location='cpu', no",
        ),
        ("shop:build", SOURCE + "def build(): raise KeyError('x')\n", "'shop:build' to return, got KeyError: 'x'"),
        (
            "shop:build",
            "from torch import nn\ndef build(): return nn.Identity()\n",
            "unknown: head.bias, head.weight, hidden.bias",
        ),
        ("shop", None, "a network in [model] network, got 'shop': name a function (package.module:function)"),
        ("mlp", None, "a network in [model] network, got 'mlp'"),
        ("", None, "a network in [model] network, got ''"),
        ("shop:build", SOURCE.replace("(x)))", "(x))), 1"), "a model that returns a tensor or an output with logits"),
        ("shop:build", SOURCE.replace("kinds=3", "kinds=4"), "shaped differently: head.weight (3, 8) for (4, 8)"),
    ],
)
def test_a_network_that_cannot_be_built(network: str, source: str | None, text: str, fresh: Copy) -> None:
    place = fresh({"model.network": network})
    if source is not None:
        (place / "shop.py").write_text(source)
    assert text in refused(place, "prepare")


def test_a_misspelt_function_is_found_and_its_file_named(fresh: Copy) -> None:
    place = fresh({"model.network": "shop:biuld"})
    said = refused(place, "prepare")
    assert str(place / "shop.py") in said
    assert said.endswith("did you mean 'build'.")


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("whatever", "[model] base as 'package.module:function', 'hf:folder' or 'random', got 'whatever'"),
        ("shop:biuld", "a function biuld in shop"),
        ("hf:./nowhere", "a transformers checkpoint folder"),
    ],
)
def test_a_base_that_cannot_be_had_is_told_before_a_request_needs_it(base: str, text: str, fresh: Copy) -> None:
    assert text in refused(fresh({"model.base": base}), "prepare")


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({k: v for k, v in PLAIN.items() if "head" not in k}, "got missing: head.weight, head.bias: name the network"),
        (
            PLAIN | {f"extra{i}": torch.zeros(1) for i in range(7)},
            "unknown: extra0, extra1, extra2, extra3, extra4 and 2",
        ),
        (PLAIN | {"head.weight": torch.zeros(2, 8)}, "shaped differently: head.weight (2, 8) for (3, 8)"),
        ({"head.bais": torch.zeros(3)} | {k: v for k, v in PLAIN.items() if k != "head.bias"}, "unknown: head.bais"),
        (PLAIN | {"head.bias": torch.zeros(3, dtype=torch.int64)}, "network's types in"),
        ({k: v * float("nan") for k, v in PLAIN.items()}, "finite weights, got NaN or infinity in hidden.weight"),
    ],
)
def test_weights_of_another_network(tensors: Mapping[str, Tensor], text: str, fresh: Copy) -> None:
    place = fresh()
    save_file(dict(tensors), place / "model.safetensors")
    assert text in refused(place, "prepare")


def _scripted(path: Path) -> None:
    torch.jit.trace(Small(), torch.zeros(1, 3)).save(str(path))


def _cut(path: Path) -> None:
    torch.save(PLAIN, path)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: torch.save(Small(), p), "one that needs code to be read (projects.Small): save model.state_dict()"),
        (lambda p: torch.save({"a": Foreign()}, p), "needs code to be read ("),
        (lambda p: torch.save({"a": np.zeros(2)}, p), "needs code to be read (numpy"),
        (lambda p: p.write_bytes(pickle.dumps(Foreign())), "a pickle that torch.save did not write"),
        (lambda p: p.write_bytes(b""), "a state_dict in"),
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_text("These are no weights.\n" * 9), "bytes that are none"),
        (lambda p: p.write_bytes(b"{}" * 9), "bytes that are none"),
        (_scripted, "a TorchScript archive"),
        (_cut, "a file cut short"),
        (lambda p: torch.save([1, 2], p), "a state_dict in"),
        (lambda p: torch.save({"epoch": 3}, p), "got a mapping of epoch"),
        (lambda p: torch.save({"state_dict": {"a": 3}, "epoch": 1}, p), "got a mapping of state_dict, epoch"),
        (lambda p: torch.save(PLAIN | {"head.bias": torch.zeros(3).to_sparse()}, p), "head.bias (sparse)"),
        (lambda p: torch.save(PLAIN | {"head.bias": torch.zeros(3, dtype=torch.complex64)}, p), "(torch.complex64)"),
        (lambda p: torch.save(PLAIN | {"head.bias": torch.zeros(3, device="meta")}, p), "network's types"),
        (lambda p: p.mkdir(), "got a folder: check the path in [model] weights"),
        (lambda p: None, "got nothing there: check the path in [model] weights"),
    ],
)
def test_files_that_hold_no_weights(make: Callable[[Path], Any], text: str, fresh: Copy) -> None:
    place = fresh(FILE)
    make(place / "m.pt")
    assert text in refused(place, "prepare")


@pytest.mark.parametrize(("size", "text"), [(0, "an empty file"), (8, "other bytes"), (200, "invalid header length")])
def test_a_safetensors_file_cut_short(size: int, text: str, fresh: Copy) -> None:
    place = fresh()
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    said = refused(place, "prepare")
    assert said.startswith(f"Expected an intact safetensors file {file}, got ")
    assert text in said


@pytest.mark.parametrize(("key", "value"), [("model.weights", "a" * 300), ("data.train", "b" * 300)])
def test_a_path_too_long_for_the_disk(key: str, value: str, fresh: Copy) -> None:
    said = refused(fresh({key: value}), "prepare")
    assert "a usable path, " in said
    assert "File name too long: check the path" in said


def test_training_without_a_recipe_is_refused_before_it_starts(fresh: Copy) -> None:
    nothing = {f"recipe.{key}": None for key in ("epochs", "batch_size", "lr")}
    place = fresh({"model.weights": "train"} | nothing)
    text = "a [recipe] to train by, got none: add one, or name trained weights in [model]"
    assert text in refused(place, "prepare")
    assert text in refused(place, "prepare", "--plan")


def test_the_shell_sees_the_sentence_and_the_exit_code(fresh: Copy) -> None:
    place = fresh({"model.network": "shop:biuld"})
    done = subprocess.run([sys.executable, "-m", "expunge", "prepare"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("did you mean 'build'.\n")
