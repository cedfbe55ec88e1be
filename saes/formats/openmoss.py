"""OpenMOSS: Llama Scope (He et al. 2024, arXiv 2410.20526) and later SAEs of Language-Model-SAEs (`llamascopium`, `lm_saes`).

- Llama Scope: `hyperparams.json`; `checkpoints/final.safetensors` with encoder.weight [F,D], decoder.weight [D,F] and biases;
  one threshold θ, jump_relu_threshold, in hyperparams.json.
- `lm_saes`: `config.json`; `sae_weights.safetensors` with the same names and log_jumprelu_threshold [F].
- `llamascopium`: the same files with W_E [D,F], W_D [F,D], b_E, b_D and activation_function.log_jumprelu_threshold [F].

With s_in = √D / E‖x‖ of the hook read, s_out of the hook written (both 1 with norm_activation "inference"), and n_f = ‖W_D[f]‖
(1 where sparsity_include_decoder_norm is false):

    π = (s_in·x)·W_E + b_E,   f = π·1[π·n > θ],   x̂ = (f·W_D + b_D) / s_out

E‖x‖ stands in `dataset_average_activation_norm`, of the configuration or, by hook, among the weights. Two conventions of θ:
with Llama Scope, whose TopK SAEs were made JumpReLU after training, it is in units of the activations, so π·n > θ·s_in (its
own loader folds s into the biases and norms into the encoder first; SAELens 6.54, `get_llama_scope_config_from_hf`, scales θ
so, too); θ = exp(log_jumprelu_threshold) is compared with π·n as it is.

Both scales and the norms are folded into the weights, so that activations are taken as they come, decoder rows have norm 1 and
features are in units of the activations: f_attlas = f·n / s_in, the same x̂. act_fn may be relu, jumprelu or topk, and
norm_activation "token-wise" is the per-token √D / ‖x‖. Refused by name: batch-wise norms, batchtopk (its threshold is not
stored), GLU encoders, transcoders, Lorsa, cross-layer ones. Layouts: hf.co/fnlp/Llama3_1-8B-Base-LXA-8x and
github.com/OpenMOSS/Language-Model-SAEs (`models/sae.py`, `models/sparse_dictionary.py`). Read only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.formats.fields import OPENMOSS_HARMLESS, flag, number, refuse_unknown, section, text, whole, words
from attlas.saes.formats.files import build, read_json, read_safetensors
from attlas.saes.formats.pickled import take, transposed
from attlas.saes.formats.places import folders

NAME = "openmoss"
_CHECKPOINTS = ("sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")
_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
_PLAIN = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_LOG_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_NORM = "dataset_average_activation_norm"
_READ = words(
    f"sae_type d_model d_sae expansion_factor hook_point_in hook_point_out use_decoder_bias act_fn norm_activation {_NORM} "
    "sparsity_include_decoder_norm top_k jump_relu_threshold apply_decoder_bias_to_pre_encoder use_glu_encoder model_name"
)
_ARCHS = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}


def _config_file(path: Path) -> Path | None:
    for name in ("hyperparams.json", "config.json"):
        if (path / name).is_file() and _weights(path) is not None:
            return path / name
    return None


def _weights(path: Path) -> Path | None:
    return next((path / name for name in _CHECKPOINTS if (path / name).is_file()), None)


def detect(path: Path) -> bool:
    return path.is_dir() and not (path / "cfg.json").is_file() and _config_file(path) is not None


def load(folder: Path) -> SAE:
    """Read a folder of Llama Scope's or of llamascopium's.

    Raises:
        SAEFormatError: a file or a weight is missing, damaged or unknown, or the SAE is of a kind that is refused.
    """
    source, file = _config_file(folder), _weights(folder)
    if source is None or file is None:
        raise SAEFormatError(f"'{folder}' lacks hyperparams.json or config.json, or one of {', '.join(_CHECKPOINTS)}")
    record = read_json(source)
    _refuse(record, folder, source)
    raw = {name: tensor.double() for name, tensor in read_safetensors(file).items()}
    norms = {name.removeprefix(f"{_NORM}."): raw.pop(name) for name in [n for n in raw if n.startswith(f"{_NORM}.")]}
    arch = _ARCHS[record["act_fn"]]
    scale = _scale(record, norms, source)
    state = _state(raw, record, arch, file, source)
    threshold = state.pop("threshold", None)
    if arch == "jumprelu":
        state["threshold"] = _in_activations(threshold, record, state["b_enc"], scale, source)
    state["b_enc"], state["b_dec"] = state["b_enc"] / scale, state["b_dec"] / scale
    if flag(record, "sparsity_include_decoder_norm", True, source):
        norm = state["W_dec"].norm(dim=-1).clamp_min(1e-12)
        state["W_enc"], state["b_enc"] = state["W_enc"] * norm, state["b_enc"] * norm
        state["W_dec"] = state["W_dec"] / norm.unsqueeze(-1)
    d_in, d_sae = state["W_enc"].shape
    for key, found in (("d_model", d_in), ("d_sae", d_sae)):
        if record.get(key, found) != found:
            raise SAEFormatError(f"'{source}' has {key}={record[key]!r:.60} and the weights {found}")
    try:
        cfg = SAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            arch=arch,
            k=whole(record, "top_k", source) if arch == "topk" else min(32, d_sae),
            apply_b_dec_to_input=flag(record, "apply_decoder_bias_to_pre_encoder", False, source),
            normalisation="constant_norm_rescale" if record.get("norm_activation") == "token-wise" else "none",
            hook_name=text(record, "hook_point_in", source),
            model_name=text(record, "model_name", source) or _model(folder),
        )
    except ConfigError as error:
        raise SAEFormatError(f"'{source}': {error}") from error
    return build(cfg, state, folder)


def _refuse(record: dict[str, Any], folder: Path, source: Path) -> None:
    """Raise for whatever is no plain autoencoder of one hook."""
    kind, act = record.get("sae_type", "sae"), record.get("act_fn")
    hook_in, hook_out = text(record, "hook_point_in", source), text(record, "hook_point_out", source)
    if kind == "lorsa":
        raise SAEFormatError(
            f"'{source}' has sae_type='lorsa': it stands for an attention layer and is no autoencoder of a hook; Lorsas are "
            "taken by attlas eval, attlas features and attlas.saes.load_lorsa"
        )
    if kind != "sae":
        raise SAEFormatError(f"'{source}' has sae_type={kind!r:.60}; Attlas reads autoencoders ('sae')")
    if hook_out not in ("", hook_in):
        raise SAEFormatError(
            f"'{folder}' is a transcoder (it reads '{hook_in}' and writes '{hook_out}'); Attlas reads autoencoders"
        )
    if flag(record, "use_glu_encoder", False, source):
        raise SAEFormatError(
            f"'{source}' has use_glu_encoder=true (gated by a sigmoid); Attlas has no such architecture"
        )
    if not isinstance(act, str) or act not in _ARCHS:
        raise SAEFormatError(f"'{source}' has act_fn={act!r:.60}; {', '.join(_ARCHS)} are read")
    refuse_unknown(record, _READ | OPENMOSS_HARMLESS, source)


def _scale(record: dict[str, Any], norms: dict[str, Tensor], source: Path) -> float:
    """s = √D / E‖x‖; 1 where activations are taken as they come, or each is scaled by its own norm."""
    said = text(record, "norm_activation", source) or "dataset-wise"
    if said in ("inference", "token-wise"):
        return 1.0
    if said != "dataset-wise":
        raise SAEFormatError(
            f"'{source}' has norm_activation={said!r:.60}, which depends on the batch; Attlas refuses it"
        )
    by_name = section(record, _NORM, source)
    hook = text(record, "hook_point_in", source)
    average = number(by_name, "in" if "in" in by_name else hook, 0.0, source)
    if number(by_name, "out", average, source) != average:
        raise SAEFormatError(f"'{source}' has two norms of '{hook}', {_NORM}={by_name!r:.60}; they must be equal")
    if hook in norms and norms[hook].numel() == 1:
        average = float(norms[hook])
    if not 0 < average < math.inf:
        raise SAEFormatError(
            f"'{source}' says norm_activation 'dataset-wise' and nothing says the average norm of '{hook}' (found "
            f'{average:g}); add "{_NORM}": {{"in": …}}, or "norm_activation": "inference" where it is folded in'
        )
    return math.sqrt(whole(record, "d_model", source)) / average


def _state(raw: dict[str, Tensor], record: dict[str, Any], arch: str, file: Path, source: Path) -> dict[str, Tensor]:
    """Weights under our names, in float64."""
    linear = "encoder.weight" in raw
    names = dict(_LINEAR if linear else _PLAIN)
    if not flag(record, "use_decoder_bias", True, source):
        del names["b_dec"]
    stored = next((name for name in _LOG_THRESHOLDS if name in raw), None)
    if stored is not None and arch == "jumprelu":
        names["threshold"] = stored
    state = take(raw, names, file, also=_LOG_THRESHOLDS)
    state = transposed(state, "W_enc", "W_dec") if linear else state
    if state["W_enc"].ndim != 2 or state["W_dec"].shape != state["W_enc"].shape[::-1]:
        raise SAEFormatError(f"'{file}': the encoder has shape {list(state['W_enc'].shape)}, the decoder another's")
    state.setdefault("b_dec", torch.zeros(state["W_enc"].shape[0], dtype=torch.float64))
    return state


def _in_activations(
    log_threshold: Tensor | None, record: dict[str, Any], like: Tensor, scale: float, source: Path
) -> Tensor:
    """θ [F] in units of the activations, of features whose decoder rows have norm 1."""
    if log_threshold is not None:
        return log_threshold.exp() / scale
    if record.get("jump_relu_threshold") is None:
        raise SAEFormatError(f"'{source}' has act_fn 'jumprelu' and neither it nor the weights hold a threshold")
    if record.get("norm_activation") == "token-wise":
        raise SAEFormatError(
            f"'{source}' has jump_relu_threshold and norm_activation 'token-wise'; in which units the threshold is, no "
            "published file says, so it is refused"
        )
    return torch.full_like(like, number(record, "jump_relu_threshold", 0.0, source))


def _model(folder: Path) -> str:
    """Llama Scope's repositories and folders name the model; others do not."""
    for name in folders(folder):
        if name.startswith(("Llama3_1-8B-Base", "Llama3_1Base")):
            return "meta-llama/Llama-3.1-8B"
        if name == "Llama-Scope-R1-Distill":
            return "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    return ""
