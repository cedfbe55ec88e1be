"""The change itself: what is added to a hook's activation, and a random direction as long in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.analyses.steering.config import SteerConfig
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.engine import HookFn
from attlas.saes.base import SAE
from attlas.saes.decompose import check_feature, check_saes

_CHUNK = 64  # positions encoded at once: [64, d_sae] floats are 268 MB at a million features


@dataclass(frozen=True)
class _Part:
    """One change at a hook: what it adds to rows [N, D], and the dimensions it may touch."""

    added: Callable[[Tensor], Tensor]
    start: int
    stop: int


class Steering:
    """Hook functions of a change, for any stretch of a sequence.

    Attributes:
        past: positions before those that come next (tokens in the key-value cache).
        first: first position that is changed.

    Args:
        random: in place of the change a direction drawn by the seed, at each position as long as the change is there, and in
            the same heads.

    Raises:
        ConfigError: no such feature or head, or features without an autoencoder.
    """

    def __init__(
        self, model: HookedModel, sae: SAE | None, hook: str, config: SteerConfig, random: bool = False
    ) -> None:
        self.config, self.past, self.first = config, 0, 1
        self._parts: dict[str, list[_Part]] = {}
        cfg = model.cfg
        if config.features:
            if sae is None:
                raise ConfigError("features belong to an autoencoder; name one")
            for feature in config.features:
                check_feature(sae, feature)
            sae = check_saes(model, {hook: sae})[hook]
            self._parts[hook] = [_Part(self._of_features(sae), 0, sae.cfg.d_in)]
        for layer, head in config.parsed_heads():
            if not (layer < cfg.n_layers and head < cfg.n_heads):
                raise ConfigError(f"{model.name} has no head {layer}.{head}; it has {cfg.n_layers} × {cfg.n_heads}")
            d = cfg.d_head
            part = _Part(self._of_head(head * d, (head + 1) * d), head * d, (head + 1) * d)
            self._parts.setdefault(f"blocks.{layer}.attn.hook_z", []).append(part)
        draw = torch.Generator().manual_seed(config.seed)
        self._directions = (
            {
                name: [_unit(part.stop - part.start, draw).to(model.device) for part in parts]
                for name, parts in self._parts.items()
            }
            if random
            else {}
        )

    @property
    def hooks(self) -> dict[str, HookFn]:
        """For `model.hooks`."""
        return dict.fromkeys(self._parts, self._change)

    def _change(self, z: Tensor, name: str) -> Tensor:
        flat = z.flatten(2) if z.ndim == 4 else z
        position = torch.arange(flat.shape[1], device=z.device) + self.past
        keep = (position >= self.first)[None, :, None]
        added = torch.zeros_like(flat)
        for i, part in enumerate(self._parts[name]):
            change = part.added(flat)
            if self._directions:
                length = change.norm(dim=-1, keepdim=True)
                change = torch.zeros_like(change)
                change[..., part.start : part.stop] = length * self._directions[name][i].to(change.dtype)
            added += change.to(added.dtype)
        return (flat + added * keep).reshape(z.shape)

    def _of_features(self, sae: SAE) -> Callable[[Tensor], Tensor]:
        config = self.config
        chosen = list(config.features)

        def added(x: Tensor) -> Tensor:
            found = []
            for rows in x.flatten(0, -2).split(_CHUNK):
                f = sae.encode(rows.to(sae.W_enc.dtype))
                changed = f.clone()
                if config.mode == "add":
                    changed[:, chosen] += config.strength
                else:
                    changed[:, chosen] = config.strength if config.mode == "clamp" else 0.0
                found.append(sae.decode_like(changed, rows) - sae.decode_like(f, rows))
            return torch.cat(found).reshape(x.shape)

        return added

    def _of_head(self, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        factor = -1.0 if self.config.mode == "ablate" else self.config.strength

        def added(x: Tensor) -> Tensor:
            change = torch.zeros_like(x)
            change[..., start:stop] = factor * x[..., start:stop]
            return change

        return added


def _unit(n: int, draw: torch.Generator) -> Tensor:
    direction = torch.randn(n, generator=draw)
    return direction / direction.norm()
