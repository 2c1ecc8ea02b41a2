"""LoRA on groups of transformer blocks by PEFT: attached, read out and put back, on copies that share one backbone."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import Incompatible, UserError, listing
from expunge.exact.ensemble import twin
from expunge.exact.groups import Blocks
from expunge.extras import imported
from expunge.tensors import isolated_rng

ADAPTER = "s3t"
PARTS = ("lora_A", "lora_B")
OWN, HEAD = "adapter/", "head/"  # what names of a stage's tensors begin with


@dataclass(frozen=True, kw_only=True)
class Lora:
    """How weights are adapted: W = W₀ + s·B·A, with A (r, in) drawn from the seed, B (out, r) zero at the start.

    Args:
        rank: r.
        alpha: α.
        rslora: whether s = α/√r, rank-stabilised; otherwise s = α/r.
        targets: the linear layers inside a block that are adapted, as `Blocks.targets` gives them.

    Source:
        Edward Hu and others, LoRA: Low-Rank Adaptation of Large Language Models, 2022,
        https://arxiv.org/abs/2106.09685; Damjan Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning
        with LoRA, 2023, https://arxiv.org/abs/2312.03732.
    """

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor s of B·A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class FrozenChanged(UserError):
    """A weight or buffer that a stage must leave alone is another one after it."""


def attach(model: nn.Module, at: Blocks, layers: Sequence[int], how: Lora, *, seed: int = 0) -> nn.Module:
    """Attach LoRA to some blocks of a network, in place; its adapters alone are trainable afterwards.

    The function that the network computes stays the same, since B is zero. Blocks are chosen as whole numbers, so that
    block 1 is never taken for 10 and 11.

    Args:
        model: the network, without adapters.
        at: its blocks.
        layers: numbers of the blocks.
        how: rank, scale, targets.
        seed: of A.

    Returns:
        ``model``.

    Raises:
        MissingExtra: PEFT is not installed.
        UserError: the network has adapters already, or their number is not |layers|·|targets|.
    """
    peft = imported("peft", package="peft", extra="hf")
    if adapted(model):
        remedy = "merge them into the weights first, or pass the network without them"
        raise UserError("a network without adapters", f"adapters on {listing(list(adapted(model)))}", remedy)
    blocks = model.get_submodule(at.path)
    transposed = {type(blocks.get_submodule(f"0.{name}")).__name__ == "Conv1D" for name in how.targets}
    if len(transposed) > 1:
        raise UserError("targets of one kind of layer", "nn.Linear and Conv1D", "name fewer targets")
    config = peft.LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        use_rslora=how.rslora,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=True,
        fan_in_fan_out=transposed.pop(),
        target_modules=list(how.targets),
        layers_to_transform=sorted(layers),
        layers_pattern=re.escape(at.path),
    )
    with isolated_rng(seed):
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    found = adapted(model)
    want = {f"{at.path}.{number}.{name}" for number in layers for name in how.targets}
    if found.keys() != want:
        got = f"{len(found)}: {listing(list(found))}"
        expected = f"adapters on {len(layers)} blocks × {len(how.targets)} layers"
        raise UserError(expected, got, "report this with the versions of peft and transformers")
    scales = {module.scaling[ADAPTER] for module in found.values()}
    if any(not math.isclose(s, how.scale, rel_tol=1e-12) for s in scales):
        raise UserError(f"adapters scaled by {how.scale:g}", f"{scales}", "install another version of peft")
    return model


def adapted(model: nn.Module) -> dict[str, Any]:
    """Return the modules of a network that have adapters, by full name."""
    return {name: m for name, m in model.named_modules() if isinstance(getattr(m, "lora_A", None), nn.ModuleDict)}


def own(model: nn.Module, at: Blocks, head: Sequence[str], *, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the parameters that belong to a stage, by the names they are kept under.

    ``adapter/vit.layers.3.attention.q_proj.lora_A.weight`` is a matrix of an adapter, ``head/classifier.weight`` a
    weight of the head.

    Args:
        model: with adapters.
        at: its blocks.
        head: full names of the head's modules.
        layers: numbers of the blocks whose adapters are meant; None for all.
    """
    found: dict[str, nn.Parameter] = {}
    start = len(at.path) + 1
    for name, module in adapted(model).items():
        if layers is None or int(name[start:].partition(".")[0]) in layers:
            found |= {f"{OWN}{name}.{part}.weight": getattr(module, part)[ADAPTER].weight for part in PARTS}
    for name in head:
        parameters = model.get_submodule(name).named_parameters()
        found |= {f"{HEAD}{name}.{inner}": p for inner, p in parameters}
    return found


