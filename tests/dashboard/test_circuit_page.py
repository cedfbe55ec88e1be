"""The circuit page's JSON against the analyses called directly; bad input said in one line; saved runs against their tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from attlas.analyses.circuits.ablation import ablate
from attlas.analyses.circuits.frozen import FrozenPass, parse_part
from attlas.analyses.circuits.qk import QKConfig, qk_attribution
from attlas.analyses.circuits.terms import FeatureTarget, LogitTarget, direct_attribution
from attlas.analyses.circuits.tracing import TraceConfig, trace
from attlas.dashboard.app import create_app
from attlas.dashboard.pages.circuit import page as circuit
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import load_sae

TEXT = " the white whale, and the white"
Get = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def get(circuit_workspace: Workspace) -> Get:
    client = create_app(circuit_workspace.path).server.test_client()

    def ask(**params: Any) -> dict[str, Any]:
        answer = client.get("/api/circuit?" + urlencode({"wait": 60, "text": TEXT, **params}))
        assert answer.status_code == 200
        found = json.loads(answer.data)
        shown = circuit.view(found, theme("dark"))  # whatever the data, it can be drawn
        assert "Circuit" in json.dumps(shown, default=lambda component: component.to_plotly_json())
        return found

    return ask


@pytest.fixture(scope="module")
def frozen(circuit_workspace: Workspace, gpt2_mini: HookedModel) -> FrozenPass:
    saes = [load_sae(str(circuit_workspace.folder(run))) for run in circuit_workspace.runs("sae")]
    return FrozenPass(gpt2_mini, gpt2_mini.to_tokens(TEXT), {sae.cfg.hook_name: sae for sae in saes})


@pytest.fixture(scope="module")
def target(frozen: FrozenPass) -> LogitTarget:
    first, second = frozen.logits[-1].topk(2).indices.tolist()
    return LogitTarget((first,), (second,))


def test_tokens_and_features(get: Get, frozen: FrozenPass) -> None:
    found = get()["prompt"]
    assert found["tokens"] == frozen.str_tokens()
    assert [n["probability"] for n in found["next"]] == pytest.approx(
        frozen.logits[-1].softmax(-1).topk(10).values.tolist(), rel=1e-5
    )
    assert [layer["layer"] for layer in found["layers"]] == [2, 3]
    for layer in found["layers"]:
        shown = [(r["position"], r["feature"]) for r in layer["features"]]
        assert shown == [(p, f) for p, row in enumerate(frozen.strongest(layer["layer"], 8)) for f, _ in row]


def test_a_feature_and_its_terms(get: Get, frozen: FrozenPass) -> None:
    last = frozen.n_positions - 1
    feature, amount = frozen.strongest(3, 1)[last][0]
    found = get(trail=f"3/{feature}@{last}")["feature"]
    assert found["value"] == pytest.approx(amount, rel=1e-5)
    assert sum(term["weight"] for term in found["terms"]) == pytest.approx(found["value"], rel=1e-4)
    dfa = direct_attribution(frozen, 3, feature, last)
    assert [r["dfa"] for r in found["dfa"]] == pytest.approx(dfa.flatten().tolist(), abs=1e-6)


def test_a_score_is_the_sum_of_its_pairs(get: Get, frozen: FrozenPass, gpt2_mini: HookedModel) -> None:
    found = get(view="attention", layer=3, head=2, dest=5, src=1)["score"]
    direct = qk_attribution(gpt2_mini, frozen.tokens, QKConfig(3, 2, 5, 1), frozen=frozen)
    assert found["score"] == pytest.approx(direct.score, abs=1e-5)
    assert sum(row["score"] for row in found["pairs"]) == pytest.approx(found["score"], rel=1e-4)
    assert sum(row["score"] for row in found["sides"]["src"]) == pytest.approx(found["score"], rel=1e-4)
    pattern = {(r["dest"], r["src"]): r["attention"] for r in found["pattern"]}
    assert sum(v for (dest, _), v in pattern.items() if dest == 5) == pytest.approx(1, abs=1e-5)
    looked_at = get(view="attention", layer=3, head=2, dest=5)["score"]["src"]
    assert pattern[5, looked_at] == max(pattern[5, s] for s in range(1, 6))


@pytest.mark.parametrize("of", ["logits", "feature"])
def test_a_graph_is_that_of_the_trace(
    of: str, get: Get, frozen: FrozenPass, target: Any, gpt2_mini: HookedModel
) -> None:
    last = frozen.n_positions - 1
    feature = frozen.strongest(3, 1)[last][0][0]
    found = get(view="graph", threshold="0.05", of=of, trail=f"3/{feature}@{last}", keys="no")["graph"]
    config = TraceConfig(threshold=0.05, top_n=10, max_nodes=120)
    what = FeatureTarget(3, feature, last) if of == "feature" else target
    direct = trace(gpt2_mini, frozen.tokens, what, config, frozen=frozen)
    assert [(n["id"], n["influence"]) for n in found["nodes"]] == [
        (n.id, pytest.approx(n.influence, abs=1e-6)) for n in direct.nodes
    ]
    into = sum(e["weight"] for e in found["edges"] if e["target"] == found["target"])
    assert into == pytest.approx(found["nodes"][0]["value"], rel=1e-4)
    assert any(n["kind"] == "remainder" and n["n_terms"] > 0 for n in found["nodes"])


def test_what_is_taken_out_changes_the_answer(get: Get, frozen: FrozenPass, target: LogitTarget) -> None:
    last = frozen.n_positions - 1
    ids = [f"3/{frozen.strongest(3, 1)[last][0][0]}@{last}", f"3.0@{last}"]
    found = get(ablate=",".join(ids))["ablation"]
    direct = ablate(frozen, [parse_part(id) for id in ids], target).summary()
    for name in ("before", "after", "kl"):
        assert found[name] == pytest.approx(direct[name], abs=1e-5)
    assert abs(found["change"]) > 1e-3


def test_saved_runs_are_drawn_from_their_tables(get: Get, circuit_workspace: Workspace) -> None:
    kinds = set()
    for run in circuit_workspace.runs():
        if run.kind == "sae":
            continue
        saved = get(view="saved", run=run.id)["saved"]
        kinds.add(saved["kind"])
        for name in run.tables:
            assert len(saved["tables"][name]) == circuit_workspace.read_table(run, name).num_rows
        if run.kind == "circuit":
            ids = circuit_workspace.read_table(run, "circuit_nodes").column("id").to_pylist()
            assert [n["id"] for n in saved["graph"]["nodes"]] == ids
    assert kinds == {"patching", "dla", "qk", "circuit", "faithfulness"}
    listed = get(view="saved")["saved"]
    assert listed["run"] == listed["runs"][0]["run"]


@pytest.mark.parametrize(
    ("params", "job", "message"),
    [
        ({"text": "a " * 200}, "prompt", "at most 96"),
        ({"trail": "3/99999@1"}, "feature", "out of range"),
        ({"trail": "3/5@99"}, "feature", "the prompt has"),
        ({"trail": "1/5@2"}, "feature", "no autoencoder"),
        ({"view": "attention", "layer": 9}, "score", "0–3"),
        ({"view": "attention", "head": 9}, "score", "0–5"),
        ({"view": "attention", "dest": 1, "src": 3}, "score", "cannot see"),
        ({"ablate": "nonsense"}, "ablation", "names no part"),
        ({"ablate": "3.9@1"}, "ablation", "0–5"),
        ({"right": 10**8}, "prompt", "out of range"),
    ],
)
def test_bad_input_is_one_line(params: dict[str, Any], job: str, message: str, get: Get) -> None:
    found = get(**params)["jobs"][job]
    assert found["state"] == "failed"
    assert message in found["error"]
    assert "\n" not in found["error"]


def test_without_autoencoders_it_is_told_in_heads(get: Get, tmp_path: Path) -> None:
    found = get(sae2="none", sae3="none", view="graph", trail="x>3/1")
    assert found["prompt"]["layers"] == []
    assert found["trail"] == []
    assert {n["kind"] for n in found["graph"]["nodes"]} >= {"head", "mlp", "remainder"}
    reader = WorkspaceReader(tmp_path / "none")
    text = json.dumps(
        circuit.view(clean(circuit.data(reader, {})), theme("light")), default=lambda c: c.to_plotly_json()
    )
    assert "attlas train" in text


def test_a_feature_of_the_graph_has_its_name(circuit_workspace: Workspace, tmp_path: Path) -> None:
    """A person's label, else the token it fires on most; nothing without a run that interprets it."""
    from attlas.dashboard.notes import subject_of
    from attlas.dashboard.pages.circuit.names import feature_names
    from attlas.data.notes import NoteBook

    reader = WorkspaceReader(circuit_workspace.path)
    run = next(iter(reader.runs("features")), None)
    if run is None:
        assert feature_names(reader, {3: "gone"}, [(3, 1)]) == {}
        return
    table = circuit_workspace.read_table(run, "features").to_pylist()
    row = next(r for r in table if r["top_tokens"])
    subject = subject_of(run, row["feature"], {r.id for r in reader.runs("sae")})
    found = feature_names(reader, {3: run.id}, [(3, row["feature"])])
    assert list(found) == [f"3/{row['feature']}"]
    assert found[f"3/{row['feature']}"].startswith("“")
    NoteBook(circuit_workspace.path).write(subject, label="after a comma")
    assert feature_names(reader, {3: run.id}, [(3, row["feature"])]) == {f"3/{row['feature']}": "after a comma"}
    NoteBook(circuit_workspace.path).undo(subject)


def test_groups_are_sent_to_the_workspace(circuit_workspace: Workspace) -> None:
    client = create_app(circuit_workspace.path).server.test_client()
    found = json.loads(client.get("/api/circuit?" + urlencode({"wait": 60, "text": TEXT, "view": "graph"})).data)[
        "graph"
    ]
    groups = {"two": [n["id"] for n in found["nodes"][1:3]]}
    address = f"/circuit-groups?graph={found['key']}"
    assert client.post(address, json=groups).status_code == 200
    again = json.loads(
        client.get("/api/circuit?" + urlencode({"wait": 60, "text": TEXT, "view": "graph", "threshold": "0.05"})).data
    )
    assert again["graph"]["groups"] == groups
    assert "no name" in client.post(address, json={"": ["a"]}).json["error"]
    assert client.post(address, json={}, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert client.post(address, json={}).status_code == 200
