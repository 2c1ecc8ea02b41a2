"""Put embedding rows that the forgotten samples alone looked up back to what they were before training."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import Incompatible
from expunge.method import Method, Nature, Needs, Reference, See, Session, State, option
from expunge.methods._composed import Composed
from expunge.passes import Passes
from expunge.recipe import Recipe
from expunge.references import CAO_2015
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Task

TABLES = (nn.Embedding, nn.EmbeddingBag)


def tables(model: nn.Module) -> dict[str, nn.Module]:
    """Return the embeddings of a network whose rows are trained by nothing but looking them up, by module name.

    One whose weights are frozen, or stand in another place of the network too, such as the last layer of a language
    model, is not among them.

    Args:
        model: the network.
    """
    every = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    found = {n: m for n, m in model.named_modules() if isinstance(m, TABLES)}
    return {n: m for n, m in found.items() if m.weight.requires_grad and every.count(id(m.weight)) == 1}


def looked_up(model: nn.Module, names: Collection[str], task: Task, data: Data, runtime: Runtime) -> dict[str, Tensor]:
    """Return which rows of each embedding the samples look up, by module name a bool tensor (rows,).

    Args:
        model: in eval mode, on the runtime's device.
        names: of the embeddings.
        task: runs the model.
        data: samples with inputs, read once.
        runtime: batch size, precision, progress.
    """
    own = {name: model.get_parameter(f"{name}.weight") for name in names}
    rows = {name: torch.zeros(len(w), dtype=torch.bool, device=w.device) for name, w in own.items()}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows[name][(args[0] if args else named["input"]).flatten().long()] = True

        return hook

    def work(batch: Batch) -> int:
        batch = batch.to(runtime.torch_device)
        with torch.no_grad(), runtime.autocast():
            task.forward(model, batch)
        return len(batch)

    hooks = [model.get_submodule(n).register_forward_pre_hook(noting(n), with_kwargs=True) for n in own]
    try:
        with runtime.tracking(f"embedding rows of {data.name}", len(data)) as advance:
            for count in Passes(runtime).over(data, work):
                advance(count)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


@dataclass(frozen=True, kw_only=True)
class FreshRows(Composed):
    """Run a method, then put the embedding rows that only forgotten samples looked up back to those before training.

    With R(D) the rows of an embedding that samples of D look up: θ_u = U(θ_o; D_f, D_r), and then row j of each
    embedding ← row j of the untrained network, for j ∈ R(D_f) ∖ R(D_r). A row that is not looked up has no gradient, so
    in a network retrained without D_f these rows are as they were drawn: of them this is exact, as far as the recipe
    decays no weights (decay shrinks such a row in the retrained network). So of a person with an embedding row of their
    own, all of whose samples are forgotten, nothing is left in it; a method that trains on alone leaves it as learned.

    ``method`` is any method that edits weights: {"name": "finetune", "epochs": 1}. Embeddings with frozen weights, and
    those whose weights are another layer's too, are left alone. How many rows were put back is in the log, not which.

    Needs the inputs of both sets and the untrained network, and what the method needs. Declines what the method
    declines, methods that train anew, whose rows are drawn anew already, and those served by more than their weights.

    Passes: one over each set without gradients, and the method's.
    """

    prepared_by: ClassVar[frozenset[str] | None] = frozenset({"method"})
    reference: ClassVar[Reference] = CAO_2015  # retraining, which these rows end as
    example: ClassVar[dict[str, Any]] = {"method": {"name": "finetune", "epochs": 1}}

    method: Method = option(None, unit="method", text="what edits the other weights first: its name and fields")

    def __post_init__(self) -> None:
        self.names_method()

    @property
    def inner(self) -> Method:
        """The method that runs first."""
        return self.method

    @property
    def prepares(self) -> Needs:
        """What the inner method reads to prepare."""
        return self.method.prepares

    @property
    def unlearns(self) -> Needs:
        """The inputs of both sets, the untrained network, and what the inner method reads."""
        return self.method.unlearns | Needs(forget=See.INPUTS, retain=See.INPUTS, fresh=True)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the inner method's passes, and one more over each set."""
        found = dict(self.method.passes(phase, recipe))
        both = {name: found.get(name, 0.0) + 1.0 for name in ("forget", "retain")}
        return found | both if phase == "unlearn" else found

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what the inner method declines, what trains anew, and what is served by more than weights."""
        last = self.inner
        while isinstance(below := getattr(last, "method", None), Method):  # a composition runs another method
            last = below
        if last.nature == Nature.EXACT:
            return f"{last.name} trains anew, and draws such rows anew by itself"
        return self.served_by_more() or self.inner.declines(task, scenario, model)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Prepare the inner method."""
        return self.run(session.nested(self.inner))

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Run the inner method, and put the rows back."""
        session.record("method", self.inner.settings())
        model, inner = self.run(session.nested(self.inner), state)
        names, sets = list(tables(session.source)), (session.forget, session.retain)
        looked = [looked_up(session.original, names, session.task, data, session.runtime) for data in sets]
        own = {name: rows & ~looked[1][name] for name, rows in looked[0].items()}
        own = {name: rows for name, rows in own.items() if bool(rows.any())}
        session.record("rows", {name: int(rows.sum()) for name, rows in own.items()})
        if own:
            self._put_back(session, model, own)
        elif names:
            session.record("note", "The retained samples look up every embedding row that the forgotten ones do.")
        else:
            session.record("note", "The network has no embedding whose rows are its alone: none was put back.")
        return model, inner

    def _put_back(self, session: Session, model: nn.Module, rows: dict[str, Tensor]) -> None:
        """Copy rows of the untrained network, but for scalars that a composition around it holds.

        Raises:
            Incompatible: the inner method returned a network without them.
        """
        drawn, found = dict(session.new_model().named_parameters()), dict(model.named_parameters())
        held = {} if session.masks is None else session.masks.kept
        for name, at in rows.items():
            key = f"{name}.weight"
            if key not in found or found[key].shape != drawn[key].shape:
                got = f"one without it, from {self.inner.name}"
                raise Incompatible(f"a network with the embedding {name}", got, "take another method")
            weight, where = found[key], at.to(found[key].device).unsqueeze(1)
            may = where & held[key].to(where.device) if key in held else where
            with torch.no_grad():
                weight.copy_(torch.where(may, drawn[key].detach().to(weight), weight))


METHOD = FreshRows
