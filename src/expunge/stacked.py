"""Several networks of one architecture trained in one pass: `fit_stacked`, and `stackable`, whether that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from expunge import copies, tensors
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, listing
from expunge.passes import check_data, out_of_memory, whole
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Task, sample_losses
from expunge.train import augmented, batch_orders, optimizer_of, outputs_and_losses

__all__ = ["fit_stacked", "stackable"]

APART = "train these models one by one with expunge.train.fit"
_FEW = 4  # samples on which a network is tried: BatchNorm refuses one, and more only take longer
_OFF = 0.01  # relative difference of gradients that rounding does not explain, TF32 included
_NOISE = 1e-4  # the same, of the whole gradient: a weight whose own gradient is 0 has nothing but rounding
_Named = dict[str, Tensor]
_PLAIN = (type(None), bool, int, float, str, torch.dtype)


def fit_stacked(
    models: Sequence[nn.Module],
    task: Task,
    sets: Sequence[Data],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    runtime: Runtime | None = None,
) -> list[nn.Module]:
    """Train copies of K networks of one architecture at once, each on its own data, and return them in eval mode.

    Weights and buffers are stacked, θ (K, ...), one batch of every set is passed through all networks by
    `torch.func.vmap`, and one step follows the gradient of Σ_k mean_b(weight·loss) with respect to θ: row k is the
    gradient of model k alone, and the optimisers work number by number. Up to rounding, model k is thus
    ``fit(models[k], task, sets[k], recipe, seed=seeds[k])``, its running statistics, the order of its samples and
    their augmentation included. Where a weight has no gradient but rounding, as a scale ahead of another normalisation,
    AdamW takes whole steps of that rounding. Dropout is the exception: its masks are drawn for all models together,
    from all seeds, so that such a network is as good as `fit`'s but not the same, and depends on those beside it.

    Many small networks leave a GPU idle one by one, and that is what this is for; memory is that of K networks, each
    with a batch. On a CPU it may take longer than one after the other. There are no checkpoints: an interrupted
    call begins again, and ``runtime.workdir`` is not used.

    Args:
        models: K networks of the same names, shapes and settings, to start from; left as they are.
        task: outputs and per-sample loss; of the K batches together the loss is taken in one call.
        sets: training data of each, as many samples in all of them.
        recipe: how; without penalties, patience and canaries.
        seeds: of each model's order and augmentation, and of all models' dropout.
        runtime: device, precision and progress.

    Returns:
        The K trained copies, each in eval mode, on its model's device.

    Raises:
        UserError: numbers of models, sets and seeds, or sizes of sets, that differ; networks that differ in more than
            values; a recipe or network that cannot be stacked, see `stackable`; targets that do not fit, memory too
            small for K batches, or several processes.
        NotFinite: the loss of a model became NaN or infinite; the message counts models from 0.
    """
    runtime = runtime or Runtime()
    _check_call(models, sets, recipe, seeds, runtime)
    _check_alike(models)
    _check_stackable(models[0], task, sets[0], recipe, runtime)
    stack, total = _Stack(models, task, runtime), recipe.epochs * sum(map(len, sets))
    optimizer = optimizer_of(nn.ParameterList(stack.weights.values()), recipe)
    with runtime.tracking(f"training {len(models)} models on {sets[0].name}", total) as advance:
        for epoch in range(recipe.epochs):
            with tensors.isolated_rng(named_seed("fit_stacked", epoch, *seeds)), torch.enable_grad():
                _epoch(stack, sets, recipe, optimizer, _Streams(seeds, epoch, len(sets[0])), epoch, advance)
    return [made.to(_home(model)) for made, model in zip(stack.apart(), models, strict=True)]


def stackable(
    model: nn.Module, task: Task, data: Data, recipe: Recipe, *, runtime: Runtime | None = None
) -> str | None:
    """Return why copies of a network cannot be trained by `fit_stacked`, or None where they can.

    The network is tried on a few samples: in train mode it must run under `torch.func.vmap`, which knows no LSTM and no
    branch on values, and in eval mode have the gradients there that it has by itself, which it has not where it reads
    weights that it keeps outside of its parameters' names, in a list of its own.

    Args:
        model: the network; left as it is.
        task: outputs and per-sample loss.
        data: training data.
        recipe: how it would be trained.
        runtime: device and precision.

    Returns:
        A sentence, or None.
    """
    try:
        _check_recipe(recipe)
        _check_stackable(model, task, data, recipe, runtime or Runtime())
    except UserError as error:
        return str(error)
    return None


def _check_call(
    models: Sequence[nn.Module], sets: Sequence[Data], recipe: Recipe, seeds: Sequence[int], runtime: Runtime
) -> None:
    _check_recipe(recipe)
    if not models or len(sets) != len(models) or len(seeds) != len(models):
        got = f"{len(models)} models, {len(sets)} sets and {len(seeds)} seeds"
        raise UserError("a set and a seed for each of one model or more", got, "give as many of each")
    for data in sets:
        check_data(data, "training data")
    sizes = sorted({len(data) for data in sets})
    if len(sizes) > 1:
        remedy = "stack the models of each size by themselves, or drop samples until all sets are equal"
        raise UserError("sets of one size, so that batches are", f"{listing(sizes)} samples", remedy)
    if runtime.count > 1:
        remedy = "pass runtime.alone(), and give each process models of its own"
        raise UserError("one process for stacked models", str(runtime.count), remedy)


def _check_recipe(recipe: Recipe) -> None:
    if not isinstance(recipe, Recipe):
        raise UserError("a Recipe", type(recipe).__name__, "write for example Recipe(epochs=10, lr=0.1)")
    wanted = {"penalties": recipe.penalties, "patience": recipe.patience, "canaries": recipe.canaries}
    found = [f"Recipe.{name}" for name, value in wanted.items() if value]
    if found:
        raise UserError("a recipe that stacked models can follow", f"one with {listing(found)}", APART)


def _home(model: nn.Module) -> torch.device:
    return next(iter(model.parameters())).device


def _check_alike(models: Sequence[nn.Module]) -> None:
    """Refuse networks that differ in more than the values of their parameters and buffers: one forward runs for all."""
    for model in models:
        copies.check_trainable(model)
    first = _blueprint(models[0])
    for k, model in enumerate(models[1:], start=1):
        other = _blueprint(model)
        odd = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if odd:
            got = f"a model {k} that differs from model 0 in {listing(odd)}"
            raise UserError("models of one architecture and settings", got, "build all of them by one factory")


def _blueprint(model: nn.Module) -> dict[str, object]:
    """Return by name what must be the same of two networks: shapes, ties, frozen parts, modules and their settings."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first, found = dict[int, str](), dict[str, object]()
    for name, tensor in named:
        tied = first.setdefault(id(tensor), name)
        found[name] = tied, tuple(tensor.shape), tensor.dtype, tensor.requires_grad
    for path, module in model.named_modules():
        found[f"the module '{path}'" if path else "its class"] = type(module)
        for key, value in vars(module).items():
            if key != "training":
                found[f"{path}.{key}".lstrip(".") + " (a setting)"] = [_told(v, first) for v in tree_leaves(value)]
    return found


def _told(value: object, known: dict[int, str]) -> object:
    """Return a plain value, the digest of a tensor that is neither parameter nor buffer, else the type."""
    if isinstance(value, Tensor) and id(value) not in known:
        return tensors.tensor_digest(value)
    return repr(value) if isinstance(value, _PLAIN) else type(value)


def _check_stackable(model: nn.Module, task: Task, data: Data, recipe: Recipe, runtime: Runtime) -> None:
    """Refuse what `fit` refuses, and a network that does not run under vmap or has other gradients there."""
    copies.check_trainable(model)
    check_data(data, "training data")
    if len(data) == 0:
        raise UserError("training data", f"no sample in {data.name}", "pass data that is not empty")
    batch = data.read(range(min(_FEW, len(data)))).to(runtime.torch_device)
    if batch.target is None:
        raise UserError("labelled data to train on", "no targets", "give targets when building the data")
    with tensors.isolated_rng(0), torch.enable_grad():
        augmented(batch, recipe)
        alone = copies.private(model).to(runtime.torch_device).eval()
        own = list(tensors.parameters(alone).values())
        want = torch.autograd.grad(outputs_and_losses(alone, task, batch)[1].sum(), own, allow_unused=True)
        try:
            found, stack = _tried(model, task, batch, runtime)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            got = f"{type(error).__name__}: {_first_sentence(str(error))}"
            raise UserError("a network that torch.func.vmap can run", got, APART) from error
    size = float(sum(g.double().square().sum() for g in want if g is not None)) ** 0.5
    odd = [n for n, a, b in zip(stack.weights, found, want, strict=True) if _off(a, b, size)]
    if odd:
        got = f"others of {listing(n.removeprefix('model.') for n in odd)}"
        raise UserError("the gradients that the network has outside of torch.func.vmap", got, APART)


def _first_sentence(text: str) -> str:
    """Return the first sentence of a message of torch, which may go on for a page."""
    return text.strip().split("\n")[0].split(". ")[0].rstrip(".") or "no message"


def _tried(model: nn.Module, task: Task, batch: Batch, runtime: Runtime) -> tuple[tuple[Tensor | None, ...], _Stack]:
    """Return gradients of one network in eval mode as a stack of one, after a pass in train mode as it will be."""
    stack, stacked = _Stack([model], task, runtime), _stacked([batch])
    stack.net.eval()
    losses = sample_losses(task, *stack.outputs(stacked))
    own = list(stack.weights.values())
    found = torch.autograd.grad(losses.sum(), own, allow_unused=True) if losses.requires_grad else (None,) * len(own)
    stack.net.train()
    shapes = {name: b.shape for name, b in stack.buffers.items()}
    with runtime.autocast():
        stack.outputs(stacked)
    if {name: b.shape for name, b in stack.buffers.items()} != shapes:
        raise RuntimeError("a buffer changes its shape in train mode")
    return found, stack


def _off(a: Tensor | None, b: Tensor | None, size: float) -> bool:
    """Return whether one of two gradients is missing, or they differ by more than rounding."""
    if a is None or b is None:
        return (a is None) != (b is None)
    noise = max(_NOISE, torch.finfo(b.dtype).eps)
    return float((a[0] - b).double().norm()) > _OFF * float(b.double().norm()) + noise * size  # NaN in both is none


class _Forward(nn.Module):
    """A network as a module that a task runs on tensors, which is what `functional_call` takes."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.run = model, task.forward

    def forward(self, inputs: Tensor | dict[str, Tensor], target: Tensor, index: Tensor) -> Tensor:
        return self.run(self.model, Batch(inputs, target, None, index))[0]


class _Stack:
    """K networks as one: ``weights``, ``frozen`` and ``buffers`` by name, (K, ...), and a network to run them in."""

    def __init__(self, models: Sequence[nn.Module], task: Task, runtime: Runtime) -> None:
        self.task, self.runtime = task, runtime
        self._made = [_Forward(copies.private(m), task).to(runtime.torch_device) for m in models]
        # what forward passes store on their module stays on this one, which nobody gets
        self.net = _Forward(copies.private(models[0]), task).to(runtime.torch_device).train()
        params, self.buffers = stack_module_state(list(self._made))
        self.weights = {name: nn.Parameter(p.detach()) for name, p in params.items() if p.requires_grad}
        self.frozen = {name: p for name, p in params.items() if not p.requires_grad}

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return outputs (K·B, ...) and targets (K·B, ...) of batches (K, B, ...), and keep the buffers' next values.

        In one row after the other, for a task checks targets by their values, which vmap hides.
        """

        def one(weights: _Named, frozen: _Named, buffers: _Named, *given: Any) -> tuple[Tensor, _Named]:
            values = {**weights, **frozen, **buffers}
            found = functional_call(self.net, values, given)
            return found, {name: values[name] for name in buffers}  # a buffer may have been replaced, not edited

        assert batch.target is not None
        state: Any = (self.weights, self.frozen, self.buffers)
        outputs, buffers = vmap(one, randomness="different")(*state, batch.inputs, batch.target, batch.index)
        self.buffers = {name: b.detach() for name, b in buffers.items()}
        rows = batch.index.numel()
        return outputs.reshape(rows, *outputs.shape[2:]), batch.target.flatten(0, 1)

    def losses(self, batch: Batch) -> Tensor:
        """Return the mean weighted loss of each model's batch, (K,)."""
        with self.runtime.autocast():
            losses = sample_losses(self.task, *self.outputs(batch)).reshape(batch.index.shape)
            return (losses if batch.weight is None else losses * batch.weight.to(losses)).mean(dim=1)

    def apart(self) -> list[nn.Module]:
        """Return the networks, each with its own values, in eval mode."""
        stacked = {**self.weights, **self.frozen, **self.buffers}
        with torch.no_grad():
            for k, made in enumerate(self._made):
                for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
                    tensor.copy_(stacked[name][k])
        return [made.model.eval() for made in self._made]


