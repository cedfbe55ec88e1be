"""Rooms and wings depend one way, imports stand at the top and make no circles, and no folder or file grows too large."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from .import_graph import ROOMS, ROOT, Imports, circles, modules, read

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOUNDATIONS = {"errors", "lazy", "_version"}
MAY_IMPORT = {
    "data": set(),
    "kernels": set(),
    "interp": {"data", "kernels"},
    "saes": {"data", "kernels", "interp"},
    "analyses": {"data", "kernels", "interp", "saes"},
    "dashboard": {"data", "kernels", "interp", "saes", "analyses"},
}
WINGS = {
    "common": set(),
    "stability": {"common"},
    "tasks": {"common"},
    "attention": {"common"},
    "explain": {"common"},
    "features": {"common"},
    "heads": {"common"},
    "redundancy": {"common"},
    "steering": {"common"},
    "vit": {"common"},
    "circuits": {"common", "tasks"},
    "pruning": {"common", "tasks", "features", "redundancy"},
}
KEPT = {("attlas.saes.base", "attlas.saes.formats.saelens")}
"""An arrow that runs back on purpose: `SAE.save` and `SAE.load` know the format that they write."""

MOST_FILES, MOST_LINES = 20, 400
MOST_INNER = 56
"""Imports of Attlas's own modules inside functions, so that help texts and empty pages do not wait for torch."""

LATE = {  # heavy, or optional, or what one call of many needs: may be imported where they are used
    "plotly", "transformers", "triton", "sae_lens", "onnx", "IPython", "torch", "sklearn", "scipy", "pyarrow", "PIL",
    "safetensors", "lm_eval", "huggingface_hub", "datasets", "gguf", "dash", "duckdb", "werkzeug", "jinja2", "skimage",
    "packaging", "numpy", "rich", "umap",
}  # fmt: skip
FOUND = modules()
GRAPH = {name: found.all for name, found in FOUND.items()}


def _in(folder: str) -> dict[str, Imports]:
    return {name: found for name, found in FOUND.items() if Path(folder) in found.path.parents}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    allowed = {room, *FOUNDATIONS, *MAY_IMPORT[room]}
    for found in _in(room).values():
        assert not found.all & set(MAY_IMPORT), f"{found.path} imports a room without the prefix attlas"
        rooms = {name.split(".")[1] for name in found.all if name.startswith("attlas.")}
        assert rooms <= allowed, f"{found.path} reaches back to {sorted(rooms - allowed)}"


def test_every_wing_has_its_line() -> None:
    folders = {path.parent.name for path in (ROOT / "analyses").glob("*/__init__.py")}
    assert folders == set(WINGS)
    assert {path.name for path in (ROOT / "analyses").glob("*.py")} == {"__init__.py", "registry.py", "table_docs.py"}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_from_wings_below_it(wing: str) -> None:
    for found in _in(f"analyses/{wing}").values():
        others = {name.split(".")[2] for name in found.all if name.startswith("attlas.analyses.")} - {wing}
        assert others <= WINGS[wing], f"{found.path} imports from {sorted(others - WINGS[wing])}"


def test_pages_of_one_subject_import_none_of_another() -> None:
    for found in _in("dashboard/pages").values():
        subject = found.path.parts[2]
        others = {name.split(".")[3] for name in found.all if name.startswith("attlas.dashboard.pages.")} - {subject}
        assert not others, f"{found.path} imports from the pages of {sorted(others)}"


def test_no_circles_but_the_kept_one() -> None:
    without = {name: frozenset(m for m in found if (name, m) not in KEPT) for name, found in GRAPH.items()}
    assert circles(without) == []
    for one, other in KEPT:
        assert other in GRAPH[one], f"{one} no longer imports {other}: take the line out of KEPT"
        assert any(one in group and other in group for group in circles(GRAPH))


def test_circles_are_found() -> None:
    """The same functions on a made-up tree: imports of functions count, those of type checkers do not."""
    known = {"attlas.a", "attlas.b", "attlas.c"}
    texts = {
        "attlas.a": "def f():\n    from attlas import b\n",
        "attlas.b": "import os\nfrom attlas.c import g\n",
        "attlas.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from attlas.a import f\n",
    }
    graph = {name: read(text, Path("x.py"), known).all for name, text in texts.items()}
    assert circles(graph) == []
    closed = texts | {"attlas.c": "class C:\n    def f(self):\n        import attlas.a\n"}
    graph = {name: read(text, Path("x.py"), known).all for name, text in closed.items()}
    assert circles(graph) == [["attlas.a", "attlas.b", "attlas.c"]]


def _loads(module: str) -> set[str]:
    """Everything that importing a module loads: modules of Attlas, and third parties by their first name."""
    seen, waiting, others = {module}, [module], set()
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        packages = {".".join(parts[:n]) for n in range(2, len(parts))}
        for other in (FOUND[name].top if name in FOUND else frozenset()) | packages:
            others.add(other if other.startswith("attlas") else other.split(".")[0])
            if other in FOUND and other not in seen:
                seen.add(other)
                waiting.append(other)
    return others


def test_imports_stand_at_the_top() -> None:
    """Inside a function only what is heavy, would make a light module heavy, or loads this module itself."""
    for name, found in FOUND.items():
        for line, target in found.inner:
            where = f"{found.path}:{line} imports {target} inside a function"
            if not target.startswith("attlas"):
                assert target.split(".")[0] in LATE or target in ("math", "warnings"), where
                continue
            assert target != "attlas.errors" or name == "attlas.cli", where
        for line in {line for line, _ in found.inner}:  # one name of a statement is enough
            together = [target for at, target in found.inner if at == line and target in FOUND]
            if not together or name == "attlas.cli" or any((name, target) in KEPT for target in together):
                continue
            loaded = set[str]().union(*(_loads(target) for target in together))
            heavy = (loaded - _loads(name)) & LATE
            assert heavy or name in loaded, f"{found.path}:{line}: what it imports is light, and may stand at the top"


def test_few_imports_stand_in_functions() -> None:
    inner = Counter(name for name, found in FOUND.items() for _, t in found.inner if t.startswith("attlas"))
    assert inner.total() <= MOST_INNER, inner.most_common(10)


def test_every_package_is_listed() -> None:
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    there = set()
    for name, folder in mapping.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            there.add(".".join([name, *inner]))
    assert there == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_of_code_is_a_package() -> None:
    for found in FOUND.values():
        assert (ROOT / found.path.parent / "__init__.py").is_file(), f"{found.path.parent} has no __init__.py"


def test_folders_stay_small() -> None:
    count = Counter(found.path.parent for found in FOUND.values())
    assert not {str(folder): n for folder, n in count.items() if n > MOST_FILES}


def test_files_stay_readable() -> None:
    lines = {str(f.path): len((ROOT / f.path).read_text(encoding="utf-8").splitlines()) for f in FOUND.values()}
    assert not {path: n for path, n in lines.items() if n > MOST_LINES}


def test_files_of_tests_stay_readable() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {str(path): n for path, n in lines.items() if n > MOST_LINES}


def test_names_do_not_repeat_the_folder() -> None:
    for found in FOUND.values():
        folder, name = found.path.parent.name, found.path.stem
        assert not name.startswith(f"{folder}_"), f"{found.path}: the folder says {folder} already"
        assert name != folder or folder == "attlas", f"{found.path}: a file named as its folder"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_there(room: str) -> None:
    assert _in(room)
