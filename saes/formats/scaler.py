"""What SAELens's training checkpoints keep beside the weights: the scale or whitening of the inputs, not yet folded in.

`activation_scaler.json` holds a factor s (inputs are s·x), `activation_whitening.safetensors` mean μ and matrices M, M⁻¹
(inputs are (s·x − μ)·M). The SAE then is  f(x) = f′((s·x − μ)·M),  x̂ = (x̂′·M⁻¹ + μ)/s; both maps are affine, so they are
folded into the weights exactly, whitening first, as SAELens does at the end of a training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.errors import SAEFormatError
from attlas.saes.formats.fields import number
from attlas.saes.formats.files import read_json, read_safetensors

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"


def fold_input_maps(
    state: dict[str, Tensor], folder: Path, normalisation: str, *, b_dec_to_input: bool, unit_rows: bool
) -> None:
    """Fold what lies in the folder into `state` (SAELens's names, decoder norms already folded), in place.

    Args:
        state: W_enc [D,F], W_dec [F,D], b_dec [D], and b_enc or b_gate, b_mag, r_mag.
        folder: of the checkpoint.
        normalisation: what its configuration says.
        b_dec_to_input: whether b_dec is subtracted before encoding.
        unit_rows: whether features are measured by the norm of their decoder row; the scale then goes into the biases.

    Raises:
        SAEFormatError: the configuration and the files contradict each other, or the map is not there.
    """
    record: dict[str, Any] = read_json(folder / SCALER) if (folder / SCALER).is_file() else {}
    factor = number(record, "scaling_factor", 1.0, folder / SCALER)
    whitening = None
    if (folder / WHITENING).is_file() and record.get("has_whitening", True):
        whitening = read_safetensors(folder / WHITENING)
    if factor <= 0:
        raise SAEFormatError(f"'{folder / SCALER}' has scaling_factor={factor}; it must be above 0")
    if normalisation == SCALED and record.get("scaling_factor") is None:
        raise SAEFormatError(
            f"'{folder}' was trained on scaled activations (normalize_activations '{SCALED}') and does not hold the scale; "
            f"put {SCALER} beside it, with scaling_factor 1 where the scale was folded in"
        )
    if normalisation == WHITENED and whitening is None:
        raise SAEFormatError(
            f"'{folder}' was trained on whitened activations and lacks {WHITENING}; put it beside cfg.json"
        )
    for found, said in ((factor != 1, SCALED), (whitening is not None, WHITENED)):
        if found and normalisation != said:
            raise SAEFormatError(
                f"'{folder}' holds {SCALER if said == SCALED else WHITENING} and its configuration says normalize_activations "
                f"'{normalisation}'; set it to '{said}', or delete the file where it was folded in"
            )
    if whitening is not None:
        _fold_whitening(state, whitening, folder, b_dec_to_input)
    if unit_rows:
        for name in ("b_enc", "threshold"):
            if name in state:
                state[name] = state[name] / factor
    else:
        state["W_enc"], state["W_dec"] = state["W_enc"] * factor, state["W_dec"] / factor
    state["b_dec"] = state["b_dec"] / factor


def _fold_whitening(state: dict[str, Tensor], whitening: dict[str, Tensor], folder: Path, b_dec_to_input: bool) -> None:
    """In float64, back to each weight's type."""
    D = state["W_enc"].shape[0]
    shapes = {name: tuple(t.shape) for name, t in whitening.items()}
    if shapes != {"mean": (D,), "matrix": (D, D), "inverse_matrix": (D, D)}:
        raise SAEFormatError(
            f"'{folder / WHITENING}' holds {shapes}, want mean [{D}], matrix and inverse_matrix [{D}, {D}]"
        )
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    mean, matrix, inverse = (whitening[name].double() for name in ("mean", "matrix", "inverse_matrix"))
    W_enc = matrix @ state["W_enc"].double()
    if not b_dec_to_input:
        shift = mean @ W_enc
        for name in ("b_enc", "b_gate"):
            if name in state:
                state[name] = state[name].double() - shift
        if "b_mag" in state:
            state["b_mag"] = state["b_mag"].double() - shift * state["r_mag"].double().exp()
    state["W_enc"] = W_enc
    state["W_dec"] = state["W_dec"].double() @ inverse
    state["b_dec"] = state["b_dec"].double() @ inverse + mean
    for name, dtype in dtypes.items():
        state[name] = torch.as_tensor(state[name]).to(dtype)
