"""`attlas doctor`: is this installation whole?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from attlas.cli.common import Output
from attlas.data.disk import check_writable
from attlas.data.files import cache_dir, sha256_file
from attlas.data.models_catalog import EMBEDDED_DIR, catalog
from attlas.errors import AttlasError

MEND = ("MISSING", "UNFIT", "DAMAGED", "FAILED", "NOT WRITABLE")
EXTRAS = {
    "models": "attlas models get",
    "triton": "fused GPU kernels",
    "lm-eval": "attlas prune --lm-eval",
    "formats": "comparing with other libraries' SAE files",
    "notebooks": "notebooks and pictures of plots",
    "tracking": "TensorBoard and Weights & Biases",
    "maps": "attlas heads project --map umap",
}
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Args:
    """Check all that a job needs: versions of every dependency, the embedded models and text, a forward pass, the cache,
    and the workspace with every file in it. Ends with status 1 when something is to be mended first.

    Example: attlas doctor
    """

    workspace: Annotated[Path, tyro.conf.arg(aliases=["-w"])] = Path("workspace")
    """Workspace folder to check, where there is one; it must be writable, or its parent."""
    json: bool = False
    """Print the result as JSON on stdout."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Look, and report a row for each check."""
    rows: list[Row] = [("python", "ok", platform.python_version())]
    for check in (_dependencies, _device, _embedded, _fetched, _forward, _cache):
        rows += check()
    rows += _workspace(args.workspace, out)
    out.table("attlas doctor", ["what", "state", "detail"], rows)
    broken = [name for name, state, _ in rows if state in MEND]
    out.say("everything needed is here" if not broken else f"mend first: {', '.join(broken)}")
    return {
        "ok": not broken,
        "checks": [{"what": a, "state": b, "detail": c} for a, b, c in rows],
        "cwd": str(Path.cwd()),
    }


def STATUS(result: dict[str, Any]) -> int:
    """1 when something is to be mended."""
    return 0 if result["ok"] else 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _dependencies() -> Iterator[Row]:
    """Every requirement of pyproject.toml, as the installed metadata gives them, against what is installed."""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(line) for line in importlib.metadata.requires("attlas") or []]
    except ImportError:
        yield "packaging", "MISSING", "pip install packaging"
        return
    except importlib.metadata.PackageNotFoundError:
        yield "attlas", "MISSING", "not installed; pip install it, so that its requirements are known"
        return
    for need in wanted:
        extra = next((name for name in EXTRAS if need.marker and need.marker.evaluate({"extra": name})), None)
        core = need.marker is None or need.marker.evaluate({"extra": ""})
        if not core and extra is None:
            continue  # for tests
        version = _version(need.name)
        asked = f"{need.name}{need.specifier}"
        if version is None:
            yield (
                need.name,
                *(("MISSING", f"pip install '{asked}'") if core else ("absent", f"only for {EXTRAS[extra or '']}")),
            )
        elif not need.specifier.contains(version, prereleases=True):
            yield need.name, "UNFIT" if core else "unfit", f"{version}; pip install '{asked}'"
        else:
            yield need.name, "ok", version


def _device() -> Iterator[Row]:
    try:
        import torch
    except Exception as error:
        yield "torch imports", "FAILED", _line(error)
        return
    cuda = torch.cuda.is_available()
    yield "device", "ok", torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    kernels = "triton" if cuda and _version("triton") else "torch"
    yield "kernels", "ok", os.environ.get("ATTLAS_KERNELS", kernels)


def _embedded() -> Iterator[Row]:
    """The embedded models and text against their SHA-256 sums."""
    try:
        lines = (EMBEDDED_DIR / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        yield "embedded models", "MISSING", f"'{EMBEDDED_DIR}' has no SHA256SUMS; install attlas again"
        return
    groups: dict[str, list[tuple[Path, str]]] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        group = "text" if name.startswith("text/") else name.split("/")[1]
        groups.setdefault(group, []).append((EMBEDDED_DIR.parent / name, digest))
    for group, files in groups.items():
        odd = [p for p, digest in files if not p.is_file() or sha256_file(p) != digest]
        told = f"{odd[0]} is missing or damaged; install attlas again" if odd else f"{len(files)} files whole"
        yield group, "DAMAGED" if odd else "ok", told


def _fetched() -> Iterator[Row]:
    for card in catalog():
        if not card.package:
            continue
        if not card.present:
            yield card.name, "absent", f"attlas models get {card.name}"
            continue
        try:
            from attlas.data.models_fetch import verify_checksums

            verify_checksums(card.path)
            yield card.name, "ok", str(card.path)
        except (AttlasError, ImportError, OSError, ValueError, KeyError) as error:
            yield card.name, "DAMAGED", _line(error)


def _forward() -> Iterator[Row]:
    """A sentence through gpt2-mini: the logits are finite and the loss is below a guess's."""
    try:
        import math

        import torch

        from attlas.interp import load_model

        model = load_model("gpt2-mini", device="cpu")
        tokens = model.to_tokens("Once upon a time there was a little girl who lived in a house near the woods.")
        with torch.no_grad():
            logits = model(tokens)
        logits = getattr(logits, "logits", logits)[0, :-1].float()
        loss = float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))
        fine = math.isfinite(loss) and loss < math.log(logits.shape[-1])
        yield "forward pass", "ok" if fine else "FAILED", f"gpt2-mini, loss {loss:.2f} nats"
    except Exception as error:
        yield "forward pass", "FAILED", _line(error)


def _cache() -> Iterator[Row]:
    yield _place("cache", cache_dir())


def _workspace(path: Path, out: Output) -> list[Row]:
    """The folder can be written, and every file of every run is the one that was written."""
    import warnings

    from attlas.data.workspace import Workspace

    rows = [_place("workspace", path)]
    odd: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workspace = Workspace(path)
            runs = workspace.runs()
        odd += [str(w.message) for w in caught if w.category is UserWarning]
        for run_ in out.track(runs, "checking runs"):
            try:
                workspace.checked_folder(run_)
            except AttlasError as error:
                odd.append(str(error))
        if runs or odd:
            rows.append(("runs", "DAMAGED" if odd else "ok", odd[0] if odd else f"{len(runs)} whole"))
    except AttlasError as error:
        rows.append(("runs", "DAMAGED", str(error)))
    return rows


def _place(what: str, folder: Path) -> Row:
    try:
        check_writable(folder)
    except AttlasError as error:
        return what, "NOT WRITABLE", str(error)
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return what, "ok", f"{folder} ({shutil.disk_usage(there).free / 1e9:.0f} GB free)"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