class _Streams:
    """The random streams of an epoch, one a model, as `fit` has them: the order first, then what augments."""

    def __init__(self, seeds: Sequence[int], epoch: int, count: int) -> None:
        self.orders, self._states = list[Tensor](), list[Tensor]()
        for seed in seeds:
            with tensors.isolated_rng(named_seed("fit", seed, epoch)):
                self.orders.append(torch.randperm(count))
                self._states.append(torch.get_rng_state())

    @contextmanager
    def of(self, k: int) -> Iterator[None]:
        """Draw from the stream of model k inside the block, and go on with the common one after it."""
        common = torch.get_rng_state()
        torch.set_rng_state(self._states[k])
        try:
            yield
        finally:
            self._states[k] = torch.get_rng_state()
            torch.set_rng_state(common)


def _epoch(
    stack: _Stack,
    sets: Sequence[Data],
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    streams: _Streams,
    epoch: int,
    advance: Callable[[int], None],
) -> None:
    seen, size = 0, len(sets[0])
    parts = zip(*(batch_orders(recipe.batch_size, order) for order in streams.orders), strict=True)
    for step, places in enumerate(parts, start=1):
        count = len(places[0])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch + (seen + count) / size if epoch < recipe.warmup else epoch)
        seen += count
        optimizer.zero_grad(set_to_none=True)
        with whole(f"{len(sets)} batches of {count} samples", "stack fewer models, or lower Recipe.batch_size"):
            batches = [data.read(at) for data, at in zip(sets, places, strict=True)]
            losses = stack.losses(_ready(batches, recipe, streams, stack.runtime.torch_device))
            _down(losses, recipe, f"at step {step} in epoch {epoch + 1}")
        if recipe.clip is not None:
            _clip(stack.weights.values(), recipe.clip)
        optimizer.step()
        advance(len(sets) * count)


def _ready(batches: list[Batch], recipe: Recipe, streams: _Streams, device: str) -> Batch:
    """Return the batches of one step as one, augmented, where work runs."""
    if recipe.crop or recipe.flip:
        for k, batch in enumerate(batches):
            with streams.of(k):
                batches[k] = augmented(batch.to(device), recipe)
    return _stacked(batches).to(device)


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Return batches (B, ...) as one (K, B, ...); samples weigh 1 where only other models' have weights.

    Raises:
        UserError: samples of different shapes, or some without targets.
    """
    targets = [b.target for b in batches if b.target is not None]
    if len(targets) < len(batches):
        raise UserError("labelled data to train on", "a set without targets", "give targets when building the data")
    kinds = {str([(tuple(t.shape[1:]), t.dtype) for t in tree_leaves((b.inputs, b.target))]) for b in batches}
    if len(kinds) > 1:
        raise UserError("samples of one shape and type in all sets", listing(sorted(kinds)), "stack sets of one source")
    inputs = tree_map(lambda *parts: torch.stack(parts), *(b.inputs for b in batches))
    known = next((b.weight for b in batches if b.weight is not None), None)
    weight = None
    if known is not None:
        weight = torch.stack([torch.ones(len(b)).to(known) if b.weight is None else b.weight for b in batches])
    return Batch(inputs, torch.stack(targets), weight, torch.stack([b.index for b in batches]))


def _down(losses: Tensor, recipe: Recipe, when: str) -> None:
    """Differentiate the sum of the models' losses: each depends on its own weights alone."""
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        remedy = f"lower Recipe.lr (now {recipe.lr}), check the data, or stack the others without them"
        got = f"{losses[bad[0]].item()} of model {listing(bad)} {when}"
        raise NotFinite("a finite training loss", got, remedy)
    losses.sum().backward()


def _clip(params: Iterable[nn.Parameter], most: float) -> None:
    """Cut the norm of each model's gradient, as `torch.nn.utils.clip_grad_norm_` does for one."""
    grads = [p.grad for p in params if p.grad is not None]
    norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in grads]).norm(dim=0)
    factor = (most / (norms + 1e-6)).clamp(max=1)
    for g in grads:
        g.mul_(factor.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)))
