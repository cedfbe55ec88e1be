"""The modules of the checkout and what each imports, read from the files without running them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("data", "kernels", "interp", "saes", "analyses", "dashboard")


@dataclass(frozen=True)
class Imports:
    """What a file imports; what only a type checker reads is left out.

    Attributes:
        path: from the checkout's root.
        top: dotted names imported at the top.
        inner: (line, dotted name) imported inside functions.
    """

    path: Path
    top: frozenset[str]
    inner: tuple[tuple[int, str], ...]

    @property
    def all(self) -> frozenset[str]:
        return self.top | {name for _, name in self.inner}


def module_name(path: Path) -> str:
    """`analyses/vit/heads.py` → attlas.analyses.vit.heads"""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "attlas" else ("attlas", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = ROOT) -> dict[str, Imports]:
    """Module → what it imports; a name imported from a package is the module of that name, where there is one."""
    files = {
        module_name(path.relative_to(root)): path.relative_to(root)
        for room in ("attlas", *ROOMS)
        for path in sorted((root / room).rglob("*.py"))
    }
    texts = {name: (root / path).read_text(encoding="utf-8") for name, path in files.items()}
    faces = {name: public for name, text in texts.items() if (public := _public(text))}
    return {name: read(text, files[name], set(files), faces) for name, text in texts.items()}


def _public(text: str) -> dict[str, str]:
    """The table `_PUBLIC` of a package that loads names when they are asked for."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_PUBLIC":
            return dict(ast.literal_eval(node.value))
    return {}


def read(text: str, path: Path, known: set[str], faces: dict[str, dict[str, str]] | None = None) -> Imports:
    """Imports of one file's text; `known` are the modules there are, `faces` name → module of packages that load late."""
    top: set[str] = set()
    inner: list[tuple[int, str]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    visit(other, inside)
                continue
            found: set[str] = set()
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                module = child.module or ""
                public = (faces or {}).get(module, {})
                for alias in child.names:
                    home = public.get(alias.name, "")
                    full = home if home.startswith("attlas.") else f"{module}.{home or alias.name}"
                    found.add(full if full in known or module == "attlas" else module)
            elif isinstance(child, ast.Import):
                found = {alias.name for alias in child.names}
            if inside:
                inner.extend((child.lineno, name) for name in sorted(found))
            else:
                top.update(found)
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(text), False)
    return Imports(path, frozenset(top), tuple(inner))


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Groups of two or more modules that reach each other (strongly connected components)."""
    reach = {name: _reach(name, graph) for name in graph}
    groups = {
        frozenset({name, *(other for other in reach[name] if name in reach[other])})
        for name in graph
        if any(name in reach[other] for other in reach[name] if other != name)
    }
    return sorted(sorted(group) for group in groups)


def _reach(name: str, graph: dict[str, frozenset[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for other in graph.get(waiting.pop(), frozenset()):
            if other in graph and other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen
