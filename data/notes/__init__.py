"""What people write about features and heads: labels, stars, tags, comments, kept in the workspace."""

from __future__ import annotations

from attlas.data.notes.book import Note, NoteBook
from attlas.data.notes.subject import feature_subject, head_subject, parse_subject

__all__ = ["Note", "NoteBook", "feature_subject", "head_subject", "parse_subject"]
