"""Label-agnostic forgetting: by inputs alone the extractor is moved away from what it makes of the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from expunge.errors import Incompatible, UserError
from expunge.files import jsonable
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.methods._laf import Forgetting, How
from expunge.methods._represent import RepresentationSplit
from expunge.methods._unlabelled import Push
from expunge.methods._vae import INSIDE, Density, Fit, fitted, read
from expunge.recipe import Recipe
from expunge.references import SHEN_2024
from expunge.seeds import seed as named_seed

NOMINAL = 10_000  # retain samples for which the cost is told; a nineteenth as many to forget
KEY = "laf"


@dataclass(frozen=True, kw_only=True)
class LAF(Checked):
    """Move the extractor away from what it makes of the forget set, and keep it where it is on retain inputs.

    The network g = g_c ∘ g_e is split at ``extractor``, by default at the input of its last linear layer, so that
    e = g_e(x) ∈ R^d. Of the original's representations e^T a variational autoencoder h is fitted on all training inputs
    (in `prepare`), h_f on the forget set; m(e) = ‖e − h(e)‖². Each update reads a batch of either set and takes a step
    of Adam on each of two losses, φ(m) = exp(m/(m + 1)), u = 1 − cos(e, e^T):

        L_UE = mean_r φ(m_r) − mean_f φ(m_f),    L_RA = mean_r u − log mean_f exp(u/τ).

    h and h_f are frozen, their codes drawn anew in each step. Only weights below the split move; the classifier,
    weights that both sides share, and all BatchNorm statistics stay bit for bit. Everything runs in eval mode. Both
    recorded losses are told minus what they are where nothing has moved. No label is read: those given are ignored.

    ``profile="official"`` takes the published code's sums, sigmoid at the decoder's end, raw representations, and its
    walk that ends an epoch at the shorter set; the sigmoid cannot fit signed representations, so φ is saturated from
    the start. ``default`` differs by means, batches of one size that visit all of both sets, a linear decoder, and
    representations standardised by the mean and deviation on all training data. ``push="clamp"`` takes m itself, that
    of the forget set up to the 99th percentile of h_f's errors on the retain set. ``density="gaussian"`` takes the
    squared Mahalanobis distance of a Gaussian with independent dimensions for m, on both sides.

    Every ``every`` updates it looks, without labels, at up to 256 retain inputs held out of the steps, a tenth of them
    all, and up to 256 to forget: agreement with the original's predictions (of real targets the share of their variance
    that is kept) and mean u. Where the agreement on retain inputs is below ``keep`` at two looks in a row, or at the
    last, it ends and goes back to the last look at which it was not; of fewer than 50 held out one may be told
    otherwise. Once the curves on the forget set have moved and then, over a fifth of the updates, change by no more
    than 0.01 and than a tenth of what they have moved, it ends.

    Forgetting comes from L_RA's turning of the forget set's representations. Where forget and retain samples are drawn
    alike, as random ones are, nothing says where to turn: offer it for classes, parts of them and wrong labels first.
    Where representations of both sets point much the same way, as behind a ReLU they do, τ = 20 may turn nothing: τ = 5
    and higher rates do, at a cost on the retain set. L_RA alone starts where its gradient is zero but for rounding.

    Needs the training inputs to prepare, inputs of the forget and the retain set to unlearn. The next state has h and
    the standardisation of the retain set's representations by the new extractor, so no forgotten sample has a share.

    Passes: one over the training inputs to prepare. To unlearn one over the forget set and as many retain samples as
    the updates read; the updates, each a batch of either set, run twice forward and back; a look at a part of both
    every so many updates; one over the retain set for the next state. In counts of passes an update stands as one.

    Published settings: q = 8, lr 5e-5 and 1e-4, 20 epochs for 28×28 images; q = 16, 1e-5 and 4e-5 or 5e-5, 40 epochs
    for 32×32; τ = 20, for data removal on the former and wrong labels on the latter 5; 32 samples of each set a step.
    """

    reference: ClassVar[Reference] = SHEN_2024
    example: ClassVar[dict[str, object]] = {"updates": 6, "every": 3, "batch_size": 8, "vae_epochs": 2}
    prepared_by: ClassVar[frozenset[str] | None] = frozenset(
        {"profile", "use_ue", "density", "extractor", "latent", "beta", "vae_epochs", "vae_lr", "vae_batch"}
    )

    profile: Literal["default", "official"] = option(
        "default",
        unit="-",
        text="official has the published code's sums, sigmoid, raw representations and short epochs",
    )
    updates: int = option(
        300,
        unit="updates",
        text="pairs of batches, each a step on either loss",
        search=Search(50, 1000, log=True, whole=True),
    )
    lr_ue: float = option(
        1e-4, symbol="η_UE", unit="1", text="rate of Adam on the extractor loss", search=Search(1e-5, 1e-3, log=True)
    )
    lr_ra: float = option(
        1e-3, symbol="η_RA", unit="1", text="rate of Adam on the alignment loss", search=Search(1e-5, 3e-3, log=True)
    )
    tau: float = option(
        20.0, symbol="τ", unit="1", text="of the alignment loss, 5 or more; small ones turn retain samples too"
    )
    batch_size: int = option(32, symbol="B", unit="samples", text="of each set a step; fewer where a set has fewer")
    use_ue: bool = option(True, unit="-", text="whether the extractor loss is lowered")
    use_ra: bool = option(True, unit="-", text="whether the alignment loss is lowered")
    density: Literal["vae", "gaussian"] = option(
        "vae", unit="-", text="of the representations: an autoencoder's error, or the distance to a Gaussian"
    )
    push: Push = option("phi", unit="-", text="what bounds the extractor loss: phi, or clamp at the 99th percentile")
    extractor: str | None = option(
        None,
        unit="module",
        text="whose output is the representation, NAME:input for its input; unset, the head's input",
    )
    latent: int = option(8, symbol="q", unit="dimensions", text="of the autoencoders' code; 16 for colour images")
    beta: float = option(0.025, symbol="β", unit="1", text="weight of the autoencoders' divergence")
    vae_epochs: int = option(10, unit="passes over the representations", text="how long the autoencoders are fitted")
    vae_lr: float = option(1e-3, unit="1", text="rate of Adam on the autoencoders")
    vae_batch: int = option(32, unit="samples", text="representations a step of the autoencoders")
    keep: float = option(0.98, unit="share", text="agreement on held-out retain inputs below which it goes back")
    every: int = option(10, unit="updates", text="from one look to the next")
    early: bool | None = option(
        None, unit="-", text="whether it may stop and go back by what it sees; unset, in the default profile"
    )

    def __post_init__(self) -> None:
        self.one_of("profile", "default", "official")
        self.one_of("density", "vae", "gaussian")
        self.one_of("push", "phi", "clamp")
        self.flag("use_ue")
        self.flag("use_ra")
        for name in ("updates", "batch_size", "latent", "vae_epochs", "vae_batch", "every"):
            self.count(name, 1)
        self.positive("lr_ue", "lr_ra", "tau", "vae_lr", "keep")
        self.positive("beta", zero=True)
        if self.early is not None:
            self.flag("early")
        if self.tau < 5:
            remedy = "raise it: below, retain samples are turned as well"
            raise UserError(f"{self.name}.tau of 5 or more", f"{self.tau:g}", remedy)
        if self.keep > 1:
            raise UserError(f"{self.name}.keep of at most 1", f"{self.keep:g}", "give a share")
        if not (self.use_ue or self.use_ra):
            raise UserError(f"{self.name}.use_ue or {self.name}.use_ra", "neither", "set one of them, or nothing moves")
        if self.profile == "official" and self.push != "phi":
            raise UserError(f"{self.name}.push phi in the official profile", repr(self.push), "set profile to default")
        if self.extractor is not None and (not isinstance(self.extractor, str) or not self.extractor):
            raise UserError(
                f"{self.name}.extractor as a module's name", repr(self.extractor), "leave it unset, or name one"
            )

    @property
    def prepares(self) -> Needs:
        """The training inputs, where the extractor loss needs their density."""
        return Needs(train=See.INPUTS) if self.use_ue else Needs()

    @property
    def unlearns(self) -> Needs:
        """Inputs to forget and inputs to keep."""
        return Needs(forget=See.INPUTS, retain=See.INPUTS)

    @property
    def stops(self) -> bool:
        """Whether it may stop and go back by what it sees."""
        return self.profile == "default" if self.early is None else self.early

    @property
    def fit(self) -> Fit:
        """How densities are fitted."""
        official = self.profile == "official"
        return Fit(
            kind=self.density,
            q=self.latent,
            beta=self.beta,
            epochs=self.vae_epochs,
            lr=self.vae_lr,
            size=self.vae_batch,
            out="sigmoid" if official else "linear",
            inside=INSIDE if official else 0.0,
            standardise=not official,
        )

    @property
    def how(self) -> How:
        """How the extractor is to forget."""
        return How(
            updates=self.updates,
            lr_ue=self.lr_ue if self.use_ue else None,
            lr_ra=self.lr_ra if self.use_ra else None,
            tau=self.tau,
            size=self.batch_size,
            push=self.push,
            official=self.profile == "official",
            least=self.keep if self.stops else None,
            every=self.every,
            fit=self.fit,
        )

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return at most how often each set is read: an update counts as a pass over both, so does each look."""
        if phase == "prepare":
            return {"train": 1.0} if self.use_ue else {}
        looks = -(-self.updates // self.every) + 1
        both = float(2 + self.updates + looks)
        return {"forget": both, "retain": both + 1.0 + float(self.use_ue)}

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return what the updates cost, each two steps on a batch of either set, of 10,000 retain samples."""
        if phase == "prepare":
            return self.passes(phase, recipe)
        steps = (self.use_ue + self.use_ra) * self.updates * self.batch_size / NOMINAL
        return {"forget": 19 * steps + 1, "retain": steps + 1.0}

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Fit the density of all training inputs' representations."""
        if not self.use_ue:
            return session.model, State()
        split = self._split(session, session.train)
        said = split.said(session.model, session.task, session.train, session.runtime)
        rows, seed = said.e.to(session.runtime.torch_device), named_seed(KEY, "all", session.seed)

        def fitting(loss: float, step: int) -> None:
            session.record("vae_loss", loss, step=step)

        return session.model, self._state(fitted(rows, self.fit, seed, record=fitting), split.tap)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Move the extractor, and leave the density of what the retain set is represented by now."""
        split = self._split(session, session.forget)
        density = self._prepared(state, split.tap) if self.use_ue else None
        session.record("split", split.tap)
        course = Forgetting(session, self.how, split, density, self.name)
        course.run()
        self.repair(session, course)
        course.finished()
        left = self._state(course.refitted(), split.tap) if self.use_ue else State()
        session.record("part_seconds", course.seconds)
        return session.model, left

    def repair(self, session: Session, course: Forgetting) -> None:
        """Do nothing more; `laf_r` trains on with some labels here."""

    def _split(self, session: Session, data: Any) -> RepresentationSplit:
        return RepresentationSplit.of(
            session.model, session.task, data, session.runtime, self.extractor, method=self.name
        )

    def _state(self, density: Density, tap: str) -> State:
        return State(density.tensors(), {KEY: {"tap": tap, **jsonable(self._decides)}})

    @property
    def _decides(self) -> dict[str, Any]:
        """Settings that the density depends on; the split is told by its tap."""
        return {k: v for k, v in self.preparation().items() if k not in ("name", "extractor")}

    def _prepared(self, state: State, tap: str) -> Density:
        """Return the density of the state.

        Raises:
            Incompatible: it was prepared with other settings, or at another split.
        """
        found, own = state.meta.get(KEY), {"tap": tap, **jsonable(self._decides)}
        if not isinstance(found, dict):
            raise Incompatible(f"a state prepared by {self.name} with use_ue", "one without a density", "prepare anew")
        odd = [name for name in own if found.get(name) != own[name]]
        if odd:
            want, got = (", ".join(f"{n}={said.get(n)!r}" for n in odd) for said in (own, found))
            want, got = f"a state of {self.name} prepared with {want}", f"one prepared with {got}"
            raise Incompatible(want, got, "prepare anew, or ask as prepared")
        return read(state.tensors, self.fit)


METHOD = LAF
