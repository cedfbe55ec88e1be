"""Tables as CSV are the workspace's tables, whole; pages as files need no network; what is not there is said."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import zlib
from pathlib import Path

import pandas as pd
import pytest
from dash import dcc
from dash import html as dash_html

from attlas.cli import main
from attlas.dashboard.app import create_app
from attlas.dashboard.as_file import show, still
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.take import tables_of
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError


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


def test_features_are_one_file_without_a_network(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.latest("features")
    assert run is not None
    table = workspace.read_table(run, "features").to_pandas().sort_values("max_act", ascending=False)
    wanted = [int(f) for f in table.feature[:3]]
    file = tmp_path / "features.html"
    where = ["--workspace", str(workspace.path), "--to", str(file)]
    assert main(["export", "html", "features", "--feature", *map(str, wanted), "--no-figures", *where]) == 0
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"data-open='(\d+)'", text) == [str(f) for f in wanted]
    assert re.findall(r"""(?:src|href|action)=["'](?!#|data:)[^"']+""", text) == []
    packed = dict(re.findall(r'data-block="(\d+)">([^<]+)<', text))
    opened = zlib.decompress(base64.b64decode(packed[str(wanted[0])])).decode()
    examples = workspace.read_table(run, "examples").to_pandas()
    first = examples[(examples.feature == wanted[0]) & (examples.stratum == "top")].sort_values("rank").iloc[0]
    plain = "".join(html.unescape(re.sub(r"<[^>]+>", "", opened)).split())
    assert "".join("".join(first.tokens).replace("\n", "↵").split()) in plain
    assert "data-plot" not in opened
    assert "figure is left out" in opened
    assert main(["export", "html", "features", "--feature", "99999", *where]) == 2
    assert main(["export", "html", "nothing", *where]) == 2
    assert main(["export", "html", "/nothing", *where]) == 2


def test_a_page_stands_in_a_notebook(workspace: Workspace) -> None:
    run = workspace.latest("features")
    assert run is not None
    view = show("feature", workspace.path, id=5, run=run.id, mode="dark")
    assert "<h1>Feature 5</h1>" in view.html
    assert 'data-mantine-color-scheme="dark"' in view.html
    assert len(view.html) < 200_000  # no Plotly
    frame = view._repr_html_()
    assert html.unescape(re.findall(r'srcdoc="([^"]*)"', frame)[0]) == view.html
    with pytest.raises(ConfigError, match="no page '/nowhere'"):
        show("nowhere", workspace.path)


def test_controls_that_need_a_server_are_left_out() -> None:
    tree = dash_html.Div(
        [
            dash_html.Button("press", id={"type": "job", "action": "cancel", "key": "k"}),
            dcc.Link("there", href="/feature?id=1", className="tag"),
            dash_html.A("out", href="https://elsewhere.example"),
            dash_html.Span("<b>", style={"--heat": "5%", "marginLeft": "2px"}, **{"data-tip": 'a"b'}),
            dcc.Graph(figure={"data": [{"y": [1, float("nan")]}]}),
        ],
        className="x",
        hidden=False,
    )
    assert still(tree) == (
        '<div class="x"><span class="tag">there</span><span>out</span><span style="--heat:5%;margin-left:2px" '
        'data-tip="a&quot;b">&lt;b&gt;</span><div class="still-plot" '
        'data-plot="{&quot;data&quot;: [{&quot;y&quot;: [1, null]}]}"></div></div>'
    )


def test_an_embedded_page_may_stand_in_a_frame_of_this_machine(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    assert "frame-ancestors 'none'" in client.get("/").headers["Content-Security-Policy"]
    policy = client.get("/feature?id=1&embed=true").headers["Content-Security-Policy"]
    assert "frame-ancestors 'self' http://localhost:*" in policy
