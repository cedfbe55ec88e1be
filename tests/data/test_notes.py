"""Notes: what is written is read, undone, and carried over; two processes lose nothing; damage is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attlas.data.notes import NoteBook, feature_subject, head_subject, parse_subject, read_groups, write_groups
from attlas.data.notes.book import FILE
from attlas.errors import ConfigError, WorkspaceError

HEAD = head_subject("gpt2-mini", 3, 0)


def test_fields_change_one_by_one_and_are_undone(tmp_path: Path) -> None:
    book = NoteBook(tmp_path)
    assert book.read(HEAD).is_empty
    assert book.all() == []
    assert not (tmp_path / FILE).exists()  # reading makes nothing
    book.write(HEAD, label=" induction \n head ")
    book.write(HEAD, star=True, tags="circuit, Induction #circuit")
    found = NoteBook(tmp_path).read(HEAD)
    assert (found.label, found.star, found.tags) == ("induction head", True, ("circuit", "induction"))
    book.write(HEAD, star=True)  # nothing new: no row
    assert len(book.history(HEAD)) == 2
    assert book.undo(HEAD).star is False
    assert book.undo(HEAD).is_empty
    assert book.undo(HEAD).is_empty
    assert book.all() == []


def test_notes_are_listed_by_what_they_are_of(tmp_path: Path) -> None:
    book = NoteBook(tmp_path)
    book.write(feature_subject("sae-a", 7), label="seven")
    book.write(feature_subject("sae-ab", 7), label="of another")
    book.write(HEAD, comment="looks back")
    book.write(HEAD, comment="")  # emptied: nothing to list
    assert [n.label for n in book.all()] == ["of another", "seven"]
    assert [n.label for n in book.all("feature", "sae-a")] == ["seven"]
    assert book.all("head") == []


def test_json_goes_to_another_workspace_whole_or_not_at_all(tmp_path: Path) -> None:
    first, second = NoteBook(tmp_path / "a"), NoteBook(tmp_path / "b")
    first.write(HEAD, label="α → β", tags=["x"], comment="line\nline")
    first.write(feature_subject("sae-a", 1), star=True)
    assert second.from_json(first.to_json()) == 2
    assert json.loads(second.to_json())["notes"][0].keys() == json.loads(first.to_json())["notes"][0].keys()
    strip = lambda book: {(n.subject, n.label, n.star, n.tags, n.comment) for n in book.all()}  # noqa: E731
    assert strip(second) == strip(first)
    bad = json.loads(first.to_json())
    bad["notes"][1]["subject"] = "feature/../../etc"
    third = NoteBook(tmp_path / "c")
    with pytest.raises(ConfigError, match="not what a note can be about"):
        third.from_json(json.dumps(bad))
    assert third.all() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"attlas_notes": 2, "notes": []}', '{"attlas_notes": 1, "notes": 3}', "[" * 5000]
)
def test_what_is_no_file_of_notes_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file of notes"):
        NoteBook(tmp_path).from_json(text)


@pytest.mark.parametrize(
    "changes", [{"label": "x" * 201}, {"comment": "x" * 10_001}, {"colour": "red"}, {"label": 3}, {"tags": 5}]
)
def test_what_a_note_cannot_hold_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        NoteBook(tmp_path).write(HEAD, **changes)
    assert NoteBook(tmp_path).read(HEAD).is_empty


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_only_subjects_are_subjects(text: str) -> None:
    try:
        kind, of, numbers = parse_subject(text)
    except ConfigError:
        return
    assert f"{kind}/{of}/{'.'.join(text.rpartition('/')[2].split('.'))}" == text
    assert len(numbers) == {"feature": 1, "head": 2}[kind]


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from attlas.data.notes import NoteBook, feature_subject\n"
        "book = NoteBook(sys.argv[1])\n"
        "for i in range(40): book.write(feature_subject('sae-' + sys.argv[2], i), label=str(i)); "
        "book.write('head/m/0.0', comment=sys.argv[2] + str(i))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    book = NoteBook(tmp_path)
    assert len(book.all("feature")) == 80
    assert len(book.history("head/m/0.0")) == 80


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(WorkspaceError, match="cannot be read"):
        NoteBook(tmp_path).all()


def test_groups_of_a_graph_are_kept_beside_the_notes(tmp_path: Path) -> None:
    book = NoteBook(tmp_path)
    assert read_groups(book, "g") == {}
    book.write("head/m/1.2", label="x")
    assert read_groups(book, "g") == {}
    kept = write_groups(book, "g", {" early  heads ": ["a", "b", "a"], "late": ["b", "c"]})
    assert kept == read_groups(NoteBook(tmp_path), "g") == {"early heads": ["a", "b"], "late": ["c"]}
    write_groups(book, "g", {"late": ["c"]})
    assert read_groups(book, "g") == {"late": ["c"]}
    assert read_groups(book, "other") == {}
    assert book.read("head/m/1.2").label == "x"


@pytest.mark.parametrize(
    "groups",
    [
        [],
        {"a": "bc"},
        {"": ["b"]},
        {"a" * 61: ["b"]},
        {"a": [1]},
        {"a": ["b" * 201]},
        {"a": [str(i) for i in range(2001)]},
    ],
)
def test_what_is_no_group_is_refused(groups: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_groups(NoteBook(tmp_path), "g", groups)
    assert not (tmp_path / "notes.sqlite").exists()
