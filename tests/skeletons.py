"""Throw-away methods that try the protocol where it is strained; never shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.method import Method, Needs, Reference, See, Session, State, option
from expunge.scenario import Scenario
from expunge.task import Classification, Task
from expunge.train import Recipe, fit

REFERENCE = Reference("A skeleton", "Nobody", 2026, "https://example.org")
QUICK = Recipe(epochs=2, batch_size=8, lr=0.05, weight_decay=0.0)


class Mean(nn.Module):
    """The mean of the members' outputs: what an ensemble serves."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([m(x) for m in self.members]).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class Slices(Method):
    """Exact, like S3T: trains by slices, forgets by ids, asks for retain data and a recipe when slices run out."""

    name: ClassVar[str] = "slices"
    reference: ClassVar[Reference] = REFERENCE
    count: int = option(2, unit="slices", text="slices of the training set")

    prepares = Needs(train=See.LABELLED, recipe=True, fresh=True)
    unlearns = Needs(
        forget=See.IDS, retain=See.LABELLED, recipe=True, fresh=True, optional=frozenset({"retain", "recipe"})
    )

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        ids = session.train.ids
        slices = [ids[i :: self.count] for i in range(self.count)]
        model, seen = session.new_model(), list[str]()
        tensors: dict[str, Tensor] = {}
        for depth, part in enumerate(slices):
            seen += part
            model = fit(model, session.task, session.train.subset(seen), session.recipe, seed=session.seed)
            tensors |= {f"depth{depth}/{k}": v.clone() for k, v in model.state_dict().items()}
        return model, State(tensors, {"slices": slices, "depth": self.count})

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        gone = set(session.forget.ids)
        hit = [i for i, part in enumerate(state.meta["slices"]) if gone & set(part)]
        depth = min([*hit, state.meta["depth"]])
        if depth == 0:
            session.require("retain", "recipe", why="no slice without the forgotten samples is left")
            session.record("retrained", True)
            model = fit(session.new_model(), session.task, session.retain, session.recipe, seed=session.seed)
            return model, State({}, {"slices": [session.retain.ids], "depth": 0})
        model = session.model
        prefix = f"depth{depth - 1}/"
        kept = {k: state.tensors[k] for k in state.tensors if int(k[5 : k.index("/")]) < depth}
        model.load_state_dict({k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)})
        slices = [[i for i in part if i not in gone] for part in state.meta["slices"]]
        return model, State(kept, {"slices": slices, "depth": depth})


@dataclass(frozen=True, kw_only=True)
class Representations(Method):
    """Without labels, like LAF: taps, a frozen teacher, state from unlabelled data."""

    name: ClassVar[str] = "representations"
    reference: ClassVar[Reference] = REFERENCE
    tap: str = option("0", unit="module", text="whose output is the representation")

    prepares = Needs(train=See.INPUTS)
    unlearns = Needs(forget=See.INPUTS, retain=See.INPUTS)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        batch = session.train.read(range(len(session.train)))
        with torch.no_grad():
            found = session.task.forward(session.model, batch, [self.tap])[1][self.tap]
        return session.model, State({"mean": found.mean(dim=0)}, {"tap": self.tap})

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        student, teacher = session.model, session.original
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        forget = session.forget.read(range(len(session.forget)))
        retain = session.retain.read(range(len(session.retain)))
        for step in range(2):
            away = session.task.forward(student, forget, [self.tap])[1][self.tap]
            stay = session.task.forward(student, retain, [self.tap])[1][self.tap]
            with torch.no_grad():
                want = session.task.forward(teacher, retain, [self.tap])[1][self.tap]
            loss = (away - state.tensors["mean"]).square().mean() + (stay - want).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.record("loss", loss.item(), step)
        return student, state


@dataclass(frozen=True, kw_only=True)
class FreshTeacher(Method):
    """Like Blindspot: trains a fresh network for a few epochs, then distils it into the original on forget data."""

    name: ClassVar[str] = "fresh_teacher"
    reference: ClassVar[Reference] = REFERENCE

    unlearns = Needs(forget=See.INPUTS, retain=See.LABELLED, fresh=True, recipe=True)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        blind = fit(session.new_model(), session.task, session.retain, QUICK, seed=session.seed)
        optimizer = torch.optim.SGD(session.model.parameters(), lr=0.05)
        for batch in session.forget.batches(session.recipe.batch_size):
            outputs, _ = session.task.forward(session.model, batch)
            with torch.no_grad():
                want, _ = session.task.forward(blind, batch)
            optimizer.zero_grad()
            F.mse_loss(outputs, want).backward()
            optimizer.step()
        return session.model, state


