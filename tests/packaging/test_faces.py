"""Public faces: every name is there, is loaded only when asked for, and no module has the name of a function."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from .import_graph import ROOT, modules

FACES = [name for name, found in modules().items() if "attlas.lazy" in found.top]


def test_every_wing_has_a_face() -> None:
    wings = {f"attlas.analyses.{path.parent.name}" for path in (ROOT / "analyses").glob("*/__init__.py")}
    assert wings - set(FACES) == {"attlas.analyses.common"}


@pytest.mark.parametrize("package", FACES)
def test_a_face_hands_out_what_it_lists(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(module._PUBLIC) == dir(module)
    for name in module.__all__:
        found = getattr(module, name)
        home = module._PUBLIC[name]
        home = home if home.startswith("attlas.") else f"{package}.{home}"
        assert found is getattr(importlib.import_module(home), name)
        if getattr(found, "__module__", "").startswith("attlas"):
            assert found.__module__ == home, f"{package}.{name} comes by a detour over {home}"
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind


@pytest.mark.parametrize("package", FACES)
def test_no_module_bears_the_name_of_a_function(package: str) -> None:
    module = importlib.import_module(package)
    folder = Path(module.__file__ or "").parent
    files = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert not files & set(module.__all__)


def test_naming_a_face_loads_nothing_heavy() -> None:
    code = f"""
import importlib, sys
for name in {FACES!r}:
    importlib.import_module(name)
heavy = {{"torch", "transformers", "plotly", "sklearn", "dash"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
