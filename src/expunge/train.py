"""Training: `fit`, reproducible by seed, resumable by epoch, by one process or several; `fresh`, its start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from expunge import canaries, tensors
from expunge.checkpoints import Checkpoint
from expunge.copies import as_before, check_made, check_trainable, private
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, listing
from expunge.files import digest
from expunge.masks import Held, Masks
from expunge.passes import Passes, check_data, whole
from expunge.recipe import Joint, Penalty, Proximal, Recipe
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Task, sample_losses

__all__ = ["Penalty", "Recipe", "augment", "batch_orders", "endless_orders", "fit", "fresh", "mean_loss", "share"]


def augment(images: Tensor, crop: int, flip: bool) -> Tensor:
    """Return images (B, C, H, W), each cropped at random after zero padding, and mirrored with probability 1/2."""
    if crop:
        n, _, height, width = images.shape
        padded = F.pad(images, [crop] * 4)
        top, left = torch.randint(0, 2 * crop + 1, (2, n)).to(images.device)
        rows = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
        columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]
        which = torch.arange(n, device=images.device)[:, None, None]
        images = padded[which, :, rows, columns].permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = torch.rand(len(images)).lt(0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def fresh(model: nn.Module, *, new_model: Callable[[], nn.Module] | None = None, seed: int = 0) -> nn.Module:
    """Return the network before training: from the factory, or a copy with every parameter and buffer drawn anew.

    The copy is filled with NaN and each module re-initialised by its ``reset_parameters``, or by the model's own
    ``_init_weights`` (transformers). What is still NaN was not re-initialised and would keep what was learned.
    Integer buffers that are single numbers count as counters and must be reset as well; tables of integers, such as
    positions and masks, are taken for constants. A model that holds the network before training as its
    ``before_training``, as an ensemble does, gives a copy of that, or what the factory builds of its shape.

    Args:
        model: the trained network.
        new_model: builds the network before training.
        seed: of the initialisation.

    Returns:
        A new module, in train mode.

    Raises:
        UserError: a parameter or buffer has no known initialisation, or the factory builds another network.
    """
    check_made(model)
    before = getattr(model, "before_training", None)
    if isinstance(before, nn.Module):
        model = private(before).requires_grad_(True)
        if new_model is None:
            return model.train()
    with tensors.isolated_rng(named_seed("fresh", seed)):
        if new_model is not None:
            made = new_model()
            if not isinstance(made, nn.Module) or tensors.shapes_digest(made) != tensors.shapes_digest(model):
                got = type(made).__name__ + " with other names or shapes"
                raise UserError("new_model() to build the same network", got, "return the network before training")
            if before is None and tensors.weights_digest(made) == tensors.weights_digest(model):
                raise UserError("new_model() to return the network before training", "the trained one", "build it anew")
            made = copy.deepcopy(made)  # a factory may hand out an object it keeps
            home = next((p.device for p in model.parameters()), None)
            made.train()
            return made if home is None else made.to(home)
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            remedy = "pass new_model, a factory of the network before training"
            raise UserError("a network trained in all its parts", f"frozen {listing(frozen)}", remedy)
        blank = private(model)
        counters = _emptied(blank)
        initialise = getattr(blank, "_init_weights", None)
        for module in blank.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(initialise):
                initialise(module)
            elif callable(reset):
                reset()
            if isinstance(module, nn.modules.batchnorm._NormBase):  # `_init_weights` may leave its statistics
                module.reset_running_stats()
    state = [*blank.named_parameters(), *blank.named_buffers()]
    left = [n for n, t in state if bool(torch.isnan(t).any())]
    left += [n for n, t in blank.named_buffers() if n in counters and int(t) == _UNSET]
    if left:
        got = f"no reset_parameters for {listing(left)}"
        remedy = "pass new_model, a factory of the untrained network"
        raise UserError("a way to re-initialise every weight", got, remedy)
    blank.train()
    return blank


_UNSET = 101  # fits every integer type


def _emptied(blank: nn.Module) -> set[str]:
    """Fill with NaN what training may have changed, and with a mark the counters; return the counters' names."""
    counters = set()
    with torch.no_grad():
        for name, tensor in [*blank.named_parameters(), *blank.named_buffers()]:
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(math.nan)
            elif tensor.dim() == 0 and tensor.dtype != torch.bool and int(tensor) != 0:
                tensor.fill_(_UNSET)
                counters.add(name)
    return counters


