"""`attlas circuit trace`: what a logit difference or a feature comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.circuits.attention import explain_attention
from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.graph_files import check_replaceable, save_circuit_tracer, save_graphml, save_json
from attlas.analyses.circuits.logit_attribution import answers
from attlas.analyses.circuits.tracing import FeatureTarget, LogitTarget, trace
from attlas.analyses.circuits.validation import FaithfulnessConfig, faithfulness
from attlas.cli.circuit.prompts import _one_prompt, load_task, prompt_row
from attlas.cli.common import Output, open_model, open_workspace
from attlas.cli.inputs import load_saes
from attlas.data.disk import check_writable
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.analyses.circuits.graph import CircuitGraph
    from attlas.analyses.circuits.validation import FaithfulnessResult
    from attlas.analyses.tasks.task import Task
    from attlas.cli.circuit.args import Trace
    from attlas.data.workspace import Workspace
    from attlas.interp import HookedModel


FORMATS = (".json", ".graphml")


def run(args: Trace, out: Output) -> dict[str, Any]:
    """Trace, save, show."""
    if args.out is not None and args.out.suffix not in FORMATS:
        raise ConfigError(f"--to '{args.out}' should end in .json, .graphml or .ct.json")
    if args.out is not None:
        check_replaceable(args.out)
        check_writable(args.out.absolute().parent)
    workspace, model = open_workspace(args), open_model(args, out)
    task = load_task(model, args, args.seed, out)
    saes = load_saes(model, args, workspace, out)
    row = prompt_row(task, args.row)
    graph = _trace_one(model, task, row, _target(args, task, row), args, saes, out)
    saved = graph.save(workspace)
    found: dict[str, Any] = {"run": saved.id, "task": task.name, **graph.summary()}
    nodes = sorted(graph.nodes[1:], key=lambda n: -abs(n.influence))[:15]
    out.table(
        f"{model.name}: {graph.target} = {graph.nodes[0].value:.3f}; {len(graph.nodes)} nodes, {len(graph.edges)} edges, "
        f"largest gap {graph.gap:.1e} ({_one_prompt(task, args)})",
        ["node", "token", "influence"],
        [(n.id, repr(graph.text(n.position)) if n.position >= 0 else "", n.influence) for n in nodes],
    )
    if args.out is not None:
        found["out"] = str(_write(graph, args.out))
        out.say(f"wrote {args.out}")
    if "softcap" in model.cfg.traits:
        found["capped_scores"] = True  # which `attlas circuit qk` refuses
    if args.faithful:
        result = _faithful(model, task, args, saes, out, workspace)
        found["faithfulness"] = result.summary()
    out.say(f"wrote run {saved.id} to {workspace.path}")
    return found


def _trace_one(
    model: HookedModel, task: Task, row: int, target: Any, args: Trace, saes: dict[str, Any], out: Output
) -> CircuitGraph:
    frozen = FrozenPass(model, task.tokens[row], saes)
    graph = trace(model, task.tokens[row], target, args.config, frozen=frozen, track=out.track)
    return explain_attention(frozen, graph) if args.attention else graph


def _target(args: Trace, task: Task, row: int) -> Any:
    if args.feature is None:
        position, right, wrong = answers(task, row)
        return LogitTarget(tuple(right), tuple(wrong), position)
    try:
        what, position_text = args.feature.split("@")
        layer, feature = what.split("/")
        return FeatureTarget(int(layer), int(feature), int(position_text))
    except ValueError:
        raise ConfigError(f"--feature '{args.feature}' is not understood; write layer/feature@position") from None


def _write(graph: CircuitGraph, path: Path) -> Path:
    if path.name.endswith(".ct.json"):
        return save_circuit_tracer(graph, path, slug=path.name.removesuffix(".ct.json"))
    return save_graphml(graph, path) if path.suffix == ".graphml" else save_json(graph, path)


def _faithful(
    model: HookedModel, task: Task, args: Trace, saes: dict[str, Any], out: Output, workspace: Workspace
) -> FaithfulnessResult:
    if bool((task.tokens == task.corrupted).all()):
        raise ConfigError("--faithful needs corrupted prompts to ablate with: give --corrupted, or use --task")
    graphs = []
    for row in out.track(range(len(task)), "tracing prompts"):
        position, right, wrong = answers(task, row)
        target = LogitTarget(tuple(right), tuple(wrong), position)
        graphs.append(_trace_one(model, task, row, target, args, saes, out))
    config = FaithfulnessConfig(seed=args.seed)
    result = faithfulness(model, task, graphs, config, saes=saes, metric=task.logit_difference(), track=out.track)
    result.save(workspace, model.ref)
    rows = [
        (r["kept"], r["n_units"], r["metric"], r["recovered"], r["low"], r["high"])
        for r in result.table().to_pylist()
        if not r["kept"].startswith(("random", "same places"))  # these are drawn from chance, and summed up below
    ]
    of = f"{len(task)} prompts, seed {args.seed}; intervals are 95 % over prompts"
    out.table(
        f"what is kept, and what it recovers ({of})", ["kept", "units", "logits", "recovered", "from", "to"], rows
    )
    for kind, draws in (("at random", result.random), ("at the circuit's own places", result.same_places)):
        out.say(
            f"{len(draws)} circuits drawn {kind} recover {np.median(draws):.1%} in the median, {min(draws):.1%} to "
            f"{max(draws):.1%}"
        )
    return result
