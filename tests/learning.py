"""What the learning of σ is tested on: sessions, settings, tiny losses of known curvature, and a slow learner."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.anchors._flat import Flat, noise_seed
from expunge.anchors._settings import Learning
from expunge.data import Batch, Data
from expunge.masks import Masks
from expunge.method import Needs, See, Session
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import parameters
from expunge.train import batch_orders

D = torch.float64
QUIET = Runtime(batch_size=5, progress=False, device="cpu")


@dataclass(frozen=True, kw_only=True)
class How(Learning):
    """Settings, checked as an anchor's are."""

    name: ClassVar[str] = "kl_gaussian"

    def __post_init__(self) -> None:
        self.check_learning()


def how(**settings: Any) -> How:
    """Return settings of two epochs in batches of three, two estimates with a pair each."""
    return How(**{"learn_batch": 3, "epochs": 2, "most_epochs": settings.get("epochs", 2), **settings})


def session(
    model: nn.Module,
    task: Task,
    train: Data,
    holdout: Data | None = None,
    *,
    runtime: Runtime = QUIET,
    seed: int = 4,
    masks: Masks | None = None,
    sight: See = See.LABELLED,
) -> Session:
    """Return the session of a preparation that sees the training set and, where given, held-out data."""
    return Session(
        task=task,
        runtime=runtime,
        seed=seed,
        method="kl_gaussian",
        phase="prepare",
        needs=Needs(train=sight, holdout=See.LABELLED, optional=frozenset({"holdout"})),
        source=model,
        given={"train": train if sight == See.LABELLED else train.unlabelled(), "holdout": holdout},
        masks=masks,
    )


class Vector(nn.Module):
    """Gives θ·x for each sample."""

    def __init__(self, *values: float, dtype: torch.dtype = D) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.theta


class Own:
    """A task whose loss is a function of the outputs."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.of = loss

    def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch.inputs), {}

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return self.of(outputs)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        return outputs.detach()


LINEAR = Own(lambda out: out.sum(1))


def ones(n: int, width: int, dtype: torch.dtype = D) -> Data:
    return Data.from_arrays(torch.ones(n, width, dtype=dtype), torch.zeros(n))


def quadratic(hessian: Tensor) -> Own:
    """Return the task of ½·θᵀHθ for each sample, the inputs being ones."""
    return Own(lambda out: 0.5 * ((out @ hessian) * out).sum(1))


def noise(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the ε that a seed stands for, by parameter."""
    flat = Flat(copy.deepcopy(model))
    return flat.named(torch.cat([part.clone() for (part,) in flat.pieces(noise=seed)]))


def loss_gradient(model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of a batch's mean loss, sample by sample."""
    params = parameters(model)
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(batch)):
        one = batch.part(slice(i, i + 1))
        outputs, _ = task.forward(model, one)
        loss = task.loss(outputs, one.target)[0] * (1.0 if one.weight is None else one.weight[0])
        for name, g in zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True):
            total[name] += 0 if g is None else g / len(batch)
    return total


def gradient_at(
    model: nn.Module, task: Task, batch: Batch, mean: dict[str, Tensor], off: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return `loss_gradient` of a copy of the model, its weights at a mean and off it."""
    there = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in parameters(there).items():
            p.copy_(mean[name] + off[name])
    return loss_gradient(there, task, batch)


def slowly(
    model: nn.Module,
    task: Task,
    data: Data,
    settings: Learning,
    seed: int = 4,
    kept: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return σ and μ by the rule as it is written, σ' = σ·√(1 + (½·σ·e)²) − ½·σ²·e, one parameter after another.

    Args:
        model: in eval mode.
        task: its loss.
        data: training samples.
        settings: of which the epochs are done, all of them.
        seed: of the session.
        kept: where weights may move, by parameter.
    """
    half = settings.pairs // 2
    chains = [settings.pairs - half, half] if settings.antithetic and settings.agreement is not None else None
    chains = chains or [settings.pairs if settings.antithetic else 2 * settings.pairs]
    mean = {name: p.detach().clone() for name, p in parameters(model).items()}
    sigma = [{name: torch.full_like(m, settings.sigma0) for name, m in mean.items()} for _ in chains]
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(noise_seed(seed, "order", epoch))
        order = torch.randperm(len(data), generator=generator)
        for number, at in enumerate(batch_orders(settings.learn_batch, order)):
            batch = data.read(at)
            for chain, draws in enumerate(chains):
                s = sigma[chain]
                e = {name: torch.zeros_like(m) for name, m in mean.items()}
                g = {name: torch.zeros_like(m) for name, m in mean.items()}
                signs = (1, -1) if settings.antithetic else (1,)
                for draw in range(draws):
                    eps = noise(model, noise_seed(seed, "bgd", epoch, number, chain, draw))
                    for name in kept or {}:
                        eps[name] = eps[name] * kept[name]
                    for sign in signs:
                        off = {name: sign * s[name] * eps[name] for name in mean}
                        found = gradient_at(model, task, batch, mean, off)
                        for name in mean:
                            e[name] += sign * found[name] * eps[name] / (draws * len(signs)) * len(batch)
                            g[name] += found[name] / (draws * len(signs)) * len(batch)
                for name in mean:
                    free = 1.0 if kept is None or name not in kept else kept[name]
                    mean[name] = mean[name] - settings.mean_rate / len(chains) * s[name] ** 2 * g[name] * free
                    root = torch.sqrt(1 + (0.5 * s[name] * e[name]) ** 2)
                    moved = s[name] * root - 0.5 * s[name] ** 2 * e[name]
                    s[name] = moved.clamp(settings.sigma_min, settings.highest)
    joined = {name: (sum(s[name] ** -2 for s in sigma) / len(sigma)) ** -0.5 for name in mean}
    return joined, mean


def kept_in(folder: Path, every: float = 0) -> Runtime:
    """Return a runtime that keeps what is interrupted."""
    return Runtime(batch_size=5, progress=False, device="cpu", workdir=folder, checkpoint_every=every)


def near(a: float, b: float, rel: float = 1e-9) -> bool:
    return math.isclose(a, b, rel_tol=rel)
