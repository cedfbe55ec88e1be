"""Every result is one shape: kinds, tables and saving."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

import attlas.analyses
import attlas.saes
from attlas.analyses.registry import TABLES
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref, Workspace
from attlas.errors import WorkspaceError

NUMBERS = TableSchema("numbers", "a number", (column("x", pa.float64(), "", "the number"),))


@dataclass(frozen=True)
class Config:
    seed: int = 3


@dataclass(frozen=True)
class Found(Result):
    kind: ClassVar[str] = "entropy"
    config: Config = Config()

    def tables(self) -> dict[str, pa.Table]:
        return {"numbers": NUMBERS.table({"x": [1.0, 2.0]})}

    def summary(self) -> dict[str, Any]:
        return {"n": 2}

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        return {"maps": {"x": np.arange(3.0)}}

    def _files(self) -> dict[str, Any]:
        return {"notes/a.txt": lambda path: path.write_text("kept")}


def _every_result() -> list[type[Result]]:
    for package in (attlas.analyses, attlas.saes):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            import_module(module.name)
    found, todo = [], [Result]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("attlas."):
                found.append(cls)
    return found


def test_saving_keeps_tables_arrays_files_settings_and_origin(tmp_path: Path):
    model, data = Ref("m", "0"), Ref("d", "1")
    run = Found().save(tmp_path / "w", model, data, parents=("sae-1",))
    workspace = Workspace(tmp_path / "w")
    assert workspace.read_table(run, "numbers").column("x").to_pylist() == [1.0, 2.0]
    assert workspace.read_arrays(run, "maps")["x"].tolist() == [0.0, 1.0, 2.0]
    assert workspace.file(run, "notes/a.txt").read_text() == "kept"
    assert (run.model, run.data, run.seed, run.parents) == (model, data, 3, ("sae-1",))
    assert run.config == {"seed": 3}
    assert run.summary == {"n": 2}


def test_the_model_must_be_known(tmp_path: Path):
    with pytest.raises(WorkspaceError, match="needs the model"):
        Found().save(tmp_path / "w")


def test_models_and_data_are_taken_as_they_are(tmp_path: Path, gpt2_mini: Any):
    assert Found().save(tmp_path / "w", gpt2_mini).model == gpt2_mini.ref


def test_every_result_has_a_kind_of_the_registry_and_saves_by_the_one_function():
    results = _every_result()
    kinds = [cls.kind for cls in results]
    twice = {kind for kind in kinds if kinds.count(kind) > 1}
    # Measured heads and a tree of them read from HeadVis; features of an autoencoder and of a Lorsa.
    assert twice == {"heads", "features"}, "two results write one kind"
    assert set(TABLES) == set(kinds)
    assert [cls.__name__ for cls in results if cls.save is not Result.save] == []
    for cls in results:
        for name in ("tables", "summary", "plot"):
            assert getattr(cls, name) is not getattr(Result, name), f"{cls.__name__} has no {name}"
        required = [
            p for p in inspect.signature(cls.plot).parameters.values() if p.default is p.empty and p.name != "self"
        ]
        assert required == [], f"{cls.__name__}.plot() cannot be called bare"
