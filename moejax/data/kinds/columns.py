"""A column of a table: Parquet files, Arrow files, and data sets saved by Hugging Face."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config.checks import LARGEST, check
from moejax.config.errors import ConfigError
from moejax.data.documents import Document
from moejax.data.kinds.records import WHOLE, Bad, Record, keep_whole

PARQUET_MARK, ARROW_MARK = b"PAR1", b"ARROW1"
_ROWS = 64
"""Rows of a Parquet file that are in memory together."""


def import_pyarrow(what: str) -> Any:
    """The library for tables. Raises ``ConfigError`` if it is missing."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{what} is read by pyarrow, which is missing: pip install -e '.[parquet]'"
        ) from error
    return pyarrow


def read_parquet(path: str, field: str) -> Iterator[Record]:
    """The documents of a Parquet file: one column, some rows at a time."""
    pa = import_pyarrow(path)
    try:
        # Without a buffer in front of it, a whole column of a group of rows would be in memory.
        with pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            if field != WHOLE:
                _check_column(file.schema_arrow, field, path)
            number = 0
            for batch in file.iter_batches(_ROWS, use_threads=False) if field == WHOLE else ():
                yield from _keep_rows(batch, path, number)
                number += len(batch)
            if field == WHOLE:
                return
            for batch in file.iter_batches(_ROWS, columns=[field], use_threads=False):
                for value in _take_values(_find_column(batch.to_struct_array(), field)):
                    yield Record(0, 0, _make_document(value, field, f"{path}, row {number:,}"))
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read as Parquet: {_shorten(error)} It is cut off, or damaged."
        ) from error


def read_arrow(path: str, field: str) -> Iterator[Record]:
    """The documents of an Arrow file, batch by batch."""
    number = 0
    if field == WHOLE:
        for batch in _read_tables(path):
            yield from _keep_rows(batch, path, number)
            number += len(batch)
        return
    for column in _read_batches(path, field):
        for value in _take_values(column):
            yield Record(0, 0, _make_document(value, field, f"{path}, row {number:,}"))
            number += 1


class ArrowFile:
    """The documents of an Arrow file that is not compressed, where they lie: the system's memory
    for files, not the process's own.
    """

    def __init__(self, path: str, field: str, skip_bad: bool) -> None:
        self._path, self._field = path, field
        self._chunks = list(_read_batches(path, field))
        self._ends = np.cumsum([0, *map(len, self._chunks)])
        self.size = sum(column.nbytes for column in self._chunks)
        self.bad_count = sum(column.null_count for column in self._chunks)
        self.bad: list[str] = []
        self._rows: np.ndarray | None = None
        """The rows that have a value, where some have none."""
        if self.bad_count:
            valid = np.concatenate(
                [c.is_valid().to_numpy(zero_copy_only=False) for c in self._chunks]
            )
            self._rows = np.flatnonzero(valid)
            missing = int(np.flatnonzero(~valid)[0])
            self.bad = [str(_make_document(None, field, f"{path}, row {missing:,}"))]
            check(skip_bad, f"{self.bad[0]} --data.skip-bad True leaves such documents out.")

    def __reduce__(self) -> tuple:
        """For another process, which opens the file itself."""
        return ArrowFile, (self._path, self._field, True)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Document:
        row = index if self._rows is None else int(self._rows[index])
        chunk = int(np.searchsorted(self._ends, row, side="right")) - 1
        value = next(_take_values(self._chunks[chunk].slice(row - int(self._ends[chunk]), 1)))
        found = _make_document(value, self._field, f"{self._path}, row {row:,}")
        if isinstance(found, Bad):  # tokens below 0
            raise ConfigError(str(found))
        return found


def lies_open(path: str, field: str) -> bool:
    """Whether an Arrow file can be read where it lies: if it is compressed, it cannot."""
    pa = import_pyarrow(path)
    before = pa.total_allocated_bytes()
    batch = next(_read_batches(path, field), None)
    return batch is None or pa.total_allocated_bytes() == before


def is_saved_by_datasets(folder: str) -> bool:
    """Whether Hugging Face's `datasets` has saved a data set, or several, in a folder."""
    names = ("state.json", "dataset_dict.json")
    return os.path.isdir(folder) and any(os.path.isfile(os.path.join(folder, n)) for n in names)


