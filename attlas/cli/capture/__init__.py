"""`attlas capture`: activations to disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from attlas.cli.common import Output
from attlas.cli.options import ModelArgs, PlanArgs, TextArgs
from attlas.data.remote import Folder


@dataclass(frozen=True)
class Args(PlanArgs, TextArgs, ModelArgs):
    """Write activations of chosen hooks to checksummed safetensors shards; `attlas train --store` reads them.

    For example:

        attlas capture --hooks 'blocks.*.attn.hook_z' --n-tokens 200000 --to activations
        attlas capture --plan --model llama-3.1-8b --dtype bfloat16 --seq-len 1024 --n-tokens 1000000
    """

    hooks: tuple[str, ...] = ("blocks.*.attn.hook_z",)
    """Hook names or globs."""
    to: Folder = "activations"
    """Folder to write, or its URL (s3://…), new or empty; the same activations are kept, or gone on with, anything else there
    is refused."""
    text: str = "embedded:train"
    """embedded:train, embedded:val, a text, JSONL, CSV or Parquet file (also .gz), a dataset folder, a URL, or a data set of
    the hub: org/name:config/split."""
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
    """Do it, with what a help text need not wait for."""
    from attlas.cli.capture import work

    return work.run(args, out)
