"""One backward pass for the whole batch: rules turn each layer's input and output gradient into its sum.

Parameter gradients are switched off, so autograd computes only the gradients that flow between layers. A parameter
that its module's own code uses (a class token, a scale) is replaced by a row of it for each sample, whose gradient
is the per-sample gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.fisher.attention import attend, described
from expunge.fisher.checks import warn_underflow, wide
from expunge.fisher.kernels import Dense, Gradient, Outer, Part, together
from expunge.fisher.quantities import power, scalars, unfused, verify
from expunge.fisher.rules import Rule, rule_of
from expunge.fisher.sums import Sums
from expunge.fisher.uses import Uses, first_input, own
from expunge.passes import out_of_memory
from expunge.runtime import Runtime
from expunge.task import Task


@dataclass(frozen=True)
class Bare:
    """A parameter that its module's own code uses, with a row for each sample put in its place.

    Args:
        module: the parameter's owner.
        attribute: its name there.
        lead: dimensions of size 1 between batch and parameter; None where its own first dimension, of size 1,
            becomes the batch.
    """

    module: nn.Module
    attribute: str
    lead: int | None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        return self.module._parameters[self.attribute]  # type: ignore[return-value]

    def rows(self, n: int) -> Tensor:
        """Return n rows as a tensor of which gradients can be asked."""
        p = self.parameter.detach()
        if self.lead is not None:
            p = p.reshape((1,) * (self.lead + 1) + tuple(p.shape))
        return p.expand(n, *p.shape[1:]).requires_grad_()


@dataclass
class Served:
    """The parameters that rules serve.

    Args:
        names: of those with a rule, by id of the parameter.
        modules: that own them, by name.
        bare: those used by their module's own code, by name.
        rows: by id of a module, the rows that one sample gives it, call by call; n samples must give n times these.
        spread: ids of modules that run once for all samples, as on positions; their output gets a row a sample.
        trial: whether ``spread`` is still to be found out.
        last: whether images go in with channels last in memory, which convolutions on a CPU are faster with.
    """

    names: dict[int, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    bare: dict[str, Bare] = field(default_factory=dict)
    rows: dict[int, list[int]] = field(default_factory=dict)
    spread: set[int] = field(default_factory=set)
    trial: bool = True
    last: bool = False
    _own: dict[int, dict[str, nn.Parameter]] = field(default_factory=dict)
    _rules: dict[int, Rule | None] = field(default_factory=dict)

    def own(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Return `own` of a module, found once."""
        if id(module) not in self._own:
            self._own[id(module)] = own(module)
        return self._own[id(module)]

    def rule(self, module: nn.Module) -> Rule | None:
        """Return the rule of a module, found once."""
        if id(module) not in self._rules:
            self._rules[id(module)] = rule_of(module)
        return self._rules[id(module)]

    def bold(self) -> bool:
        """Return whether the model's own code gets tensors that it may not expect: other layouts, rows a sample."""
        return bool(self.last or self.spread or self.bare)

    def known(self) -> set[str]:
        """Return the names of all of them."""
        return {*self.names.values(), *self.bare}


def covered(model: nn.Module, params: Mapping[str, nn.Parameter]) -> Served:
    """Return the parameters that are owned by modules with rules only."""
    wanted, found = {id(p): name for name, p in params.items()}, Served()
    inner = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    owners: Counter[int] = Counter()
    ruled: Counter[int] = Counter()
    for name, module in model.named_modules():
        if id(module) in inner:
            continue
        mine = own(module)
        owners.update(id(p) for p in mine.values())
        if any(id(p) in wanted for p in mine.values()) and _ruled(module):
            found.modules[name] = module
            ruled.update(id(p) for p in mine.values())
    found.names = {key: wanted[key] for key in ruled if key in wanted and ruled[key] == owners[key]}
    return found


def _ruled(module: nn.Module) -> bool:
    if type(module) is nn.MultiheadAttention:
        return described(module) and "forward" not in vars(module)
    return rule_of(module) is not None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch parameter gradients off, and with them the fused encoder layers that would then pass by all hooks."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with unfused():
        try:
            for p, _ in flags:
                p.requires_grad_(False)
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)


class Unruled(Exception):
    """A layer did not run on rows of the samples: its rule does not hold.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(type(module).__name__)
        self.module = module


class Changed(Unruled):
    """A rule failed on the way back, as where a layer's input was changed in place: sums are spoiled."""


Make = Callable[[Tensor, Tensor], Mapping[str, Gradient]]


