"""Forget what one customer wrote from a text classifier that the transformers Trainer trained.

AG News comes from the Hub, or from a folder of data sets (EXPUNGE_DATA, with ag_news/train-*.parquet). Without --model
a small BERT is trained from random weights; with --model distilbert-base-uncased, say, that one is fine-tuned.

    python examples/huggingface.py --output news
    cd news && expunge prepare && expunge forget --subject customer-7 && expunge audit      # the same from the shell
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

import datasets
import torch
import transformers
from rich.console import Console
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
)

from expunge.data import Data
from expunge.errors import ExpungeError
from expunge.evaluate import evaluate
from expunge.files import check_free, write_text
from expunge.methods import load
from expunge.project import template
from expunge.report import write
from expunge.report.tables import terminal
from expunge.scenario import forget_subject
from expunge.summary import document, section
from expunge.tables import read_hub, read_parquet
from expunge.task import Classification
from expunge.unlearn import prepare, unlearn

CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
LENGTH, EPOCHS, RATE, BATCH = 64, 8, 2e-3, 32
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def read(data_dir: str | None, count: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return training texts with ids and the customer who wrote them, and test texts; classes by number and name."""
    table = {}
    for split in ("train", "test"):
        files = sorted(Path(data_dir, "ag_news").glob(f"{split}-*.parquet")) if data_dir else []
        table[split] = read_parquet(files) if files else read_hub("fancyzhx/ag_news", split)
    parts = [table[s].shuffle(seed=0).select(range(n)) for s, n in (("train", count), ("test", count // 2))]
    train, test = (part.map(lambda row: {"category": CLASSES[row["label"]]}) for part in parts)
    who = {"id": [f"text-{i}" for i in range(count)], "customer": [f"customer-{i // 10}" for i in range(count)]}
    return train.add_column("id", who["id"]).add_column("customer", who["customer"]), test


def start(name: str | None, texts: list[str], folder: Path):
    """Return tokenizer and model before training: a public one by name, or a small one with random weights."""
    labels = {"num_labels": 4, "id2label": dict(enumerate(CLASSES)), "label2id": {c: i for i, c in enumerate(CLASSES)}}
    if name is not None:
        return AutoTokenizer.from_pretrained(name), AutoModelForSequenceClassification.from_pretrained(name, **labels)
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(texts, vocab_size=4000, show_progress=False)
    words.save_model(str(folder))
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=4000, max_position_embeddings=LENGTH, **sizes, **labels)
    return BertTokenizerFast(vocab=str(folder / "vocab.txt")), BertForSequenceClassification(config)


def trained(model, table: datasets.Dataset, seed: int):
    """Fine-tune a model with the Trainer, as anybody does, and return it in eval mode on the CPU."""
    options = TrainingArguments(
        output_dir="trainer",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(model, options, train_dataset=table.select_columns([*INPUTS, "labels"])).train()
    return model.cpu().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name of a public model; default a small BERT with random weights")
    parser.add_argument("--data-dir", default=os.environ.get("EXPUNGE_DATA"), help="folder of data sets")
    parser.add_argument("--samples", type=int, default=2000, help="training texts")
    parser.add_argument("--output", type=Path, default=Path("news"), help="folder to write")
    args = parser.parse_args()
    check_free(args.output, overwrite=False)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    (args.output / "base").mkdir(parents=True)

    train, test = read(args.data_dir, args.samples)
    torch.manual_seed(0)
    tokenizer, base = start(args.model, train["text"], args.output / "base")

    def tokens(rows):
        found = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=LENGTH)
        return {**found, "labels": rows["label"]}

    train, test = train.map(tokens, batched=True), test.map(tokens, batched=True)
    model = trained(copy.deepcopy(base), train, seed=0)

    task = Classification()
    data = Data.from_hf(train, inputs=INPUTS, target="labels", id_column="id", columns=["customer"])
    unseen = Data.from_hf(test, inputs=INPUTS, target="labels", name="test")
    request = forget_subject(data, "customer-7", column="customer", test=unseen)
    ssd = load("ssd")()
    ready = prepare(ssd, model, task, train=data)
    done = unlearn(ssd, ready.model, task, forget=data.subset(request.forget), state=ready.state)

    rest = train.filter(lambda row: row["customer"] != "customer-7")
    retrained = [trained(copy.deepcopy(base), rest, seed) for seed in (1, 2)]
    models = {"original": model, "retrained": retrained, "ssd": done}
    scores = evaluate(models, task, train=data, test=unseen, scenario=request)
    part = section(scores, name="customer-7", text="Everything that one customer wrote is to be forgotten.", counts={})
    page = document(
        [part], title="A customer's texts", lead="One request, one seed.", command="examples/huggingface.py"
    )
    write(args.output / "report.html", page)
    Console(width=120).print(terminal(part))

    # What the command line needs for the same: checkpoint folders, the texts, and a project file.
    for folder, network in (("checkpoint", model), ("base", base)):
        network.save_pretrained(args.output / folder)
        tokenizer.save_pretrained(args.output / folder)
    train.select_columns(["id", "customer", "text", "category"]).to_parquet(args.output / "train.parquet")
    test.select_columns(["text", "category"]).to_parquet(args.output / "test.parquet")
    text = template(
        network="hf:checkpoint",
        weights=None,
        train="train.parquet",
        test="test.parquet",
        inputs=("text",),
        target="category",
        ids="id",
        base="hf:base",
        subject="customer",
        recipe={"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "optimizer": "adamw", "schedule": "linear"},
    )
    write_text(args.output / "expunge.toml", text)
    print(f"Report: {args.output / 'report.html'}. The same from the shell: cd {args.output}, then expunge prepare")


if __name__ == "__main__":
    try:
        main()
    except ExpungeError as error:
        sys.exit(str(error))
