"""The commented project file that ``expunge init`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from expunge.errors import UserError

TEMPLATE = """\
# What expunge needs to know about your model and data. Paths are relative to this file.
# Lines that begin with "# key" are settings at their default or an example: take the "# " away to set them.

[model]
# The network: a function without arguments that returns a torch.nn.Module ("package.module:function", found from this
# folder too), a transformers checkpoint folder ("hf:folder", tokenizer and processor are kept), or a named network
# (mlp, convnet, resnet18, vit, text) for a named data set.
network = {network}
# Trained weights: a safetensors file or a state_dict (read without running code; prefixes of DDP, Lightning and
# torch.compile are taken off). "train" trains the network here by [recipe]. Leave out for "hf:folder", and where the
# function returns the trained network.
{weights}
# The network before it saw any training data, which retraining starts from: "package.module:function", "hf:folder" of
# the public pretrained model, or "random". A network function with weights above is that already.
{base}

[data]
# Samples: parquet or CSV (one file, or a pattern such as "train-*.parquet"), a folder with one folder of images a
# class, or "package.module:function" returning a Data, a map-style dataset of (x, y), or a
# datasets.Dataset.
{data}
# What the columns mean. inputs: what the network is given. Without an id column, ids are train/0, train/1, ...
{columns}
{subject}     # expunge forget --subject NAME forgets all samples of one
# subclass = "breed"       # expunge forget --subclass NAME
# columns = []             # further columns to keep
# classes = []             # names in the order of the network's outputs, where labels are texts
# canaries = "canaries.json"   # of weights that fit trained with Recipe(canaries=...): the manifest it left

# [data.image]
# size = [224, 224]        # height, width
# mean = [0.485, 0.456, 0.406]   # of pixels in [0, 1]; hf: folders bring their own
# std = [0.229, 0.224, 0.225]

# [data.text]
# length = 128             # tokens kept of a text
# vocabulary = 8192        # of the hashing tokeniser; hf: folders bring their own tokenizer

[task]
# kind: classification (one of K classes, K logits), binary (one logit, targets 0 or 1), multilabel (K logits, K targets
# 0 or 1), regression, quantile (one output a level), or causal_lm (token logits, targets token ids).
kind = "{kind}"
{task}
# How the network was trained: retraining, fine-tuning and the audit use it. optimizer: sgd or adamw; schedule: cosine,
# constant, linear or multistep.
{recipe}
# canaries = 50            # with weights = "train": samples trained on under a random label, and as many kept out
# gradient_norm = 0.005    # for iau: 0.005 times the norm of the loss's gradient is added to it, in retraining too

[method]
name = "{method}"            # expunge methods shows what there is; its fields may follow here

[runtime]
# batch_size = 256         # samples a forward pass outside training; halved by itself when memory runs out
# precision = "full"       # or "bf16"
# workdir = "expunge-checkpoints"   # interrupted training and passes go on from there
# checkpoint_every = 60.0  # seconds between two checkpoints of a training or a long pass

[policy]
# methods = ["ssd", "retrain"]   # methods that may be used; empty for all
# largest_share = 0.5      # most of the training samples that one request may forget
# accuracy_drop = 0.02     # most that test accuracy may fall by a request (for a class, on the others); beyond: exit 3
# bounds = ["accuracy/test >= 0.9", "gap membership/loss/auc <= 0.05"]   # held by audit and requests; missed: exit 3

# Settings of the audit's metrics, by family: expunge measures NAME shows them. What bounds above hold is measured so.
# [metrics.decisions]
# threshold = 0.5          # probability above which class 1 is decided

# How deletion requests are received, fulfilled and recorded: expunge requests add, list, process ...
[requests]
# workspace = "expunge-requests"   # folder of the ledger and of the models' versions
# start = "expunge-work"   # folder of expunge prepare, which the first version is copied from
# route = "edit"           # now; "retrain": at the next cadence; "edit-then-retrain": now, and exactly at the cadence
# days = 30                # from receipt to the day a request is due
# batch = 100              # most requests that one edit fulfils together
# cadence = 30             # days between two retrainings
# approval = false         # whether a second operator must approve a request first
# undo_days = 14           # a replaced version is kept encrypted so long, to be rolled back to; 0 keeps none
# refresh_every = 0        # requests after which an edit first prepares its state anew; 0 for never
# qualification = ""       # file that expunge qualify wrote, expunge-qualified/qualification.json: edits cite it

# [requests.models]        # several models that one request may touch, by name; leave out for this project alone
# shop = "expunge.toml"
# search = "../search/expunge.toml"
"""

TASK = {"regression": '# error = "squared"        # or "absolute"\n', "quantile": "quantiles = [0.1, 0.5, 0.9]\n"}


def template(
    *,
    network: str = "my_model:build",
    weights: str | None = "model.safetensors",
    train: str | None = "train.parquet",
    name: str | None = None,
    test: str | None = None,
    inputs: tuple[str, ...] = ("image",),
    target: str | tuple[str, ...] = "label",
    ids: str | None = "id",
    kind: str = "classification",
    method: str = "ssd",
    base: str | None = None,
    subject: str | None = None,
    recipe: Mapping[str, object] | None = None,
) -> str:
    """Return the project file with these values set and every other key explained.

    Args:
        network: see the file.
        weights: see the file; None leaves the key out.
        train: training samples; None with a named data set.
        name: of a named data set.
        test: test samples.
        inputs: input columns.
        target: label column, or several.
        ids: id column; None leaves the key out.
        kind: of task.
        method: its name.
        base: the network before training; None leaves the key out.
        subject: column of persons or customers; None leaves the key out.
        recipe: fields of `expunge.recipe.Recipe`; None leaves the table out.

    Returns:
        TOML text.
    """
    rows = [f"name = {_text(name)}"] if name else [f"train = {_text(train)}"]
    rows.append(f"test = {_text(test)}" if test else '# test = "test.parquet"')
    label = target if isinstance(target, str) or len(target) > 1 else target[0]
    columns = [f"inputs = {_text(list(inputs))}", f"target = {_text(label)}"]
    columns.append(f"id = {_text(ids)}" if ids else '# id = "id"')
    if name:
        columns = [f"# {row}" for row in columns]
    trained = {"epochs": 10, "batch_size": 64, "lr": 0.1, "optimizer": "sgd", "schedule": "cosine"}
    table = ["[recipe]", *(f"{key} = {_text(value)}" for key, value in (recipe or trained).items())]
    return TEMPLATE.format(
        network=_text(network),
        weights=f"weights = {_text(weights)}" if weights else '# weights = "model.safetensors"',
        data="\n".join(rows + ['# holdout = "holdout.parquet"']),
        columns="\n".join(columns),
        kind=kind,
        task=TASK.get(kind, ""),
        method=method,
        base=f"base = {_text(base)}" if base else '# base = "hf:pretrained-folder"',
        subject=f"subject = {_text(subject)}" if subject else '# subject = "customer"',
        recipe="\n".join(table if recipe else [f"# {row}" for row in table]),
    )


def _text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML asks to be escaped
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("texts that UTF-8 can write", ascii(value), "write it without those characters") from error
    return text
