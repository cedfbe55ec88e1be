"""Tables as CSV are the workspace's tables, whole; what is not there is said."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from attlas.dashboard.app import create_app
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.take import tables_of
from attlas.data.workspace import Workspace


def test_a_table_is_taken_whole(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    run = workspace.latest("features")
    assert run is not None
    answer = client.get(f"/table/{run.id}/features.csv")
    assert answer.mimetype == "text/csv"
    assert f'filename="{run.id}-features.csv"' in answer.headers["Content-Disposition"]
    told, kept = pd.read_csv(io.BytesIO(answer.data)), workspace.read_table(run, "features").to_pandas()
    assert list(told.columns) == list(kept.columns)
    assert told.feature.tolist() == kept.feature.tolist()
    assert told.max_act.tolist() == pytest.approx(kept.max_act.tolist(), rel=1e-6)
    examples = pd.read_csv(io.BytesIO(client.get(f"/table/{run.id}/examples.csv").data))
    assert json.loads(examples.tokens[0]) == list(workspace.read_table(run, "examples").to_pandas().tokens[0])


@pytest.mark.parametrize("path", ["/table/none/features.csv", "/table/{run}/nothing.csv", "/table/../manifest.csv"])
def test_what_is_no_table_is_said(path: str, workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    run = workspace.latest("features")
    assert client.get(path.format(run=run.id if run else "")).status_code == 404


def test_a_page_offers_the_tables_of_its_runs(workspace: Workspace) -> None:
    run = workspace.latest("features")
    assert run is not None
    found = tables_of(
        WorkspaceReader(workspace.path), {"run": run.id, "text": "x", "runs": [{"id": "y"}], "more": {"at": "none"}}
    )
    assert found == {run.id: sorted(run.tables)}