def fit(
    model: nn.Module,
    task: Task,
    data: Data,
    recipe: Recipe,
    *,
    holdout: Data | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    masks: Masks | None = None,
) -> nn.Module:
    """Train a copy of a model and return it in eval mode.

    Minimises the mean over a batch of weight·loss plus the recipe's penalties. Order, augmentation and dropout of
    each epoch are seeded by (seed, epoch), so with ``runtime.workdir`` an interrupted training resumes after the last
    epoch that was written, every ``runtime.checkpoint_every`` seconds, and ends with the same weights.

    Several processes train one model: each takes its share of every batch, gradients are those of the whole batch's
    mean, and each process takes the same step; a batch too small to give every process two samples is worked on by
    fewer. Without BatchNorm and dropout the weights are those of one process up to rounding. With them every process
    draws its own dropout and augmentation, and normalises by its own share; after each epoch the running statistics
    are averaged over processes, and all other buffers taken from process 0.

    Where the recipe says so, canaries are planted in the data first, drawn by the seed, and ``canaries.json`` in
    ``runtime.workdir`` names them: `expunge.canaries.Canaries.load`. Whatever works with the trained network afterwards
    must be given the data it was trained on, ``Canaries.applied(data)``.

    Args:
        model: the network to start from; left as it is.
        task: outputs and per-sample loss.
        data: training data.
        recipe: how.
        holdout: data for ``recipe.patience``.
        runtime: device, precision, progress, workdir.
        seed: of order, augmentation and dropout, and of the canaries.
        masks: which weights may move; the others keep the values they have in ``model``, to the bit.

    Returns:
        The trained copy, in eval mode, on the model's device.

    Raises:
        UserError: no data, nothing to train, patience without holdout, targets that do not fit, memory too small for
            a batch, processes that were given different weights, samples or settings, or canaries that cannot be
            planted, or whose manifest has no place.
        NotFinite: the loss became NaN or infinite, in training or on holdout.
    """
    runtime = runtime or Runtime()
    with runtime.agreed():
        _check_call(model, data, recipe, holdout)
        data, planted = _planted(data, recipe, runtime, seed)
        home = next(iter(model.parameters())).device
        work = private(model).to(runtime.torch_device)
        against = holdout if recipe.patience is not None else None
        optimizer = optimizer_of(work, recipe)
        held = None if masks is None else masks.hold(work)
        saved = Checkpoint(runtime, model, task, data, against, recipe, seed, masks)
    if runtime.count > 1:
        settings = digest(recipe.to_json(), seed, runtime.precision)
        runtime.same(weights=tensors.weights_digest(model), samples=digest(data.ids), settings=settings)
    if planted is not None:
        runtime.on_main(lambda: planted.save(Path(str(runtime.workdir)) / canaries.FILE))
    now = saved.restore(work, optimizer)
    with runtime.tracking(f"training on {data.name}", (recipe.epochs - now.epoch) * len(data)) as advance:
        for epoch in range(now.epoch, recipe.epochs):
            if recipe.patience is not None and now.waited >= recipe.patience:
                break
            with tensors.isolated_rng(named_seed("fit", seed, epoch)), torch.enable_grad():
                order = torch.randperm(len(data))
                own = named_seed("fit", seed, epoch, runtime.rank)
                with tensors.isolated_rng(own) if runtime.count > 1 else nullcontext():
                    work.train()
                    _epoch(work, task, data, recipe, optimizer, runtime, epoch, order, advance, held)
            _even_buffers(work, runtime)
            if against is not None:
                work.eval()
                loss = mean_loss(work, task, against, runtime)
                now.waited = 0 if loss < now.best else now.waited + 1
                if loss < now.best:
                    now.best, now.kept = loss, {k: v.clone() for k, v in work.state_dict().items()}
            now.epoch = epoch + 1
            saved.store(work, optimizer, now)
    if now.kept:
        work.load_state_dict(now.kept)
    saved.clear()
    optimizer.zero_grad(set_to_none=True)
    work.eval()
    return as_before(work, model).to(home)


def _check_call(model: nn.Module, data: Data, recipe: Recipe, holdout: Data | None) -> None:
    if not isinstance(recipe, Recipe):
        raise UserError("a Recipe", type(recipe).__name__, "write for example Recipe(epochs=10, lr=0.1)")
    check_trainable(model)
    check_data(data, "training data")
    if holdout is not None:
        check_data(holdout, "holdout")
    if len(data) == 0:
        raise UserError("training data", f"no sample in {data.name}", "pass data that is not empty")
    if recipe.patience is not None and (holdout is None or not holdout.labelled):
        got = "none" if holdout is None else "none with labels"
        raise UserError("holdout data for Recipe.patience", got, "pass holdout= or set patience=None")


def _planted(data: Data, recipe: Recipe, runtime: Runtime, seed: int) -> tuple[Data, canaries.Canaries | None]:
    """Return the data with the recipe's canaries in it, and their manifest, which has a place to be written to."""
    if recipe.canaries == 0:
        return data, None
    if runtime.workdir is None:
        remedy = "set Runtime(workdir=...), where canaries.json says which samples they are"
        raise UserError("a folder for the manifest of Recipe.canaries", "none", remedy)
    return canaries.plant(data, recipe.canaries, seed=seed)


