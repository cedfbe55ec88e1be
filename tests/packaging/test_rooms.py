"""The rooms depend one way, and pyproject.toml lists every package there is."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAY_IMPORT = {
    "data": set(),
    "kernels": set(),
    "interp": {"data", "kernels"},
    "saes": {"data", "kernels", "interp"},
    "analyses": {"data", "kernels", "interp", "saes"},
    "dashboard": {"data", "kernels", "interp", "saes", "analyses"},
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "attlas":
                found.update(f"attlas.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    allowed = {room, "_version", "errors", "lazy", *MAY_IMPORT[room]}
    for path in (ROOT / room).rglob("*.py"):
        names = _imports(path)
        assert not names & set(MAY_IMPORT), f"{path} imports a room without the prefix attlas"
        rooms = {name.split(".")[1] for name in names if name.startswith("attlas.")} - {"__version__"}
        assert rooms <= allowed, f"{path} reaches back to {sorted(rooms - allowed)}"


def test_every_package_is_listed() -> None:
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    there = set()
    for name, folder in mapping.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            there.add(".".join([name, *inner]))
    assert there == set(PROJECT["tool"]["setuptools"]["packages"])


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for room in [*MAY_IMPORT, "attlas"]
        for path in (ROOT / room).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 420
    }
    assert not long
