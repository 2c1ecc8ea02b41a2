"""One phase of a method: run on every process or on the first alone, and held to the protocol."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from expunge import tensors
from expunge.copies import as_before, layout, private
from expunge.data import Data
from expunge.errors import listing
from expunge.files import digest, jsonable
from expunge.method import Method, MethodFault, See, Session, State
from expunge.runtime import Runtime, peak_memory
from expunge.seeds import seed as named_seed

Work = Callable[[Session], Any]


@dataclass(frozen=True)
class Done:
    """What a phase gave; the same on every process.

    Args:
        model: on the caller's device, with its modes and frozen flags.
        state: as the method returned it, without the driver's stamp.
        seconds: of the method's own work, on process 0.
        log: what it recorded, on process 0.
        peak: bytes beyond those held before, on the process that held most.
    """

    model: nn.Module
    state: State
    seconds: float
    log: Mapping[str, Any]
    peak: int

    @property
    def note(self) -> str:
        """What a reader must know."""
        return " ".join(dict.fromkeys(self.log.get("note", [])))


def run(method: Method, session: Session, work: Work, forget: Data | None = None) -> Done:
    """Run a phase of a method and hold it to the protocol.

    A distributed method runs on every process, which must all end with the same weights and state. Any other runs on
    process 0, as if it were alone; the others wait, and receive its model, state, log and times. What a method leaves
    on a module beside parameters, buffers and hooks must not be tensors: they are taken for stored activations.

    Args:
        method: whose phase it is.
        session: handed to ``work``.
        work: the phase, returns (module, State).
        forget: the samples of which every one must be read, watched, or None.

    Returns:
        The result, the same on every process.

    Raises:
        MethodFault: the protocol was broken.
    """
    runtime = session.runtime
    if runtime.count == 1:
        return _here(method, session, work, forget)
    if method.distributed:
        done = _here(method, session, work, forget)
        seconds, log = runtime.shared((done.seconds, done.log))
        done = replace(done, seconds=seconds, log=log, peak=max(runtime.gathered(done.peak)))
    else:
        done = _received(method, session, work, forget)
    _check_same(method, done, runtime)
    return done


def _here(method: Method, session: Session, work: Work, forget: Data | None) -> Done:
    device = torch.device(session.runtime.torch_device)
    with peak_memory(session.runtime.torch_device) as peak, _surroundings(session):
        start = time.perf_counter()
        found = work(session)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    match found:
        case (nn.Module() as made, State() as state):
            pass
        case _:
            raise MethodFault(f"Method {method.name} returned {type(found).__name__}, not (module, State).")
    if made is session.source or session.edited():
        raise MethodFault(f"Method {method.name} edited or returned the original model in {session.phase}.")
    tensors.check_weights(made, f"weights after {method.name}", "lower its rate or strength")
    if forget is not None and method.unlearns.forget >= See.INPUTS:
        unread = _unread(forget, session.runtime)
        if unread:
            raise MethodFault(f"Method {method.name} never read {unread} of {len(forget)} samples to forget.")
    return Done(_returned(session.source, made), state, seconds, session.log, peak[0])


@contextmanager
def _surroundings(session: Session) -> Iterator[None]:
    name = named_seed(session.phase, session.method, session.seed)
    with tensors.isolated_rng(name), torch.enable_grad():
        yield


def _unread(forget: Data, runtime: Runtime) -> int:
    """Return how many samples no process has read."""
    unread = set(forget.unread)
    read = torch.tensor([float(i not in unread) for i in forget.ids])
    return int((runtime.sum([read])[0] == 0).sum())


def _returned(source: nn.Module, made: nn.Module) -> nn.Module:
    """Give the result the caller's device, modes and frozen flags, and nothing that its forward passes stored."""
    as_before(made, source)
    first = next(source.parameters(), None)
    if first is not None:
        made = made.to(first.device)
    made.train(source.training)
    tensors.restore_modes(made, {name: m.training for name, m in source.named_modules()})
    flags = {name: p.requires_grad for name, p in source.named_parameters()}
    for name, p in made.named_parameters():
        p.requires_grad_(flags.get(name, p.requires_grad))
        p.grad = None
    return made


def _received(method: Method, session: Session, work: Work, forget: Data | None) -> Done:
    """Run the phase on process 0 and return its result on all."""
    own: list[Done] = []

    def alone() -> tuple[Any, ...]:
        done = _here(method, replace(session, runtime=session.runtime.alone()), work, forget)
        own.append(done)
        state = State({name: done.state.tensors[name].cpu() for name in done.state.tensors}, done.state.meta)
        return _packed(method, session.source, done.model), state, done.seconds, dict(done.log), done.peak

    packed, *rest = session.runtime.on_main(alone)
    with session.runtime.agreed():
        if not own:
            own.append(Done(_returned(session.source, _unpacked(session.source, *packed)), *rest))
    return own[0]


def _packed(method: Method, source: nn.Module, made: nn.Module) -> tuple[bool, Any]:
    """Return a module so that it can travel: pickled whole with its hooks, or its tensors where nothing else differs.

    Raises:
        MethodFault: it does not pickle, and is no plain copy of the source with other weights.
    """
    first = next(made.parameters(), None)
    try:
        return True, pickle.dumps(made if first is None or not first.is_cuda else copy.deepcopy(made).cpu())
    except Exception as error:  # whatever a member's own pickling raises
        if type(made) is type(source) and layout(made) == layout(source):
            return False, {name: tensor.cpu() for name, tensor in made.state_dict().items()}
        raise MethodFault(
            f"Method {method.name} returned a {type(made).__name__} that cannot be sent to the other processes "
            f"({type(error).__name__}: {error}): define its classes and hooks in a module, or run in one process."
        ) from error


def _unpacked(source: nn.Module, entire: bool, body: Any) -> nn.Module:
    if entire:
        return pickle.loads(body)  # type: ignore[no-any-return]
    model = private(source)
    model.load_state_dict(body)
    return model


def _check_same(method: Method, done: Done, runtime: Runtime) -> None:
    state = {name: tensors.tensor_digest(done.state.tensors[name]) for name in done.state.tensors}
    found = runtime.gathered((tensors.weights_digest(done.model), digest(state, jsonable(done.state.meta))))
    odd = [place for place, other in enumerate(found) if other != found[0]]
    if odd:
        what = "weights" if any(found[place][0] != found[0][0] for place in odd) else "state tensors"
        raise MethodFault(
            f"Method {method.name} left other {what} on process {listing(odd)} than on process 0: set its "
            "`distributed` to False, or make its steps the same on every process."
        )