@dataclass(frozen=True, kw_only=True)
class ClassOnly(Method):
    """Needs the class id and nothing else, and declines anything but a class."""

    name: ClassVar[str] = "class_only"
    reference: ClassVar[Reference] = REFERENCE

    unlearns = Needs(scenario=True)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        if not isinstance(task, Classification):
            return "it needs classes"
        if scenario is not None and scenario.kind != "class":
            return f"it removes a class, not a set of kind '{scenario.kind}'"
        return None

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        *_, head = (m for m in session.model.modules() if isinstance(m, nn.Linear))
        with torch.no_grad():
            head.weight[session.scenario.target] = 0
        return session.model, state


@dataclass(frozen=True, kw_only=True)
class Pruned(Method):
    """A composition: prune by magnitude in preparation, then run any method on the sparse network."""

    name: ClassVar[str] = "pruned"
    reference: ClassVar[Reference] = REFERENCE
    method: Method = option(None, unit="method", text="what runs on the pruned network")
    sparsity: float = option(0.5, unit="1", text="share of weights set to zero")

    @property
    def prepares(self) -> Needs:
        return self.method.prepares

    @property
    def unlearns(self) -> Needs:
        return self.method.unlearns

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        masks: dict[str, Tensor] = {}
        with torch.no_grad():
            for key, p in session.model.named_parameters():
                if p.dim() > 1:
                    masks[f"mask/{key}"] = p.abs() > p.abs().quantile(self.sparsity)
                    p.mul_(masks[f"mask/{key}"])
        model, inner = self.method.prepare(session.nested(self.method, session.model))
        return model, State({**inner.tensors, **masks}, inner.meta)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        masks = {k: state.tensors[k] for k in state.tensors if k.startswith("mask/")}
        model, inner = self.method.unlearn(session.nested(self.method), state.drop(masks))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if f"mask/{key}" in masks:
                    p.mul_(masks[f"mask/{key}"].to(p.device))
        return model, State({**{k: inner.tensors[k] for k in inner.tensors}, **masks}, inner.meta)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        return self.method.declines(task, scenario, model)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Method):
    """Two networks on halves of the data; a request drops the members that saw the sample; `serve` rebuilds it."""

    name: ClassVar[str] = "ensemble"
    reference: ClassVar[Reference] = REFERENCE

    prepares = Needs(train=See.LABELLED, recipe=True, fresh=True)
    unlearns = Needs(forget=See.IDS)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        halves = [session.train.ids[i::2] for i in range(2)]
        members = [
            fit(session.new_model(), session.task, session.train.subset(half), session.recipe, seed=i)
            for i, half in enumerate(halves)
        ]
        tensors = {f"{i}/{k}": v.clone() for i, m in enumerate(members) for k, v in m.state_dict().items()}
        return Mean(members), State(tensors, {"halves": halves, "live": [0, 1]})

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        gone = set(session.forget.ids)
        live = [i for i in state.meta["live"] if not gone & set(state.meta["halves"][i])]
        members = [m for i, m in zip(state.meta["live"], session.model.members, strict=True) if i in live]  # type: ignore[arg-type]
        kept = {k: state.tensors[k] for k in state.tensors if int(k[: k.index("/")]) in live}
        meta: dict[str, Any] = {"halves": state.meta["halves"], "live": live}
        return Mean(members), State(kept, meta)

    def serve(self, model: nn.Module, state: State) -> nn.Module:
        base = model.members[0] if isinstance(model, Mean) else model
        import copy

        members = []
        for i in state.meta["live"]:
            member = copy.deepcopy(base)
            member.load_state_dict({k.split("/", 1)[1]: state.tensors[k] for k in state.tensors if k[0] == str(i)})
            members.append(member)
        return Mean(members).train(model.training)
