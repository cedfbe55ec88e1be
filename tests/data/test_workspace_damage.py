"""Flipped bits and odd manifests: one line that names the place, never other numbers; the other runs stay readable."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Run, Workspace
from attlas.errors import WorkspaceError

MODEL = Ref("m", "0" * 16)
SCHEMA = TableSchema("t", "one row", (column("x", pa.float64(), "", ""), column("s", pa.string(), "", "")))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path / "w")
    rng = np.random.default_rng(0)
    for kind in ("job", "other"):
        with found.begin(kind, model=MODEL, data=Ref("d", "1" * 16), config={"n": 1}, seed=0, parents=("p",)) as run:
            run.table("t", SCHEMA.table({"x": rng.normal(size=300), "s": [f"token {i}" for i in range(300)]}))
            run.arrays("a", {"w": rng.normal(size=(8, 8)), "i": np.arange(9)})
            run.write("sae/cfg.json", lambda path: path.write_text('{"d_in": 8}'))
            run.summary = {"value": 1.5}
    return found


def content(workspace: Workspace, run: Run) -> list[Any]:
    """All that can be read of a run."""
    arrays = workspace.read_arrays(run, "a")
    return [
        workspace.read_table(run, "t").to_pydict(),
        {name: array.tolist() for name, array in arrays.items()},
        (workspace.checked_folder(run, "sae") / "cfg.json").read_text(),
    ]


def test_sixty_flipped_bits(workspace: Workspace) -> None:
    run = workspace.latest("job")
    assert run is not None
    before = content(workspace, run)
    rng = np.random.default_rng(1)
    names = sorted(run.files)
    refused = 0
    for _ in range(60):
        path = workspace.folder(run) / names[rng.integers(len(names))]
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(torn))
        with pytest.raises(WorkspaceError, match=f"{run.id}.*{path.name}.*is damaged") as error:
            content(workspace, run)
        assert "\n" not in str(error.value)
        refused += 1
        path.write_bytes(whole)
        assert content(workspace, run) == before
    assert refused == 60


def test_pages_carry_checksums(workspace: Workspace) -> None:
    """Readers without the manifest find flips in the data pages too."""
    run = workspace.latest("job")
    assert run is not None
    path = workspace.table_path(run, "t")
    meta = pq.ParquetFile(path).metadata.row_group(0).column(0)
    torn = bytearray(path.read_bytes())
    torn[(meta.dictionary_page_offset or meta.data_page_offset) + meta.total_compressed_size - 20] ^= 4
    path.write_bytes(bytes(torn))
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


@pytest.mark.parametrize("name", ["t.parquet", "a.safetensors", "sae/cfg.json"])
def test_lost_and_cut_files(workspace: Workspace, name: str) -> None:
    run = workspace.latest("job")
    assert run is not None
    path = workspace.folder(run) / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WorkspaceError, match="is damaged"):
        content(workspace, run)
    path.unlink()
    with pytest.raises(WorkspaceError, match=r"is missing from .*; run the job again"):
        content(workspace, run)


DEEP: Any = 1
for _ in range(50):
    DEEP = [DEEP]
ODD: list[tuple[str, Any]] = [
    *[("id", value) for value in (None, 3, "", "../../victim", "a/b", ["x"], ".hidden", "x" * 300)],
    *[("kind", value) for value in (None, 7, "", {})],
    *[("model", value) for value in (None, "gpt2", [], {"name": 1, "hash": "0"}, {"name": "m"}, 10**400)],
    *[("data", value) for value in ("d", [1], {"name": None, "hash": None}, 5)],
    *[("config", value) for value in (None, [], "n=1", 10**30)],
    *[("seed", value) for value in ("zero", 1.5, 10**400, True, [0])],
    *[("parents", value) for value in (None, "p", [1], {"p": 1}, ["../p"])],
    *[("tables", value) for value in (None, "t", [["t"]], ["../t"], ["absent"], DEEP)],
    *[("arrays", value) for value in (3, ["a", None], ["absent"])],
    *[("summary", value) for value in (None, [1], 4)],
    *[("created", value) for value in (None, 5, "yesterday", ["2026"])],
    ("attlas_version", 1),
    *[("folder", value) for value in (None, 5, "..", "runs", "other")],
    *[("files", value) for value in ([], {"t.parquet": 3}, {"t.parquet": {"bytes": "x", "sha256": "0" * 64}})],
    *[("files", {name: {"bytes": 1, "sha256": "0" * 64}}) for name in ("../x", "/etc/passwd", "a//b", "")],
]


@pytest.mark.parametrize(("key", "value"), ODD, ids=lambda v: str(v)[:20])
def test_an_odd_entry_hides_no_other(workspace: Workspace, key: str, value: Any) -> None:
    run = workspace.latest("job")
    assert run is not None
    manifest = json.loads((workspace.path / "manifest.json").read_text())
    entry = next(e for e in manifest["runs"] if e["id"] == run.id)
    entry[key] = value
    (workspace.path / "manifest.json").write_text(json.dumps(manifest))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [r.kind for r in workspace.runs()] == ["other"]
    (said,) = [str(w.message) for w in caught]
    assert key in said
    assert "\n" not in said
    assert len(said) < 500
    if key != "id":
        with pytest.raises(WorkspaceError, match=key):
            workspace.run(run.id)
    with workspace.begin("third", model=MODEL):  # a write keeps the odd entry, and its files
        pass
    assert entry in json.loads((workspace.path / "manifest.json").read_text())["runs"]
    assert (workspace.path / "runs" / run.id / "t.parquet").is_file()


@pytest.mark.parametrize("entry", [None, 1, "run", [1], {}, [[]]])
def test_an_entry_that_is_none(workspace: Workspace, entry: Any) -> None:
    manifest = json.loads((workspace.path / "manifest.json").read_text())
    manifest["runs"].append(entry)
    (workspace.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="it is left out"):
        assert len(workspace.runs()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": 1, "runs": {}}',
        '{"schema_version": 1, "runs": 3}',
        '{"schema_version": "1", "runs": []}',
        '{"schema_version": true, "runs": []}',
        '{"schema_version": 0, "runs": []}',
        '{"schema_version": 1e400, "runs": []}',
        '{"schema_version": 1' + "0" * 5000 + ', "runs": []}',
        '{"schema_version": 1' + "0" * 4000 + ', "runs": []}',
        "[" * 100_000,
        "\ufeff{",
    ],
    ids=lambda text: text[:30],
)
def test_a_manifest_that_is_none(workspace: Workspace, text: str) -> None:
    (workspace.path / "manifest.json").write_text(text)
    calls: list[Callable[[], Any]] = [lambda: Workspace(workspace.path), workspace.runs, lambda: workspace.run("x")]
    for call in calls:
        with pytest.raises(WorkspaceError, match=r"manifest\.json|schema version") as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
