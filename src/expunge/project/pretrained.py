"""Transformers checkpoint folders: read, prepared inputs for, and written so that ``from_pretrained`` reads them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.errors import CorruptArtefact, ExpungeError, Incompatible, UserError, listing
from expunge.extras import imported

log = logging.getLogger(__name__)

KEPT = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""Files of a checkpoint beside config and weights that are kept."""


def _transformers() -> Any:
    return imported("transformers", package="transformers", extra="hf")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' bars and advice inside the block: what it warns of is checked here."""
    logging_ = _transformers().utils.logging
    level, bars = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(level)
        if bars:
            logging_.enable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """A transformers checkpoint folder.

    Args:
        path: folder with config.json, weights, and the tokenizer's or image processor's files.
    """

    path: Path

    @classmethod
    def of(cls, name: str, folder: Path) -> Checkpoint:
        """Return the checkpoint at a folder, or of a hub name where there is no such folder.

        Args:
            name: what follows ``hf:``.
            folder: that relative paths start from.

        Returns:
            The checkpoint.

        Raises:
            UserError: neither a checkpoint folder nor a name that the hub gives.
        """
        path = folder / name
        if (path / "config.json").is_file():
            return cls(path)
        if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
            got = "none there" if not path.exists() else "a folder without config.json" if path.is_dir() else "a file"
            raise UserError(f"a transformers checkpoint folder {path}", got, "write it with save_pretrained")
        _transformers()
        try:
            return cls(Path(huggingface_hub.snapshot_download(name)))
        except Exception as error:  # the hub client raises many kinds; offline they all mean this
            got = f"no such folder, and the hub did not give it ({type(error).__name__})"
            raise UserError(f"a transformers checkpoint {name}", got, "check the path, or the network") from error

    @cached_property
    def config(self) -> Any:
        """The checkpoint's configuration.

        Raises:
            CorruptArtefact: config.json is not one.
            UserError: it asks for code of its own.
            ExpungeError: transformers is not installed.
        """
        transformers = _transformers()
        file = self.path / "config.json"
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            if "auto_map" in body:
                remedy = "name a function that builds it: [model] network = 'package.module:function'"
                raise UserError("a checkpoint of an architecture of transformers", "one with code of its own", remedy)
            return transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        except ExpungeError:
            raise
        except Exception as error:
            raise CorruptArtefact(f"a configuration in {file}", _first(error), "copy the checkpoint anew") from error

    @cached_property
    def architecture(self) -> Any:
        """The class of the network.

        Raises:
            UserError: config.json names none that transformers has.
        """
        names = self.config.architectures or []
        found = getattr(_transformers(), names[0], None) if names else None
        if found is None:
            got = repr(names[0]) if names else "none"
            raise UserError(
                f"an architecture in {self.path / 'config.json'}", got, "save the whole model, with its head"
            )
        wanted = getattr(found, "config_class", None)
        if wanted is None or not isinstance(self.config, wanted):
            what = f"a model_type that goes with {names[0]} in {self.path / 'config.json'}"
            raise UserError(what, repr(self.config.model_type), "copy the checkpoint anew")
        return found

    def blank(self) -> nn.Module:
        """Return the network with weights drawn anew from torch's random state."""
        return self.architecture(self.config)  # type: ignore[no-any-return]

    def model(self, path: Path | None = None) -> nn.Module:
        """Return the trained network in eval mode, from this folder or another of the same architecture.

        Raises:
            Incompatible: tensors are missing or shaped differently; transformers would fill them at random.
            CorruptArtefact: the weights cannot be read.
        """
        place = path or self.path
        model, found = self._read(place, self.config, self.architecture, ignore_mismatched_sizes=True)
        wrong = {
            k: sorted({_key(name) for name in found[k]}) for k in ("missing_keys", "mismatched_keys") if found.get(k)
        }
        if wrong:
            words = {"missing_keys": "missing", "mismatched_keys": "shaped differently"}
            got = "; ".join(f"{words[k]}: {listing(names)}" for k, names in wrong.items())
            raise Incompatible(f"all weights of {self.architecture.__name__} in {place}", got, "save the whole model")
        return model.eval()

    def untrained(self, config: Any, architecture: Any) -> nn.Module:
        """Return another checkpoint's network started from this one's weights; the head is drawn anew.

        Args:
            config: of the trained network.
            architecture: of the trained network.

        Returns:
            The network before training.

        Raises:
            Incompatible: the backbone does not come from this folder.
        """
        model, found = self._read(self.path, config, architecture, ignore_mismatched_sizes=True)
        prefix = f"{architecture.base_model_prefix}."
        names = [n for n in model.state_dict() if n.startswith(prefix)]
        keys = {_key(k) for k in (*found["missing_keys"], *found["mismatched_keys"])}
        lost = [n for n in names if n in keys]
        if len(lost) > 0.1 * len(names):
            got = f"{len(lost)} of {len(names)} tensors missing or shaped differently: {listing(lost)}"
            raise Incompatible(f"the backbone of {architecture.__name__} in {self.path}", got, "name its own base")
        return model

    def _read(self, place: Path, config: Any, architecture: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        try:
            with _quietly():
                model, found = architecture.from_pretrained(
                    place, config=config, local_files_only=True, output_loading_info=True, **options
                )
        except Exception as error:
            raise CorruptArtefact(
                f"weights of {architecture.__name__} in {place}", _first(error), "copy it anew"
            ) from error
        return model, dict(found)

    def save(self, room: Path, model: nn.Module) -> None:
        """Write config, weights, tokenizer and processor into a folder."""
        with _quietly():
            model.save_pretrained(room)  # type: ignore[operator]
        for pattern in KEPT:
            for file in self.path.glob(pattern):
                if file.is_file() and not (room / file.name).exists():
                    shutil.copyfile(file, room / file.name)

    def tokens(self, length: int) -> Tokens:
        """Return the function that turns texts into the network's inputs.

        Raises:
            UserError: the folder has no tokenizer, or one with more words than the network knows.
        """
        transformers, config = _transformers(), self.config
        remedy = "save the tokenizer there too: tokenizer.save_pretrained(folder)"
        try:
            with _quietly():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except Exception as error:
            raise UserError(f"a tokenizer in {self.path}", _first(error), remedy) from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # without its files it comes empty, and says nothing
            raise UserError(f"a tokenizer in {self.path}", "one that knows no words", remedy)
        known = getattr(config, "vocab_size", None)
        if known is not None and len(tokenizer) > known:
            got = f"{len(tokenizer)} in its tokenizer"
            raise UserError(f"the {known} words that the network in {self.path} knows", got, remedy)
        most = getattr(config, "max_position_embeddings", None) or length
        return Tokens(tokenizer, min(length, int(tokenizer.model_max_length), int(most)))

    def pixels(self) -> Any:
        """Return the folder's image processor.

        Raises:
            UserError: the folder has none.
        """
        transformers, _ = _transformers(), self.config
        try:
            with _quietly():
                return transformers.AutoImageProcessor.from_pretrained(self.path, local_files_only=True)
        except Exception as error:
            remedy = "save it there too: image_processor.save_pretrained(folder)"
            raise UserError(f"an image processor in {self.path}", _first(error), remedy) from error


@dataclass(frozen=True)
class Tokens:
    """Texts to padded token ids and masks.

    Args:
        tokenizer: of transformers.
        length: tokens kept of a text, or of a pair of them together.
    """

    tokenizer: Any
    length: int

    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and what else the tokenizer gives, each (N, L), of texts or pairs."""
        pad = {"padding": "max_length"} if self.tokenizer.pad_token is not None else {}
        found = self.tokenizer(texts, seconds, truncation=True, max_length=self.length, return_tensors="pt", **pad)
        return dict(found)


class Pictures:
    """Images of a table, prepared by a checkpoint's image processor when they are read.

    Args:
        table: a ``datasets.Dataset``.
        column: of images.
        processor: of transformers.
        targets: class indices (N,), or None.
        mode: of the images, ``RGB`` or ``L``.
    """

    def __init__(self, table: Any, column: str, processor: Any, targets: Tensor | None, mode: str = "RGB") -> None:
        self.table, self.column, self.processor, self.labels, self.mode = table, column, processor, targets, mode

    def __len__(self) -> int:
        return len(self.table)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Tensor, Tensor | None]:
        """Return pixel values (B, C, H, W) and targets."""
        images = [image.convert(self.mode) for image in self.table[positions.tolist()][self.column]]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return pixels, self.targets_at(positions)

    def targets_at(self, positions: NDArray[np.int64]) -> Tensor | None:
        """Return targets without decoding images."""
        return None if self.labels is None else self.labels[torch.from_numpy(positions)]


def _key(found: Any) -> str:
    return str(found[0] if isinstance(found, tuple | list) else found)


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
