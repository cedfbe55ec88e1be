"""How the circuit analyses patch, split and trace; apart from them, so that a verb's help need not load torch."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

MODES = ("patch", "zero", "mean", "resample")
PARTS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "result": "attn.hook_result",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
}
PATCH_BY = ("layer", "position", "head", "feature")
DLA_BY = ("component", "head", "feature")


@dataclass(frozen=True)
class PatchingConfig:
    """What to change and how.

    Attributes:
        mode: "patch" (the other prompts' activation), "zero", "mean" (over the other prompts, at each position) or
            "resample" (another one of the other prompts).
        by: "layer", "position" (layer × position), "head" (layer × head) or "feature" (SAE features, and the error).
        part: what is changed in each layer: resid_pre, resid_mid, attn_out, mlp_post, mlp_out, z, result, q, k, v;
            "head" takes z.
        direction: "noise": the clean run is changed with activations of the corrupted prompts (what is needed?);
            "denoise": the corrupted run with those of the clean prompts (what suffices?).
        n_features: features of each SAE that are patched exactly: those with the largest estimate.
        ig_steps: 0 estimates with the gradient of the base run; m > 0 with m steps of integrated gradients.
        seed: of the resampling and of the bootstrap.
    """

    mode: str = "patch"
    by: str = "head"
    part: str = "resid_pre"
    direction: str = "noise"
    n_features: int = 20
    ig_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"mode": MODES, "by": PATCH_BY, "part": tuple(PARTS), "direction": ("noise", "denoise")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} '{getattr(self, name)}' is unknown; use one of {', '.join(known)}")
        for name in ("n_features", "ig_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be 0 or more")

    @property
    def hook_end(self) -> str:
        """The part patched; heads are patched at z unless q, k or v was asked for."""
        heads_elsewhere = self.by == "head" and self.part not in ("z", "result", "q", "k", "v")
        return PARTS["z" if heads_elsewhere else self.part]


@dataclass(frozen=True)
class DLAConfig:
    """How to split the logit difference.

    Attributes:
        by: "component" (attention and MLP of each layer), "head", or "feature" (needs SAEs; layers without one by head).
        seed: of the bootstrap.
    """

    by: str = "head"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in DLA_BY:
            raise ConfigError(f"by '{self.by}' is unknown; use one of {', '.join(DLA_BY)}")


@dataclass(frozen=True)
class TraceConfig:
    """How much of the tree is kept.

    Attributes:
        threshold: a term is cut when its influence is a smaller share of the target's value than this.
        top_n: terms kept of each explained node.
        max_nodes: largest graph; terms past it go to the remainders, with a warning.
        depth: steps back; 0 is no limit.
    """

    threshold: float = 0.01
    top_n: int = 12
    max_nodes: int = 300
    depth: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"threshold {self.threshold} must lie between 0 and 1")
        for name, least in (("top_n", 1), ("max_nodes", 3), ("depth", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} must be {least} or more")
