"""What a model says of each sample, collected in one pass and reused by every metric and attack."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from expunge.copies import check_made
from expunge.data import Batch, Data, id_texts
from expunge.errors import NotFinite, UserError
from expunge.passes import Passes, check_data
from expunge.runtime import Runtime
from expunge.signals import Signals, signals
from expunge.task import Classes, Task, check_targets
from expunge.tensors import eval_mode


@dataclass(frozen=True)
class Outputs:
    """One model on one set of samples, on the CPU.

    Args:
        outputs: (N, ...) raw outputs, float64.
        prediction: (N, ...) the task's predictions.
        target: (N, ...) labels, class indices as integers, or None.
        loss: (N,) per-sample loss, float64, or None without labels.
        features: tapped activations (N, ...) by tap.
        classes: one logit a class (N, K), float64, where the outputs themselves are other numbers; see `logits`.
        ids: of the samples, N; None where they are not known.
    """

    outputs: Tensor
    prediction: Tensor
    target: Tensor | None = None
    loss: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Tensor | None = None
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def logits(self) -> Tensor:
        """One logit a class (N, K), of a task of exclusive classes."""
        return self.outputs if self.classes is None else self.classes

    @cached_property
    def signals(self) -> Signals:
        """What attacks read off class logits (N, K), worked out once."""
        return signals(self.logits, self.target)

    def take(self, index: Tensor) -> Outputs:
        """Return the samples at these positions."""
        return Outputs(
            self.outputs[index],
            self.prediction[index],
            None if self.target is None else self.target[index],
            None if self.loss is None else self.loss[index],
            {k: v[index] for k, v in self.features.items()},
            None if self.classes is None else self.classes[index],
            None if self.ids is None else tuple(np.asarray(self.ids, dtype=object)[index.numpy(force=True)]),
        )


Evidence = Mapping[tuple[str, str], Outputs]
"""Outputs by (model role, split): roles ``model``, ``original``, ``retrained``; see `expunge.metric.Audit`."""


class Shadow(Evidence):
    """What a shadow model says, under the role ``model``, and which samples it was trained on.

    Any other mapping of evidence stands for a model that was trained on none of the samples: of a retrained model that
    is true of the forget set and of unseen samples, and attacks on these need no more.

    Args:
        outputs: by split, with ids as from `collect`; ``forget`` and ``test`` at least, which attacks tell apart.
        trained: ids of all samples the model was trained on, whether there are outputs on them or not.

    Raises:
        UserError: ids that are no list.
    """

    def __init__(self, outputs: Mapping[str, Outputs], trained: Collection[str]) -> None:
        self.outputs = dict(outputs)
        self.trained = frozenset(id_texts(trained))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        task: Task,
        splits: Mapping[str, Data],
        trained: Collection[str],
        runtime: Runtime | None = None,
    ) -> Shadow:
        """Run a shadow model over splits, see `collect`.

        Args:
            model: its modes are left as found.
            task: outputs, loss, predictions.
            splits: samples by split, the same of every shadow model.
            trained: ids of the samples the model was trained on.
            runtime: device, batch size, precision, progress.

        Returns:
            Its evidence.

        Raises:
            UserError: a split without samples, ids that are no list, or memory too small for one sample.
            NotFinite: an output is NaN or infinite.
        """
        return cls({name: collect(model, task, data, runtime=runtime) for name, data in splits.items()}, trained)

    def __getitem__(self, key: tuple[str, str]) -> Outputs:
        role, split = key
        if role != "model":
            raise KeyError(key)
        return self.outputs[split]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (("model", split) for split in self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __repr__(self) -> str:
        return f"Shadow({', '.join(self.outputs)}; trained on {len(self.trained)} samples)"


def collect(
    model: nn.Module, task: Task, data: Data, *, taps: Sequence[str] = (), runtime: Runtime | None = None
) -> Outputs:
    """Run a model once over data, in eval mode, and keep what it says of each sample.

    Of several processes each runs the whole, so one of them may call it alone. Where memory runs out the batches
    are halved.

    Args:
        model: its modes are left as found.
        task: outputs, loss, predictions.
        data: the samples.
        taps: activations to keep, see `expunge.task.run`.
        runtime: device, batch size, precision, progress.

    Returns:
        One row a sample, in the data's order.

    Raises:
        UserError: no sample, or memory too small for one.
        NotFinite: an output is NaN or infinite.
    """
    runtime = runtime or Runtime()
    check_data(data)
    if len(data) == 0:
        raise UserError("samples to run the model on", f"none in {data.name}", "pass data that is not empty")
    check_made(model)
    model = runtime.placed(model)

    def work(batch: Batch) -> Outputs:
        return _said(model, task, data, batch.to(runtime.torch_device), taps, runtime)

    rows: list[Outputs] = []
    with eval_mode(model), torch.no_grad(), runtime.alone().tracking(f"outputs on {data.name}", len(data)) as advance:
        for found in Passes(runtime).over(data, work):
            rows.append(found)
            advance(len(found))
    return replace(_joined(rows), ids=tuple(data.ids))


def head_tap(model: nn.Module, task: Task, data: Data, runtime: Runtime) -> str | None:
    """Return the tap of the features: the input of the last linear layer that sees one row a sample, or None.

    Layers that a forward pass does not reach, or that see something else than samples, are passed over.
    """
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name]
    model, batch = runtime.placed(model), data.read(range(min(2, len(data)))).to(runtime.torch_device)
    with eval_mode(model), torch.no_grad():
        for name in reversed(linear):
            try:
                _, found = task.forward(model, batch, [f"{name}:input"])
            except UserError:  # not reached
                continue
            if len(found[f"{name}:input"]) == len(batch):
                return f"{name}:input"
    return None


def _said(model: nn.Module, task: Task, data: Data, batch: Batch, taps: Sequence[str], runtime: Runtime) -> Outputs:
    with runtime.autocast():
        outputs, found = task.forward(model, batch, taps)
    outputs = outputs.double()
    if not bool(torch.isfinite(outputs).all()):
        raise NotFinite(f"finite outputs on {data.name}", "NaN or infinity", "check the weights and inputs")
    loss = None
    if batch.target is not None:
        check_targets(task, outputs, batch.target)
        loss = task.loss(outputs, batch.target).double().cpu()
    target = None if batch.target is None else batch.target.cpu()
    features = {k: v.float().cpu() for k, v in found.items()}
    classes = None
    if isinstance(task, Classes):
        logits = task.class_logits(outputs)
        classes = None if logits is outputs else logits.cpu()
        target = target if target is None else target.long()
    return Outputs(outputs.cpu(), task.predictions(outputs).cpu(), target, loss, features, classes)


def _joined(rows: Sequence[Outputs]) -> Outputs:
    targets = [r.target for r in rows if r.target is not None]
    losses = [r.loss for r in rows if r.loss is not None]
    classes = [r.classes for r in rows if r.classes is not None]
    ids = [r.ids for r in rows if r.ids is not None]
    return Outputs(
        torch.cat([r.outputs for r in rows]),
        torch.cat([r.prediction for r in rows]),
        torch.cat(targets) if targets else None,
        torch.cat(losses) if losses else None,
        {k: torch.cat([r.features[k] for r in rows]) for k in rows[0].features},
        torch.cat(classes) if classes else None,
        tuple(chain.from_iterable(ids)) if len(ids) == len(rows) else None,
    )