class _Pass:
    """The taps of one forward and backward pass over a batch."""

    def __init__(self, samples: int, served: Served, sums: Sums, of: str, runtime: Runtime, watch: bool) -> None:
        self.samples, self.served, self.sums, self.budget = samples, served, sums, runtime.budget
        self.power, self.watch = power(of), watch and power(of) == 2
        self.anchor = torch.zeros((), device=runtime.torch_device, requires_grad=True)
        self.calls: Counter[int] = Counter()
        self.entered: Counter[int] = Counter()
        self.order: Counter[int] = Counter()
        self.broken: nn.Module | None = None
        self.back = False  # on the way back layers may run again, to save memory
        self.pending: dict[str, list[Gradient]] = {}

    def called(self, module: nn.Module) -> None:
        """Count a call, so that gradients of a parameter used again are summed before they are squared."""
        self.calls.update(id(p) for p in self.served.own(module).values())

    def refuse(self, module: nn.Module) -> NoReturn:
        """Say that a rule does not hold; remembered, as the model's own code may catch it.

        Raises:
            Unruled: always.
        """
        self.broken = module
        raise Unruled(module)

    def tap(self, module: nn.Module, a: Tensor, out: Tensor, make: Make) -> Tensor:
        """Return the output of a layer, watched for its gradient, from which ``make`` gives those of parameters."""
        if not torch.is_grad_enabled():
            return out  # nothing flows back from here
        if self.back:
            return self.rooted(out)
        if a.dim() == 0 or out.dim() == 0 or len(a) != len(out):
            self.refuse(module)
        a, times = a.detach(), self._times(module)
        if len(a) == times == 1 < self.samples:
            self._spread(module)
            a, out = (t.expand(self.samples, *t.shape[1:]) for t in (a, out))
        if len(a) != times * self.samples:
            self.refuse(module)
        version, held, out = a._version, [a], self.rooted(out)

        def backward(delta: Tensor) -> None:
            (a,) = held
            if a._version != version:
                raise Changed(module)
            try:
                with torch.no_grad():
                    for attribute, gradient in make(a, delta).items():
                        self._receive(module, attribute, gradient if times == 1 else gradient.fold(times))
            except (RuntimeError, IndexError, ValueError) as error:
                if out_of_memory(error):
                    raise
                raise Changed(module) from error  # a shape that the rule does not know

        try:
            out.register_hook(backward)
        except RuntimeError:  # inside a transformation of the model's own
            self.refuse(module)
        return out

    def rooted(self, out: Tensor) -> Tensor:
        """Return a tensor that a gradient leads to."""
        return out if out.requires_grad else out + self.anchor.to(out.dtype)

    def _times(self, module: nn.Module) -> int:
        """Return the rows that one sample gives the module at this call."""
        rows = self.served.rows.get(id(module), [1])
        at = self.order[id(module)]
        self.order[id(module)] += 1
        if isinstance(module, nn.MultiheadAttention):
            return 1
        if at >= len(rows):
            self.refuse(module)
        return rows[at]

    def _spread(self, module: nn.Module) -> None:
        """Allow a module that ran once for all samples; of others one row is a way that some samples did not take."""
        if self.served.trial:
            self.served.spread.add(id(module))
        elif id(module) not in self.served.spread:
            self.refuse(module)

    def check(self, count: Mapping[int, int]) -> None:
        """Refuse a forward pass in which a parameter entered other operations than its layers' calls.

        Args:
            count: operations that each parameter entered.

        Raises:
            Unruled: a parameter was used behind its layer's back, or a layer not at all.
        """
        if self.broken is not None:
            raise Unruled(self.broken)
        for module in self.served.modules.values():
            for p in self.served.own(module).values():
                if self.calls[id(p)] == 0 or (id(p) in self.served.names and count[id(p)] != self.entered[id(p)]):
                    raise Unruled(module)
        for bare in self.served.bare.values():
            if count[id(bare.parameter)]:
                raise Unruled(bare.module)

    def _receive(self, module: nn.Module, attribute: str, gradient: Gradient) -> None:
        p = self.served.own(module).get(attribute)
        name = self.served.names.get(id(p))
        if name is None:
            return
        if self.watch:
            for factor in gradient.factors():
                warn_underflow(factor, name)
        if self.calls[id(p)] > 1:
            self.pending.setdefault(name, []).append(gradient)
            return
        self.add(name, gradient)

    def add(self, name: str, gradient: Gradient) -> None:
        """Add the powers of one parameter's gradients."""
        self.sums.receive(name, gradient, self.power, self.budget)

    def finish(self, leaves: Mapping[str, Tensor]) -> None:
        """Add what had to wait for the end of a backward pass."""
        for name, parts in self.pending.items():
            self.add(name, together(parts))
        self.pending.clear()
        for name, leaf in leaves.items():
            if leaf.grad is None:
                continue
            grad, leaf.grad = wide(leaf.grad), None
            if self.watch:
                warn_underflow(grad, name)
            self.add(name, Dense(grad.reshape(self.samples, *self.served.bare[name].parameter.shape)))


