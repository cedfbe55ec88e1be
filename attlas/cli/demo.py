"""`attlas demo`: the whole job on the embedded models, with no network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_workspace
from attlas.cli.inputs import families_of
from attlas.cli.options import OutArgs
from attlas.data.checkpoints import find_checkpoints
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.saes.training.config import TrainConfig

if TYPE_CHECKING:
    from attlas.data.workspace import Run


@dataclass(frozen=True)
class Args(OutArgs):
    """Train, evaluate and interpret a sparse autoencoder on gpt2-mini; measure its entropy, its heads over training, its
    redundancy and what dropping layers costs; patch its induction circuit; rank and draw the heads of vit-mini; and open
    the atlas. Steps whose results are in the workspace already are skipped.

    Example: attlas demo --workspace workspace
    """

    hook: str = "blocks.3.attn.hook_z"
    """Where to train the autoencoder; layer 3 of gpt2-mini holds its induction head."""
    n_tokens: int = 800_000
    """Tokens to train on."""
    n_images: int = 500
    """Glyphs to rank ViT heads on."""
    seed: int = 0
    """Seed of everything."""
    serve: bool = True
    """Open the dashboard at the end; --no-serve stops before."""
    port: int = 8050
    """Port of the dashboard on 127.0.0.1."""


STEPS = {
    "train": "sae",
    "evaluate": "sae_eval",
    "features": "features",
    "head survey": "head_survey",
    "entropy": "entropy",
    "anatomy": "anatomy",
    "timeline": "timeline",
    "redundancy": "redundancy",
    "drop curve": "drop_curve",
    "patching": "patching",
    "vit": "vit",
    "vit patterns": "vit_patterns",
}  # step -> kind of run


def run(args: Args, out: Output) -> dict[str, Any]:
    """Every step that is not in the workspace yet; then the dashboard."""
    demo = _Demo(args, out)
    seconds: dict[str, float] = {}
    for name in STEPS:
        out.say(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        demo.runs[name] = demo.found(name) or getattr(demo, name.replace(" ", "_"))()
        seconds[name] = round(time.perf_counter() - start, 1)
    out.table("attlas demo", ["step", "seconds", "run"], [(n, seconds[n], demo.runs[n].id) for n in seconds])
    if args.serve:
        from attlas.dashboard.app import serve

        serve(demo.workspace.path, port=args.port)
    return {
        "workspace": str(demo.workspace.path),
        "seconds": seconds,
        "runs": {name: saved.id for name, saved in demo.runs.items()},
    }


class _Demo:
    """The steps: each computes, saves and returns its run."""

    def __init__(self, args: Args, out: Output) -> None:
        from attlas.data.text import load_tokens
        from attlas.interp import load_model

        self.args, self.out = args, out
        self.workspace = open_workspace(args)
        self.model = load_model("gpt2-mini")
        self.text = load_tokens("embedded:val", self.model.tokenizer, seq_len=256, n_tokens=65_536, seed=args.seed)
        self.few = load_tokens("embedded:val", self.model.tokenizer, seq_len=256, n_tokens=8_192, seed=args.seed)
        self.runs: dict[str, Run] = {}

    def found(self, name: str) -> Run | None:
        """The run that an earlier demo with the same arguments left here."""
        of_sae = name in ("evaluate", "features", "head survey")
        vision = name.startswith("vit")
        data = None if name in ("train", "patching") else self.images if vision else self.text
        if name in ("evaluate", "timeline", "drop curve"):
            data = self.few
        model = self.vit_model if vision else self.model
        for run in self.workspace.runs(STEPS[name]):
            if run.model != model.ref or (data is not None and run.data != data.ref):
                continue
            if of_sae and self.runs["train"].id not in run.parents:
                continue
            if name != "train" or self._trained_alike(run):
                return run
        return None

    def _trained_alike(self, run: Run) -> bool:
        return run.config.get("n_tokens") == self.args.n_tokens and self.args.hook in str(run.config.get("hooks"))

    @cached_property
    def sae(self) -> Any:
        from attlas.saes.formats import load_sae

        return load_sae(str(self.workspace.folder(self.runs["train"]))).to(self.model.device)

    @cached_property
    def vit_model(self) -> Any:
        from attlas.interp import load_model

        return load_model("vit-mini")

    @cached_property
    def images(self) -> Any:
        from attlas.data.images.dataset import load_images

        spec = self.vit_model.image_spec
        return load_images("embedded:glyphs", spec, n_images=self.args.n_images, seed=self.args.seed)

    def train(self) -> Run:
        from attlas.saes.training.train import train_sae

        args = self.args
        config = TrainConfig(
            model="gpt2-mini", hooks=(args.hook,), arch="topk", k=16, d_sae=1536, n_tokens=args.n_tokens, seed=args.seed
        )
        result = train_sae(config, track=self.out.track)
        return result.save(self.workspace)[0]

    def evaluate(self) -> Run:
        from attlas.saes.evaluation.measure import evaluate

        result = evaluate(self.sae, self.model, self.few, track=self.out.track)
        shown = ("l0", "explained_variance", "ce_recovered")
        for row in result.rows:
            if row["subject"] == "sae" and row["metric"] in shown:
                self.out.say(f"  {row['metric']}: {row['value']:.3f}")
        return result.save(self.workspace, parents=(self.runs["train"].id,))

    def features(self) -> Run:
        from attlas.analyses.features.describe import features

        result = features(self.model, self.sae, self.text, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.text.ref, parents=(self.runs["train"].id,))

    def head_survey(self) -> Run:
        from attlas.analyses.features.survey import head_survey

        families = {self.args.hook: families_of(self.workspace, self.runs["train"])}
        saes = {self.args.hook: self.sae}
        result = head_survey(self.model, saes, self.text, families=families, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.text.ref, parents=(self.runs["train"].id,))

    def entropy(self) -> Run:
        from attlas.analyses.attention.head_entropy import entropy

        return entropy(self.model, self.text, track=self.out.track).save(self.workspace, self.model.ref, self.text.ref)

    def anatomy(self) -> Run:
        from attlas.analyses.attention.anatomy import map_anatomy

        return map_anatomy(self.model, self.text, track=self.out.track).save(
            self.workspace, self.model.ref, self.text.ref
        )

    def timeline(self) -> Run:
        from attlas.analyses.attention.head_timeline import timeline

        checkpoints = find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
        result = timeline(checkpoints, lambda _model: self.few, track=self.out.track)
        return result.save(self.workspace, data=self.few.ref)

    def redundancy(self) -> Run:
        from attlas.analyses.redundancy.scores import redundancy

        return redundancy(self.model, self.text, track=self.out.track).save(
            self.workspace, self.model.ref, self.text.ref
        )

    def drop_curve(self) -> Run:
        from attlas.analyses.pruning.curve import DropCurveConfig, drop_curve
        from attlas.data.text import load_tokens

        calibration = load_tokens(
            "embedded:train", self.model.tokenizer, seq_len=256, n_tokens=8_192, seed=self.args.seed
        )
        config = DropCurveConfig(targets=("attn", "mlp"), seed=self.args.seed)
        result = drop_curve(self.model, calibration, self.few, config, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.few.ref)

    def patching(self) -> Run:
        from attlas.analyses.circuits import PatchingConfig, TaskConfig, make_task, patching

        task = make_task(self.model, TaskConfig(task="induction", n_prompts=32, seed=self.args.seed))
        result = patching(self.model, task, PatchingConfig(by="head", seed=self.args.seed), track=self.out.track)
        return result.save(self.workspace, self.model.ref)

    def vit(self) -> Run:
        from attlas.analyses.vit.heads import vit

        return vit(self.vit_model, self.images, track=self.out.track).save(
            self.workspace, self.vit_model.ref, self.images.ref
        )

    def vit_patterns(self) -> Run:
        from attlas.analyses.vit.patterns.run import VitPatternsConfig, vit_patterns

        config = VitPatternsConfig(n_maps=1_200, n_epochs=15, seed=self.args.seed)
        result = vit_patterns(self.vit_model, self.images, config, track=self.out.track)
        return result.save(self.workspace, self.vit_model.ref, self.images.ref)
