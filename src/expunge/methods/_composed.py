"""What methods have in common that run another method: the field that names it, its preparation, its seeded run."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from expunge.errors import UserError
from expunge.method import Method, MethodFault, Session, State
from expunge.methods._fields import Checked
from expunge.recipe import Recipe
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng


class Composed(Checked):
    """A method that runs another one under constraints on its weights; a subclass declares the field ``method``."""

    method: Method | None

    @property
    @abstractmethod
    def inner(self) -> Method:
        """The method that is run."""

    def names_method(self, *, optional: bool = False) -> None:
        """Refuse a field ``method`` that is no method; the remedy writes the one of ``example``.

        Args:
            optional: whether it may stay unset.

        Raises:
            UserError: names the field.
        """
        if isinstance(self.method, Method) or (optional and self.method is None):
            return
        name = self.example["method"]["name"]
        remedy = f"write method = {{name = '{name}'}}, or method.name={name} on the command line"
        raise UserError(f"{self.name}.method to name a method", repr(self.method), remedy)

    def preparation(self) -> dict[str, Any]:
        """Return the settings that decide what is prepared; of the inner method those that decide what it prepares.

        Inner methods that prepare nothing share what the composition prepares.
        """
        idle = type(self.inner).prepare is Method.prepare
        return super().preparation() | {"method": None if idle else self.inner.preparation()}

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the work of the inner method's passes, and one for each further pass."""
        own, reads = self.inner.work(phase, recipe, classes), self.inner.passes(phase, recipe)
        return {s: n + own.get(s, 0.0) - reads.get(s, 0.0) for s, n in self.passes(phase, recipe).items()}

    def served_by_more(self) -> str | None:
        """Return why the inner method cannot be held by its weights, where it is served by more than these."""
        if type(self.inner).serve is Method.serve:
            return None
        return f"{self.inner.name} is served by more than its weights, which a mask does not reach"

    def run(self, nested: Session, state: State | None = None) -> tuple[nn.Module, State]:
        """Run the inner method with the seed that it would have alone.

        Args:
            nested: the inner method's session, from ``session.nested``.
            state: what the inner method prepared, to unlearn; None to prepare.

        Returns:
            Its network and its state.

        Raises:
            MethodFault: it edited the original.
        """
        with isolated_rng(named_seed(nested.phase, self.inner.name, nested.seed)):
            found = self.inner.prepare(nested) if state is None else self.inner.unlearn(nested, state)
        if nested.edited():
            raise MethodFault(f"Method {nested.method} edited the original model in {nested.phase}.")
        return found
