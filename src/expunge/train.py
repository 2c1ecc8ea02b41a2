"""Training: a frozen recipe, and `fit`, reproducible by seed and resumable by epoch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge import tensors
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, listing
from expunge.files import digest
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Task, check_targets

log = logging.getLogger(__name__)


class Penalty(Protocol):
    """A term added to the mean loss of a batch; a frozen dataclass, so that its settings name it."""

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        """Return a scalar."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: passes over the data.
        batch_size: samples a step; a last batch of one joins the one before it.
        lr: learning rate after warm-up.
        optimizer: ``sgd`` or ``adamw``.
        momentum: of SGD.
        weight_decay: coupled L2 for SGD, decoupled for AdamW.
        schedule: ``constant``, ``cosine`` (to 0), ``linear`` (to 0) or ``multistep``.
        milestones: epochs after which ``multistep`` multiplies the rate by gamma.
        gamma: factor of ``multistep``.
        warmup: epochs of linear warm-up, stepwise; may be a fraction.
        crop: pixels of zero padding for random crops of images (B, C, H, W); 0 for none.
        flip: mirror images left to right with probability one half.
        clip: largest gradient norm, or None.
        patience: epochs without a lower mean loss on holdout before training stops and the best epoch's weights
            are restored; None trains all epochs.
        penalties: terms added to the mean loss.

    Raises:
        UserError: a field is out of its range.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "linear", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2
    warmup: float = 0.0
    crop: int = 0
    flip: bool = False
    clip: float | None = None
    patience: int | None = None
    penalties: tuple[Penalty, ...] = field(default=())

    def __post_init__(self) -> None:
        positive = {"batch_size": self.batch_size, "lr": self.lr, "gamma": self.gamma}
        positive |= {k: v for k, v in {"clip": self.clip, "patience": self.patience}.items() if v is not None}
        not_negative = {"epochs": self.epochs, "momentum": self.momentum, "weight_decay": self.weight_decay}
        not_negative |= {"warmup": self.warmup, "crop": self.crop}
        for name, value in {**positive, **not_negative}.items():
            if not math.isfinite(value) or value < 0 or (name in positive and value == 0):
                least = "above 0" if name in positive else "of 0 or more"
                raise UserError(f"Recipe.{name} {least}", str(value), "give a number in that range")
        if self.optimizer not in ("sgd", "adamw"):
            raise UserError("Recipe.optimizer 'sgd' or 'adamw'", repr(self.optimizer), "choose one of them")
        if self.schedule not in ("constant", "cosine", "linear", "multistep"):
            raise UserError("Recipe.schedule constant, cosine, linear or multistep", repr(self.schedule), "choose one")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values; a penalty as its class name with its settings."""
        body = asdict(self) | {"penalties": [repr(p) for p in self.penalties]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in body.items()}

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point of training measured in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = (epoch - self.warmup) / max(1e-12, self.epochs - self.warmup)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(1.0, done))) / 2
        if self.schedule == "linear":
            return self.lr * max(0.0, 1 - done)
        passed = sum(epoch >= m for m in self.milestones) if self.schedule == "multistep" else 0
        return self.lr * self.gamma**passed


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

    Args:
        model: the trained network.
        new_model: builds the network before training.
        seed: of the initialisation.

    Returns:
        A new module, in train mode.

    Raises:
        UserError: a parameter or buffer has no known initialisation, or the factory builds another network.
    """
    with tensors.isolated_rng(named_seed("fresh", seed)):
        if new_model is not None:
            made = new_model()
            if not isinstance(made, nn.Module) or tensors.shapes_digest(made) != tensors.shapes_digest(model):
                got = type(made).__name__ + " with other names or shapes"
                raise UserError("new_model() to build the same network", got, "return the network before training")
            if tensors.weights_digest(made) == tensors.weights_digest(model):
                raise UserError("new_model() to return the network before training", "the trained one", "build it anew")
            made = copy.deepcopy(made)  # a factory may hand out an object it keeps
            return made.to(next(iter(model.parameters())).device).train()
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            remedy = "pass new_model, a factory of the network before training"
            raise UserError("a network trained in all its parts", f"frozen {listing(frozen)}", remedy)
        blank = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in [*blank.parameters(), *blank.buffers()]:
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.fill_(math.nan)
        initialise = getattr(blank, "_init_weights", None)
        for module in blank.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(initialise):
                initialise(module)
            elif callable(reset):
                reset()
    state = [*blank.named_parameters(), *blank.named_buffers()]
    left = [n for n, t in state if bool(torch.isnan(t).any())]
    if left:
        got = f"no reset_parameters for {listing(left)}"
        remedy = "pass new_model, a factory of the untrained network"
        raise UserError("a way to re-initialise every weight", got, remedy)
    return blank.train()


