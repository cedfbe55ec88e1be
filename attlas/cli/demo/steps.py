"""The steps of `attlas demo`: each computes, saves and returns its run."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from attlas.analyses.attention.anatomy import map_anatomy
from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.attention.head_timeline import timeline
from attlas.analyses.circuits import PatchingConfig, TaskConfig, make_task, patching
from attlas.analyses.features.describe import features
from attlas.analyses.features.survey import head_survey
from attlas.analyses.heads.atlas import head_atlas
from attlas.analyses.pruning.curve import DropCurveConfig, drop_curve
from attlas.analyses.redundancy.scores import redundancy
from attlas.analyses.vit.heads import vit
from attlas.analyses.vit.patterns.run import VitPatternsConfig, vit_patterns
from attlas.cli.common import Output, open_workspace
from attlas.cli.inputs import families_of
from attlas.data.checkpoints import find_checkpoints
from attlas.data.images.dataset import load_images
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import load_tokens
from attlas.interp import load_model
from attlas.saes.evaluation.measure import evaluate
from attlas.saes.formats import load_sae
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.train import train_sae

if TYPE_CHECKING:
    from attlas.cli.demo import Args
    from attlas.data.workspace import Run


STEPS = {
    "train": "sae",
    "evaluate": "sae_eval",
    "features": "features",
    "head survey": "head_survey",
    "entropy": "entropy",
    "anatomy": "anatomy",
    "heads": "heads",
    "timeline": "timeline",
    "redundancy": "redundancy",
    "drop curve": "drop_curve",
    "patching": "patching",
    "vit": "vit",
    "vit patterns": "vit_patterns",
}  # step -> kind of run


class Demo:
    """The steps: each computes, saves and returns its run."""

    def __init__(self, args: Args, out: Output) -> None:
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
        return load_sae(str(self.workspace.folder(self.runs["train"]))).to(self.model.device)

    @cached_property
    def vit_model(self) -> Any:
        return load_model("vit-mini")

    @cached_property
    def images(self) -> Any:
        spec = self.vit_model.image_spec
        return load_images("embedded:glyphs", spec, n_images=self.args.n_images, seed=self.args.seed)

    def train(self) -> Run:
        args = self.args
        config = TrainConfig(
            model="gpt2-mini", hooks=(args.hook,), arch="topk", k=16, d_sae=1536, n_tokens=args.n_tokens, seed=args.seed
        )
        result = train_sae(config, track=self.out.track)
        return result.save(self.workspace)[0]

    def evaluate(self) -> Run:
        result = evaluate(self.sae, self.model, self.few, track=self.out.track)
        shown = ("l0", "explained_variance", "ce_recovered")
        for row in result.rows:
            if row["subject"] == "sae" and row["metric"] in shown:
                self.out.say(f"  {row['metric']}: {row['value']:.3f}")
        return result.save(self.workspace, parents=(self.runs["train"].id,))

    def features(self) -> Run:
        result = features(self.model, self.sae, self.text, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.text.ref, parents=(self.runs["train"].id,))

    def head_survey(self) -> Run:
        families = {self.args.hook: families_of(self.workspace, self.runs["train"])}
        saes = {self.args.hook: self.sae}
        result = head_survey(self.model, saes, self.text, families=families, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.text.ref, parents=(self.runs["train"].id,))

    def entropy(self) -> Run:
        return entropy(self.model, self.text, track=self.out.track).save(self.workspace, self.model.ref, self.text.ref)

    def anatomy(self) -> Run:
        return map_anatomy(self.model, self.text, track=self.out.track).save(
            self.workspace, self.model.ref, self.text.ref
        )

    def heads(self) -> Run:
        return head_atlas(self.model, self.text, track=self.out.track).save(
            self.workspace, self.model.ref, self.text.ref
        )

    def timeline(self) -> Run:
        checkpoints = find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
        result = timeline(checkpoints, lambda _model: self.few, track=self.out.track)
        return result.save(self.workspace, data=self.few.ref)

    def redundancy(self) -> Run:
        return redundancy(self.model, self.text, track=self.out.track).save(
            self.workspace, self.model.ref, self.text.ref
        )

    def drop_curve(self) -> Run:
        calibration = load_tokens(
            "embedded:train", self.model.tokenizer, seq_len=256, n_tokens=8_192, seed=self.args.seed
        )
        config = DropCurveConfig(targets=("attn", "mlp"), seed=self.args.seed)
        result = drop_curve(self.model, calibration, self.few, config, track=self.out.track)
        return result.save(self.workspace, self.model.ref, self.few.ref)

    def patching(self) -> Run:
        task = make_task(self.model, TaskConfig(task="induction", n_prompts=32, seed=self.args.seed))
        result = patching(self.model, task, PatchingConfig(by="head", seed=self.args.seed), track=self.out.track)
        return result.save(self.workspace, self.model.ref)

    def vit(self) -> Run:
        return vit(self.vit_model, self.images, track=self.out.track).save(
            self.workspace, self.vit_model.ref, self.images.ref
        )

    def vit_patterns(self) -> Run:
        config = VitPatternsConfig(n_maps=1_200, n_epochs=15, seed=self.args.seed)
        result = vit_patterns(self.vit_model, self.images, config, track=self.out.track)
        return result.save(self.workspace, self.vit_model.ref, self.images.ref)
