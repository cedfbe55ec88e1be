"""Published layouts: a file written as its page has it, with known weights, against a plain reading of its formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attlas.errors import SAEFormatError
from attlas.saes import load_sae
from attlas.saes.config import SAEConfig

from .published_files import D, F, Weights, agrees, gemma_folder, tokens, weights

# -- Gemma Scope -------------------------------------------------------------------------------------------------------


O_PROJ = "model.layers.5.self_attn.o_proj.input"
SECOND = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": O_PROJ}


@pytest.mark.parametrize(
    ("path", "config", "hook", "model"),
    [
        ("gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_71", None, "blocks.12.attn.hook_z", "google/gemma-2-2b"),
        ("models--google--gemma-scope-9b-it-res/snapshots/0a/layer_9/width_16k/average_l0_5", None,
         "blocks.9.hook_resid_post", "google/gemma-2-9b-it"),
        ("gemma-scope-9b-pt-mlp/layer_0/width_16k/canonical", None, "blocks.0.hook_mlp_out", "google/gemma-2-9b"),
        ("anywhere", None, "", ""),
        ("x/layer_5_width_16k_l0_big", SECOND, "blocks.5.attn.hook_z", "gemma-3-1b-pt"),
        ("gemma-scope-2-1b-pt/attn_out_all/layer_5_width_16k_l0_big", {}, "blocks.5.attn.hook_z", "google/gemma-3-1b-pt"),
    ],
)  # fmt: skip
def test_gemma_scope(path: str, config: dict[str, Any] | None, hook: str, model: str, tmp_path: Path) -> None:
    w = weights()
    sae = load_sae(gemma_folder(tmp_path, path, w, config))
    assert (sae.cfg.hook_name, sae.cfg.model_name) == (hook, model)
    x, w = tokens(), {name: t.double() for name, t in w.items()}
    pre = x.double() @ w["W_enc"] + w["b_enc"]  # b_dec is not subtracted
    f = torch.where(pre > w["threshold"], pre.relu(), 0.0)
    agrees(sae, x, f, f @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("path", "change", "config", "match"),
    [
        ("gemma-scope-2b-pt-transcoders/layer_1/w", {}, None, "is a transcoder"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", {}, None, "before Gemma's scale √d"),
        ("a", {"W_dec": torch.zeros(F, D + 1)}, None, "each other's transpose"),
        ("a", {"threshold": None}, None, "lacks threshold"),
        ("a", {"W_skip": torch.zeros(D, D)}, None, "holds W_skip besides"),
        ("a", {"b_enc": torch.full((F,), torch.nan)}, None, "NaN or infinity"),
        ("a", {}, SECOND | {"hf_hook_point_out": "model.layers.5.mlp.output"}, "is a transcoder"),
        ("a", {}, SECOND | {"architecture": "topk"}, "architecture='topk'"),
        ("a", {}, SECOND | {"input_scale": 3.0}, r"input_scale=3\.0, which Attlas does not know"),
    ],
)  # fmt: skip
def test_gemma_scope_is_refused_by_name(
    path: str, change: dict[str, Any], config: dict[str, Any] | None, match: str, tmp_path: Path
) -> None:
    changed = {name: t for name, t in (weights() | change).items() if t is not None}
    with pytest.raises(SAEFormatError, match=match) as caught:
        load_sae(gemma_folder(tmp_path, path, changed, config))
    assert "\n" not in str(caught.value)


def test_no_array_of_objects_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (tmp_path / "boom",)  # type: ignore[return-value]

    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb()], dtype=object))
    with pytest.raises(SAEFormatError, match="holds no plain arrays"):
        load_sae(tmp_path)
    assert not (tmp_path / "boom").exists()
    (tmp_path / "params.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(SAEFormatError, match="damaged"):
        load_sae(tmp_path)


# -- OpenMOSS ----------------------------------------------------------------------------------------------------------

HYPERPARAMETERS = {  # as published for L14A-8x, at a tiny width
    "device": "cuda:0", "seed": 42, "dtype": "torch.bfloat16", "hook_point_in": "blocks.14.hook_attn_out",
    "hook_point_out": "blocks.14.hook_attn_out", "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 8, "d_model": D, "d_sae": F, "bias_init_method": "all_zero", "act_fn": "jumprelu",
    "jump_relu_threshold": 0.35, "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 0.9, "out": 0.9}, "decoder_exactly_fixed_norm": False,
    "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "init_decoder_norm": 0.5, "init_encoder_norm": None,
    "init_encoder_with_decoder_transpose": True, "lp": 1, "l1_coefficient": 8e-05, "l1_coefficient_warmup_steps": 39062,
    "top_k": 5, "k_warmup_steps": 39062, "use_batch_norm_mse": True, "use_ghost_grads": False, "tp_size": 1, "ddp_size": 1,
}  # fmt: skip


def openmoss_folder(
    folder: Path, w: Weights, record: dict[str, Any], modern: bool, stored: Weights | None = None
) -> Path:
    kept = record.get("use_decoder_bias", True)
    if modern:
        state = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"]} | ({"b_D": w["b_dec"]} if kept else {})
        path, name = folder / "sae_weights.safetensors", "config.json"
    else:
        state = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
        state |= {"decoder.weight": w["W_dec"].T.contiguous()} | ({"decoder.bias": w["b_dec"]} if kept else {})
        path, name = folder / "checkpoints" / "final.safetensors", "hyperparams.json"
    path.parent.mkdir(parents=True)
    save_file(state | (stored or {}), path)
    (folder / name).write_text(json.dumps(record))
    return folder


def plain(w: Weights, x: Tensor, record: dict[str, Any], theta: Tensor | float, norm: float) -> tuple[Tensor, Tensor]:
    """(f, x̂) as the docstring of the format has them, in their units; θ is compared with π·n."""
    w, x = {name: t.double() for name, t in w.items()}, x.double()
    s = math.sqrt(D) / norm
    n = w["W_dec"].norm(dim=1) if record.get("sparsity_include_decoder_norm", True) else torch.ones(F)
    centre = w["b_dec"] if record.get("apply_decoder_bias_to_pre_encoder") else 0.0
    pre = (s * x - centre) @ w["W_enc"] + w["b_enc"]
    if record["act_fn"] == "topk":
        keep = torch.zeros_like(pre).scatter(-1, (pre * n).relu().topk(record["top_k"]).indices, 1.0)
        f = pre.relu() * keep
    else:
        f = torch.where(pre * n > theta, pre, 0.0)
    bias = w["b_dec"] if record.get("use_decoder_bias", True) else 0.0
    return f * n / s, (f @ w["W_dec"] + bias) / s


def test_llama_scope(tmp_path: Path) -> None:
    w, x = weights(), tokens(0.4)
    sae = load_sae(openmoss_folder(tmp_path / "Llama3_1-8B-Base-L14A-8x", w, HYPERPARAMETERS, modern=False))
    assert (sae.cfg.hook_name, sae.cfg.model_name) == ("blocks.14.hook_attn_out", "meta-llama/Llama-3.1-8B")
    s = math.sqrt(D) / 0.9
    agrees(sae, x, *plain(w, x, HYPERPARAMETERS, 0.35 * s, 0.9))
    # the threshold's other possible unit, read in silence, is another function
    assert (plain(w, x, HYPERPARAMETERS, 0.35, 0.9)[0] - sae.encode(x)).abs().max() > 0.1


def test_llama_scope_as_saelens_reads_it(tmp_path: Path) -> None:
    """SAELens's `llama_scope` loader: θ·s, s folded into W_enc, W_dec and b_dec; of decoder rows of norm 1."""
    w, x, s = weights(unit=True), tokens(0.4), math.sqrt(D) / 0.9
    sae = load_sae(openmoss_folder(tmp_path / "sae", w, HYPERPARAMETERS, modern=False))
    pre = x.double() @ (w["W_enc"].double() * s) + w["b_enc"].double()
    f = torch.where(pre > 0.35 * s, pre, 0.0)
    agrees(sae, x, f / s, f @ (w["W_dec"].double() / s) + w["b_dec"].double() / s)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"norm_activation": "inference"},
        {"act_fn": "topk"},
        {"act_fn": "relu"},
        {"use_decoder_bias": False},
        {"apply_decoder_bias_to_pre_encoder": True},
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_llamascopium(change: dict[str, Any], tmp_path: Path) -> None:
    """θ = exp(log_jumprelu_threshold) where the inputs are scaled; E‖x‖ stands among the weights, under the hook."""
    w, x, hook = weights(), tokens(0.4), "blocks.3.attn.hook_z"
    record = {"sae_type": "sae", "d_model": D, "expansion_factor": F / D, "hook_point_in": hook, "hook_point_out": hook,
              "act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": 5,
              "use_triton_kernel": False, "jumprelu_threshold_window": 2.0, "device": "cuda", "dtype": "float32"}  # fmt: skip
    record |= change
    stored = {"dataset_average_activation_norm." + hook: torch.tensor(0.7)}
    if record["act_fn"] == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    sae = load_sae(openmoss_folder(tmp_path / "sae", w, record, modern=True, stored=stored))
    assert sae.cfg.hook_name == hook
    norm = 0.7 if record["norm_activation"] == "dataset-wise" else math.sqrt(D)
    theta = w["threshold"].double() if record["act_fn"] == "jumprelu" else 0.0
    agrees(sae, x, *plain(w, x, record, theta, norm))


