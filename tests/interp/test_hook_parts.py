"""attn.hook_result and mlp.hook_post of every family, from the weights alone, and what a change of them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from attlas.errors import ConfigError, HookNameError
from attlas.interp import HookedModel, load_model
from attlas.interp.names import layer_index
from attlas.saes.activations import vector_hooks
from attlas.saes.identity import hook_width

_SHAPE: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SHAPE, "vocab_size": 50, "intermediate_size": 40, "num_key_value_heads": 2}
_SEEN = {**_SHAPE, "image_size": 16, "patch_size": 4}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_inner=40)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, attention_bias=True)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_TEXT, sliding_window=4)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_TEXT)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_SEEN, intermediate_size=40)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**_SEEN, intermediate_size=40)),
    "ijepa": lambda: tf.IJepaForImageClassification(tf.IJepaConfig(**_SEEN, intermediate_size=40)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**_SEEN, mlp_ratio=2)),
    "dinov2 swiglu": lambda: tf.Dinov2Model(tf.Dinov2Config(**_SEEN, mlp_ratio=2, use_swiglu_ffn=True)),
    "registers": lambda: tf.Dinov2WithRegistersModel(
        tf.Dinov2WithRegistersConfig(**_SEEN, mlp_ratio=2, num_register_tokens=3)
    ),
}


def _open(kind: str) -> tuple[HookedModel, Tensor]:
    """A random model, attention far from uniform, and its input."""
    torch.manual_seed(4)
    hf = MODELS[kind]().eval().double()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.normal_(0, 0.3)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    image = "image_size" in hf.config.to_dict()
    inputs = torch.randn(2, 3, 16, 16, dtype=torch.float64) if image else torch.randint(1, 50, (2, 9))
    return load_model(hf), inputs


def _first(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _by_hand(hf: Any, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(heads' results, MLP after the nonlinearity) of each layer, from Hugging Face's eager patterns and residuals."""
    hf.set_attn_implementation("eager")
    out = hf(inputs, output_attentions=True, output_hidden_states=True)
    hf.set_attn_implementation("sdpa")
    blocks = next(m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    found = []
    for block, x, pattern in zip(blocks, out.hidden_states, out.attentions, strict=False):
        attn = _first(block, "attn", "self_attn", "attention")
        normed = _first(block, "ln_1", "input_layernorm", "layernorm_before", "norm1")(x)
        if hasattr(attn, "c_attn"):
            v, w_o, b_o = attn.c_attn(normed)[..., 48:], attn.c_proj.weight, attn.c_proj.bias
        else:
            v, w_o, b_o = attn.v_proj(normed), attn.o_proj.weight.T, attn.o_proj.bias
        v = v.unflatten(-1, (-1, 6)).repeat_interleave(24 // v.shape[-1], 2)  # each kv head for its group of heads
        rows = [pattern[:, h] @ v[:, :, h] @ w_o[6 * h : 6 * h + 6] for h in range(4)]
        results = torch.stack(rows, 2)
        written = results.sum(2) if b_o is None else results.sum(2) + b_o
        written = written * block.layer_scale1.lambda1 if hasattr(block, "layer_scale1") else written
        mid = _first(block, "ln_2", "post_attention_layernorm", "layernorm_after", "norm2")(x + written)
        mlp = block.mlp
        if hasattr(mlp, "gate_proj"):
            post = nn.functional.silu(mlp.gate_proj(mid)) * mlp.up_proj(mid)
        elif hasattr(mlp, "c_fc"):
            post = nn.functional.gelu(mlp.c_fc(mid), approximate="tanh")
        else:
            post = nn.functional.gelu(mlp.fc1(mid))
        found.append((results, post))
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_parts_equal_those_made_by_hand(kind: str) -> None:
    model, inputs = _open(kind)
    with torch.no_grad():
        expected = _by_hand(model.hf, inputs)
        _, cache = model.run_with_cache(inputs, ["*hook_result", "*mlp.hook_post"])
    for layer, (results, post) in enumerate(expected):
        ours = cache[f"blocks.{layer}.attn.hook_result"]
        assert ours.shape == (*results.shape[:2], 4, 24)
        torch.testing.assert_close(ours, results, atol=1e-6, rtol=1e-5)  # Llama's eager softmax is float32
        torch.testing.assert_close(cache[f"blocks.{layer}.mlp.hook_post"], post, atol=1e-6, rtol=1e-5)
        assert hook_width(model, f"blocks.{layer}.mlp.hook_post") == post.shape[-1]


@pytest.mark.parametrize("kind", MODELS)
def test_changed_parts_reach_the_output(kind: str) -> None:
    """One head's result at zero is that head's z at zero; a factor on the MLP's neurons is one on what they write."""
    model, inputs = _open(kind)
    at = "blocks.0."

    def without_head(tensor: Tensor, _name: str) -> None:
        tensor[:, :, 1] = 0

    with torch.no_grad():
        clean = model(inputs)
        outputs = []
        for name in ("attn.hook_z", "attn.hook_result"):
            with model.hooks({at + name: without_head}):
                outputs.append(model(inputs))
        assert (outputs[0] - clean).abs().max() > 1e-3
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-8, rtol=0)
        with model.hooks({at + "mlp.hook_post": lambda t, n: 2 * t}):
            doubled, cache = model.run_with_cache(inputs, at + "hook_mlp_out")
        nothing = model.capture(inputs, at + "hook_mlp_out")[at + "hook_mlp_out"]
        with model.hooks({at + "mlp.hook_post": lambda t, n: 0 * t}):
            bias = model.capture(inputs, at + "hook_mlp_out")[at + "hook_mlp_out"]
        torch.testing.assert_close(cache[at + "hook_mlp_out"] - bias, 2 * (nothing - bias), atol=1e-8, rtol=0)
        assert torch.equal(bias, bias[:1, :1].expand_as(bias))
        assert (doubled - clean).abs().max() > 1e-3


def test_results_are_made_on_request_alone(gpt2_mini: HookedModel) -> None:
    tokens = torch.randint(1, 100, (2, 8))
    _, cache = gpt2_mini.run_with_cache(tokens)
    assert not [name for name in cache if name.endswith("hook_result")]
    assert "blocks.3.mlp.hook_post" in cache
    names = ["blocks.3.attn.hook_result", "blocks.1.mlp.hook_post"]  # ends inside the attention of layer 3
    some = gpt2_mini.capture(tokens, names)
    _, every = gpt2_mini.run_with_cache(tokens, names)
    for name in names:
        assert torch.equal(some[name], every[name].detach())
    with gpt2_mini.hooks({"blocks.3.attn.hook_z": lambda z, n: z * 0}):
        assert not gpt2_mini.capture(tokens, names[0])[names[0]].any()


def test_autoencoders_take_neurons_and_refuse_results(gpt2_mini: HookedModel) -> None:
    assert vector_hooks(gpt2_mini, ["*.mlp.hook_post"])[0] == "blocks.0.mlp.hook_post"
    with pytest.raises(ConfigError, match=r"6 × 192 numbers a token.*train on blocks\.2\.attn\.hook_z"):
        vector_hooks(gpt2_mini, ["blocks.2.attn.hook_result"])


def test_a_hook_outside_the_layers_has_no_layer_index(gpt2_mini: HookedModel) -> None:
    names = gpt2_mini.hook_names()
    inside = [name for name in names if name.startswith("blocks.")]
    assert [layer_index(name) for name in inside] == [int(name.split(".")[1]) for name in inside]
    for name in sorted({*names} - {*inside}):
        with pytest.raises(HookNameError, match=f"hook '{name}' lies in no layer"):
            layer_index(name)


def test_a_site_may_be_a_heads_result_or_the_neurons(gpt2_mini: HookedModel) -> None:
    """Patching a head's result is patching its z; neurons are patched as any vector."""
    from attlas.analyses import circuits

    task = circuits.make_task(gpt2_mini, circuits.TaskConfig(task="induction", n_prompts=3))
    effects = [
        circuits.patching(gpt2_mini, task, circuits.PatchingConfig(by="head", part=part)).table()
        for part in ("z", "result")
    ]
    mean = [[row["effect"] for row in table.to_pylist()] for table in effects]
    assert mean[1] == pytest.approx(mean[0], abs=1e-4)
    by_layer = circuits.patching(gpt2_mini, task, circuits.PatchingConfig(by="layer", part="mlp_post")).table()
    whole = circuits.patching(gpt2_mini, task, circuits.PatchingConfig(by="layer", part="mlp_out")).table()
    assert by_layer["effect"].to_pylist() == pytest.approx(whole["effect"].to_pylist(), abs=1e-4)


def test_capture_writes_both(gpt2_mini: HookedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from attlas.cli import main
    from attlas.saes.training.store import read_manifest

    hooks = ["blocks.0.attn.hook_result", "blocks.1.mlp.hook_post"]
    to = tmp_path / "store"
    main(["capture", "--hooks", *hooks, "--n-tokens", "128", "--to", str(to), "--store-dtype", "float32"])
    manifest = read_manifest(to)
    assert manifest is not None
    assert manifest["bytes"] == sum(s["rows"] for s in manifest["shards"]) * (6 * 192 + gpt2_mini.cfg.d_mlp) * 4
    assert "--hooks blocks.1.mlp.hook_post --n" in capsys.readouterr().err  # the next command: no training on results
