"""What `attlas.analyses.stability.collapse` trains."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError

METHODS = ("baseline", "sigma_reparam")
MODELS = ("vit", "lm")


@dataclass(frozen=True)
class CollapseConfig:
    """What to train.

    Attributes:
        models: "vit", "lm" or both.
        seeds: one training per seed, model and method.
        methods: "baseline", "sigma_reparam" or both.
        vit_lr: the ViT's learning rate (Adam), constant.
        lm_lr: the language model's.
        vit_steps: the ViT's training steps.
        lm_steps: the language model's.
        qk_gain: initial W_Q and W_K are multiplied with this; more than 1 collapses heads from the start.
        every: steps between checks.
    """

    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = METHODS
    vit_lr: float = 5e-3
    lm_lr: float = 5e-2
    vit_steps: int = 600
    lm_steps: int = 250
    qk_gain: float = 1.0
    every: int = 20

    def __post_init__(self) -> None:
        odd = [m for m in self.models if m not in MODELS]
        if odd or not self.models or not self.seeds:
            raise ConfigError(f"models {self.models} must be among {MODELS}, and seeds not be empty")
        if not self.methods or not set(self.methods) <= set(METHODS):
            raise ConfigError(f"methods {self.methods} must be among {METHODS}")
        if min(self.vit_steps, self.lm_steps, self.every) < 1 or min(self.vit_lr, self.lm_lr, self.qk_gain) <= 0:
            raise ConfigError("steps, every, learning rates and qk_gain must be positive")