def extract(model: nn.Module, at: Blocks, head: Sequence[str], layers: Sequence[int]) -> dict[str, Tensor]:
    """Return a copy of the tensors of one stage, on the CPU: the adapters of its blocks and the head.

    Args:
        model: with adapters on these blocks, and perhaps on others.
        at: its blocks.
        head: full names of the head's modules; none where the head is frozen.
        layers: numbers of the stage's blocks.
    """
    return {k: p.detach().cpu().clone() for k, p in own(model, at, head, layers=layers).items()}


def fill(model: nn.Module, at: Blocks, head: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put the tensors of stages into a network that has their adapters, in place.

    Args:
        model: with adapters; its head is its own.
        at: its blocks.
        head: full names of the head's modules.
        tensors: of all its adapters, and of the head, as `extract` gives them.

    Returns:
        ``model``.

    Raises:
        Incompatible: tensors are missing, unknown, or of another shape or type.
    """
    places = own(model, at, head)
    wrong = [f"no {name}" for name in places if name not in tensors]
    wrong += [f"unknown {name}" for name in tensors if name not in places]
    wrong += [
        f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} for {p.dtype} {tuple(p.shape)}"
        for name, p in places.items()
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (p.shape, p.dtype)
    ]
    if wrong:
        remedy = "take the state that belongs to this network and these settings"
        raise Incompatible(f"the tensors of {len(places)} weights of stages", listing(wrong), remedy)
    with torch.no_grad():
        for name, p in places.items():
            p.copy_(tensors[name])
    return model


def stage(
    base: nn.Module,
    at: Blocks,
    head: Sequence[str],
    how: Lora,
    groups: Sequence[Sequence[int]],
    tensors: Mapping[str, Tensor],
    *,
    seed: int = 0,
) -> nn.Module:
    """Return the network that a stage starts from: earlier groups attached and frozen, the last group new.

    It holds the backbone's own tensors, so train a copy of it. Trainable are the last group's adapters and the head.

    Args:
        base: the network before any stage; left as it is.
        at: its blocks.
        head: full names of the head's modules; none where it is frozen.
        how: rank, scale, targets.
        groups: the blocks of stages 1 to i.
        tensors: of stages 1 to i − 1, and the head of stage i − 1; empty for stage 1.
        seed: of the new adapters.
    """
    made = _apart(base, head)
    attach(made, at, [n for group in groups for n in group], how, seed=seed)
    now = extract(made, at, (), groups[-1])
    if len(groups) > 1:
        fill(made, at, head, {**now, **tensors})
    made.requires_grad_(False)
    for p in own(made, at, head, layers=groups[-1]).values():
        p.requires_grad_(True)
    return made


def member(
    base: nn.Module,
    at: Blocks,
    head: Sequence[str],
    how: Lora,
    groups: Sequence[Sequence[int]],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """Return the network that stages 1 to k make: one ordinary adapter on all their blocks, the head of stage k.

    Every tensor of the backbone is the base's own, in memory once. Nothing is trainable, and it is in eval mode.

    Args:
        base: the network before any stage; left as it is.
        at: its blocks.
        head: full names of the head's modules; none where it is frozen.
        how: rank, scale, targets.
        groups: the blocks of stages 1 to k.
        tensors: of stages 1 to k, and the head of stage k.
    """
    made = _apart(base, head)
    if groups:
        attach(made, at, [n for group in groups for n in group], how)
        fill(made, at, head, tensors)
    return made.requires_grad_(False).eval()


def _apart(base: nn.Module, head: Sequence[str]) -> nn.Module:
    """Return a copy that holds the base's own tensors, except for the head, which is copied."""
    made = twin(base)
    for name in head:
        around, _, last = name.rpartition(".")
        setattr(made.get_submodule(around), last, copy.deepcopy(base.get_submodule(name)))
    return made


def check_frozen(before: nn.Module, after: nn.Module) -> None:
    """Refuse a stage that changed what it must leave alone: frozen weights, earlier adapters, any buffer.

    Args:
        before: the network that the stage started from, whose ``requires_grad`` says what may change.
        after: the trained one.

    Raises:
        FrozenChanged: names them.
    """
    fixed = {n: p for n, p in before.named_parameters() if not p.requires_grad} | dict(before.named_buffers())
    now = dict(after.named_parameters()) | dict(after.named_buffers())
    moved = [n for n, t in fixed.items() if n not in now or not torch.equal(t.cpu(), now[n].cpu())]
    if moved:
        got = f"others in {listing(moved)}"
        remedy = "take a network whose modules keep no statistics of what they saw"
        raise FrozenChanged("frozen weights and buffers that a stage leaves alone", got, remedy)
