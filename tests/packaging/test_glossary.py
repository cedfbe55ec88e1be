"""The glossary: each term and each column once, no dead entries, and the page written from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from attlas.analyses.registry import TABLES
from attlas.dashboard.components.basic import table
from attlas.data.glossary import document, sections, tooltip

ROOT = Path(__file__).resolve().parents[2]
TERMS = [term for terms in sections().values() for term in terms]


def test_each_term_and_each_column_stands_once():
    names = Counter(term.name.lower() for term in TERMS)
    columns = Counter(column for term in TERMS for column in term.columns)
    assert [n for n, times in (names + columns).items() if times > 1 and (names[n] > 1 or columns[n] > 1)] == []


def test_every_column_it_explains_is_a_column_of_some_table():
    known = {field.name for schemas in TABLES.values() for schema in schemas for field in schema.columns}
    assert {column for term in TERMS for column in term.columns} <= known


def test_the_page_is_the_one_the_code_writes():
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == document(), "run `make docs`"


def test_tables_in_the_browser_carry_its_sentences():
    shown = str(table([{"l0": 16.0, "colour": "red"}], {"l0": "L0", "colour": "Colour"}))
    assert tooltip("l0") in shown
    assert tooltip("colour") == ""
