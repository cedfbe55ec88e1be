"""A new trainer, whole or a part, with the step that the form of sharing asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attlas.errors import ConfigError
from attlas.saes.config import SAEConfig
from attlas.saes.scaling.plan import check_share
from attlas.saes.training.parallel.features import FeaturesStep
from attlas.saes.training.parallel.rows import RowsStep
from attlas.saes.training.parallel.shard import ShardTrainer, part_of
from attlas.saes.training.parallel.share import Share
from attlas.saes.training.trainer import SAETrainer


def begun(share: Share, name: str, hook: str, cfg: SAEConfig, sample_ND: Tensor, **options: Any) -> SAETrainer:
    """`SAETrainer.start`, for this process's part of the training.

    Raises:
        ConfigError: the features cannot be divided among the processes, or the precision is bfloat16.
    """
    group, clip = share.group, options.get("clip")
    if share.form in ("data", "features") and options.get("precision") == "bfloat16":
        raise ConfigError(
            "precision=bfloat16 is not for one autoencoder on several processes; use auto, float32 or tf32"
        )
    if share.form == "data":
        trainer = SAETrainer.start(name, hook, cfg, sample_ND, **options | {"fused": False})
        trainer.fused = RowsStep(trainer.sae, trainer.optimizer, group, clip)
        return trainer
    if share.form != "features":
        return SAETrainer.start(name, hook, cfg, sample_ND, **options)
    check_share("features", group.size, n_hooks=1, batch=1, d_sae=cfg.d_sae, k=cfg.k)
    part = part_of(cfg, group)
    first = part.d_sae * group.rank
    shard = ShardTrainer.start(name, hook, part, sample_ND, of=(first, cfg.d_sae), **options | {"fused": False})
    shard.group, shard.whole = group, cfg
    shard.fused = FeaturesStep(shard.sae, cfg, shard.optimizer, group, clip)
    return shard
