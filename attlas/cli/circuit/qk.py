"""`attlas circuit qk`: what an attention score is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.logit_attribution import answers, strongest_head
from attlas.analyses.circuits.qk import QKConfig, key_contrast, qk_attribution
from attlas.cli.circuit.prompts import _one_prompt, load_task, prompt_row
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import load_saes
from attlas.errors import LayerRangeError

if TYPE_CHECKING:
    from attlas.analyses.circuits.frozen import FrozenPass
    from attlas.analyses.tasks.task import Task
    from attlas.cli.circuit.args import Qk
    from attlas.interp import HookedModel


def _head(args: Qk, model: HookedModel, task: Task, frozen: FrozenPass, out: Output) -> tuple[int, int]:
    """The head asked for; of what is left open, the one that adds most to the answer of this prompt."""
    if args.layer is not None:
        model.layer(args.layer)
    if args.head is not None and not 0 <= args.head < model.cfg.n_heads:
        raise LayerRangeError(f"head {args.head} is out of range; {model.name} has heads 0–{model.cfg.n_heads - 1}")
    if args.layer is not None and args.head is not None:
        return args.layer, args.head
    layer, head, amount = strongest_head(frozen, *answers(task, args.row), args.layer, args.head)
    what = "logit difference" if answers(task, args.row)[2] else "logit"
    out.say(
        f"head {layer}.{head}: of those that --layer and --head leave it adds most to the {what} of {_one_prompt(task, args)} "
        f"({amount:+.3f} logits, directly)"
    )
    return layer, head


def run(args: Qk, out: Output) -> dict[str, Any]:
    """Compute, save, show."""
    workspace, model = open_workspace(args), open_model(args, out)
    task = load_task(model, args, args.seed, out)
    saes = load_saes(model, args, workspace, out)
    frozen = FrozenPass(model, task.tokens[prompt_row(task, args.row)], saes)
    layer, head = _head(args, model, task, frozen, out)
    dest, src = frozen.at(args.dest), args.src
    if src is None:
        row = frozen.cache[f"blocks.{layer}.attn.hook_pattern"][head, dest, : dest + 1]
        src = int(row[1:].argmax()) + 1 if len(row) > 1 else 0
    config = QKConfig(layer, head, dest, src, args.top_n)
    result = qk_attribution(model, frozen.tokens, config, frozen=frozen)
    saved = result.save(workspace)
    text = frozen.str_tokens()
    out.table(
        f"head {layer}.{head}: {text[dest]!r} @{dest} → {text[frozen.at(src)]!r} @{frozen.at(src)}, score "
        f"{result.score:.3f}, attention {result.pattern:.3f} ({_one_prompt(task, args)})",
        ["destination", "source", "score"],
        [(d.id, s.id, value) for d, s, value in result.pairs(12)],
    )
    contrast = key_contrast(frozen, layer, head, dest, src)
    out.table("what sets the source apart from the others", ["source term", "score − mean"], contrast[:8])
    head_at = {"layer": layer, "head": head, "dest": dest, "src": frozen.at(src)}
    found = {"task": task.name, **head_at, **result.summary(), "contrast": contrast[:20]}
    return done(saved, workspace, found, out)
