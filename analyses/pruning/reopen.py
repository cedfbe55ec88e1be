"""Open exported checkpoints as a stranger would: a fresh process with transformers and no attlas runs the card's snippet."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.errors import CheckpointError

_STRANGER = """
import sys

class NoAttlas:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "attlas":
            raise ImportError("attlas is not installed here")

sys.meta_path.insert(0, NoAttlas())
import torch

def outputs(model, x, **more):
    found = model(x, **more)
    return found, getattr(found, "logits", None) if hasattr(found, "logits") else found.last_hidden_state

def opened(job):
    names = {}
    exec(job["snippet"], names)
    model, x = names["model"].eval(), job["inputs"]
    found = {"class": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch."), "decode": 0.0, "kv": 0}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    text = not x.is_floating_point()
    if text:
        layers = outputs(model, x[:1, :1], use_cache=True)[0].past_key_values.layers
        found["kv"] = sum(l.keys.nbytes + l.values.nbytes for l in layers if getattr(l, "keys", None) is not None)
    model.float()
    found["outputs"] = whole = outputs(model, x)[1]
    if text:
        cache = outputs(model, x[:, :-1], use_cache=True)[0].past_key_values
        last = outputs(model, x[:, -1:], past_key_values=cache, use_cache=True)[1]
        found["decode"] = float((last[:, -1] - whole[:, -1]).abs().max() / whole.abs().max().clamp_min(1.0))
    return found

results = []
with torch.no_grad():
    for job in torch.load(sys.argv[1], weights_only=True):
        try:
            results.append(opened(job))
        except Exception as error:
            lines = str(error).strip().splitlines()
            results.append({"error": f"{type(error).__name__}: {lines[0] if lines else ''}"})
torch.save(results, sys.argv[1] + ".out")
"""


@dataclass(frozen=True)
class Reopened:
    """What the fresh process found.

    Attributes:
        class_name: of the model that the snippet made.
        dtype: of its weights, such as "float16".
        n_parameters: tied weights once.
        kv_bytes: keys and values that one token leaves in the cache, in that dtype; 0 for vision models.
        outputs: logits (a backbone: last hidden state) of the inputs, in float32.
        decode: largest difference of the last token's outputs with a cache, as a share of the largest output.
    """

    class_name: str
    dtype: str
    n_parameters: int
    kv_bytes: int
    outputs: Tensor
    decode: float


def reopen(jobs: Sequence[tuple[str, Tensor]]) -> list[Reopened | str]:
    """Run each (snippet, inputs) in one fresh process; the snippet leaves `model`. A failure comes back as one line.

    Raises:
        CheckpointError: the process itself failed.
    """
    with tempfile.TemporaryDirectory(prefix="attlas-reopen-") as place:
        path = Path(place) / "jobs.pt"
        torch.save([{"snippet": snippet, "inputs": inputs} for snippet, inputs in jobs], path)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(place) / "modules")}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", _STRANGER, str(path)], cwd=place, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise CheckpointError(f"a fresh process could not open the exported checkpoint: {lines[-1]}")
        found: list[dict[str, Any]] = torch.load(f"{path}.out", weights_only=True)
    return [_reopened(entry) for entry in found]


def _reopened(entry: dict[str, Any]) -> Reopened | str:
    if "error" in entry:
        return str(entry["error"])
    names = ("class", "dtype", "parameters", "kv", "outputs", "decode")
    return Reopened(*(entry[name] for name in names))
