"""Documents of one file, whatever its format: text or token ids, one row at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from attlas.data.remote.file import RemoteFile, open_binary
from attlas.errors import TextDataError, nearest

STRUCTURED = ("arrow", "parquet", "jsonl", "json", "csv", "tsv")
TEXT_COLUMN, IDS_COLUMNS, CHAT_COLUMN = "text", ("input_ids", "tokens"), "messages"
COMPRESSED = (".gz", ".zst")
PIECE = 1 << 20  # characters of a text file read at a time
_SHOWN = 12  # columns named in a message

Document = str | list[int]
Messages = list[dict[str, Any]]
File = Path | RemoteFile


@dataclass
class Skipped:
    """How many rows had no text."""

    rows: int = 0
    nulls: int = 0


def kind_of(path: File | PurePath) -> str:
    """Format by the suffix, compression aside: one of STRUCTURED, or "text"."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSED:
        suffixes.pop()
    found = suffixes[-1].lower().lstrip(".") if suffixes else ""
    found = {"ndjson": "jsonl", "feather": "arrow"}.get(found, found)
    return found if found in STRUCTURED else "text"


def read_file(path: File, column: str | None, skipped: Skipped, chat: bool = False) -> Iterator[Any]:
    """Documents of a file in order (Document; with `chat` texts and Messages); rows without any are passed over and counted
    in `skipped`.

    Args:
        path: .txt (documents divided by blank lines), .jsonl, .json, .csv, .tsv, .parquet, .arrow; text formats may be
            .gz or .zst as well.
        column: of the text (or of token ids); None takes "text", else "input_ids" or "tokens" of integers.
        chat: conversations are wanted: None takes a column "messages" of lists of messages, else "text".

    Raises:
        TextDataError: damaged, not UTF-8, no such column, or a column that holds neither text nor token ids.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return _parquet(path, column, skipped, chat)
    if kind == "arrow":
        return _arrow(path, column, skipped, chat)
    if kind in ("jsonl", "json"):
        return _records(_json_records(path), path, column, skipped, chat)
    if kind in ("csv", "tsv"):
        return _records(_csv_records(path, "," if kind == "csv" else "\t"), path, column, skipped, chat)
    if column is not None:
        raise TextDataError(f"'{path}' is plain text, without columns; leave --column out")
    return _paragraphs(path)


def _open_text(path: File) -> io.TextIOWrapper:
    """A text file, unpacked, without a byte order mark, with \\n for every kind of line end."""
    packed = path.suffix.lower()
    raw: Any
    if packed == ".gz":
        raw = gzip.open(open_binary(path))
    elif packed == ".zst":
        import pyarrow as pa

        raw = pa.input_stream(open_binary(path), compression="zstd")
    else:
        raw = open_binary(path)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None)


def _pieces(path: File) -> Iterator[str]:
    """A text file piece by piece.

    Raises:
        TextDataError: damaged or not UTF-8.
    """
    try:
        with _open_text(path) as file:
            while piece := file.read(PIECE):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise TextDataError(f"'{path}' cannot be read ({first_line(error)}); it is cut off or damaged") from error
    except UnicodeDecodeError as error:
        raise TextDataError(f"'{path}' is not UTF-8 ({error.reason}); convert it, for example with iconv") from error


def _lines(path: File) -> Iterator[str]:
    """Lines with their ends."""
    rest = ""
    for piece in _pieces(path):
        *whole, rest = (rest + piece).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _paragraphs(path: File) -> Iterator[str]:
    """What blank lines divide."""
    rest = ""
    for piece in _pieces(path):
        *whole, rest = (rest + piece).split("\n\n")
        yield from (part.strip() for part in whole)
    yield rest.strip()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- records: JSON and CSV ---------------------------------------------------------------------------------------------


def _json_records(path: File) -> Iterator[tuple[str, Any]]:
    """(place, value) of JSON values one after another (a line each, or spread over lines), or of one array.

    A value is in memory, and the piece of the file that it stands in; an array of a whole file is one value.
    """
    decoder, pieces = json.JSONDecoder(), _pieces(path)
    text, at, line, ended, more = "", 0, 1, False, 1
    while True:
        start = at
        while at < len(text) and text[at] in " \t\n":
            at += 1
        line += text.count("\n", start, at)
        value, end, problem = None, len(text), None
        if at < len(text):
            try:
                value, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                problem = error
            except RecursionError as error:
                raise TextDataError(f"'{path}' is nested too deeply to be text") from error
        # what reaches to the end of the text may go on in the file: a string, a number, an object
        cut = end == len(text) if problem is None else _may_be_cut(problem, len(text))
        if cut and not ended:
            fresh = [piece for _, piece in zip(range(more), pieces, strict=False)]
            ended, more = len(fresh) < more, 2 * more  # pieces double, so that a long value is not begun too often
            text, at = text[at:] + "".join(fresh), 0
            continue
        if problem is not None:
            where = line + problem.lineno - 1 - text.count("\n", 0, at)
            raise TextDataError(f"'{path}' line {where} is not JSON ({problem.msg})") from problem
        if at == len(text):
            return
        if isinstance(value, list):
            yield from ((f"element {i}", element) for i, element in enumerate(value))
        else:
            yield f"line {line}", value
        line, at, more = line + text.count("\n", at, end), end, 1


def _may_be_cut(error: json.JSONDecodeError, length: int) -> bool:
    """Whether an error in a piece of a file may come from its end: \\uD83D and `false` are cut six characters before."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 6