def fit(
    model: nn.Module,
    task: Task,
    data: Data,
    recipe: Recipe,
    *,
    holdout: Data | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train a copy of a model and return it in eval mode.

    Minimises the mean over a batch of weight·loss plus the recipe's penalties. Order, augmentation and dropout of
    each epoch are seeded by (seed, epoch), so with ``runtime.workdir`` an interrupted training resumes at the last
    full epoch and ends with the same weights.

    Args:
        model: the network to start from; left as it is.
        task: outputs and per-sample loss.
        data: training data.
        recipe: how.
        holdout: data for ``recipe.patience``.
        runtime: device, precision, progress, workdir.
        seed: of order, augmentation and dropout.

    Returns:
        The trained copy, in eval mode, on the model's device.

    Raises:
        UserError: no data, patience without holdout, or targets that do not fit.
        NotFinite: the loss became NaN or infinite.
    """
    runtime = runtime or Runtime()
    if len(data) == 0:
        raise UserError("training data", f"no sample in {data.name}", "pass data that is not empty")
    if recipe.patience is not None and (holdout is None or not holdout.labelled):
        got = "none" if holdout is None else "none with labels"
        raise UserError("holdout data for Recipe.patience", got, "pass holdout= or set patience=None")
    home = next(iter(model.parameters())).device
    work = copy.deepcopy(model).to(runtime.torch_device)
    optimizer = _optimizer(work, recipe)
    saved = _Checkpoint.of(runtime, model, task, data, holdout if recipe.patience is not None else None, recipe, seed)
    start, best, waited, kept = saved.restore(work, optimizer)
    with runtime.tracking(f"training on {data.name}", (recipe.epochs - start) * len(data)) as advance:
        for epoch in range(start, recipe.epochs):
            if recipe.patience is not None and waited >= recipe.patience:
                break
            with tensors.isolated_rng(named_seed("fit", seed, epoch)), torch.enable_grad():
                _epoch(work.train(), task, data, recipe, optimizer, runtime, epoch, advance)
            if recipe.patience is not None and holdout is not None:
                loss = mean_loss(work.eval(), task, holdout, runtime)
                waited = 0 if loss < best else waited + 1
                if loss < best:
                    best, kept = loss, {k: v.clone() for k, v in work.state_dict().items()}
            saved.store(work, optimizer, epoch + 1, best, waited, kept)
    if kept:
        work.load_state_dict(kept)
    saved.clear()
    optimizer.zero_grad(set_to_none=True)
    return work.eval().to(home)


def mean_loss(model: nn.Module, task: Task, data: Data, runtime: Runtime) -> float:
    """Return the mean per-sample loss of a model in eval mode."""
    total = 0.0
    with torch.no_grad(), runtime.autocast():
        for batch in data.batches(runtime.batch_size):
            batch = batch.to(runtime.torch_device)
            outputs, _ = task.forward(model, batch)
            assert batch.target is not None
            total += float(task.loss(outputs, batch.target).double().sum())
    return total / len(data)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    params = list(tensors.parameters(model).values())
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(params, lr=recipe.lr, weight_decay=recipe.weight_decay)


def training_batches(data: Data, size: int, order: Sequence[int] | Tensor) -> Iterator[Batch]:
    """Yield batches in the given order; a last batch of one sample, which BatchNorm refuses, joins its neighbour."""
    at = np.asarray(order, dtype=np.int64)
    starts = list(range(0, len(at), size))
    if len(starts) > 1 and len(at) - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(at)], strict=True):
        yield data.read(at[start:stop])


def _epoch(
    model: nn.Module,
    task: Task,
    data: Data,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    epoch: int,
    advance: Callable[[int], None],
) -> None:
    seen = 0
    for batch in training_batches(data, recipe.batch_size, torch.randperm(len(data))):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch + (seen + len(batch)) / len(data) if epoch < recipe.warmup else epoch)
        seen += len(batch)
        batch = _augmented(batch.to(runtime.torch_device), recipe)
        loss = _loss(model, task, batch, recipe, runtime)
        optimizer.zero_grad(set_to_none=True)
        if not bool(torch.isfinite(loss)):
            got = f"{loss.item()} in epoch {epoch + 1}"
            raise NotFinite("a finite training loss", got, f"lower Recipe.lr (now {recipe.lr}) or check the data")
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        advance(len(batch))


def _augmented(batch: Batch, recipe: Recipe) -> Batch:
    if not recipe.crop and not recipe.flip:
        return batch
    if not isinstance(batch.inputs, Tensor) or batch.inputs.dim() != 4:
        shape = tuple(batch.inputs.shape) if isinstance(batch.inputs, Tensor) else "a dict"
        raise UserError("images (B, C, H, W) for Recipe.crop and flip", f"inputs {shape}", "set crop=0 and flip=False")
    return Batch(augment(batch.inputs, recipe.crop, recipe.flip), batch.target, batch.weight, batch.index)


def _loss(model: nn.Module, task: Task, batch: Batch, recipe: Recipe, runtime: Runtime) -> Tensor:
    if batch.target is None:
        raise UserError("labelled data to train on", "no targets", "give targets when building the data")
    with runtime.autocast():
        outputs, _ = task.forward(model, batch)
        check_targets(task, outputs, batch.target)
        losses = task.loss(outputs, batch.target)
        if losses.shape != (len(batch),):
            got = f"shape {tuple(losses.shape)} for {len(batch)} samples"
            raise UserError("a loss of shape (B,), one number a sample", got, "return it unreduced from Task.loss")
        weighted = losses if batch.weight is None else losses * batch.weight.to(losses)
        loss = weighted.mean()
        for penalty in recipe.penalties:
            loss = loss + penalty(model, batch, outputs, losses)
    return loss


@dataclass(frozen=True)
class _Checkpoint:
    """Weights, optimiser and counters after an epoch, under a name made of everything that decides the result."""

    path: Path | None

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        model: nn.Module,
        task: Task,
        data: Data,
        holdout: Data | None,
        recipe: Recipe,
        seed: int,
    ) -> _Checkpoint:
        if runtime.workdir is None:
            return cls(None)
        parts: list[Any] = [recipe.to_json(), seed, tensors.weights_digest(model), repr(task), runtime.precision]
        for part in (data, holdout):
            if part is not None:
                some = part.subset(part.ids[:: max(1, len(part) // 256)])
                content = [h.tolist() for h in some.fingerprints(b"", labelled=True)]
                weight = None if part.all_weights is None else part.all_weights[part.positions].tolist()
                parts += [part.ids, content, weight]
        return cls(Path(runtime.workdir) / f"fit-{digest(parts)[:24]}.safetensors")

    def store(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        best: float,
        waited: int,
        kept: dict[str, Tensor] | None,
    ) -> None:
        if self.path is None:
            return
        state = optimizer.state_dict()["state"]
        values = {f"model/{k}": v for k, v in model.state_dict().items()}
        values |= {f"best/{k}": v for k, v in (kept or {}).items()}
        plain: dict[str, Any] = {}
        for number, slots in state.items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    values[f"optimizer/{number}/{slot}"] = value
                elif value is not None:
                    plain[f"{number}/{slot}"] = value
        meta = {"epoch": epoch, "best": best if math.isfinite(best) else None, "waited": waited, "slots": plain}
        tensors.save(self.path, values, meta, overwrite=True)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float, int, dict[str, Tensor] | None]:
        if self.path is None or not self.path.exists():
            return 0, math.inf, 0, None
        found, meta = tensors.load(self.path)
        model.load_state_dict({k.removeprefix("model/"): found[k] for k in found if k.startswith("model/")})
        state: dict[int, dict[str, Any]] = {}
        for name in found:
            if name.startswith("optimizer/"):
                _, number, slot = name.split("/")
                state.setdefault(int(number), {})[slot] = found[name]
        for name, value in meta["slots"].items():
            number, slot = name.split("/")
            state.setdefault(int(number), {})[slot] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        kept = {k.removeprefix("best/"): found[k] for k in found if k.startswith("best/")} or None
        best = math.inf if meta["best"] is None else float(meta["best"])
        log.info("resuming training after epoch %d from %s", meta["epoch"], self.path.name)
        return int(meta["epoch"]), best, int(meta["waited"]), kept

    def clear(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