def test_llamascopium_scales_each_token_by_its_norm(tmp_path: Path) -> None:
    w, x = weights(), tokens(0.4)
    record = HYPERPARAMETERS | {"norm_activation": "token-wise", "jump_relu_threshold": None}
    stored = {"log_jumprelu_threshold": w["threshold"].log()}
    sae = load_sae(openmoss_folder(tmp_path / "sae", w, record, modern=False, stored=stored))
    norms = x.double().norm(dim=1, keepdim=True) / math.sqrt(D)
    f, x_hat = plain(w, x / norms.float(), record, w["threshold"].double(), math.sqrt(D))
    agrees(sae, x, f, x_hat * norms)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hook_point_out": "blocks.14.hook_mlp_out"}, r"reads 'blocks\.14\.hook_attn_out' and writes"),
        ({"use_glu_encoder": True}, "gated by a sigmoid"),
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'"),
        ({"act_fn": None}, "act_fn=None"),
        ({"sae_type": "lorsa"}, "sae_type='lorsa'"),
        ({"norm_activation": "batch-wise"}, "depends on the batch"),
        ({"norm_activation": "token-wise"}, "in which units the threshold is"),
        ({"dataset_average_activation_norm": None}, "nothing says the average norm"),
        ({"dataset_average_activation_norm": {"in": 0}}, "nothing says the average norm"),
        ({"dataset_average_activation_norm": {"in": 2.0, "out": 3.0}}, "two norms"),
        ({"jump_relu_threshold": None}, "neither it nor the weights hold a threshold"),
        ({"d_model": 16}, "d_model=16 and the weights 12"),
        ({"d_sae": 16}, "d_sae=16 and the weights 40"),
        ({"mixing": 2}, "mixing=2, which Attlas does not know"),
    ],
)
def test_openmoss_is_refused_by_name(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = openmoss_folder(tmp_path / "sae", weights(), HYPERPARAMETERS | change, modern=False)
    with pytest.raises(SAEFormatError, match=match) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_ours_is_kept_by_what_was_read(tmp_path: Path) -> None:
    """Saved as SAELens's folder and opened again: the same function, hook and model."""
    x = tokens()
    sae = load_sae(gemma_folder(tmp_path, "gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_71", weights()))
    again = load_sae(sae.save(tmp_path / "saved"))
    assert torch.equal(again(x), sae(x))
    assert isinstance(again.cfg, SAEConfig)
    assert again.cfg == sae.cfg