def _csv_records(path: File, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    try:
        for row in reader:
            row.pop(None, None)  # more cells than the header has
            yield f"line {reader.line_num}", {key: value or None for key, value in row.items()}
    except csv.Error as error:
        raise TextDataError(f"'{path}' line {reader.line_num} is not CSV ({error})") from error


def _records(
    records: Iterator[tuple[str, Any]], path: File, column: str | None, skipped: Skipped, chat: bool
) -> Iterator[Any]:
    chosen, first_keys = column, None
    for place, record in records:
        if isinstance(record, str) and column is None:
            record = {TEXT_COLUMN: record}
        if not isinstance(record, dict):
            raise TextDataError(f"'{path}' {place} holds no object with a column '{column or TEXT_COLUMN}'")
        first_keys = first_keys if first_keys is not None else list(record)
        if chosen is None:
            chosen = next((c for c in _columns(chat) if c in record), None)
        skipped.rows += 1
        value = record.get(chosen) if chosen is not None else None
        if value is None:
            skipped.nulls += 1
        else:
            yield _checked(value, path, str(chosen), place, chat)
        known = chosen is not None and chosen in record
        first_keys = [] if known else first_keys
    if first_keys:
        raise _no_column(path, column, first_keys)


def _columns(chat: bool) -> tuple[str, ...]:
    """Columns that are read where none is named, the first that is there."""
    return (CHAT_COLUMN, TEXT_COLUMN) if chat else (TEXT_COLUMN, *IDS_COLUMNS)


def _checked(value: Any, path: File, column: str, place: str, chat: bool) -> Document | Messages:
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, list) and value and all(isinstance(v, dict) if chat else type(v) is int for v in value):
        return value
    kind = type(value).__name__
    if isinstance(value, list):
        kind = f"a list of {type(value[0]).__name__}" if value else "an empty list"
    raise _odd_column(f"{path}' {place}:", column, kind, chat, kind == "a list of dict")


def _odd_column(place: str, column: str, kind: object, chat: bool, talks: bool) -> TextDataError:
    hint = "read conversations with --chat" if talks and not chat else "name another with --column"
    wanted = "conversations" if chat else "token ids"
    return TextDataError(f"'{place} column '{column}' holds {kind}, neither text nor {wanted}; {hint}")


def _encodable(text: str) -> str:
    """JSON may spell half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _no_column(path: File, column: str | None, names: list[str]) -> TextDataError:
    shown = ", ".join(map(str, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
    wanted = f"no column '{column or TEXT_COLUMN}'"
    hint = "" if column is None else nearest(column, map(str, names))
    return TextDataError(f"'{path}' has {wanted}, only {shown or 'none'}; name the text's with --column{hint}")


# -- columns: Parquet and Arrow ----------------------------------------------------------------------------------------


def _parquet(path: File, column: str | None, skipped: Skipped, chat: bool) -> Iterator[Any]:
    import pyarrow.parquet as pq

    try:
        # pre_buffer would fetch many row groups in one piece, up to the whole file
        with open_binary(path) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
            name = _column(file.schema_arrow, path, column, chat)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=[name]):
                    yield from _values(batch.column(0), skipped)
    except TextDataError:
        raise
    except Exception as error:  # ArrowInvalid, OSError, ArrowNotImplementedError … by what is damaged
        raise TextDataError(f"'{path}' cannot be read as Parquet ({first_line(error)}); {_mend(path)}") from error


def _arrow(path: File, column: str | None, skipped: Skipped, chat: bool) -> Iterator[Any]:
    """The stream format that `datasets` writes, or the file format (Feather)."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open(), mode="r") as source:
            whole = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
            name = _column(reader.schema, path, column, chat)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else iter(reader)
            for batch in batches:
                chosen = batch.column(reader.schema.get_field_index(name))
                chosen.validate(full=True)  # offsets of damaged files point anywhere
                yield from _values(chosen, skipped)
    except TextDataError:
        raise
    except Exception as error:
        raise TextDataError(f"'{path}' cannot be read as Arrow ({first_line(error)}); {_mend(path)}") from error


def _mend(path: File) -> str:
    return "check the network, or whether it is damaged" if isinstance(path, RemoteFile) else "copy it again"


def _column(schema: Any, path: File, column: str | None, chat: bool) -> str:
    """The column to read, of text, or of token ids or conversations."""
    name = column or next((c for c in _columns(chat) if c in schema.names), None)
    if name is None or name not in schema.names:
        raise _no_column(path, column, schema.names)
    if schema.names.count(name) > 1:
        raise TextDataError(f"'{path}' has {schema.names.count(name)} columns '{name}'; rename one")
    kind = schema.field(name).type
    if not (_is_text(kind) or (_is_messages(kind) if chat else _is_ids(kind))):
        raise _odd_column(f"{path}':", name, kind, chat, _is_messages(kind))
    return str(name)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists)


def _is_ids(kind: Any) -> bool:
    import pyarrow as pa

    return _is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def _is_messages(kind: Any) -> bool:
    import pyarrow as pa

    return _is_list(kind) and bool(pa.types.is_struct(kind.value_type))


def _values(column: Any, skipped: Skipped) -> Iterator[Any]:
    for value in column.to_pylist():
        skipped.rows += 1
        if value is None or (isinstance(value, list) and (not value or None in value)):
            skipped.nulls += 1
        else:
            yield value
