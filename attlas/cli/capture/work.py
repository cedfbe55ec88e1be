"""What `attlas capture` does: say how much it will be, then write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model
from attlas.cli.inputs import show_plan
from attlas.cli.together import join
from attlas.saes.activations import vector_hooks
from attlas.saes.inputs import load_inputs
from attlas.saes.scaling.passes import PassPlan, plan_pass
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.store import check_store, read_manifest, store_source

if TYPE_CHECKING:
    from attlas.cli.capture import Args


def run(args: Args, out: Output) -> dict[str, Any]:
    """Say how much it will be, then write."""
    if args.plan:
        return show_plan(_plan(args), out)
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
        chat=args.chat,
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


def _plan(args: Args) -> PassPlan:
    memory = None if args.gpu_memory is None else args.gpu_memory * 1e9
    return plan_pass(
        args.model,
        hooks=args.hooks,
        n_tokens=args.n_tokens,
        seq_len=args.seq_len,
        batch=TrainConfig.capture_batch,
        dtype=args.dtype,
        store_dtype=args.store_dtype,
        device=args.gpu,
        memory=memory,
    )
