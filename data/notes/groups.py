"""Groups of a circuit's nodes ("supernodes"), kept beside the notes: any number of pages may write at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attlas.data.notes.book import NoteBook
from attlas.errors import ConfigError

MOST_GROUPS = 200
MOST_NODES = 2_000
MOST_NAME = 60
Groups = dict[str, list[str]]


def read_groups(book: NoteBook, graph: str) -> Groups:
    """Name → ids of nodes, of a graph; nothing where nothing was grouped.

    Raises:
        WorkspaceError: the file is damaged.
    """
    if not book.path.exists():
        return {}
    with book.open(write=False) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'groups'").fetchone():
            return {}
        row = connection.execute("SELECT content FROM groups WHERE graph = ?", [graph]).fetchone()
    found: Groups = json.loads(row["content"]) if row else {}
    return found


def write_groups(book: NoteBook, graph: str, groups: Any) -> Groups:
    """Keep the groups of a graph in place of those before; they are given back.

    Args:
        graph: what names the graph (at most 200 characters).
        groups: name → ids of nodes; a node belongs to the first group that names it.

    Raises:
        ConfigError: it is no such mapping, or too large.
        StorageError: the disk refuses.
    """
    checked = _checked(graph, groups)
    with book.open(write=True) as connection:
        connection.execute(
            "INSERT INTO groups (graph, content, written) VALUES (?, ?, ?) ON CONFLICT (graph) DO UPDATE SET "
            "content = excluded.content, written = excluded.written",
            [graph, json.dumps(checked, ensure_ascii=False), datetime.now(UTC).isoformat(timespec="seconds")],
        )
    return checked


def _checked(graph: str, groups: Any) -> Groups:
    if not isinstance(groups, Mapping) or not 0 < len(graph) <= 200:
        raise ConfigError(f"groups of a graph are an object of lists, not {str(groups)[:60]!r}")
    found: Groups = {}
    taken: set[str] = set()
    for name, ids in groups.items():
        name = " ".join(str(name).split())
        if not isinstance(ids, Sequence) or isinstance(ids, str) or not all(isinstance(id, str) for id in ids):
            raise ConfigError(f"group '{name[:60]}' is no list of nodes' ids")
        if not 0 < len(name) <= MOST_NAME or any(len(id) > 200 for id in ids):
            raise ConfigError(f"group '{name[:80]}' has no name of 1 to {MOST_NAME} characters, or ids over 200")
        found[name] = [id for id in dict.fromkeys(ids) if id not in taken]
        taken.update(ids)
    if len(found) > MOST_GROUPS or len(taken) > MOST_NODES:
        raise ConfigError(
            f"{len(found)} groups of {len(taken)} nodes: at most {MOST_GROUPS} of {MOST_NODES:,} are kept"
        )
    return found
