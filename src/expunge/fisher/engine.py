"""Which engine computes which parameter: rules are tried on two samples and must agree with the reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from textwrap import shorten
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import UserError, suggest
from expunge.fisher import batched, layers, reference
from expunge.fisher.checks import check_alone, sample, wide
from expunge.fisher.layers import Bare, Served, Unruled
from expunge.fisher.quantities import MEANS, Quantity, power, ready
from expunge.fisher.sums import Sums
from expunge.passes import out_of_memory, whole
from expunge.runtime import Runtime
from expunge.task import Task

log = logging.getLogger(__name__)
Engine = Literal["auto", "layers", "batched", "reference"]
ENGINES: tuple[Engine, ...] = ("auto", "layers", "batched", "reference")
_KINDS = 16  # kinds of parameters without a rule for which a row a sample is tried
_LEADS = (None, 0, 1, 2, 3)


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
        data: on two of whose samples the engines are tried, the first and the last if they show all gradients.
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
        self._watch = True  # lost squares show in the first batch; to look in each costs as much as the rules
        if of in MEANS:
            return
        at, few, alone, truth = self._tried()
        counts, calls, outputs = layers.uses(model, task, few, runtime)
        names = [data.ids[i] for i in at]
        check_alone(alone, outputs, layers.uses(model, task, few, runtime)[2], names, runtime)
        if engine == "reference":
            self.reference = self.params
        elif engine == "batched":
            self.batched = self.params
        else:
            _Trial(self, few, truth, outputs).rules(counts, calls)

    def _tried(self) -> tuple[list[int], Batch, Tensor, dict[str, Tensor]]:
        """Return two samples that show a gradient of as many parameters as can be, and the reference's sums on them."""
        n, found = len(self.data), []
        for pair in dict.fromkeys([(0, n - 1), (n // 3, 2 * n // 3), (n // 4, 3 * n // 4), (n // 5, n // 2)]):
            at = sorted(set(pair))
            few = self._ready(self.data.read(at))
            alone, truth = reference.tried(self.model, self.task, few, self.params, self.of, self.runtime)
            dark = sum(not bool(t.any()) for t in truth.values())
            found.append((dark, at, few, alone, truth))
            if dark == 0:
                break
        _, at, few, alone, truth = min(found, key=lambda one: one[0])
        return at, few, alone, truth

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
            log.warning(
                "%s does not see its input as it was: one backward pass a sample computes %d parameters",
                type(error.module).__name__,
                len(names),
            )
            self.reference |= {n: self.params[n] for n in names}
            self.served = Served()
            raise Again from error
        except Unruled:  # the model took another way on this batch
            some = {n: self.params[n] for n in self.served.known()}
            _add(sums, reference.sums(self.model, self.task, batch, some, self.of, self.runtime))


def _add(sums: Sums, found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        with sums.open(name) as total:
            total += value.to(total.device)


class _Trial:
    """Tries rules on a few samples, and keeps those that agree with the reference."""

    def __init__(self, chosen: Chosen, few: Batch, truth: Mapping[str, Tensor], outputs: Tensor) -> None:
        self.chosen, self.few, self.truth, self.outputs = chosen, few, truth, outputs
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

    def rules(self, counts: Mapping[int, int], calls: Mapping[int, int]) -> None:
        """Give each parameter to the fastest engine that agrees with the reference on it."""
        c = self.chosen
        served = layers.covered(c.model, c.params)
        served.names = {key: name for key, name in served.names.items() if 0 < counts[key] == calls[key]}
        served.bare = self._bare({*c.params} - {*served.names.values()})
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
                if any(id(p) in served.names for p in layers.own(m).values())
            }
            sums = Sums({n: c.params[n] for n in served.known()})
            try:
                layers.accumulate(c.model, c.task, self.few, c.of, c.runtime, served, sums, watch=False, probe=True)
            except Unruled as error:
                self._without(served, {id(error.module)})
                continue
            except Exception:  # the model's own code did not expect channels last, or a row a sample
                if not served.last and not served.spread:
                    raise
                if served.last:
                    served.last = False
                else:
                    self._without(served, served.spread)
                continue
            found = sums.window()
            good = {name for name in served.known() if self.close(found, name)}
            if good == served.known():
                break
            for module in served.modules.values():  # what does not hold for a weight is not believed for its bias
                own = {served.names.get(id(p), "") for p in layers.own(module).values()} - {""}
                good -= own if not own <= good else set()
            served.names = {key: name for key, name in served.names.items() if name in good}
            served.bare = {name: one for name, one in served.bare.items() if name in good}
        served.trial = False
        return served

    @staticmethod
    def _without(served: Served, modules: set[int]) -> None:
        gone = {id(p) for m in served.modules.values() if id(m) in modules for p in layers.own(m).values()}
        served.names = {key: name for key, name in served.names.items() if key not in gone}
        served.spread = set()

    def _bare(self, names: set[str]) -> dict[str, Bare]:
        """Return the parameters without a rule in whose place a row for each sample gives the same outputs."""
        c = self.chosen
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in c.model.modules():
            for attribute, p in module.named_parameters(recurse=False):
                owners.setdefault(id(p), []).append((module, attribute))
        kinds: dict[tuple[type, str, tuple[int, ...]], list[str]] = {}
        for name in sorted(names):
            p = c.params[name]
            bytes_wanted = p.numel() * p.element_size() * c.runtime.batch_size
            if len(owners.get(id(p), [])) == 1 and 4 * bytes_wanted <= c.runtime.budget():
                module, attribute = owners[id(p)][0]
                kinds.setdefault((type(module), attribute, tuple(p.shape)), []).append(name)
        found: dict[str, Bare] = {}
        for alike in list(kinds.values())[:_KINDS]:
            for lead in _LEADS:
                if lead is None and (c.params[alike[0]].dim() == 0 or len(c.params[alike[0]]) != 1):
                    continue
                trial = {n: Bare(*owners[id(c.params[n])][0], lead) for n in alike}
                if self._same_outputs(trial):
                    found |= trial
                    break
        return found

    def _same_outputs(self, bare: Mapping[str, Bare]) -> bool:
        c = self.chosen
        try:
            with torch.no_grad(), c.runtime.autocast(), layers.substituted(bare, len(self.few)), layers.Uses() as seen:
                outputs, _ = c.task.forward(c.model, self.few)
        except Exception:  # whatever the model's own code raises at a shape that it does not expect
            return False
        behind = any(seen.count[id(one.parameter)] for one in bare.values())
        alike = outputs.shape == self.outputs.shape
        return not behind and alike and torch.allclose(wide(outputs), wide(self.outputs), rtol=1e-2, atol=1e-3)

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
