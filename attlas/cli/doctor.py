"""`attlas doctor`: is this installation whole?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attlas.cli.common import Output

NEEDED = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "pyarrow",
    "duckdb",
    "scikit-learn",
    "plotly",
    "dash",
    "tyro",
    "rich",
)
WANTED = {
    "transformer-lens": "TransformerBridge models",
    "sae-lens": "registry of published SAEs",
    "triton": "fused GPU kernels",
    "gguf": "attlas models get smollm2-135m",
    "onnx": "attlas models get dinov2-small",
    "lm_eval": "attlas prune --lm-eval",
}


@dataclass(frozen=True)
class Args:
    """Check versions, the embedded models, devices, and where things are kept; say what is missing and what it is for.

    Example: attlas doctor
    """

    json: bool = False
    """Print the result as JSON on stdout."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(args: Args, out: Output) -> dict[str, Any]:
    """Look, and report a row for each check."""
    import torch

    from attlas.data.files import cache_dir
    from attlas.data.models_catalog import catalog

    rows: list[tuple[str, str, str]] = [("python", "ok", platform.python_version())]
    rows += [(p, "ok" if _version(p) else "MISSING", _version(p) or f"pip install {p}") for p in NEEDED]
    rows += [(p, "ok" if _version(p) else "absent", _version(p) or f"only for {why}") for p, why in WANTED.items()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    rows.append(("device", "ok", device))
    kernels = "triton" if torch.cuda.is_available() and _version("triton") else "torch"
    rows.append(("kernels", "ok", os.environ.get("ATTLAS_KERNELS", kernels)))
    rows += [(c.name, "ok" if c.present else "absent", str(c.path)) for c in catalog()]
    cache = cache_dir()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free / 1e9
    rows.append(("cache", "ok" if writable else "READ-ONLY", f"{cache} ({free:.0f} GB free)"))
    out.table("attlas doctor", ["what", "state", "detail"], rows)
    broken = [name for name, state, _ in rows if state in ("MISSING", "READ-ONLY")]
    out.say("everything needed is here" if not broken else f"mend first: {', '.join(broken)}")
    return {
        "ok": not broken,
        "checks": [{"what": a, "state": b, "detail": c} for a, b, c in rows],
        "cwd": str(Path.cwd()),
    }
