"""`attlas capture`: activations to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attlas.cli.common import Output, open_model
from attlas.cli.options import ModelArgs, TextArgs
from attlas.cli.together import join
from attlas.saes.training.config import TrainConfig


@dataclass(frozen=True)
class Args(TextArgs, ModelArgs):
    """Write activations of chosen hooks to checksummed safetensors shards; `attlas train --store` reads them.

    Example: attlas capture --hooks 'blocks.*.attn.hook_z' --n-tokens 200000 --to activations
    """

    hooks: tuple[str, ...] = ("blocks.*.attn.hook_z",)
    """Hook names or globs."""
    to: Path = Path("activations")
    """Folder to write, new or empty; the same activations are kept, or gone on with, anything else there is refused."""
    text: str = "embedded:train"
    """embedded:train, embedded:val, a text, JSONL, CSV or Parquet file (also .gz), or a Hugging Face dataset folder."""
    split: str | None = None
    """Split of a dataset folder, such as train; without it the only one, or train."""
    images: str | None = None
    """For vision models: embedded:glyphs, sklearn:samples, a folder or an .npz."""
    seed: int = 0
    """Seed of the order of the text."""
    store_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """bfloat16, float16 or float32."""
    skip_positions: int | None = None
    """Leading positions to leave out; None leaves out the BOS of text and nothing of images."""
    exclude_tokens: tuple[str, ...] = ()
    """Tokens whose positions are left out: bos, eos, pad, sep, token strings or ids."""
    json: bool = False
    """Print the result as JSON on stdout (progress stays on stderr)."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Say how much it will be, then write."""
    from attlas.saes.activations import vector_hooks
    from attlas.saes.inputs import load_inputs
    from attlas.saes.training.store import check_store, read_manifest, store_source

    if not out.silent:
        check_store(args.to)
    group = join(args.device)
    out.how_to_go_on = lambda: f"the same command goes on after the shards that are written: {out.command()}"
    model = open_model(args, out)
    hooks = vector_hooks(model, args.hooks, heads_apart=True)
    config = TrainConfig(
        model=args.model,
        hooks=args.hooks,
        text=args.text,
        column=args.column,
        split=args.split,
        images=args.images,
        n_tokens=args.n_tokens,
        seq_len=args.seq_len,
        pad=args.pad,
        seed=args.seed,
        skip_positions=args.skip_positions,
        exclude_tokens=args.exclude_tokens,
        activation_dtype=args.store_dtype,
        store=args.to,
    )
    store_source(model, load_inputs(model, config), hooks, config, out.track, group)
    manifest = read_manifest(args.to) or {}
    rows = sum(shard["rows"] for shard in manifest["shards"])
    out.say(f"{rows:,} tokens of {len(hooks)} hooks, {manifest['bytes'] / 1e6:.1f} MB, in {args.to}")
    return {"path": str(args.to), "hooks": list(hooks), "n_tokens": rows, "bytes": manifest["bytes"]}
