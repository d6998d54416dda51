"""A file of text as documents: plain text by paragraph, tables of texts (JSON, CSV, Parquet) by row.

Documents are what training and held-out text are split by, so no document may hold nearly all of the text: one of more
than a twentieth of it is cut into lines, sentences or, where there are none, pieces of a paragraph's length.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saema_utils.errors import CorpusError, one_line, unknown_name
from saema_utils.study import EMBEDDED_CORPUS, TEXT_COLUMN

MAX_TEXT_BYTES = 2_000_000_000
FEWEST_PARAGRAPHS = 20
LARGEST_SHARE = 1 / 20  # of all text, in one document
PARAGRAPH, SHORTEST = 1000, 80  # characters of the pieces that longer documents are cut into
PLAIN = ("", ".txt", ".text", ".md", ".markdown", ".rst")
ALLOWED = (
    f"'{EMBEDDED_CORPUS}', a file (.txt, .md, .jsonl, .json, .csv, .tsv or .parquet, each also as .gz), or hub:NAME"
)
_HALF = re.compile("[\ud800-\udfff]")
# The longer mark first: UTF-32 begins as UTF-16 does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def file_documents(path: Path, column: str = TEXT_COLUMN) -> list[str]:
    """The documents of a file, in its order.

    The name tells what it is (``.jsonl``, ``.csv.gz``); the text is UTF-8, or begins with the mark of UTF-16 or UTF-32.
    Documents are paragraphs of plain text (lines, where it has next to no blank lines), or the rows of a table: its
    ``column``, or the whole row where a JSON file lists strings. Rows without text are left out.

    Raises
    ------
    CorpusError
        If the file cannot be read, is of another kind, is not text, or has no such column.
    """
    kind, data = kind_of(path), _bytes_of(path)
    if kind in PLAIN:
        if column != TEXT_COLUMN:
            raise CorpusError(f"corpus {str(path)!r} is plain text and has no column {column!r}. Leave the column out.")
        documents = _paragraphs(_decoded(data, path))
    else:
        documents = [text for text in _ROWS[kind](data, path, column) if text]
    # Half of a character, as JSON can hold it, is none that a tokenizer takes.
    documents = [_HALF.sub("\ufffd", text) for text in documents]
    found = [text.strip() for text in documents if text.strip()]
    if not found:
        raise CorpusError(f"corpus {str(path)!r} holds no text. Allowed: {ALLOWED}.")
    total = sum(map(len, found))
    return [piece for text in found for piece in _cut(text, total)]


def kind_of(path: Path) -> str:
    """What a file is by its name: the suffix, without that of its compression.

    >>> kind_of(Path("News.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind not in PLAIN and kind not in _ROWS:
        raise CorpusError(f"corpus {str(path)!r} is a {kind} file; allowed: {ALLOWED}. Convert it, or rename it.")
    return kind


# ---- bytes -------------------------------------------------------------------------------------


def _bytes_of(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CorpusError(f"cannot read corpus {str(path)!r} ({reason}). Allowed: {ALLOWED}.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise CorpusError(f"corpus {str(path)!r} is larger than {MAX_TEXT_BYTES:,} bytes. Give a part of it.")
    return data


def _decoded(data: bytes, path: Path) -> str:
    """Text of bytes that are UTF-8, or say by their mark what else they are."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    name = shlex.quote(path.name.removesuffix(".gz"))
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        claim = "UTF-8 text" if encoding == "utf-8" else f"what its mark says, {encoding.upper()}"
        raise CorpusError(
            f"corpus {str(path)!r} is not {claim}: byte {error.start} is 0x{data[error.start]:02X}; allowed: UTF-8, or "
            f"UTF-16 with its mark. Convert it, such as with: iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}"
        ) from error
    if "\0" in text:
        raise CorpusError(
            f"corpus {str(path)!r} is no text: byte {data.index(0)} is 0x00; allowed: UTF-8, or UTF-16 with its mark. "
            f"If it is UTF-16 without one, convert it with: iconv -f UTF-16LE -t UTF-8 {name} > utf8-{name}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- rows --------------------------------------------------------------------------------------


def _json_rows(data: bytes, path: Path, column: str) -> Iterator[str | None]:
    """A list of objects or strings, or one of them a line."""
    text = _decoded(data, path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if kind_of(path) == ".json" and "Extra data" not in str(error):  # lines are called .json by many
            raise CorpusError(
                f"corpus {str(path)!r} is not JSON ({one_line(error)}). Give a list of objects or strings."
            ) from error
        rows = [_json_line(line, n, path) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not isinstance(rows, list):
        rows = [rows]
    columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    if column not in columns and not all(isinstance(row, str) for row in rows):
        raise no_column(column, columns, f"corpus {str(path)!r}")
    for n, row in enumerate(rows, start=1):
        value = row.get(column) if isinstance(row, dict) else row
        if value is not None and not isinstance(value, str):
            raise _not_text(value, f"row {n}", path, columns)
        yield value


def _json_line(line: str, n: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"corpus {str(path)!r} is not JSON in line {n:,} ({one_line(error)}). Give a list, or an object or a "
            "string a line; if it is plain text, name it .txt."
        ) from error


def _separated(separator: str) -> Callable[[bytes, Path, str], list[str]]:
    def rows(data: bytes, path: Path, column: str) -> list[str]:
        import pandas as pd

        text = _decoded(data, path)
        try:
            header = text.partition("\n")[0]
            # Spreadsheets of half the world write ".csv" with semicolons.
            ways = {mark: next(csv.reader([header], delimiter=mark), []) for mark in (separator, ",", ";", "\t", "|")}
            mark = next((mark for mark, names in ways.items() if column in names), separator)
            if column not in ways[mark]:
                raise no_column(column, ways[mark], f"corpus {str(path)!r}")
            # Text as it stands: "NA" and "1.0" are words here.
            frame = pd.read_csv(io.StringIO(text), sep=mark, usecols=[column], dtype=str, keep_default_na=False)
        except (ValueError, csv.Error) as error:  # pandas' own errors are of the first kind
            raise CorpusError(f"corpus {str(path)!r} cannot be read ({one_line(error)}). Correct the file.") from error
        return frame[column].fillna("").tolist()

    return rows


def _parquet_rows(data: bytes, path: Path, column: str) -> list[str | None]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise CorpusError("Parquet files need the package pyarrow. Run: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        columns = file.schema_arrow.names
        values = file.read(columns=[column]).column(column).to_pylist() if column in columns else []
    except (arrow.ArrowException, OSError) as error:
        raise CorpusError(f"corpus {str(path)!r} is not Parquet ({one_line(error)}). Correct the file.") from error
    if column not in columns:
        raise no_column(column, columns, f"corpus {str(path)!r}")
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        raise _not_text(wrong, "a row", path, columns)
    return values


_ROWS: dict[str, Callable[[bytes, Path, str], Any]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet_rows,
}


def no_column(column: str, columns: list[str], what: str) -> CorpusError:
    """What to raise where a table of texts has no such column: it names those that exist, and the nearest."""
    if not columns:
        return CorpusError(f"{what} has no columns; allowed: objects with a column {column!r}, or strings alone.")
    return CorpusError(unknown_name(f"column of {what}", column, columns, "Choose one: --column NAME."))


def _not_text(value: object, where: str, path: Path, columns: list[str]) -> CorpusError:
    shown = ascii(value) if len(ascii(value)) <= 60 else f"{ascii(value)[:57]}..."
    return CorpusError(
        f"corpus {str(path)!r} holds {shown} (type {type(value).__name__}) in {where}; allowed: text. "
        + (f"Choose another column: {', '.join(columns)}." if columns else "Correct the file.")
    )


# ---- plain text --------------------------------------------------------------------------------


def _paragraphs(text: str) -> list[str]:
    parts = re.split(r"\n\s*\n", text)
    return parts if len(parts) >= FEWEST_PARAGRAPHS else text.split("\n")


def _cut(text: str, total: int) -> Iterator[str]:
    """A document as it is or, if it holds too much of all text, in pieces of at most a paragraph's length."""
    most = max(SHORTEST, min(PARAGRAPH, int(total * LARGEST_SHARE)))
    if len(text) <= max(SHORTEST, total * LARGEST_SHARE):
        yield text
        return
    piece = ""
    for part in _sentences(text):
        for bit in _bits(part, most):
            if piece and len(piece) + len(bit) > most:
                yield piece.strip()
                piece = ""
            piece += bit
    if piece.strip():
        yield piece.strip()


def _sentences(text: str) -> list[str]:
    """Lines and sentences; those of scripts without spaces end without one. Nothing is lost between them."""
    return [part for part in re.split(r"(?<=\n)|(?<=[.!?…]\s)|(?<=[。！？])", text) if part]


def _bits(sentence: str, most: int) -> Iterator[str]:
    """A sentence, cut at spaces if it is too long, and anywhere if it has none."""
    while len(sentence) > most:
        end = sentence.rfind(" ", 1, most) + 1 or most
        yield sentence[:end]
        sentence = sentence[end:]
    yield sentence
