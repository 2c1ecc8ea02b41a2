"""Which class donates: the one that a class is told from by a concept of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from expunge.errors import NotFinite, UserError

Rule = Literal["confusion", "shared"]
TOP = 5  # concepts of the class that the confusion rule goes through
MOST = 3  # concepts of a class that are used; ten are known to fail


@dataclass(frozen=True)
class Pick:
    """A class, the class that donates, and the concepts of both.

    Args:
        own: the class k.
        donor: the class d, another one.
        rule: ``confusion``, ``shared``, ``present``, or ``given``.
        via: the concept that the rule found the donor by; None for a given one.
        concepts: of k, by their part in its logit, the strongest first; all above 0, one or more.
        donor_concepts: of d alike.
        fell_back: whether the rule that was asked for found nothing, so that a later one was used.
    """

    own: int
    donor: int
    rule: str
    via: int | None
    concepts: tuple[int, ...]
    donor_concepts: tuple[int, ...]
    fell_back: bool = False

    def note(self, names: tuple[str, ...]) -> str:
        """Return in a sentence how the donor was found.

        Args:
            names: of all concepts, m.
        """
        by = "as given" if self.via is None else f"by the rule {self.rule}, via concept {names[self.via]}"
        why = ", as the rule confusion found none" if self.fell_back else ""
        if self.rule == "present":
            by = f"as of all others its samples show concept {names[self.via or 0]} most"
            why = f": no concept of class {self.own} adds to another class"
        elif self.rule == "shared" and self.via != self.concepts[0]:
            why += "; stronger ones add to no other class"
        same = self.concepts[0] == self.donor_concepts[0]
        also = f"; the first concept of both is {names[self.concepts[0]]}, so patches show it in place of itself"
        return f"class {self.donor} donates to class {self.own}, {by}{why}{also if same else ''}"


def ranked(values: Tensor, k: int, most: int | None = None) -> tuple[int, ...]:
    """Return the concepts that add to a class's logit, the strongest first; of equals the first.

    Args:
        values: A, (K, m).
        k: the class.
        most: how many at most.
    """
    order = torch.sort(values[k], descending=True, stable=True).indices.tolist()
    return tuple(i for i in order if values[k, i] > 0)[:most]


def confusion(values: Tensor, k: int, top: int = TOP) -> tuple[int, int] | None:
    """Return the donor and the concept it is found by: the first of k's that is the strongest of the class it leads to.

    Going down k's strongest concepts, d is the class other than k with the largest A_di; i is taken if it is d's own
    strongest.

    Args:
        values: A, (K, m).
        k: the class.
        top: concepts of k that are looked at.

    Returns:
        d and i; None where there is no such concept.
    """
    for i in ranked(values, k, top):
        d = _other(values, k, i)
        if d is not None and ranked(values, d, 1) == (i,):
            return d, i
    return None


def shared(values: Tensor, k: int) -> tuple[int, int] | None:
    """Return the class other than k to which k's strongest concept adds most, and the concept.

    Where it adds to no other class the next strongest is taken, and so on.

    Args:
        values: A, (K, m).
        k: the class.

    Returns:
        d and i; None where none of k's concepts adds to another class.
    """
    for i in ranked(values, k):
        d = _other(values, k, i)
        if d is not None:
            return d, i
    return None


def shows(values: Tensor, present: Tensor, k: int) -> tuple[int, int] | None:
    """Return the class other than k whose samples show most of k's strongest concept, and the concept.

    A sparse head needs no concept for two classes, and so may leave nothing to share. A class that no concept adds to
    cannot donate; where no other class shows a concept more than the samples do on average, the next strongest is
    taken.

    Args:
        values: A, (K, m).
        present: how much more of each concept a class has than the average, (K, m).
        k: the class.

    Returns:
        d and i; None where there is no such class.
    """
    able = (values > 0).any(dim=1)
    able[k] = False
    for i in ranked(values, k):
        column = present[:, i].double().masked_fill(~able, -torch.inf)
        d = int(column.argmax())
        if column[d] > 0:
            return d, i
    return None


def _other(values: Tensor, k: int, i: int) -> int | None:
    """Return the class other than k that a concept adds most to, None where it adds to none."""
    column = values[:, i].clone()
    column[k] = -torch.inf
    d = int(column.argmax())
    return d if column[d] > 0 else None


def pick(
    values: Tensor,
    k: int,
    *,
    present: Tensor | None = None,
    rule: Rule = "confusion",
    donor: int | None = None,
    most: int = MOST,
    top: int = TOP,
) -> Pick:
    """Choose the concepts of a class and the class that donates.

    Args:
        values: A, (K, m): what each concept adds to each class's logit, see `expunge.concepts.attribution`.
        k: the class.
        present: how much more of each concept a class has than the average, (K, m). With it, a class that shares no
            concept is given the donor that `shows` finds; without, it is refused.
        rule: ``confusion``, which falls back on ``shared`` where it finds none and says so, or ``shared``.
        donor: given instead of found.
        most: concepts of either class.
        top: concepts that the confusion rule looks at.

    Returns:
        The pick.

    Raises:
        UserError: no concept adds to the class, the donor is the class itself, no class or undefined, a bad setting, or
            ``present`` of another shape.
        NotFinite: A holds NaN or infinity.

    >>> a = torch.tensor([[2.0, 0.9, 0.1], [0.3, 1.8, 0.2], [1.5, 0.1, 2.2]])
    >>> pick(a, 0).donor, pick(a, 0, rule="shared").donor
    (1, 2)
    """
    _check(values, k, rule, donor, most, top)
    if present is not None and present.shape != values.shape:
        got = f"{tuple(present.shape)} beside {tuple(values.shape)}"
        raise UserError("presence of concepts of the shape of their attributions", got, "pass both of one bank")
    values = values.double()
    own = ranked(values, k, most)
    if not own:
        remedy = "give other concepts, or take mode='none', which needs none"
        raise UserError(f"a concept that adds to the logit of class {k}", "none", remedy)
    if donor is not None:
        return Pick(k, donor, "given", None, own, _of_donor(values, donor, most))
    found, used = confusion(values, k, top) if rule == "confusion" else None, "confusion"
    if found is None:
        found, used = shared(values, k), "shared"
    if found is None and present is not None:
        found, used = shows(values, present, k), "present"
    if found is None:
        raise UserError(f"a class that donates to class {k}", "none that shares a concept with it", "name the donor")
    return Pick(k, found[0], used, found[1], own, _of_donor(values, found[0], most), used != rule)


def _of_donor(values: Tensor, d: int, most: int) -> tuple[int, ...]:
    found = ranked(values, d, most)
    if not found:
        raise UserError(f"a concept that adds to the logit of class {d}, which donates", "none", "name another donor")
    return found


def _check(values: Tensor, k: int, rule: str, donor: int | None, most: int, top: int) -> None:
    classes = len(values)
    if values.dim() != 2 or classes < 2:
        raise UserError(
            "attributions (K, m) of two classes or more", f"shape {tuple(values.shape)}", "pass all classes"
        )
    if not bool(torch.isfinite(values).all()):
        raise NotFinite("finite attributions", "NaN or infinity", "look at the concept scores")
    if not 0 <= k < classes:
        raise UserError(f"a class from 0 to {classes - 1}", str(k), "name one of the network's")
    if rule not in get_args(Rule):
        raise UserError(f"a rule among {', '.join(get_args(Rule))}", repr(rule), "choose one of them")
    if min(most, top) < 1:
        raise UserError("one concept or more", str(min(most, top)), "raise it")
    if donor is not None and donor == k:
        raise UserError(f"a donor other than class {k}", f"class {k} itself", "name another class")
    if donor is not None and not 0 <= donor < classes:
        raise UserError(f"a donor from 0 to {classes - 1}", str(donor), "name one of the network's classes")
