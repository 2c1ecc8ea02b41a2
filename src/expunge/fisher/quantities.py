"""The per-sample scalars whose gradients are squared, or taken absolute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import UserError, suggest
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Binary, Classes, MultiLabel, Task, check_targets, class_count

Quantity = Literal["loss", "sampled_loss", "true", "output_norm", "batch_mean", "batch_mean_norm"]
QUANTITIES: tuple[Quantity, ...] = ("loss", "sampled_loss", "true", "output_norm", "batch_mean", "batch_mean_norm")
MEANS = ("batch_mean", "batch_mean_norm")
"""Quantities of the mean over a batch, as published code computes them: not the Fisher, and not sums over samples."""
_UNLABELLED = ("output_norm", "true", "batch_mean_norm")


def check_quantity(of: str, task: Task) -> None:
    """Refuse an unknown quantity, and the expectation over labels for a task that has neither classes nor labels.

    Raises:
        UserError: says which.
    """
    if of not in QUANTITIES:
        raise UserError("a known quantity", repr(of), suggest(of, QUANTITIES))
    if of == "true" and not expects(task):
        remedy = "use 'sampled_loss', which draws targets from the model"
        raise UserError("a classification task for 'true'", type(task).__name__, remedy)


def expects(task: Task) -> bool:
    """Return whether the expectation over the model's own targets is a sum: of classes, or of independent labels."""
    return isinstance(task, Classes | MultiLabel)


def expected(task: Task, outputs: Tensor) -> list[Tensor]:
    """Return scalars (B,) whose squared gradients sum to the expectation over the model's targets of (∂ℓ/∂θ)².

    Of classes they are √p_c(x)·ℓ(x, c), p without gradient. Of a label with logit z, (p − y)·∂z/∂θ is the gradient and
    p(1 − p) the expectation of (p − y)², so √(p(1 − p))·z will do for both its values; of K independent labels, whose
    loss is the mean, the products of two vanish in expectation, and each has √(p_k(1 − p_k))·z_k/K.

    Args:
        task: one that `expects`.
        outputs: (B, ...).
    """
    if isinstance(task, Binary | MultiLabel):
        z = outputs.reshape(len(outputs), -1)
        at = z.detach()
        return list(((at.sigmoid() * (-at).sigmoid()).sqrt() * z / z.shape[1]).unbind(dim=1))
    assert isinstance(task, Classes)
    root = task.class_logits(outputs.detach()).softmax(dim=1).sqrt()
    return [
        root[:, c] * task.loss(outputs, torch.full_like(root[:, 0], c, dtype=torch.long)) for c in range(root.shape[1])
    ]


def count(of: str, task: Task, outputs: Tensor) -> int:
    """Return how many scalars a sample has."""
    if of != "true":
        return 1
    return outputs[:1].numel() if isinstance(task, Binary | MultiLabel) else class_count(task, outputs)


def power(of: str) -> int:
    """Return 1 where gradients are taken absolute, 2 where they are squared."""
    return 1 if of in ("output_norm", "batch_mean_norm") else 2


@contextmanager
def unfused() -> Iterator[None]:
    """Switch fused encoder layers off: they pass by all hooks, and zero positions that are padded."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def scalars(of: str, task: Task, outputs: Tensor, batch: Batch, probe: bool = False) -> list[Tensor]:
    """Return the scalars (B,) of each sample; their squared gradients are summed over the list.

    ``true`` gives those of `expected`, so that the squares sum to E_y (∂ℓ(x, y)/∂θ)², y drawn by the model: of classes
    Σ_c p_c (∂ℓ(x, c)/∂θ)².

    With ``probe`` a fixed combination of the outputs is added, so that a trial sees gradients where the loss has none.

    Returns:
        One tensor (B,), or one a class or label.

    Raises:
        UserError: the quantity needs labels and the batch has none.
    """
    if probe and of == "true":
        each = [torch.zeros_like(outputs.flatten(1)[:, 0])]
    elif of in ("output_norm", "batch_mean_norm"):
        each = [outputs.flatten(1).square().sum(dim=1)]
    elif of == "true":
        each = expected(task, outputs)
    else:
        if batch.target is None:
            raise UserError(f"labels for the quantity '{of}'", "none", "use output_norm, true or sampled_loss")
        each = [task.loss(outputs, batch.target)]
    if batch.weight is not None:
        each = [q * batch.weight.to(q) for q in each]
    if probe:
        flat = outputs.flatten(1)
        each[0] = each[0] + (flat * torch.arange(1, flat.shape[1] + 1, device=flat.device).to(flat).cos()).sum(dim=1)
    return each


def ready(of: str, model: nn.Module, task: Task, data: Data, batch: Batch, runtime: Runtime, seed: int) -> Batch:
    """Return the batch on its device with the targets its quantity needs; draws them for ``sampled_loss``.

    Each draw is seeded by the sample's id, so batch size, order and partition do not matter.

    Raises:
        UserError: labels are missing.
    """
    batch = batch.to(runtime.torch_device)
    if of in _UNLABELLED:
        return batch
    if of != "sampled_loss":
        if batch.target is None:
            remedy = "use output_norm or sampled_loss"
            raise UserError(f"labels for the quantity '{of}'", f"none in {data.name}", remedy)
        return batch
    with unfused(), torch.no_grad(), runtime.autocast():
        outputs, _ = task.forward(model, batch)
    rows = []
    for row, name in zip(outputs.split(1), data.all_ids[data.positions[batch.index.numpy()]], strict=True):
        generator = torch.Generator().manual_seed(named_seed("sampled_loss", seed, name))
        rows.append(task.sample_target(row, generator))
    return Batch(batch.inputs, torch.cat(rows), batch.weight, batch.index)


def verify(of: str, task: Task, outputs: Tensor, batch: Batch) -> None:
    """Refuse targets that do not fit the outputs, and a loss that is not one number a sample; not under vmap.

    Raises:
        UserError: says which.
    """
    if of in _UNLABELLED or batch.target is None:
        return
    check_targets(task, outputs, batch.target)
    with torch.no_grad():
        shape = task.loss(outputs, batch.target).shape
    if shape != (len(batch),):
        got = f"shape {tuple(shape)} for {len(batch)} samples"
        raise UserError("a loss of shape (B,), one number a sample", got, "return it unreduced from Task.loss")
