"""What training on poisoned samples needs: which part of a network is trained, what it still says of a class, kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge.concepts.bank import Bank
from expunge.concepts.donor import Pick, Rule, pick
from expunge.concepts.patches import (
    Ask,
    Labels,
    Mode,
    Poison,
    generator_of,
    poison_images,
    poison_labels,
    poison_table,
)
from expunge.concepts.texts import poison_texts
from expunge.concepts.windows import Shades, cropped, few, images_of, represented
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.influence.space import named
from expunge.method import Session, State
from expunge.methods._study import Study, kind_of
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task, class_count, class_logits
from expunge.tensors import eval_mode, parameters

FINDS = 8  # further passes over the forget set at most: maps or columns, pictures, the first check
NEAREST = 8  # windows shown of a concept
PAGE = 10  # concepts of the class in its page, those that are pasted over first
LOOKED = 50  # images of a class whose windows are looked at for those
CUT = 20  # windows of each


class Settings(Protocol):
    """What is read of the method."""

    @property
    def mode(self) -> Mode:
        """Where patches come from and go to."""

    @property
    def labels(self) -> Labels:
        """Of poisoned samples."""

    @property
    def patches(self) -> int:
        """Concepts of each class."""

    @property
    def size(self) -> int | None:
        """Of a patch."""

    @property
    def mask(self) -> int | None:
        """Token in a word's place."""

    @property
    def donor(self) -> int | None:
        """The class that donates; None for the rule's."""

    @property
    def rule(self) -> Rule:
        """That finds the donor."""

    @property
    def shown(self) -> int:
        """Samples and windows that are kept as pictures."""

    @property
    def studies(self) -> bool:
        """Whether it has concepts."""


@contextmanager
def part_trained(model: nn.Module, layers: str | Sequence[str], task: Task, batch: Batch) -> Iterator[list[nn.Module]]:
    """Freeze all of a network but some layers inside the block; yield the modules that must stay in eval mode.

    A module stays in eval mode where none of its own parameters is trained and none of a module in it: so the running
    statistics of frozen BatchNorm do not drift. Without any frozen weight there are no such modules.

    Args:
        model: edited in place; what was frozen before stays so.
        layers: ``all``, ``last``, or names of modules, see `expunge.influence.space.named`.
        task: how to run it.
        batch: some samples.

    Yields:
        Modules to keep in eval mode.
    """
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with eval_mode(model), torch.no_grad():
        trained = set(named(model, layers, task, batch))
    whole = trained == set(parameters(model))
    for name, p in parameters(model).items():
        p.requires_grad_(name in trained)
    try:
        yield [] if whole else [m for m in model.modules() if not any(p.requires_grad for p in m.parameters())]
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(flags[name])


def share_of(
    model: nn.Module, task: Task, data: Data, label: int, runtime: Runtime, advance: Callable[[int], None]
) -> float:
    """Return the share of samples, in [0, 1], that a network takes for a class; their own labels are not needed.

    Args:
        model: run in eval mode, on the runtime's device.
        task: of exclusive classes.
        data: the samples.
        label: the class.
        runtime: batch size, precision.
        advance: told how many samples are done.
    """

    def work(batch: Batch) -> int:
        outputs = task.forward(model, batch.to(runtime.torch_device))[0]
        found: Tensor = class_logits(task, outputs).argmax(dim=1)
        advance(len(batch))
        return int((found == label).sum())

    with eval_mode(model), torch.no_grad(), runtime.autocast():
        return sum(Passes(runtime).over(data, work)) / len(data)


def poison(method: Settings, session: Session, state: State) -> Poison:
    """Choose concepts and a donor for the class to forget, and poison its samples.

    Records the donor, the concepts of both classes with pictures of the windows nearest to them, the manifest, and a
    few examples.

    Args:
        method: its settings.
        session: of the request.
        state: with the study of the concepts, where the method has one.

    Returns:
        The poisoned samples.

    Raises:
        UserError: a class that the network does not have, no donor, or samples that cannot be poisoned so.
    """
    label, targets = int(session.scenario.target), session.retain.targets().reshape(len(session.retain)).long()
    classes = _classes(session)
    if not 0 <= label < classes:
        raise UserError(f"a class from 0 to {classes - 1}", str(label), "name one of the network's classes")
    found, study = None, Study.read(state) if method.studies else None
    if study is not None:
        given: dict[str, Any] = {"rule": method.rule, "donor": method.donor, "most": method.patches}
        found = pick(study.attribution, label, present=study.present, **given)
        session.record("note", _sentence(found, study.bank))
    donor = int(method.donor if found is None else found.donor)  # type: ignore[arg-type]
    donors = _of_class(session.retain, targets, donor, label, classes)
    if staying := int((targets == label).sum()):
        text = f"{staying} samples of class {label} stay under their own label, against which the poisoned ones pull."
        session.record("note", text)
    drawn = generator_of("labels", session.seed)
    labels = poison_labels(method.labels, len(session.forget), label, donor, classes, drawn)
    own = session.retain.targets()
    shaped = labels.to(own.dtype).reshape(-1, *own.shape[1:])
    ask = _ask(method, session, donors, shaped, study, found)
    kind = kind_of(session.forget.read([0]).inputs)
    made = {"images": poison_images, "rows": poison_table, "tokens": poison_texts}[kind](ask)
    session.record("class", label)
    session.record("donor", donor)
    session.record("manifest", dict(made.manifest))
    if method.shown:
        session.record("poisoned", made.examples[: method.shown])
    if study is not None and found is not None:
        session.record("fidelity", study.facts.get("fidelity"))
        if study.facts.get("residual"):  # of the network's own attributions: a number a class
            session.record("residual", study.facts["residual"][label])
        session.record("concepts_dropped", study.facts.get("dropped", []))
        session.record("concept_pages", _pages(ask, found, study, method.shown if kind == "images" else 0))
    return made