def _even_buffers(model: nn.Module, runtime: Runtime) -> None:
    """Give every process the same buffers: running statistics averaged, all others those of process 0."""
    if runtime.count == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    statistics = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
    for tensor, total in zip(statistics, runtime.sum(statistics), strict=True):
        tensor.copy_(total / runtime.count)
    averaged = {id(t) for t in statistics}
    others = [b for b in model.buffers() if id(b) not in averaged]
    for tensor, first in zip(others, runtime.shared([b.cpu() for b in others]), strict=True):
        tensor.copy_(first)


def mean_loss(model: nn.Module, task: Task, data: Data, runtime: Runtime) -> float:
    """Return the mean per-sample loss of a model in eval mode, over the samples of all processes.

    Args:
        model: in eval mode, on the runtime's device.
        task: outputs and per-sample loss.
        data: labelled samples; several processes share them.
        runtime: device, batch size, precision.

    Returns:
        The mean, in the loss's unit.

    Raises:
        UserError: targets that are missing or do not fit.
        NotFinite: the mean is NaN or infinite.
    """

    def work(batch: Batch) -> float:
        if batch.target is None:
            raise UserError(f"labels in {data.name}", "none", "give targets when building the data")
        _, losses = outputs_and_losses(model, task, batch.to(runtime.torch_device))
        return float(losses.double().sum())

    total = torch.zeros((), dtype=torch.float64)
    with runtime.agreed(), torch.no_grad(), runtime.autocast():
        for part in Passes(runtime).over(data, work, runtime.part(np.arange(len(data)))):
            total += part
    mean = float(runtime.sum([total])[0]) / len(data)
    if not math.isfinite(mean):
        remedy = "lower the learning rate, or check the weights and that data"
        raise NotFinite(f"a finite mean loss on {data.name}", str(mean), remedy)
    return mean


class Optimizing(Protocol):
    """Settings of an optimiser: a recipe, or a method or an anchor that takes steps."""

    @property
    def optimizer(self) -> str:
        """``sgd``, ``adam`` or ``adamw``."""

    @property
    def lr(self) -> float:
        """Learning rate."""

    @property
    def momentum(self) -> float:
        """Of SGD."""

    @property
    def weight_decay(self) -> float:
        """L2; decoupled with AdamW."""


def optimizer_of(model: nn.Module, how: Optimizing) -> torch.optim.Optimizer:
    """Return the optimiser of a model's trainable weights.

    Raises:
        UserError: it has none.
    """
    params = list(tensors.parameters(model).values())
    if not params:
        raise UserError("weights to train", "a model without trainable parameters", "unfreeze some of them")
    if how.optimizer == "sgd":
        return torch.optim.SGD(params, lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    kind = torch.optim.Adam if how.optimizer == "adam" else torch.optim.AdamW
    return kind(params, lr=how.lr, weight_decay=how.weight_decay)


def batch_orders(size: int, order: Sequence[int] | Tensor) -> Iterator[NDArray[np.int64]]:
    """Yield each batch's part of an order; a last batch of one sample, which BatchNorm refuses, joins its neighbour."""
    at = np.asarray(order, dtype=np.int64)
    starts = list(range(0, len(at), size))
    if len(starts) > 1 and len(at) - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(at)], strict=True):
        yield at[start:stop]


