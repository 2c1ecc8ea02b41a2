"""Which engine computes which parameter: rules are tried on a few samples and must agree with the reference."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import ExpungeError, UserError, listing, suggest
from expunge.fisher import batched, layers, reference, uses
from expunge.fisher.checks import check_alone, sample, wide
from expunge.fisher.layers import Bare, Served, Unruled
from expunge.fisher.quantities import MEANS, Quantity, power, ready
from expunge.fisher.sums import Sums
from expunge.fisher.uses import Calls, Uses
from expunge.passes import out_of_memory, whole
from expunge.runtime import Runtime
from expunge.task import Task

log = logging.getLogger(__name__)
Engine = Literal["auto", "layers", "batched", "reference"]
ENGINES: tuple[Engine, ...] = ("auto", "layers", "batched", "reference")
_KINDS = 16  # kinds of parameters without a rule for which a row a sample is tried
_LEADS = (None, 0, 1, 2, 3)
_TRIAL = (6, 2)  # samples of a trial, fewer where memory is short


class Again(Exception):
    """Sums of this window are spoiled: discard them and go over its samples again."""


def check_engine(engine: str) -> None:
    """Refuse an unknown engine.

    Raises:
        UserError: says which there are.
    """
    if engine not in ENGINES:
        raise UserError("a known engine", repr(engine), suggest(engine, ENGINES))


class Chosen:
    """Adds a batch's powers of per-sample gradients to sums, each parameter by the engine chosen for it.

    Args:
        model: in eval mode.
        task: how to run it.
        data: on some of whose samples the engines are tried, the first and the last among them if they show enough.
        params: the parameters wanted, by name.
        of: the quantity.
        engine: what was asked for.
        runtime: where to run.
        seed: of sampled targets.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        data: Data,
        params: Mapping[str, nn.Parameter],
        of: Quantity,
        engine: Engine,
        runtime: Runtime,
        seed: int,
    ) -> None:
        self.model, self.task, self.data, self.of, self.runtime, self.seed = model, task, data, of, runtime, seed
        self.params = dict(params)
        self.served, self.batched, self.reference = Served(), dict[str, nn.Parameter](), dict[str, nn.Parameter]()
        self._told = False
        self._watch = True  # lost squares show in the first batch; to look in each costs as much as the rules
        self.mark: list[float] = []
        for size in _TRIAL:
            try:
                self._choose(engine, min(size, len(data)))
                break
            except Exception as error:
                if size == _TRIAL[-1] or not out_of_memory(error):
                    raise
            gc.collect()

    def _choose(self, engine: Engine, size: int) -> None:
        if self.of in MEANS:
            return
        before = _hidden(self.model)
        at, few, alone, truth, rows = self._tried(size)
        seen, calls, outputs = uses.uses(self.model, self.task, few, self.runtime)
        again = uses.uses(self.model, self.task, few, self.runtime)[2]
        check_alone(alone, outputs, again, [self.data.ids[i] for i in at], self.runtime)
        self.mark = [float(v) for v in (*wide(alone).double().reshape(-1)[:64], *(t.sum() for t in truth.values()))]
        kept = _hidden(self.model)
        hidden = sorted(name for name, key in before.items() if kept.get(name) == key)  # not made anew by each pass
        if hidden:
            log.warning("%s is no parameter but has a gradient: one backward pass a sample", listing(hidden))
        if engine == "reference" or hidden:
            self.reference = self.params
        elif engine == "batched":
            self.batched = self.params
        else:
            _Trial(self, few, truth, outputs).rules(seen, calls, rows)

    def _tried(self, size: int) -> tuple[list[int], Batch, Tensor, dict[str, Tensor], dict[int, list[int]]]:
        """Return samples of which two at least show a gradient of each parameter if that can be, and what they give.

        Returns:
            Their places, the batch, outputs and sums of each alone, and the rows that each module gets of one.
        """
        n, found = len(self.data), []
        for shift in (0.0, 0.5):
            at = sorted({min(n - 1, round((k + shift) * (n - 1) / max(1, size - 1))) for k in range(size)})
            few = self._ready(self.data.read(at))
            with uses.watching(self.model) as seen:
                alone, truth, shares = reference.tried(self.model, self.task, few, self.params, self.of, self.runtime)
            dark = sum(sum(share > 0.01 * sum(each) for share in each) < min(2, len(at)) for each in shares.values())
            found.append((dark, (at, few, alone, truth, _rows_alone(seen.rows, len(at)))))
            if dark == 0:
                break
        return min(found, key=lambda one: one[0])[1]

    @property
    def exact(self) -> bool:
        """Whether all sums are added in float64, as the reference's are."""
        return self.of in MEANS or len(self.reference) == len(self.params)

    def _ready(self, batch: Batch) -> Batch:
        return ready(self.of, self.model, self.task, self.data, batch, self.runtime, self.seed)

    def __call__(self, batch: Batch, sums: Sums) -> None:
        """Add the batch's share.

        Raises:
            Again: the sums are spoiled; the next call does without rules.
        """
        batch = self._ready(batch)
        if self.of in MEANS:
            remedy = f"lower Runtime.batch_size, which '{self.of}' depends on"
            with whole(f"a batch of {len(batch)} samples", remedy):
                found = reference.batch_mean(self.model, self.task, batch, self.params, self.of, self.runtime)
            _add(sums, found)
            return
        watch, self._watch = self._watch, False
        if self.served.known():
            self._ruled(batch, sums, watch)
        for engine, params in ((batched, self.batched), (reference, self.reference)):
            if params:
                _add(sums, engine.sums(self.model, self.task, batch, params, self.of, self.runtime))

    def _ruled(self, batch: Batch, sums: Sums, watch: bool) -> None:
        try:
            layers.accumulate(self.model, self.task, batch, self.of, self.runtime, self.served, sums, watch)
        except layers.Changed as error:
            names = self.served.known()
            text = "%s does not do what its rule says: one backward pass a sample computes %d parameters"
            log.warning(text, type(error.module).__name__, len(names))
            self._demote()
            raise Again from error
        except Unruled as error:  # the model took another way on this batch
            if not self._told:
                text = "%s takes another way on some batches: one backward pass a sample computes %d parameters there"
                log.warning(text, type(error.module).__name__, len(self.served.known()))
                self._told = True
            some = {n: self.params[n] for n in self.served.known()}
            _add(sums, reference.sums(self.model, self.task, batch, some, self.of, self.runtime))
        except Exception as error:
            if out_of_memory(error) or isinstance(error, ExpungeError) or not self.served.bold():
                raise
            log.warning("the model does not take its inputs as rules give them (%s)", shorten(str(error), 80))
            self._demote()
            raise Again from error

    def _demote(self) -> None:
        """Leave the rules, for the reference."""
        self.reference |= {n: self.params[n] for n in self.served.known()}
        self.served = Served()