def list_saved(folder: str, flag: str) -> list[str]:
    """The Arrow files of a data set that Hugging Face's `datasets` has saved, in their order.
    Raises ``ConfigError``, also if there are several data sets.
    """
    place = Path(folder)
    try:
        if (place / "dataset_dict.json").is_file() and not (place / "state.json").is_file():
            splits = json.loads((place / "dataset_dict.json").read_text("utf-8"))["splits"]
            named = " or ".join(str(place / split) for split in splits)
            raise ConfigError(f"{flag}: {folder} has several data sets. Write {named}.")
        said = json.loads((place / "state.json").read_text("utf-8"))
        files = [str(place / file["filename"]) for file in said["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{flag}: {folder} is damaged: {error!r}.") from error
    check(
        said.get("_indices_data_files") is None,
        f"{flag}: {folder} was saved with indices: save it anew by dataset.flatten_indices().",
    )
    missing = [file for file in files if not os.path.isfile(file)]
    check(not missing, f"{flag}: {folder} lacks {', '.join(missing[:3])}.")
    return files


def _keep_rows(batch: Any, path: str, first: int) -> Iterator[Record]:
    """The rows of a batch as they are."""
    for number, row in enumerate(batch.to_pylist(), first):
        yield Record(0, 0, keep_whole(row, f"{path}, row {number:,}"))


def _read_batches(path: str, field: str) -> Iterator[Any]:
    """The column in each batch of an Arrow file."""
    for number, batch in enumerate(_read_tables(path)):
        if not number:
            _check_column(batch.schema, field, path)
        yield _find_column(batch.to_struct_array(), field)


def _read_tables(path: str) -> Iterator[Any]:
    """The batches of an Arrow file, or of a stream in one."""
    pa = import_pyarrow(path)
    try:
        source = pa.memory_map(path, "r")
        is_file = source.read(len(ARROW_MARK)) == ARROW_MARK
        source.seek(0)
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read as Arrow: {_shorten(error)} It is cut off, or damaged."
        ) from error


def _check_column(schema: Any, field: str, path: str) -> None:
    """The column must be there, with texts or lists of tokens."""
    columns = dict(_list_columns(schema))
    names = ", ".join(columns)
    check(field in columns, f"{path} has no column `{field}` (--data.field). It has: {names}.")
    kind = columns[field]
    check(
        _is_text(kind) or _is_tokens(kind),
        f"{path}: the column `{field}` is of type {kind}, not text, nor lists of tokens. It has:"
        f" {names}.",
    )


def _list_columns(fields: Iterable[Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The columns of a schema and their types, those of inner structures with dots."""
    for field in fields:
        if str(field.type).startswith("struct"):
            yield from _list_columns(field.type, f"{before}{field.name}.")
        else:
            yield before + field.name, field.type


def _find_column(values: Any, field: str) -> Any:
    """A column of an array of structures; a dot leads into an inner one, unless a name has it."""
    columns = {one.name: inner for one, inner in zip(values.type, values.flatten(), strict=True)}
    first, _, rest = field.partition(".")
    return columns[field] if field in columns else _find_column(columns[first], rest)


def _is_text(kind: Any) -> bool:
    if str(kind).startswith("dictionary"):
        return _is_text(kind.value_type)
    return str(kind) in {"string", "large_string", "string_view", "binary", "large_binary"}


def _is_tokens(kind: Any) -> bool:
    listed = str(kind).startswith(("list", "large_list", "fixed_size_list"))
    return listed and str(kind.value_type).lstrip("u").startswith("int")


def _take_values(column: Any) -> Iterator[bytes | np.ndarray | None]:
    """The values of a column, as bytes or as integers; None where there is none."""
    if str(column.type).startswith("dictionary"):
        column = column.dictionary_decode()
    for scalar in column:
        if not scalar.is_valid:
            yield None
        elif _is_text(column.type):
            yield scalar.as_buffer().to_pybytes()
        else:
            yield scalar.values.to_numpy(zero_copy_only=False)


def _make_document(value: bytes | np.ndarray | None, field: str, place: str) -> Document | Bad:
    if value is None:
        return Bad(place, f"has nothing (null) in the column `{field}`.")
    if isinstance(value, bytes):
        return value
    if value.dtype.kind in "iu" and len(value) and (value.min() < 0 or value.max() > LARGEST):
        return Bad(place, f"has ids of tokens below 0 or above {LARGEST:,}.")
    if value.dtype.kind not in "iu":
        return Bad(place, f"has no ids of tokens (null) in places of the column `{field}`.")
    return value.astype(np.int32)


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if text.endswith(".") else f"{text}."