def endless_orders(size: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of batches of ``count`` samples for ever, every pass in a new order."""
    while True:
        yield from batch_orders(size, torch.randperm(count))


def _epoch(
    model: nn.Module,
    task: Task,
    data: Data,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    epoch: int,
    order: Tensor,
    advance: Callable[[int], None],
    held: Held | None,
) -> None:
    seen, terms = 0, recipe.terms(epoch)
    shrinking = [term for term in terms if isinstance(term, Proximal)]
    for step, at in enumerate(batch_orders(recipe.batch_size, order), start=1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch + (seen + len(at)) / len(data) if epoch < recipe.warmup else epoch)
        seen += len(at)
        optimizer.zero_grad(set_to_none=True)
        _back(model, task, data, recipe, terms, runtime, at, f"at step {step} in epoch {epoch + 1}")
        _add_gradients(optimizer, runtime)
        stepped(model, optimizer, recipe.clip, held, shrinking)
        advance(len(at))


def _back(
    model: nn.Module,
    task: Task,
    data: Data,
    recipe: Recipe,
    terms: Sequence[Penalty],
    runtime: Runtime,
    at: NDArray[np.int64],
    when: str,
) -> None:
    """Leave on the weights this process's share of the gradient of a batch's loss and penalties."""
    joint = [term for term in terms if isinstance(term, Joint)]
    exchanged = joint if runtime.count > 1 else []
    mine = share(at, runtime.rank, runtime.count)
    loss, weight = None, len(mine) / len(at)
    with _part_of_step(model, joint, runtime, len(at)):
        parts = [[torch.zeros_like(p) for p in tensors.parameters(model).values()] for _ in exchanged]
        if len(mine):
            batch = augmented(data.read(mine).to(runtime.torch_device), recipe)
            own = [term for term in terms if not (exchanged and isinstance(term, Joint))]
            loss, losses = _loss(model, task, batch, own, runtime)
            parts = [term.part(model, batch, losses) for term in exchanged]
            if not exchanged:
                _down(loss, weight, recipe, when)
    if exchanged:
        totals = [runtime.sum([weight * g.detach() for g in part]) for part in parts]
        with _part_of_step(model, joint, runtime, len(at)):
            if loss is not None:
                rest = [term.joined(*two) for term, *two in zip(exchanged, parts, totals, strict=True)]
                _down(loss + torch.stack(rest).sum(), weight, recipe, when)


@contextmanager
def _part_of_step(model: nn.Module, joint: Sequence[Joint], runtime: Runtime, size: int) -> Iterator[None]:
    """Run what needs no other process: what fails here fails on all, and penalties choose the kernels."""
    with runtime.agreed(), whole(f"a batch of {size} samples", "lower Recipe.batch_size"), ExitStack() as stack:
        for term in joint:
            stack.enter_context(term.around(model))
        yield


def _down(loss: Tensor, weight: float, recipe: Recipe, when: str) -> None:
    """Differentiate a loss of one process's samples, ``weight`` of a batch, if it is finite."""
    if not bool(torch.isfinite(loss)):
        remedy = f"lower Recipe.lr (now {recipe.lr}) or check the data"
        raise NotFinite("a finite training loss", f"{loss.item()} {when}", remedy)
    (loss if weight == 1 else loss * weight).backward()


def stepped(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    held: Held | None,
    shrinking: Sequence[Proximal] = (),
) -> None:
    """Take a step on the gradients there are, their norm cut to ``clip``; masked weights stay where they are held."""
    if held is not None:
        held.gradients()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    for term in shrinking:
        term.shrink(model, optimizer.param_groups[0]["lr"])
    if held is not None:
        held.after(optimizer)


def share(at: NDArray[np.int64], rank: int, count: int) -> NDArray[np.int64]:
    """Return one process's samples of a batch; as many processes work as get two samples each, the rest get none."""
    workers = max(1, min(count, len(at) // 2))
    return at[rank::workers] if rank < workers else at[:0]


def _add_gradients(optimizer: torch.optim.Optimizer, runtime: Runtime) -> None:
    """Sum gradients over processes; a parameter that no process used keeps none, as with one process."""
    if runtime.count == 1:
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    used = torch.tensor([float(p.grad is not None) for p in params])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    used, *totals = runtime.sum([used, *grads])
    for p, total, any_use in zip(params, totals, used.tolist(), strict=True):
        p.grad = total if any_use else None


def augmented(batch: Batch, recipe: Recipe) -> Batch:
    """Return a batch of images cropped and mirrored at random, as a recipe says.

    Raises:
        UserError: the inputs are no images.
    """
    if not recipe.crop and not recipe.flip:
        return batch
    if not isinstance(batch.inputs, Tensor) or batch.inputs.dim() != 4:
        shape = tuple(batch.inputs.shape) if isinstance(batch.inputs, Tensor) else "a dict"
        raise UserError("images (B, C, H, W) for Recipe.crop and flip", f"inputs {shape}", "set crop=0 and flip=False")
    return Batch(augment(batch.inputs, recipe.crop, recipe.flip), batch.target, batch.weight, batch.index)


def outputs_and_losses(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return outputs and the loss of each sample (B,), targets and shapes checked.

    Raises:
        UserError: the targets do not fit the outputs, or the loss is not one number a sample.
    """
    assert batch.target is not None
    outputs, _ = task.forward(model, batch)
    return outputs, sample_losses(task, outputs, batch.target)


def _loss(
    model: nn.Module, task: Task, batch: Batch, terms: Sequence[Penalty], runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch with its penalties, and the loss of each sample (B,)."""
    if batch.target is None:
        raise UserError("labelled data to train on", "no targets", "give targets when building the data")
    with runtime.autocast():
        outputs, losses = outputs_and_losses(model, task, batch)
        weighted = losses if batch.weight is None else losses * batch.weight.to(losses)
        loss = weighted.mean()
        for penalty in terms:
            loss = loss + penalty(model, batch, outputs, losses)
    return loss, losses