def _hidden(model: nn.Module) -> dict[str, int]:
    """Return ids of tensors with a gradient that modules hold as plain attributes, by name."""
    return {
        f"{path}.{name}": id(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.requires_grad
    }


def _rows_alone(rows: Mapping[int, list[int]], samples: int) -> dict[int, list[int]]:
    """Return the rows that each sample alone gives a module, call by call; those of which it varies are left out."""
    found = {}
    for key, each in rows.items():
        calls, odd = divmod(len(each), samples)
        parts = [each[i * calls : (i + 1) * calls] for i in range(samples)]
        if not odd and all(part == parts[0] for part in parts) and 0 not in parts[0]:
            found[key] = parts[0]
    return found


def _add(sums: Sums, found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        with sums.open(name) as total:
            total += value.to(total.device)


class _Trial:
    """Tries rules on a few samples, and keeps those that agree with the reference."""

    def __init__(self, chosen: Chosen, few: Batch, truth: Mapping[str, Tensor], outputs: Tensor) -> None:
        self.chosen, self.few, self.truth, self.outputs = chosen, few, truth, outputs
        self.ways: list[Iterator[dict[str, Bare]]] = []
        self.kinds: dict[int, set[str]] = {}
        eps = max(torch.finfo(p.dtype).eps for p in chosen.params.values())
        # What rounding leaves where a gradient is 0, as an attention key's bias has it.
        self.noise = (8 * eps) ** power(chosen.of) * max(float(t.max()) for t in truth.values())

    def close(self, found: Mapping[str, Tensor], name: str) -> bool:
        """Return whether a parameter's sums agree with the reference."""
        c = self.chosen
        half = c.runtime.precision == "bf16" or c.params[name].dtype in (torch.bfloat16, torch.float16)
        slack = 0.05 if half else 1e-7 if c.params[name].dtype == torch.float64 else 3e-4
        b = self.truth[name]
        a = sample(found[name]).to(b)
        return bool((a - b).abs().sum() <= slack * b.abs().sum() + self.noise * b.numel())

    def rules(self, seen: Uses, calls: Calls, rows: dict[int, list[int]]) -> None:
        """Give each parameter to the fastest engine that agrees with the reference on it."""
        c = self.chosen
        if any(isinstance(m, torch.jit.ScriptModule) for m in c.model.modules()):  # takes no hooks
            self._rest(c.params)
            return
        served = layers.covered(c.model, c.params)
        served.rows = rows
        uneven = {id(p) for m in served.modules.values() if id(m) not in rows for p in uses.own(m).values()}
        served.names = {key: name for key, name in served.names.items() if key not in uneven}
        served.names = {key: name for key, name in served.names.items() if 0 < seen.count[key] == calls.count[key]}
        self.ways = self._bare({n for n, p in c.params.items() if seen.plain(p)} - {*served.names.values()})
        served.bare = self._next({*c.params})
        served.last = self._images(served)
        c.served = served = self._agreeing(served)
        rest = {n: p for n, p in c.params.items() if n not in served.known()}
        if rest:
            self._rest(rest)

    def _images(self, served: Served) -> bool:
        """Return whether convolutions of images on a CPU make up enough of the model to lay channels out last."""
        many = sum(type(m) is nn.Conv2d and m.groups == 1 for m in served.modules.values())
        return many > 1 and self.outputs.device.type == "cpu" and torch.backends.mkldnn.is_available()

    def _agreeing(self, served: Served) -> Served:
        """Drop modules whose rule does not hold and parameters that do not agree, until all do."""
        c = self.chosen
        while served.known():
            served.modules = {
                name: m
                for name, m in served.modules.items()
                if any(id(p) in served.names for p in uses.own(m).values())
            }
            sums = Sums({n: c.params[n] for n in served.known()})
            try:
                layers.accumulate(c.model, c.task, self.few, c.of, c.runtime, served, sums, watch=False, probe=True)
            except Unruled as error:
                self._without(served, {id(error.module)})
                continue
            except Exception as error:  # the model's own code did not expect channels last, or a row a sample
                if out_of_memory(error) or not served.bold():
                    raise
                if served.last:
                    served.last = False
                elif served.spread:
                    self._without(served, served.spread)
                else:
                    served.bare = {}
                continue
            found = sums.window()
            good = {name for name in served.known() if self.close(found, name)}
            if good == served.known():
                break
            for module in served.modules.values():  # what does not hold for a weight is not believed for its bias
                own = {served.names.get(id(p), "") for p in uses.own(module).values()} - {""}
                good -= own if not own <= good else set()
            served.names = {key: name for key, name in served.names.items() if name in good}
            wrong = {*served.bare} - good  # another way to put rows in their place may be right
            served.bare = {name: one for name, one in served.bare.items() if name in good} | self._next(wrong)
        served.trial = False
        return served

    @staticmethod
    def _without(served: Served, modules: set[int]) -> None:
        gone = {id(p) for m in served.modules.values() if id(m) in modules for p in uses.own(m).values()}
        served.names = {key: name for key, name in served.names.items() if key not in gone}
        served.spread = set()

    def _bare(self, names: set[str]) -> list[Iterator[dict[str, Bare]]]:
        """Return, for each kind of parameter without a rule, the ways to put a row for each sample in its place."""
        c = self.chosen
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in c.model.modules():
            for attribute, p in module.named_parameters(recurse=False):
                owners.setdefault(id(p), []).append((module, attribute))
        kinds: dict[tuple[type, str, tuple[int, ...]], dict[str, tuple[nn.Module, str]]] = {}
        for name in sorted(names):
            p = c.params[name]
            bytes_wanted = p.numel() * p.element_size() * c.runtime.batch_size
            if len(owners.get(id(p), [])) == 1 and 4 * bytes_wanted <= c.runtime.budget():
                module, attribute = owners[id(p)][0]
                kinds.setdefault((type(module), attribute, tuple(p.shape)), {})[name] = module, attribute
        return [self._ways(shape, alike) for (_, _, shape), alike in list(kinds.items())[:_KINDS]]

    def _ways(self, shape: tuple[int, ...], alike: Mapping[str, tuple[nn.Module, str]]) -> Iterator[dict[str, Bare]]:
        """Yield the ways that give the same outputs, for all parameters of one kind."""
        for lead in _LEADS:
            if lead is None and shape[:1] != (1,):
                continue
            trial = {name: Bare(*owner, lead) for name, owner in alike.items()}
            if self._same_outputs(trial):
                yield trial

    def _next(self, names: set[str]) -> dict[str, Bare]:
        """Return the next way for these parameters, where there is one."""
        found: dict[str, Bare] = {}
        for kind, ways in enumerate(self.ways):
            if names & self.kinds.setdefault(kind, names):
                trial = next(ways, {})
                self.kinds[kind] = {*trial}
                found |= {name: one for name, one in trial.items() if name in names}
        return found

    def _same_outputs(self, bare: Mapping[str, Bare]) -> bool:
        c = self.chosen
        few = self.few.part(slice(0, 2))
        try:
            with torch.no_grad(), c.runtime.autocast(), layers.substituted(bare, len(few)), Uses() as seen:
                outputs, _ = c.task.forward(c.model, few)
        except Exception:  # whatever the model's own code raises at a shape that it does not expect
            return False
        behind = any(seen.count[id(one.parameter)] for one in bare.values())
        want = self.outputs[: len(few)]
        alike = outputs.shape == want.shape
        return not behind and alike and torch.allclose(wide(outputs), wide(want), rtol=1e-2, atol=1e-3)

    def _rest(self, rest: Mapping[str, nn.Parameter]) -> None:
        c, verb = self.chosen, "refuses"
        try:
            found = batched.sums(c.model, c.task, self.few, rest, c.of, c.runtime, probe=True)
            if all(self.close(found, n) for n in rest):
                log.info("no layer rule for %d parameters (%s, ...): vmap computes them", len(rest), next(iter(rest)))
                c.batched = dict(rest)
                return
            why = "other values than one backward pass a sample"
        except (RuntimeError, NotImplementedError, ValueError) as error:
            why = shorten(str(error), 80, placeholder=" ...")
            verb = "runs out of memory on" if out_of_memory(error) else verb
        text = "vmap %s this model (%s): one backward pass a sample computes %d parameters"
        log.warning(text, verb, why, len(rest))
        c.reference = dict(rest)
