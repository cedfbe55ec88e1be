"""Every kind of run has a name, a page that exists, and a headline from its summary."""

from __future__ import annotations

import pytest

from attlas.analyses.registry import TABLES
from attlas.cli import VERBS
from attlas.dashboard.pages import pages
from attlas.dashboard.run_kinds import KINDS, headline
from attlas.data.workspace import Workspace


def test_every_kind_is_known() -> None:
    assert KINDS.keys() == TABLES.keys()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_leads_to_a_page_and_a_verb(name: str) -> None:
    assert KINDS[name].path in {page.path for page in pages()}
    program, verb, *_ = KINDS[name].command.split()
    assert program == "attlas"
    assert verb in VERBS


def test_headlines_say_what_the_summary_says(workspace: Workspace) -> None:
    for run in workspace.runs():
        said = headline(run)
        for key in KINDS[run.kind].says:
            value = run.summary.get(key)
            if isinstance(value, str):
                assert value in said
    evaluated = workspace.latest("sae_eval")
    assert evaluated is not None
    assert f"L0 {evaluated.summary['l0']:.3g}" in headline(evaluated)