def _classes(session: Session) -> int:
    batch = session.retain.read([0]).to(session.runtime.torch_device)
    with eval_mode(session.model), torch.no_grad():
        return class_count(session.task, session.task.forward(session.model, batch)[0])


def _sentence(found: Pick, bank: Bank) -> str:
    text = found.note(bank.names)
    return f"{text[0].upper()}{text[1:]}."


def _of_class(retain: Data, targets: Tensor, donor: int, label: int, classes: int) -> Data:
    """Return the retained samples of the class that donates.

    Raises:
        UserError: it is the class to forget or no class, or none of its samples is there.
    """
    if donor == label or not 0 <= donor < classes:
        want = f"a donor from 0 to {classes - 1} other than the class {label} to forget"
        raise UserError(want, str(donor), "choose another class to donate")
    at = torch.nonzero(targets == donor).flatten().numpy()
    if not len(at):
        raise UserError(f"retained samples of class {donor}, which donates", "none", "name another donor")
    return replace(retain, positions=retain.positions[at])


def _ask(
    method: Settings, session: Session, donors: Data, labels: Tensor, study: Study | None, found: Pick | None
) -> Ask:
    """Return what is to be poisoned: each of the class's concepts with one of the donor's, the strongest together."""
    none = torch.zeros(0, 0)
    given: dict[str, Any] = {"tap": "", "names": (), "donor_names": ()}
    given |= dict.fromkeys(("vectors", "intercepts", "donor_vectors", "donor_intercepts"), none)
    if study is not None and found is not None:
        own = found.concepts
        others = [found.donor_concepts[m % len(found.donor_concepts)] for m in range(len(own))]
        a, b = study.bank.take(own), [study.bank.take([i]) for i in others]
        given = {"tap": study.tap, "names": a.names, "vectors": a.vectors, "intercepts": a.intercepts}
        given["donor_names"] = tuple(bank.names[0] for bank in b)
        given["donor_vectors"] = torch.cat([bank.vectors for bank in b])
        given["donor_intercepts"] = torch.cat([bank.intercepts for bank in b])
    return Ask(
        model=session.model,
        task=session.task,
        forget=session.forget,
        donors=donors,
        targets=labels,
        mode=method.mode,
        size=method.size,
        mask=method.mask,
        runtime=session.runtime,
        seed=session.seed,
        **given,
    )


def _pages(ask: Ask, found: Pick, study: Study, shown: int) -> list[dict[str, Any]]:
    """Return a page for each concept of the class and of its donor: how much it adds, and the windows nearest to it."""
    rows = list[dict[str, Any]]()
    sides = (("class", found.own, found.concepts, ask.forget), ("donor", found.donor, found.donor_concepts, ask.donors))
    for role, label, concepts, data in sides:
        size = study.attribution[label].abs()
        ranked = size.argsort(descending=True, stable=True)[: int((size > 0).sum())].tolist() if role == "class" else []
        page = [*concepts, *(i for i in ranked if i not in concepts)][: max(PAGE, len(concepts))]
        bank = study.bank.take(page)
        windows = _nearest(ask, data, bank) if shown else [[] for _ in page]
        for at, i in enumerate(page):
            row = {"name": bank.names[at], "class": label, "role": role, "chosen": i in concepts}
            row |= {"attribution": float(study.attribution[label, i]), "accuracy": bank.facts[at].get("accuracy")}
            rows.append({**row, "windows": windows[at][:shown]})
    return rows


def _nearest(ask: Ask, data: Data, bank: Bank) -> list[list[str]]:
    """Return pictures of the windows with the highest score of each concept, of different images, PNG in base64."""
    some = few(data, LOOKED)
    part = replace(data, positions=data.positions[some.index.numpy()])
    found = represented(ask.model, ask.task, part, ask.tap, count=CUT, runtime=ask.runtime, seed=ask.seed)
    images = images_of(some.inputs, "windows to show")
    shades, pages = Shades.of(images), list[list[str]]()
    for row in bank.scores(found.embeddings.double()).T:
        first = dict[int, int]()
        for at in row.argsort(descending=True, stable=True).tolist():
            first.setdefault(int(found.sample[at]), at)
        pages.append([shades.png(cropped(images[i], found.place[at].tolist())) for i, at in [*first.items()][:NEAREST]])
    return pages
