"""Documents of any source by its name: the shipped corpus, a file, a folder, a URL, a data set of the hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from attlas.data.remote.file import is_remote
from attlas.data.remote.folder import remote_files
from attlas.data.remote.hub import hub_files, is_hub_id
from attlas.data.text_files import Document, File, Skipped, read_file
from attlas.data.text_folders import refuse_split, split_files
from attlas.data.tokenizing import Render
from attlas.errors import TextDataError

TEXT_DIR = Path(__file__).resolve().parents[1] / "text"
EMBEDDED = {"embedded:train": "train.jsonl.gz", "embedded:val": "val.jsonl"}


def read_documents(
    source: str | Path,
    *,
    column: str | None = None,
    split: str | None = None,
    prefer: str | None = None,
    warn: bool = True,
    chat: Render | None = None,
) -> Iterator[Document]:
    """Documents of a source, in file order, as they are read: text, or token ids; arguments as in load_tokens, but for
    `chat`: what writes a conversation as text.

    Rows without text (null) are left out, with one warning (unless not to `warn`) that counts them.

    Raises:
        TextDataError: missing, empty, damaged, not UTF-8, or without the column or split; or text and token ids mixed.
    """
    files = list(enumerate(source_files(source, split, prefer)))
    yield from (document for _, document in numbered(files, source, column, warn, chat))


def numbered(
    files: Sequence[tuple[int, File]],
    source: str | Path,
    column: str | None,
    warn: bool,
    chat: Render | None = None,
) -> Iterator[tuple[int, Document]]:
    """(number of its file, document) of files of a source, in the order given."""
    skipped, kinds = Skipped(), set()
    for number, file in files:
        for found in read_file(file, None if str(source) in EMBEDDED else column, skipped, chat is not None):
            document = found if chat is None else chat(found)
            if isinstance(document, str) and not document.strip():
                continue
            kinds.add(type(document))
            if len(kinds) > 1:
                raise TextDataError(f"'{source}' holds both text and token ids; name one column with --column")
            yield number, document
    if not kinds:
        raise TextDataError(f"'{source}' holds no text" + (f" in {skipped.rows} rows" if skipped.rows else ""))
    if skipped.nulls and warn:
        warnings.warn(
            f"{skipped.nulls} of {skipped.rows} rows of '{source}' have no text and are left out", stacklevel=2
        )


def is_far(source: str | Path) -> bool:
    """Whether a source lies behind a network: a URL, or a data set of the hub."""
    return is_remote(source) or (is_hub_id(source) and not Path(source).expanduser().exists())


def source_files(source: str | Path, split: str | None, prefer: str | None) -> Sequence[File]:
    """The files that a source, or one split of it, consists of.

    Raises:
        TextDataError: it is not there, cannot be reached, or has no such split.
    """
    if is_remote(source):
        return remote_files(str(source), split, prefer)
    if str(source).startswith("embedded:"):
        if str(source) not in EMBEDDED:
            raise TextDataError(f"no embedded text '{source}'; there are {', '.join(EMBEDDED)}")
        path = TEXT_DIR / EMBEDDED[str(source)]
    else:
        path = Path(source).expanduser()
    if not path.exists():
        if is_hub_id(source):
            return hub_files(str(source), split, prefer)
        raise TextDataError(
            f"'{path}' does not exist; give a text, JSONL, CSV or Parquet file, a dataset folder, embedded:val, a URL, or a "
            "dataset of the hub as OWNER/NAME"
        )
    if path.is_dir():
        return split_files(path, split, prefer)
    refuse_split(source, split)
    return [path]
