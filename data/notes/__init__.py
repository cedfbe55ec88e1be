"""Labels, stars, tags, comments on features and heads, and groups of a circuit's nodes, kept in the workspace."""

from __future__ import annotations

from attlas.data.notes.book import Note, NoteBook
from attlas.data.notes.groups import read_groups, write_groups
from attlas.data.notes.subject import feature_subject, head_subject, parse_subject, run_subject

__all__ = [
    "Note",
    "NoteBook",
    "feature_subject",
    "head_subject",
    "parse_subject",
    "read_groups",
    "run_subject",
    "write_groups",
]