def _hook(now: _Pass, rule: Rule) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        if now.back and torch.is_grad_enabled():
            return now.rooted(out)
        now.called(module)
        now.entered.update(id(p) for p in now.served.own(module).values())
        a = first_input(args, kwargs)
        if a is None:
            now.refuse(module)
        return now.tap(module, a, out, partial(rule, module))

    return hook


def _attention(now: _Pass, module: nn.MultiheadAttention) -> Callable[..., Any]:
    """Return a forward of the module whose projections have taps."""

    def project(x: Tensor, weight: str, bias: str | None, rows: slice | None = None) -> Tensor:
        def part(name: str) -> tuple[nn.Parameter, Tensor]:
            p = module.get_parameter(name)
            now.entered[id(p)] += 1
            return p, p if rows is None or len(p) == rows.stop - rows.start else p[rows]

        names = {weight: part(weight), **({} if bias is None else {bias: part(bias)})}

        def make(a: Tensor, delta: Tensor) -> dict[str, Gradient]:
            left = wide(delta)
            found: dict[str, Gradient] = {weight: Outer(left, wide(a))}
            if bias is not None:
                found[bias] = Dense(left.sum(dim=1))
            for name, (p, some) in names.items():
                if some is not p and rows is not None:
                    found[name] = Part(found[name], rows.start, tuple(p.shape))
            return found

        out = F.linear(x, names[weight][1], None if bias is None else names[bias][1])
        return now.tap(module, x, out, make)

    def forward(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.dim() != 3:
            now.refuse(module)
        now.called(module)
        return attend(module, project, query, *args, **kwargs)

    return forward


@contextmanager
def _replaced(module: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """Let an attribute of a module be something else, without a trace in its parameters."""
    module.__dict__[attribute] = value
    try:
        yield
    finally:
        del module.__dict__[attribute]


@contextmanager
def substituted(bare: Mapping[str, Bare], n: int) -> Iterator[dict[str, Tensor]]:
    """Put n rows in the place of each parameter, and yield them."""
    leaves = {name: one.rows(n) for name, one in bare.items()}
    with ExitStack() as stack:
        for name, one in bare.items():
            stack.enter_context(_replaced(one.module, one.attribute, leaves[name]))
        yield leaves


def _images_last(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _images_last(value) for name, value in inputs.items()}
    if inputs.dim() != 4:
        return inputs
    found = torch.empty_like(inputs, memory_format=torch.channels_last)  # of one channel, contiguous() would keep
    return found.copy_(inputs)  # strides that tell convolutions nothing


def accumulate(
    model: nn.Module,
    task: Task,
    batch: Batch,
    of: str,
    runtime: Runtime,
    served: Served,
    sums: Sums,
    watch: bool = True,
    probe: bool = False,
) -> None:
    """Add Σ_s |∂q_s/∂θ|^p over the batch for the parameters that rules serve.

    With ``watch`` squares that underflow are looked for and warned of, which costs some passes over activations; with
    ``probe`` the quantity is the probed one.

    Raises:
        Unruled: a module's rule does not hold on this batch.
    """
    now = _Pass(len(batch), served, sums, of, runtime, watch)
    if served.last:
        batch, sums.last = replace(batch, inputs=_images_last(batch.inputs)), True
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        for module in served.modules.values():
            if isinstance(module, nn.MultiheadAttention):
                stack.enter_context(_replaced(module, "forward", _attention(now, module)))
                continue
            rule = served.rule(module)
            assert rule is not None
            handle = module.register_forward_hook(_hook(now, rule), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        leaves = stack.enter_context(substituted(served.bare, len(batch)))
        with torch.enable_grad():
            with runtime.autocast():
                with Uses() as seen:
                    outputs, _ = task.forward(model, batch)
                now.check(seen.count)
                verify(of, task, outputs, batch)
                each = scalars(of, task, outputs, batch, probe)
            now.back = True
            for q in each:
                inputs = [now.anchor, *leaves.values()]
                torch.autograd.backward(q.sum(), inputs=inputs, retain_graph=q is not each[-1])
                now.finish(leaves)
