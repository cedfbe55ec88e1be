"""The last line of a verb: the command to try next, for the model and workspace at hand."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from attlas.cli.options import OutArgs
from attlas.saes.training.config import TrainConfig

_SERVE = ["serve"]
_NO_WORKSPACE = ("bench", "capture", "doctor", "demo", "models")


def next_line(verb: str, args: Any, result: dict[str, Any]) -> str | None:
    """`next: attlas …`, or None where nothing follows (a server that was stopped)."""
    words = _next(verb, args, result)
    if not words:
        return None
    workspace = getattr(args, "workspace", OutArgs.workspace)
    if workspace != OutArgs.workspace and words[0] not in _NO_WORKSPACE:
        words = [*words, "--workspace", str(workspace)]
    return f"next: {shlex.join(['attlas', *words])}"


def _next(verb: str, args: Any, result: dict[str, Any]) -> list[str]:
    model = ["--model", str(args.model)] if hasattr(args, "model") else []
    what = type(args).__name__.lower()  # of a verb with sub-verbs
    if getattr(args, "plan", False):  # nothing was done
        return []
    match verb:
        case "models":
            return _after_models(result)
        case "doctor":
            return ["demo"] if result["ok"] else []
        case "capture":
            hooks = list(args.hooks)
            if any(hook.endswith("hook_result") for hook in result.get("hooks", ())):  # those are not trained on
                hooks = [hook for hook in result["hooks"] if not hook.endswith("hook_result")]
            return ["train", *model, "--store", str(args.to), "--hooks", *hooks, *_token_options(args)] if hooks else []
        case "train":
            if "basis" in result:  # --plan: nothing was trained
                return []
            return _SERVE if "pareto" in result else ["eval"]
        case "eval":
            return ["features"]
        case "features":
            return ["features", "survey"] if what == "describe" and args.images == "auto" else _SERVE
        case "heads":
            return _SERVE
        case "entropy":
            return ["entropy", "anatomy", *model] if what == "heads" else _SERVE
        case "redundancy":
            return ["prune", *model] if args.checkpoints is None and not args.revisions else _SERVE
        case "prune":
            whole = not (args.drop or args.target)
            return ["prune", *model, "--target", "attn", "--n", "1", "--to", "pruned"] if whole else _SERVE
        case "vit":
            return ["vit", "patterns", *model] if what == "heads" else _SERVE
        case "circuit":
            return _after_circuit(args, model, result)
        case "serve" | "bench":
            return []
    return _SERVE


def _after_models(result: dict[str, Any]) -> list[str]:
    if "releases" in result:
        first = result["releases"][0]
        return ["eval", "--model", first["model"], "--sae", f"{first['name']}/0"]
    if "models" in result:
        absent = [m["name"] for m in result["models"] if not m["present"]]
        return ["models", "get", absent[0]] if absent else ["entropy", "--model", "gpt2-mini"]
    verb = "vit" if "dino" in result["name"] else "entropy"
    return [verb, "--model", result["name"]]


def _after_circuit(args: Any, model: list[str], result: dict[str, Any]) -> list[str]:
    order = {"Tasks": "patch", "Patch": "dla", "Dla": "trace", "Trace": "qk", "Qk": "ablate"}
    following = order.get(type(args).__name__)
    if following is None:
        return _SERVE
    if following == "qk" and result.get("capped_scores"):
        if not result.get("heads"):
            return _SERVE
        following = "ablate"
    prompt = getattr(args, "prompt", None)
    task = args.task if args.task not in (None, "all") else "induction"
    asked = ["--prompt", prompt] if prompt is not None else ["--task", task]
    asked += ["--chat"] if getattr(args, "chat", False) else []
    asked += ["--no-generation-prompt"] if not getattr(args, "generation_prompt", True) else []
    if hasattr(args, "row"):  # the same prompt again
        for name, usual in (("row", 0), ("n_prompts", 16), ("seed", 0)):
            if getattr(args, name) != usual:
                asked += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    if following == "qk" and result.get("heads"):
        layer, head = result["heads"][0].split(".")
        asked += ["--layer", layer, "--head", head]
    if following == "ablate":
        layer, head = (
            result["heads"][0].split(".")
            if result.get("capped_scores")
            else (result.get(name, getattr(args, name)) for name in ("layer", "head"))
        )
        asked += ["--parts", f"{layer}.{head}@-1"]
    return ["circuit", following, *model, *asked]


def _token_options(args: Any) -> list[str]:
    """What a training on a store needs to say again to fit it, where it is not the default."""
    usual = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    found = []
    for name in (
        "text",
        "column",
        "split",
        "images",
        "n_tokens",
        "seq_len",
        "pad",
        "chat",
        "seed",
        "skip_positions",
        "store_dtype",
    ):
        option, value = name.replace("store_dtype", "activation_dtype"), getattr(args, name, None)
        if option not in usual:
            continue
        if value != usual[option]:
            found += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found
