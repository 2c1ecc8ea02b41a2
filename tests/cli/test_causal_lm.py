"""A project whose network tells the next token, from prepare to audit by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shell import _reports, expunge
from task.test_causal_lm import TASK, sequences

__all__ = ["_reports"]

NETWORK = """
import transformers

def build():
    size = dict(n_embd=16, n_layer=2, n_head=2, vocab_size=11, bos_token_id=1, eos_token_id=2, n_positions=8)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))
"""
PROJECT = """
[model]
network = "tokens:build"
weights = "train"

[data]
train = "train.parquet"
test = "test.parquet"
inputs = ["input_ids", "attention_mask"]
target = "{target}"
id = "id"

[task]
kind = "causal_lm"

[recipe]
epochs = 2
lr = 0.01
optimizer = "adamw"

[method]
name = "ssd"
"""


def place(folder: Path, target: str = "labels") -> Path:
    folder.mkdir()
    ids, mask = sequences(30)
    columns = {
        "input_ids": ids.tolist(),
        "attention_mask": mask.tolist(),
        "labels": TASK.labels(ids, mask).tolist(),
        "padded": ids.tolist(),
        "shares": torch.rand(30, 6).tolist(),
        "number": list(range(30)),
        "id": [f"s{i}" for i in range(30)],
    }
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        pq.write_table(pa.table({k: v[part] for k, v in columns.items()}), folder / f"{name}.parquet")
    (folder / "tokens.py").write_text(NETWORK)
    (folder / "expunge.toml").write_text(PROJECT.format(target=target))
    return folder


def test_a_project_of_sequences_of_tokens(tmp_path: Path):
    where = place(tmp_path / "texts")
    code, out, err = expunge("prepare", cwd=where)
    assert code == 0, err
    (where / "gone.txt").write_text("s1\ns3\n")
    code, out, err = expunge("forget", "--ids", "gone.txt", "-o", "gone", cwd=where)
    assert code == 0, err
    assert "Edited for 2 of 20 samples" in out
    code, out, err = expunge("audit", "--unlearned", "gone", "--metric", "loss", "-o", "audit", cwd=where)
    assert code == 0, err
    numbers = json.loads((where / "audit" / "audit.json").read_text())["sections"][0]["values"]["ssd"]
    assert 1 < numbers["loss/test"]["x"] < 4
    assert 1 < numbers["loss/forget"]["x"] < 4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("padded", "targets of -100 where attention_mask is 0, got token ids of padding: take CausalLM.labels"),
        ("shares", "lists of token ids in 'shares', got fractional numbers"),
        ("number", "lists of token ids in 'number', got int64: write the token ids of each sequence"),
    ],
)
def test_what_is_no_sequence_of_tokens_is_one_sentence(target: str, said: str, tmp_path: Path):
    where = place(tmp_path / "texts", target)
    code, _, err = expunge("prepare", cwd=where)
    assert code == 2
    assert said in " ".join(err.split())
