"""Tables from files and the Hub, held in memory: parquet, CSV, folders of images. Nothing is copied to a cache."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from datasets.table import InMemoryTable

from expunge.errors import CorruptArtefact, UserError, listing

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".pnm")
LITTER = ("thumbs.db", "desktop.ini")  # what file managers leave
_BLANK = ("NA", "N/A", "NaN", "nan", "null", "None")  # a missing value among numbers
_WHOLE, _PADDED = r"^[+-]?\d+$", r"^(\+|-?0\d)"
_REAL = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_BOOL = r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$"


def wrapped(table: pa.Table, origin: str) -> datasets.Dataset:
    """Return a table as a dataset in memory, with the features that its schema carries.

    Args:
        table: in memory.
        origin: where it is from, for the message.

    Returns:
        The dataset.

    Raises:
        CorruptArtefact: the schema describes other columns than there are.
        UserError: columns of a type that cannot be used, or two of one name.
    """
    names = table.column_names
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"columns of different names in {origin}", f"{listing(twice)} more than once", "rename one")
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # as pandas writes categories
            table = table.set_column(at, field.name, table.column(at).cast(field.type.value_type))
    mark = hashlib.sha256(f"{origin}{table.num_rows}{names}".encode()).hexdigest()[:16]
    try:
        return datasets.Dataset(InMemoryTable(table), fingerprint=mark)
    except (NotImplementedError, pa.ArrowNotImplementedError) as error:
        raise UserError(f"columns of known types in {origin}", _first(error), "drop or convert that column") from error
    except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        remedy = "write the file again without that description"
        raise CorruptArtefact(f"a schema that fits its columns in {origin}", _first(error), remedy) from error


def read_parquet(paths: Sequence[Path]) -> datasets.Dataset:
    """Read parquet files, one after another, as one table.

    Args:
        paths: files, or folders whose ``*.parquet`` are read in the order of their names.

    Returns:
        The table; features that the ``datasets`` library wrote into the schema (Image, ClassLabel) are honoured.

    Raises:
        UserError: nothing there, or files of different columns.
        CorruptArtefact: a file that is not parquet, or cut short.
    """
    files = _files(paths, ".parquet")
    parts = [_opened(file, _parquet, "parquet") for file in files]
    return wrapped(_joined(parts, files), listing(files, 2))


def read_csv(paths: Sequence[Path]) -> datasets.Dataset:
    """Read CSV files with a header line (UTF-8, commas), one after another, as one table.

    A column of whole numbers becomes int64, one of other numbers float64, one of true and false bool; all else stays
    text as written: dates, and codes such as 007 that would lose their zeros. Empty cells are missing values.

    Args:
        paths: files, or folders whose ``*.csv`` are read in the order of their names.

    Returns:
        The table.

    Raises:
        UserError: nothing there, or files of different columns.
        CorruptArtefact: rows of different length, or not text.
    """
    files = _files(paths, ".csv")
    table = _joined([_opened(file, _texts, "CSV") for file in files], files)
    columns = [_typed(column.combine_chunks()) for column in table.columns]
    return wrapped(pa.table(columns, names=table.column_names), listing(files, 2))


def read_images(folder: Path) -> datasets.Dataset:
    """Read a folder with one folder of images a class.

    Args:
        folder: holds ``class_name/x.png`` and the like; hidden files and folders are passed over.

    Returns:
        A table of ``image``, ``label`` (a ClassLabel of the sorted folder names) and ``file``, the path within the
        folder; images are opened when they are turned into tensors.

    Raises:
        UserError: no such folder, no class folders, one without images, or a file that is no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise UserError(f"a folder of images {folder}", got, "check the path")
    try:
        inside = sorted(p for p in folder.iterdir() if _wanted(p))
        classes = [p for p in inside if p.is_dir()]
        found = {c.name: sorted(p for p in c.rglob("*") if p.is_file() and _shown(p, c)) for c in classes}
    except OSError as error:
        raise UserError(f"a readable folder {folder}", error.strerror or str(error), "check its permissions") from error
    loose = [p for p in inside if p.is_file()]
    if not classes or loose:
        got = f"the file {loose[0].name}" if loose else "none"
        raise UserError(f"one folder of images a class in {folder}", got, "put each image in its class's folder")
    for name, files in found.items():
        if not files:
            raise UserError(f"images in {folder / name}", "none", "add some or remove the folder")
        others = [p for p in files if p.suffix.lower() not in IMAGES]
        if others:
            raise UserError(f"only images in {folder / name}", others[0].name, "move that file elsewhere")
    rows = [(path, at) for at, name in enumerate(found) for path in found[name]]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(found)), "file": datasets.Value("string")}
    )
    table = pa.table(
        {
            "image": pa.array([{"bytes": None, "path": str(p)} for p, _ in rows], type=features["image"].pa_type),
            "label": pa.array([at for _, at in rows], type=pa.int64()),
            "file": pa.array([p.relative_to(folder).as_posix() for p, _ in rows]),
        }
    )
    return wrapped(table.cast(features.arrow_schema), str(folder))


