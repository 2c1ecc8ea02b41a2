"""Fulfil what is pending, on every model that the project file names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime

from expunge import selection
from expunge.errors import UserError
from expunge.folders import Folder
from expunge.ledger import Ledger, Route, Status, utcnow
from expunge.ledger.steps import How
from expunge.project import Project
from expunge.runtime import Progress, Runtime
from expunge.selection import Selection
from expunge.service import qualified, undo
from expunge.service.archives import recorded
from expunge.service.attempt import attempt, fail, interrupted, kept, recover
from expunge.service.capacity import advise
from expunge.service.edit import edit
from expunge.service.lineage import lineage
from expunge.service.measure import families
from expunge.service.outcome import Outcome, Outcomes
from expunge.service.retrain import retrain
from expunge.service.site import Site
from expunge.service.targets import Target, target
from expunge.service.workspace import Workspace, check_files

ONE = "model"


def places(place: Project) -> dict[str, Project]:
    """Return the projects of all models that a request may touch, by name."""
    named = place.config.requests.models
    return {name: Project.open(place.folder / file, place.data_dir) for name, file in named.items()} or {ONE: place}


def process(
    place: Project,
    workspace: Workspace | None = None,
    *,
    only: Sequence[str] = (),
    how: How | None = None,
    now: Callable[[], datetime] = utcnow,
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | bool | None = None,
    actor: str | None = None,
) -> Outcomes:
    """Fulfil pending requests: end what was interrupted, then edit in batches, then retrain what is due.

    A request waits where it is held, where the policy asks for an approval that it lacks, and, by its route, for the
    next retraining. Many processes may do this at once; one at a time works on a model.

    Args:
        place: the project, whose section ``[requests]`` is the policy.
        workspace: where versions are kept; default the one that the section names.
        only: ids of requests; default all.
        how: ``edit`` for edits alone; ``retrain`` to retrain for all of them now, whatever their routes; whatever else
            waits for a retraining is fulfilled by it too.
        now: tells the time.
        runtime: device, batch size; default the project's.
        seed: of everything random.
        progress: as in `Runtime`, instead of the runtime's own.
        actor: who does this; default the user of the operating system.

    Returns:
        What came of it, by model.

    Raises:
        UserError: there is no ledger, an id is unknown, or nothing can be started on any model.
    """
    space = workspace or Workspace.of(place)
    runtime = runtime or place.runtime()
    runtime = runtime if progress is None else replace(runtime, progress=progress)
    found, problems = Outcomes(), list[UserError]()
    if runtime.count > 1:
        raise UserError("one process to fulfil requests", str(runtime.count), "start it without a launcher")
    with Ledger.open(space.folder, now=now, actor=actor) as ledger:
        wanted = {ledger.status(request).request for request in only}
        every = places(place)
        for name, own in every.items():
            site = Site(name, own, place.config.requests, space, ledger, runtime, seed, now)
            try:
                with space.locked(name):
                    _model(site, wanted, how, found)
            except UserError as error:
                problems.append(error)
                found.append(Outcome(name, (), "refused", text=str(error)))
        if problems and len(problems) == len(found):
            raise problems[0]
        with space.closing():
            _close(ledger, every, place.config.requests.route, now().astimezone().date())
    return found


def _model(site: Site, wanted: set[str], how: How | None, out: list[Outcome]) -> None:
    """Fulfil what is pending on one model; what came of it is put among the outcomes at once."""
    site.begin()
    undo.finish(site.space, site.ledger, site.name)  # a rollback that a killed process left
    out += [outcome for outcome in recover(site) if outcome.step == "deployed"]
    begun = len(out)
    undo.sweep(site.space, site.ledger, site.name, expired_only=True, now=site.now())
    _put_away(site)
    families(site.place)  # a bound on no number is told before work begins
    site.qualification = qualified.load(site.place)  # and a record of a qualification that is not there
    later = list[Status]()
    for batch in _batches(site, list(_pending(site, wanted, how, "edit", set())), out, later):
        out += _attempted(site, "edit", batch)
    failed = [site.ledger.status(request) for o in out[begun:] if o.step == "failed" for request in o.requests]
    rest = [*later, *_pending(site, wanted, how, "retrain", {s.request for s in failed})]
    if rest and wanted and how == "retrain":
        rest += _along(site, wanted)
    if failed and how is None and site.due(site.folder()) <= site.now():  # where an edit does not do, this will
        rest += [s for s in failed if (s.route or site.policy.route) == "edit-then-retrain"]
    if rest and how != "edit":
        _retrained(site, rest, how, out)


def _pending(site: Site, wanted: set[str], how: How | None, what: How, failed: set[str]) -> Iterator[Status]:
    for status in site.ledger.open_requests():
        chosen = not wanted or status.request in wanted
        if chosen and status.request not in failed and site.wants(status, how) == what:
            yield status


def _along(site: Site, wanted: set[str]) -> list[Status]:
    """Return requests besides those wanted that wait for a retraining: the next is a whole cadence after this one."""
    return list(_pending(site, set(), None, "retrain", wanted))


def _attempted(site: Site, how: How, batch: Sequence[Target]) -> list[Outcome]:
    """Make an attempt for those that nobody has put on hold or refused meanwhile."""
    statuses = [site.ledger.status(t.request.id) for t in batch]
    batch = [t for t, status in zip(batch, statuses, strict=True) if status.open and status.held is None]
    if not batch:
        return []
    _check_served(site)
    found = attempt(site, site.folder(), how, batch, edit if how == "edit" else retrain)
    if found.step != "deployed":
        return [found]
    _put_away(site)
    return [replace(found, advice=(*_cited(site, batch), *advise(site)))]


def _cited(site: Site, batch: Sequence[Target]) -> list[str]:
    """Return what a qualification says of the edit just made."""
    events = (e for e in site.ledger.history(batch[0].request.id) if e.model == site.name and e.step == "unlearned")
    told = list(events)[-1].body.get("qualification")
    return [] if told is None else [str(told["text"])]


def _check_served(site: Site) -> None:
    """Refuse to work on from a served version that was damaged, or swapped for one that holds what was forgotten.

    Raises:
        CorruptArtefact: its files are not those that were recorded of it.
    """
    version = lineage(site.ledger, site.name).served
    check_files(site.space.version(site.name, version), recorded(site.space, site.ledger, site.name, version))


def _put_away(site: Site) -> None:
    """Keep replaced versions encrypted for as long as the policy says, or not at all."""
    undo.put_away(site.space, site.ledger, site.name, site.policy.undo_days, now=site.now())


def _looked_up(site: Site, folder: Folder, status: Status) -> Target:
    return target(site.ledger.request(status.request), folder.project, site.holding(folder), folder.state)


def _batches(site: Site, pending: list[Status], found: list[Outcome], later: list[Status]) -> Iterator[list[Target]]:
    """Yield requests that are edited together; what cannot be edited is recorded and put among the outcomes.

    What an edit has nothing left to do for, and its route asks to retrain for, is put off.

    A whole class goes alone, for methods that forget one class; so does a request that failed before, lest it spoil
    another batch.
    """
    batch, samples = list[Target](), set[str]()
    for status in pending:
        folder = site.folder()
        mine = _looked_up(site, folder, status)
        if mine.absent:
            _nothing(site, status, mine, found, later)
            continue
        left = len(site.holding(folder).trained)
        problem = mine.problem or _too_large(folder.project, mine, left)
        if problem is not None:
            found.append(_refused(site, mine, problem, "edit"))
            continue
        model = status.models.get(site.name)
        failed = model is not None and model.step == "failed" and not interrupted(site, status)
        alone = mine.request.kind == "class" or failed
        most = folder.project.config.policy.largest_share * left
        if batch and (alone or len(batch) == site.policy.batch or len(samples | {*mine.ids}) > most):
            yield batch
            batch, samples = [], set()
            mine = _looked_up(site, site.folder(), status)  # the batch before may have forgotten some of it
            if mine.absent:
                _nothing(site, status, mine, found, later)
                continue
        batch, samples = [*batch, mine], samples | {*mine.ids}
        if alone:
            yield batch
            batch, samples = [], set()
    if batch:
        yield batch


def _too_large(place: Project, mine: Target, left: int) -> UserError | None:
    """Return why a request is larger than the policy allows, if it is."""
    try:
        forget = place.train.subset(mine.ids)
        selection.check_share(place, Selection(forget, None, None, len(forget), len(forget)), left)
    except UserError as error:
        return error
    return None


def _nothing(site: Site, status: Status, mine: Target, found: list[Outcome], later: list[Status]) -> None:
    """Put off what other requests forgot by an edit, where the route asks to retrain; else there is nothing of it."""
    if mine.past and (status.route or site.policy.route) != "edit":
        later.append(status)
    else:
        found.append(_absent(site, mine))


def _absent(site: Site, mine: Target) -> Outcome:
    site.remember(mine)  # it was never learned, and shall not be
    body = {"samples": 0, "forgotten_before": len(mine.past), "not_trained_on": len(mine.new)}
    site.ledger.record(mine.request.id, "absent", body, model=site.name)
    return Outcome(site.name, (mine.request.id,), "absent", text=f"{site.name} holds nothing of it")


def _refused(site: Site, mine: Target, problem: UserError, how: How) -> Outcome:
    """Record an attempt that cannot be made."""
    version = f"v{site.ledger.head().seq + 1:06d}"
    site.ledger.record(mine.request.id, "started", {"how": how, "version": version, "batch": 1}, model=site.name)
    told = {"error": type(problem).__name__}
    return fail(site, [mine.request.id], how, version, str(problem), told, kept(problem, [mine]))


def _retrained(site: Site, pending: list[Status], how: How | None, out: list[Outcome]) -> None:
    """Retrain for all requests that wait for it, where that is due or asked for; else schedule them."""
    folder, batch = site.folder(), list[Target]()
    due = site.due(folder)
    exact = site.counters(folder)["requests"] == 0  # no edit since the last training: it left out all that is gone
    for status in pending:
        mine = _looked_up(site, folder, status)
        model = status.models.get(site.name)
        if mine.absent and (exact or not mine.past) and not (model and model.done):
            out.append(_absent(site, mine))
        elif mine.fault is not None:
            out.append(_refused(site, mine, mine.fault, "retrain"))
        elif how == "retrain" or due <= site.now():
            batch.append(mine)
        elif model is None or model.step != "scheduled":
            body = {"how": "retrain", "due": due.isoformat(timespec="seconds")}
            site.ledger.record(status.request, "scheduled", body, model=site.name)
            text = f"waits for the next retraining, due on {due.date()}"
            out.append(Outcome(site.name, (status.request,), "scheduled", how="retrain", text=text))
    out += _attempted(site, "retrain", batch)


def _close(ledger: Ledger, every: dict[str, Project], route: Route, day: date) -> None:
    """Close the requests that are fulfilled on all models; the day is that of this machine, as the day due is."""
    for status in list(ledger.open_requests()):
        own, models = status.route or route, status.models
        running = any(m.running for m in models.values())
        if status.held is None and not running and every.keys() <= models.keys() and status.fulfilled(own):
            try:
                ledger.record(status.request, "closed", {"route": own, "day": day.isoformat()})
            except UserError:
                if ledger.status(status.request).seq_last == status.seq_last:
                    raise  # else somebody held it, or rolled it back, meanwhile
