"""A network for tables of real and categorical columns, with an embedding row a category: one of each subject too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.errors import UserError, listing

SUBJECT = "subject"  # the column whose categories are people


class Table(NamedTuple):
    """The shape of a row of a table.

    Args:
        real: number of real columns.
        names: of the categorical columns.
        sizes: categories of each, in the same order.
    """

    real: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]


class Tabular(nn.Module):
    """An embedding a categorical column, beside the real columns the input of two hidden layers of 64 units with ReLU.

    A column of n categories has an embedding of n rows and min(16, ⌈√n⌉) columns, ``embeddings[name].weight``. No
    row is shared: that of a person whom no training sample names stays as it was drawn, if nothing decays weights.

    Args:
        shape: of one row of the table.
        outputs: logits, or targets.
    """

    def __init__(self, shape: Table, outputs: int) -> None:
        super().__init__()
        self.shape = shape
        widths = [min(16, int((size - 1) ** 0.5) + 1) for size in shape.sizes]
        made = (nn.Embedding(size, width) for size, width in zip(shape.sizes, widths, strict=True))
        self.embeddings = nn.ModuleDict(dict(zip(shape.names, made, strict=True)))
        self.body = nn.Sequential(
            nn.Linear(shape.real + sum(widths), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )

    def forward(self, real: Tensor, categories: Tensor) -> Tensor:
        """Return outputs (B, K) from real columns (B, R) and indices of categories (B, C).

        Raises:
            UserError: an index beyond a column's categories, on a CPU; on a GPU use `check_categories` before.
        """
        rows = [self._rows(name, categories[:, at]) for at, name in enumerate(self.shape.names)]
        return self.body(torch.cat([real, *rows], dim=1))  # type: ignore[no-any-return]

    def _rows(self, name: str, column: Tensor) -> Tensor:
        table = self.embeddings[name]
        assert isinstance(table, nn.Embedding)
        try:
            return table(column)  # type: ignore[no-any-return]
        except IndexError as error:
            got, remedy = "an index beyond them", "encode them as the network was built; check_categories names the row"
            raise UserError(f"categories 0 to {table.num_embeddings - 1} in '{name}'", got, remedy) from error


def check_categories(shape: Table, categories: Tensor) -> None:
    """Refuse indices that no embedding row stands for.

    Args:
        shape: of one row of the table.
        categories: (N, C) indices.

    Raises:
        UserError: an index below 0 or beyond a column's categories, or another number of columns; names row and column.
    """
    if categories.dim() != 2 or categories.shape[1] != len(shape.sizes):
        want, got = f"categories of shape (N, {len(shape.sizes)})", f"shape {tuple(categories.shape)}"
        raise UserError(want, got, f"give the columns {listing(shape.names, 20)}")
    for at, (name, size) in enumerate(zip(shape.names, shape.sizes, strict=True)):
        column = categories[:, at]
        bad = ((column < 0) | (column >= size)).nonzero().flatten().tolist()
        if bad:
            got = f"{int(column[bad[0]])} in row {listing(bad)}"
            raise UserError(f"categories 0 to {size - 1} in '{name}'", got, "encode them as the network was built")


def embedding_row(model: nn.Module, subject: int | str, *, column: str = SUBJECT) -> Tensor:
    """Return a copy of what a tabular network holds of one subject alone: its embedding row.

    In a model that was retrained without the subject it is the row as it was drawn before training.

    Args:
        model: a `Tabular`.
        subject: index of the subject, as in its column of the data.
        column: whose categories are subjects.

    Returns:
        The row, (D,).

    Raises:
        UserError: a model without such an embedding, or a subject beyond its rows.
    """
    own = getattr(model, "embeddings", None)
    found: Mapping[str, Any] = dict(own.items()) if isinstance(own, nn.ModuleDict) else {}
    if column not in found:
        got = f"embeddings of {listing(found, 20)}" if len(found) else f"{type(model).__name__} without embeddings"
        raise UserError(f"a network with an embedding of '{column}'", got, "take the network 'tabular'")
    weight: Tensor = found[column].weight.detach()
    at = str(subject)
    if not at.isdecimal() or int(at) >= len(weight):
        raise UserError(f"a subject 0 to {len(weight) - 1}", repr(subject), f"take it from the column '{column}'")
    return weight[int(at)].clone()