def read_hub(name: str, split: str, config: str | None = None) -> datasets.Dataset:
    """Load a split of a data set of the Hugging Face Hub, through that library's own cache.

    Returns:
        The table.

    Raises:
        UserError: it cannot be had, for whatever reason.
    """
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library, its server and its cache fail in a hundred ways
        remedy = "go online, or put its parquet files in a folder and name it by --data-dir or EXPUNGE_DATA"
        raise UserError(f"the data set {name} ({split}) from the Hugging Face Hub", _first(error), remedy) from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".: ")


def _wanted(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in LITTER


def _shown(path: Path, above: Path) -> bool:
    """Return whether neither a file nor a folder between it and the one above is hidden or litter."""
    return all(_wanted(Path(part)) for part in path.relative_to(above).parts)


def _files(paths: Sequence[Path], suffix: str) -> list[Path]:
    if not paths:
        raise UserError(f"at least one {suffix} file", "none", "name one, or a pattern that matches some")
    files = []
    for path in map(Path, paths):
        inside = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{suffix} files in {path}", "none there", "name the folder or file that holds them")
        files += inside
    return files


def _opened(file: Path, reader: Callable[[Path], pa.Table], kind: str) -> pa.Table:
    remedy = "restore it from a copy or write it again"
    try:
        return reader(file)
    except FileNotFoundError as error:
        raise UserError(f"a file {file}", "nothing there", "check the path") from error
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise CorruptArtefact(f"an intact {kind} file {file}", _first(error), remedy) from error
    except OSError as error:
        if error.errno is not None and error.strerror:
            raise UserError(f"a readable file {file}", error.strerror, "check its permissions") from error
        raise CorruptArtefact(f"an intact {kind} file {file}", _first(error), remedy) from error


def _joined(parts: list[pa.Table], files: list[Path]) -> pa.Table:
    first = parts[0]
    for part, file in zip(parts[1:], files[1:], strict=True):
        here, there = (t.schema.remove_metadata() for t in (part, first))
        features = [(t.schema.metadata or {}).get(b"huggingface") for t in (part, first)]
        if not here.equals(there) or features[0] != features[1]:
            differ = [f.name for f in here if f not in list(there)] or "their order or description"
            got = f"others in {file} ({listing(differ) if isinstance(differ, list) else differ})"
            raise UserError(f"the columns of {files[0]} in every file", got, "write them alike")
    return pa.concat_tables(parts)


def _parquet(file: Path) -> pa.Table:
    with pyarrow.parquet.ParquetFile(file) as opened:  # read_table would add columns from folders named key=value
        return opened.read()


def _texts(file: Path) -> pa.Table:
    """Read every cell as text: pyarrow would settle a column's type by its first block, and take 007 for 7."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines), [])
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    size = max(1 << 20, min(1 << 28, file.stat().st_size + 1))
    read = pyarrow.csv.ReadOptions(block_size=size)
    return pyarrow.csv.read_csv(file, read_options=read, parse_options=parse, convert_options=convert)


def _typed(column: Any) -> Any:
    """Return a column of texts as numbers or truth values where every cell is one and says no more than that."""
    column = pc.if_else(pc.equal(column, ""), None, column)
    some = pc.drop_null(pc.if_else(pc.is_in(column, pa.array(_BLANK)), None, column))

    def every(pattern: str) -> bool:
        return len(some) > 0 and bool(pc.all(pc.match_substring_regex(some, pattern)).as_py())

    if every(_BOOL):
        kind = pa.bool_()
    elif every(_REAL) and not pc.any(pc.match_substring_regex(some, _PADDED)).as_py():
        kind = pa.int64() if every(_WHOLE) else pa.float64()
    else:
        return column
    filled = pc.if_else(pc.is_in(column, pa.array(_BLANK)), None, column)
    try:
        return (pc.utf8_lower(filled) if pa.types.is_boolean(kind) else filled).cast(kind)
    except pa.ArrowInvalid:  # more digits than a number holds: a code
        return column
