"""SISA: shards, slices and checkpoints; a request retrains from the last checkpoint that has not read its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from expunge.copies import private
from expunge.data import Data
from expunge.exact.book import Sequences
from expunge.exact.stages import Values
from expunge.method import Reference, Session, option
from expunge.methods._sharded import Sharded
from expunge.tensors import parameters
from expunge.train import Recipe, fit


@dataclass(frozen=True, kw_only=True)
class Sisa(Sharded):
    """Train a network a shard, slice after slice, and keep it after each; retrain from the last clean one.

    Prepare: M_{s,0} is the network before training, M_{s,i} = Train(M_{s,i−1}, slices 1..i) for e epochs, and the mean
    over the shards s of M_{s,L} answers. A request in slice j of shard s drops M_{s,j}, …, M_{s,L}. With retain data
    and recipe given they are trained anew from M_{s,j−1} without the deleted samples, with the same seeds, to the same
    bits as if these had never been there; otherwise M_{s,j−1} answers for the shard, and where it has none it is out.

    A sample's slice is a keyed hash of its id or owner alone, a stage's seed one of the run's seed, shard and slice,
    its samples are read in the order of their ids, and optimiser and schedule begin anew with each stage: all that a
    deleted sample decides is the stages that read it. Early stopping is refused. Any network: what BatchNorm counts is
    part of a stage. The model that is given to `prepare` is not used; the network before training is, by
    ``new_model`` or drawn anew.

    Costs (2/3 + 1/(3L))·e′·N/m samples for one request, e′ the recipe's epochs; the state holds m·L networks.
    """

    reference: ClassVar[Reference] = Reference(
        "Machine Unlearning",
        "Lucas Bourtoule and Varun Chandrasekaran and Christopher A. Choquette-Choo and Hengrui Jia and Adelin Travers "
        "and Baiwu Zhang and David Lie and Nicolas Papernot",
        2021,
        "https://arxiv.org/abs/1912.03817",
        "IEEE Symposium on Security and Privacy",
    )
    example: ClassVar[dict[str, object]] = {"shards": 2, "slices": 2, "stage_epochs": 1}
    prepared_by: ClassVar[frozenset[str] | None] = frozenset(
        {"shards", "slices", "aggregate", "owner", "band", "failure", "stage_epochs"}
    )

    retrain: bool = option(
        True, unit="-", text="train lost stages anew where retain data and recipe are given; else at a failure alone"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.flag("retrain")

    @property
    def heals(self) -> bool:
        """Whether lost stages are trained anew wherever that is possible."""
        return self.retrain

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return e(L + 1)/2 passes to prepare; as many of the retain data where a request hits every first slice."""
        if recipe is None:
            return {}
        whole = self.epochs(recipe) * (self.slices + 1) / 2
        return {"train": whole} if phase == "prepare" else {"retain": whole if self.retrain else 0.0}

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return what the passes cost; to unlearn, the (2/3 + 1/(3L))e′/m passes that one sample costs on average."""
        found = self.passes(phase, recipe)
        if phase == "prepare":
            return found
        return {name: n * (2 / 3 + 1 / (3 * self.slices)) / self.shards for name, n in found.items()}

    def orders(self, session: Session) -> Sequences:
        """Return one order a shard: the slices as they are numbered."""
        return ((tuple(range(self.slices)),),) * self.shards

    def start(self, session: Session) -> nn.Module:
        """Return the network before training."""
        return session.new_model()

    def extra(self, session: Session, base: nn.Module) -> dict[str, Any]:
        """Return the names of the weights that are trained."""
        return {"trained": sorted(parameters(base))}

    def layers(self, base: nn.Module, config: Mapping[str, Any], depth: int) -> tuple[str, ...]:
        """Return the names of all weights that are trained: every stage trains the whole network."""
        return tuple(config["trained"])

    def least(self, base: nn.Module) -> int:
        """Return 2 where there is BatchNorm, which has no mean of a single sample, and otherwise 1."""
        return 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in base.modules()) else 1

    def stage(
        self,
        session: Session,
        base: nn.Module,
        config: Mapping[str, Any],
        earlier: Sequence[Values],
        data: Data,
        recipe: Recipe,
        seed: int,
    ) -> Values:
        """Go on from the stage before, with a new optimiser."""
        model = self.member(base, config, earlier)
        if len(data) >= self.least(base):
            model = fit(model, session.task, data, recipe, runtime=session.runtime, seed=seed)
        found = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
        first = {name: t.cpu() for name, t in base.state_dict().items()}
        trained = set(config["trained"])
        return {k: t for k, t in found.items() if k in trained or not torch.equal(t, first[k])}

    def member(self, base: nn.Module, config: Mapping[str, Any], stages: Sequence[Values]) -> nn.Module:
        """Return the network with the weights and counts of the last stage; those of the base where there is none."""
        model = private(base)
        if stages:
            model.load_state_dict(dict(stages[-1]), strict=False)
        trained = set(config["trained"])
        for name, p in model.named_parameters():
            p.requires_grad_(name in trained)
        return model


METHOD = Sisa
