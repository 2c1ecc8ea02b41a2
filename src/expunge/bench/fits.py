"""What no cell of a grid could carry out, as far as it is known of a data set before its files are opened."""

from __future__ import annotations

import torch

from expunge.data import Data
from expunge.draws import Request
from expunge.errors import UserError, listing, suggest
from expunge.kinds import ANY
from expunge.noise import Noise
from expunge.poison import Backdoor
from expunge.recipe import Recipe
from expunge.zoo import Known, networks


def check_trains(recipe: Recipe) -> None:
    """Refuse a recipe that trains nothing, or that plants canaries in the original's training data alone.

    Raises:
        UserError: it does one of these.
    """
    if recipe.epochs == 0:
        raise UserError("Recipe.epochs of 1 or more in a benchmark", "0", "give the epochs of the original's training")
    if recipe.canaries:
        remedy = "leave it out: in a benchmark the original and the retrained models train on the same data"
        raise UserError("a recipe without Recipe.canaries in a benchmark", str(recipe.canaries), remedy)


def check_inputs(recipe: Recipe, data: Known) -> None:
    """Refuse random crops and mirroring of what is no image.

    Raises:
        UserError: the recipe asks for them.
    """
    if (recipe.crop or recipe.flip) and len(data.shape) != 3:
        got = f"inputs {data.shape}" if type(data.shape) is tuple else networks.said(data.shape)
        remedy = "leave crop and flip out"
        raise UserError("images (C, H, W) for Recipe.crop and Recipe.flip", f"{got} in {data.name}", remedy)


def check_request(request: Request, data: Known) -> None:
    """Refuse a request for classes, values, patches, noise or more samples than a data set has.

    Whether it has the ids of an ``ids`` request is known when a cell draws it: here they are only counted.

    Raises:
        UserError: it is one.
    """
    _check_classes(request, data)
    if request.kind == "range" and request.column is None and data.counts:
        want = f"a range of a column of {data.name}, whose targets are classes"
        raise UserError(want, repr(str(request)), "write range:COLUMN=LOW..HIGH, or class=0")
    if request.kind == "dates":
        _check_column("start", None, data)
        _check_column("end", None, data)
    if request.column is not None:
        anyone = request.kind == "range" or (request.kind == "subject" and request.value == ANY)
        _check_column(request.column, None if anyone else request.value, data)
    if request.kind == "noised" and isinstance(data.shape, networks.Tokens | networks.Pair):
        Noise.on(_blank(data), deviation=1.0)
    if request.kind == "poison":
        _check_patch(request, data)
    try:
        request.check_size(data.size)
    except UserError as error:
        raise UserError(error.expected, f"{error.got} of {data.name}", error.remedy) from error


def _check_classes(request: Request, data: Known) -> None:
    named, classes = _classes(request), len(data.counts)
    if not classes and (named or request.kind == "mislabelled"):
        remedy = "take another kind of request where targets are real numbers"
        raise UserError(f"a request without classes of {data.name}", repr(str(request)), remedy)
    odd = [c for c in named if not 0 <= c < classes]
    if odd:
        want = f"classes of {data.name} from 0 to {classes - 1}"
        raise UserError(want, f"{odd[0]} in {str(request)!r}", "choose among them")
    if len(named) == classes > 0:
        raise UserError(f"a class of {data.name} that stays", f"all {classes} to forget", "leave one out")


def _classes(request: Request) -> tuple[int, ...]:
    """Return the class indices that a request names."""
    if request.kind == "poison":
        return (request.target,)
    if request.kind == "class":
        return (request.value,)
    return request.value if request.kind in ("classes", "sequential") and isinstance(request.value, tuple) else ()


def _check_column(column: str, value: object | None, data: Known) -> None:
    if column not in data.columns:
        raise UserError(f"a column of {data.name}", repr(column), suggest(column, data.columns))
    values = data.columns[column]
    if values is not None and value is not None and str(value) not in values:
        remedy = f"choose among {listing(values, 20)}"
        raise UserError(f"a value of '{column}' in {data.name}", repr(value), remedy)


def _check_patch(request: Request, data: Known) -> None:
    """Refuse a patch on what is no image or too small for it, and more poisoned samples than other classes have."""
    Backdoor.on(_blank(data), target=request.target, size=request.patch)
    others = data.size - data.counts[request.target]
    if round(request.value * data.size) > others:
        want = f"a share of samples to poison up to {others / data.size:.3g}, that of the other classes of {data.name}"
        raise UserError(want, f"{request.value}", "poison a smaller share")


def _blank(data: Known) -> Data:
    """Return one sample of the data's shape, of zeros."""
    plain = type(data.shape) is tuple
    blank = torch.zeros(1, *data.shape) if plain else torch.zeros(1, data.shape[0], dtype=torch.int64)
    return Data.from_arrays(blank, [0], name=data.name)
