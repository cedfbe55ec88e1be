"""Weights of an autoencoder in published layouts, which tests of these share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from attlas.saes import SAE

D, F = 12, 40
Weights = dict[str, Tensor]


def weights(seed: int = 0, unit: bool = False) -> Weights:
    """W_enc [D,F], W_dec [F,D] (rows of unlike norms), b_enc, b_dec, threshold [F], in float32."""
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, D, generator=g) * torch.rand(F, 1, generator=g).add(0.2)
    return {
        "W_enc": torch.randn(D, F, generator=g) * 0.5,
        "W_dec": W_dec / W_dec.norm(dim=1, keepdim=True) if unit else W_dec,
        "b_enc": torch.randn(F, generator=g) * 0.3,
        "b_dec": torch.randn(D, generator=g) * 0.3,
        "threshold": torch.rand(F, generator=g) + 0.1,
    }


def tokens(scale: float = 1.0) -> Tensor:
    return torch.randn(64, D, generator=torch.Generator().manual_seed(9)) * scale


def agrees(sae: SAE, x: Tensor, features: Tensor, reconstruction: Tensor) -> None:
    """With some features active and some not, so that neither a gate nor a bias can be missed."""
    active = (features > 0).double().mean()
    assert 0.03 < active < 0.9
    torch.testing.assert_close(sae.encode(x).double(), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x).double(), reconstruction, atol=1e-5, rtol=1e-5)


def gemma_folder(root: Path, path: str, w: Weights, config: dict[str, Any] | None = None) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    if config is None:
        np.savez(folder / "params.npz", **{name: t.numpy() for name, t in w.items()})
    else:
        save_file({name.replace("W_", "w_"): t for name, t in w.items()}, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    return folder
