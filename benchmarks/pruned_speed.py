"""A pruned model beside the whole one: prefill and decode, memory, KV cache, parameters, and what it costs in quality.

Without a model, vision transformers too (pruned_vit.py). python benchmarks/pruned_speed.py [MODEL] [N attention layers to
drop] [--json]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pruned_vit
import torch
from common import compare, main, report

from attlas.analyses.common.losses import quality
from attlas.analyses.pruning.budget import kv_bytes_per_token, n_parameters
from attlas.analyses.pruning.checkpoint import copy_code
from attlas.analyses.pruning.orders import ranked
from attlas.analyses.pruning.scores import Scores
from attlas.analyses.pruning.side_effects.behaviours import task_losses
from attlas.analyses.pruning.surgery import build, forward_logits
from attlas.data.text import load_tokens
from attlas.errors import ModelNotFoundError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop, unit_name

PREFILL = 512
DECODED = 16


def _prefill(hf: Any, tokens: torch.Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        hf(tokens, use_cache=True, logits_to_keep=1)

    return run


def _decode(hf: Any, tokens: torch.Tensor) -> Callable[[], object]:
    """DECODED greedy steps after the prompt; the cache is cut back afterwards."""
    with torch.no_grad():
        cache = hf(tokens, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def run() -> None:
        token = tokens[:, -1:]
        for _ in range(DECODED):
            token = hf(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        cache.crop(-DECODED)

    return run


# For each checkpoint: a process of its own, forked after the imports, loads it, runs a prompt and a few greedy steps, and
# prints the peak above what the imports took, MB.
_PEAK = """
import os, sys, torch, transformers
from transformers import AutoModelForCausalLM
transformers.utils.logging.set_verbosity_error()
(device, *sizes), folders = sys.argv[1:4], sys.argv[4:]
n, steps = map(int, sizes)
def kilobytes():  # not ru_maxrss, which starts at the parent's peak
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def peak(folder):
    start = kilobytes()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="float32").to(device).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(0)).to(device)
    model.generate(ids, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0)
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else (kilobytes() - start) / 1e3
for folder in folders:
    child = os.fork()
    if not child:
        print(peak(folder), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


def _peaks_mb(built: dict[str, Any], prefill: int) -> dict[str, float]:
    """Peak memory of processes that each load a checkpoint, read a prompt and write DECODED tokens, MB."""
    device = next(iter(built.values())).device.type
    with tempfile.TemporaryDirectory() as base:
        folders = [Path(base) / str(i) for i in range(len(built))]
        for folder, hf in zip(folders, built.values(), strict=True):
            hf.save_pretrained(folder)
            if "Pruned" in type(hf).__name__:
                copy_code(folder)
        argv = [sys.executable, "-c", _PEAK, device, str(prefill), str(DECODED), *map(str, folders)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return dict(zip(built, map(float, done.stdout.split()), strict=True))


def _open(names: tuple[str, ...]) -> HookedModel:
    for name in names:
        try:
            return load_model(name)
        except ModelNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
    raise SystemExit("no model here")


def _facts(model: HookedModel, built: dict[str, Any], drop: Drop, seq_len: int) -> dict[str, Any]:
    """Sizes, loss and next-token accuracy of each; tasks of the whole model and of the pruned one."""
    held_out = load_tokens("embedded:val", model.tokenizer, seq_len=min(256, seq_len), n_tokens=8 * 256)
    peaks, rows = _peaks_mb(built, seq_len), []
    for name, hf in built.items():
        loss, accuracy, n = quality(model, held_out, 4, lambda x, hf=hf: forward_logits(hf, x))
        kv = kv_bytes_per_token(hf) * seq_len
        rows.append(
            {
                "name": name,
                "parameters": n_parameters(hf),
                "kv_bytes": kv,
                "peak_mb": peaks[name],
                "loss": loss,
                "accuracy": accuracy,
                "predictions": n,
            }
        )
        print(
            f"  {name:34} {n_parameters(hf) / 1e6:7.1f} M parameters {kv / 1e6:7.2f} MB KV at {seq_len} tokens"
            f"   peak {peaks[name]:.0f} MB"
            f"   loss {loss:.3f}   next token right {accuracy:.1%}",
            file=sys.stderr,
        )
    tasks, refused = task_losses(model, drop, ("ioi", "induction-natural"), n_prompts=24)
    for row in tasks:
        print(
            f"  {row['task']:34} {row['before']:.2f} → {row['after']:.2f} {row['unit']}, "
            f"right on {row['accuracy_before']:.0%} → {row['accuracy_after']:.0%} of {row['n_prompts']}",
            file=sys.stderr,
        )
    return {"models": rows, "tasks": tasks, "tasks_left_out": refused}


def run(rounds: int = 7, model: str | None = None, n_drop: int | None = None) -> dict[str, Any]:
    """Time the compact form, the stock form and the whole model, a third of the attention layers gone by default."""
    whole = _open((model,) if model else ("smollm2-135m", "gpt2-mini"))
    calibration = load_tokens("embedded:train", whole.tokenizer, seq_len=256, n_tokens=8 * 256)
    order = ranked(Scores(whole, calibration).of("attn"))
    units = order[: n_drop if n_drop is not None else max(1, whole.cfg.n_layers // 3)]
    drop = Drop.of(units)
    names = ", ".join(unit_name(unit, whole.cfg.n_heads) for unit in units)
    built = {f: build(whole, drop, form)[0] for f, form in (("pruned, compact", "compact"), ("pruned, stock", "stock"))}
    built["whole model"] = whole.hf
    prefill = min(PREFILL, whole.cfg.n_ctx - DECODED)
    tokens = torch.randint(0, whole.cfg.d_vocab, (1, prefill), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(whole.device)
    cuda = whole.device.type == "cuda"
    results = []
    for title, make, n in (("prefill", _prefill, prefill), ("decode", _decode, DECODED)):
        timings = compare({name: make(hf, tokens) for name, hf in built.items()}, rounds, cuda)
        found = report(f"{whole.name}, {title}, {n} tokens; without {names}", timings)
        for row in found["rows"]:
            row["tokens_per_s"] = n / row["median"]
            print(f"  {row['name']:34} {row['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
        results.append(found)
    found = {"dropped": names, "results": results, **_facts(whole, built, drop, prefill)}
    return found if model else {**found, "vit": pruned_vit.run(rounds)}


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if not a.startswith("-")]
    main(lambda: run(model=given[0] if given else None, n_drop=int(given[1]) if len(given) > 1 else None))
