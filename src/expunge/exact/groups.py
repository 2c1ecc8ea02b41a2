"""Transformer blocks of a network: where they are, which of them each stage trains, what takes LoRA, the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from expunge.errors import UserError, listing, suggest

PAIRS = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("qkv",),
)
"""Names of the projections to queries and values, as networks of transformers have them; or of all three in one."""


@dataclass(frozen=True)
class Blocks:
    """The transformer blocks of a network, the input's first.

    Args:
        path: full name of the list of blocks, such as ``vit.layers``.
        count: number of blocks n.
        linear: names of the linear layers inside a block, those that every block has.
    """

    path: str
    count: int
    linear: tuple[str, ...]

    def groups(self, slices: int, per_slice: int) -> tuple[tuple[int, ...], ...]:
        """Return the blocks that each stage trains, from the output down: stage i has n−1−(i−1)h to n−i·h.

        Args:
            slices: stages of a sequence, L.
            per_slice: blocks a stage, h.

        Returns:
            L tuples of h block numbers, from 0 at the input; each falls.

        Raises:
            UserError: the network has fewer than L·h blocks.

        >>> Blocks("layers", 6, ()).groups(2, 2)
        ((5, 4), (3, 2))
        """
        if slices * per_slice > self.count:
            got = f"{slices} slices of {per_slice}, {slices * per_slice} blocks"
            fits = f"{self.count // slices} blocks" if self.count >= slices else f"{self.count // per_slice} slices"
            remedy = f"take at most {fits}" if self.count >= min(slices, per_slice) else "take fewer of both"
            raise UserError(f"slices that share the network's {self.count} blocks", got, remedy)
        top = self.count - 1
        return tuple(tuple(range(top - i * per_slice, top - (i + 1) * per_slice, -1)) for i in range(slices))

    def targets(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the linear layers inside a block that take LoRA, by their names inside it.

        Args:
            names: last parts of names, such as ``query`` or ``attention.output.dense``; every layer that ends so is
                meant. Empty takes the projections to queries and values.

        Raises:
            UserError: no layer of the blocks is called so; lists those there are.
        """
        if not names:
            names = next((pair for pair in PAIRS if all(self._called(name) for name in pair)), ())
            if not names:
                remedy = f"name targets among {listing(self.linear, 12)}"
                raise UserError("projections to queries and values of a known name", f"none in {self.path}", remedy)
        found: dict[str, None] = {}
        for name in names:
            called = self._called(name)
            if not called:
                remedy = f"take some of {listing(self.linear, 12)}"
                raise UserError(f"linear layers in the blocks of {self.path}", f"none called '{name}'", remedy)
            found |= dict.fromkeys(called)
        return tuple(found)

    def _called(self, name: str) -> list[str]:
        return [path for path in self.linear if path == name or path.endswith(f".{name}")]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer that LoRA can be attached to; GPT-2 has a form of its own."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def candidates(model: nn.Module) -> dict[str, Blocks]:
    """Return the lists of blocks in a network by full name: several modules of one type, with linear layers each.

    A list inside a block of another is none.
    """
    found: dict[str, Blocks] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(path.startswith(f"{p}.") for p in found):
            continue
        if not len(module) or len({type(m) for m in module}) > 1 or is_linear(module[0]):
            continue
        inner = [{name for name, m in block.named_modules() if is_linear(m)} for block in module]
        if len(module) == 1 and not isinstance(module, nn.ModuleList):
            continue
        common = [name for name, m in module[0].named_modules() if all(name in names for names in inner)]
        if common:
            found[path] = Blocks(path, len(module), tuple(common))
    return found


def blocks(model: nn.Module, path: str = "") -> Blocks:
    """Return the transformer blocks of a network.

    Args:
        model: of transformers, or one that holds such a network.
        path: full name of the list of blocks; empty finds it.

    Raises:
        UserError: there are none, several, or none of that name; lists those there are.
    """
    found = candidates(model)
    if path:
        if path not in found:
            remedy = suggest(path, list(found)) if found else "take a network with transformer blocks"
            raise UserError("a list of blocks in the network", f"'{path}'", remedy)
        return found[path]
    if not found:
        remedy = "take a network of transformers, such as ViT, BERT or Llama"
        raise UserError("a network with a list of transformer blocks", type(model).__name__, remedy)
    known = {name: own for name, own in found.items() if any(own._called(p[0]) for p in PAIRS)} or found
    if len(known) > 1:
        got = f"several, {listing(known)}"
        raise UserError("one list of transformer blocks", got, "name the one to train by the field blocks_at")
    return next(iter(known.values()))


def head(model: nn.Module, at: Blocks, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the modules that stand behind the blocks and turn their output into the network's.

    They are found from the outside in: the first module around the blocks that has further children with weights
    behind the one that holds the blocks gives these. The output layer of a language model, whose weights are (or
    could be) those of its embedding, is no head.

    Args:
        model: the network.
        at: its blocks.
        names: full names of modules; empty finds them.

    Returns:
        Full names; empty where there is no head.

    Raises:
        UserError: no module is called so, it has no weights, it holds or lies in the blocks, or its weights are tied
            to others; lists the modules there are.
    """
    modules = dict(model.named_modules())
    if names:
        for name in names:
            around = f"{at.path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{at.path}.")
            if name not in modules or around or not any(True for _ in modules[name].parameters()):
                known = listing([n for n, m in model.named_children() if any(True for _ in m.parameters())], 12)
                got = f"'{name}'" + (", which holds or lies in the blocks" if around else "")
                raise UserError("modules with weights outside of the blocks as head", got, f"take some of {known}")
        found = tuple(names)
    else:
        found = _behind(model, at)
    shared = tied(model, found)
    if shared:
        remedy = "set head to 'frozen'"
        raise UserError("a head with weights of its own", f"{listing(shared)}, tied to others", remedy)
    return found


def _behind(model: nn.Module, at: Blocks) -> tuple[str, ...]:
    vocabulary = {id(m) for m in [_output_layer(model)] if m is not None}
    branch, prefix = model, ""
    for part in at.path.split("."):
        later, passed = list[str](), False
        for name, child in branch.named_children():
            if passed and any(True for _ in child.parameters()) and id(child) not in vocabulary:
                later.append(f"{prefix}{name}")
            passed = passed or name == part
        if later:
            return tuple(later)
        if vocabulary:
            return ()  # what stands inside the body of a language model, a last norm, is no head
        branch, prefix = branch.get_submodule(part), f"{prefix}{part}."
    return ()


def _output_layer(model: nn.Module) -> nn.Module | None:
    """Return the layer of a language model that gives its logits, or None: networks of transformers tell."""
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        found = ask() if callable(ask) else None
        if isinstance(found, nn.Module):
            return found
    return None


def is_language_model(model: nn.Module) -> bool:
    """Return whether a network ends in logits over a vocabulary, as networks of transformers tell."""
    return _output_layer(model) is not None


def tied(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the parameters of modules that stand elsewhere in the network too, by the name inside these modules."""
    inside: dict[int, str] = {}
    outside: set[int] = set()
    for name, p in model.named_parameters(remove_duplicate=False):
        if any(name.startswith(f"{own}.") for own in names):
            inside.setdefault(id(p), name)
        else:
            outside.add(id(p))
    return [name for key, name in inside.items() if key in outside]


def batch_norms(model: nn.Module) -> list[str]:
    """Return the names of the modules whose running statistics would keep what a later stage saw."""
    kinds = nn.modules.batchnorm._NormBase
    return [name for name, m in model.named_modules() if isinstance(m, kinds) and m.running_mean is not None]
