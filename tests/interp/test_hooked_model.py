"""Interventions, early exit, clean-up, and bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    HookNameError,
    LayerRangeError,
    ModelNotFoundError,
    NonFiniteError,
    UnsupportedModelError,
)
from attlas.interp import HookedModel, load_model


def _n_hooks(model: HookedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_identity_interventions_change_nothing(gpt2_mini: HookedModel, tiny_llama: HookedModel) -> None:
    for model in (gpt2_mini, tiny_llama):
        tokens = torch.randint(1, model.cfg.d_vocab, (2, 12))
        with torch.no_grad():
            clean = model(tokens)
            for name in model.hook_names():
                if name.endswith("hook_scale"):
                    continue
                with model.hooks({name: lambda t, n: t.clone()}):
                    torch.testing.assert_close(model(tokens), clean, atol=1e-3, rtol=1e-4, msg=name)


def test_every_hook_is_causal_for_the_output(gpt2_mini: HookedModel, tiny_llama: HookedModel) -> None:
    """A change at any hook reaches the logits (none is a copy that nothing reads)."""
    for model in (gpt2_mini, tiny_llama):
        tokens = torch.randint(1, model.cfg.d_vocab, (1, 12))
        with torch.no_grad():
            clean = model(tokens)
            for name in model.hook_names():
                if name.endswith("hook_scale"):
                    continue
                with model.hooks({name: lambda t, n: t + torch.randn_like(t)}):
                    assert not torch.allclose(model(tokens), clean, atol=1e-6), name


def test_pattern_intervention_is_pattern_times_v(tiny_llama: HookedModel) -> None:
    tokens = torch.randint(1, 101, (2, 9))
    uniform = torch.ones(9, 9).tril()
    uniform = (uniform / uniform.sum(-1, keepdim=True)).expand(2, 6, 9, 9)
    with tiny_llama.hooks({"blocks.1.attn.hook_pattern": lambda t, n: uniform}):
        _, cache = tiny_llama.run_with_cache(tokens, ["blocks.1.attn.hook_z", "blocks.1.attn.hook_v"])
    v = cache["blocks.1.attn.hook_v"].repeat_interleave(3, dim=2)
    expected = v.cumsum(1) / torch.arange(1, 10).view(1, 9, 1, 1)
    torch.testing.assert_close(cache["blocks.1.attn.hook_z"], expected, atol=1e-5, rtol=0)


def test_nested_contexts_chain_and_leave_nothing(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    tokens, name = val_tokens.tokens[:2], "blocks.1.attn.hook_z"
    clean = gpt2_mini(tokens)
    with gpt2_mini.hooks({name: lambda t, n: t * 0}):
        _, cache = gpt2_mini.run_with_cache(tokens, name)
        assert cache[name].abs().max() == 0
        with gpt2_mini.hooks({name: lambda t, n: t + 1}):
            assert gpt2_mini.capture(tokens, name)[name].unique().tolist() == [1.0]
    assert _n_hooks(gpt2_mini) == 0
    with pytest.raises(RuntimeError, match="inside"), gpt2_mini.hooks({"blocks.*.attn.hook_q": _fail}):
        gpt2_mini(tokens)
    assert _n_hooks(gpt2_mini) == 0
    assert torch.equal(gpt2_mini(tokens), clean)


def _fail(tensor: Tensor, name: str) -> None:
    raise RuntimeError("inside")


def test_stopping_early_runs_nothing_later(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    tokens = val_tokens.tokens[:2]
    calls: list[str] = []
    watched: dict[str, nn.Module] = {f"mlp{i}": p.mlp for i, p in enumerate(gpt2_mini.layers)}
    watched["unembed"] = gpt2_mini.hf.lm_head
    handles = [m.register_forward_hook(lambda *a, n=n: calls.append(n)) for n, m in watched.items()]
    try:
        residual, _ = gpt2_mini.run_with_cache(tokens, "blocks.0.*", stop_at_layer=2)
        assert calls == ["mlp0", "mlp1"]
        calls.clear()
        cache = gpt2_mini.capture(tokens, "blocks.*.attn.hook_z")
        assert calls == ["mlp0", "mlp1", "mlp2"]
        calls.clear()
        gpt2_mini.capture(tokens, "blocks.1.hook_resid_post")
        assert calls == ["mlp0", "mlp1"]
    finally:
        for handle in handles:
            handle.remove()
    _, full = gpt2_mini.run_with_cache(tokens)
    assert torch.equal(residual, full["blocks.2.hook_resid_pre"])
    assert torch.equal(cache["blocks.3.attn.hook_z"], full["blocks.3.attn.hook_z"])


def test_gradients_flow_through_hooks(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    _, cache = gpt2_mini.run_with_cache(val_tokens.tokens[:1, :16], "blocks.2.attn.hook_pattern")
    pattern = cache["blocks.2.attn.hook_pattern"]
    with gpt2_mini.hooks({"blocks.2.attn.hook_pattern": lambda t, n: pattern}):
        gpt2_mini(val_tokens.tokens[:1, :16])[0, -1].sum().backward()
    assert gpt2_mini.layers[0].out_proj.weight.grad is not None
    gpt2_mini.hf.zero_grad(set_to_none=True)


def test_cross_entropy_equals_hugging_face(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    tokens = val_tokens.tokens
    with torch.no_grad():
        expected = gpt2_mini.hf(input_ids=tokens, labels=tokens).loss
        assert gpt2_mini.cross_entropy(tokens).mean().item() == pytest.approx(expected.item(), abs=1e-4)


def test_vit_accuracy_and_known_ablation(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """The card's test: zeroing a head of layer 0 costs accuracy, of a later layer hardly any."""
    assert glyphs.labels is not None

    def accuracy() -> float:
        with torch.no_grad():
            return float((vit_mini(glyphs.pixels).argmax(-1) == glyphs.labels).float().mean())

    def zero(t: Tensor, name: str) -> Tensor:
        return torch.cat([t[:, :, :1], torch.zeros_like(t[:, :, :1]), t[:, :, 2:]], dim=2)

    clean = accuracy()
    assert clean > 0.85
    with vit_mini.hooks({"blocks.0.attn.hook_z": zero}):
        assert accuracy() < clean - 0.1
    with vit_mini.hooks({"blocks.3.attn.hook_z": zero}):
        assert accuracy() > clean - 0.1


def test_names(gpt2_mini: HookedModel) -> None:
    tokens = torch.ones(1, 4, dtype=torch.long)
    assert set(gpt2_mini.capture(tokens, "blocks.[01].attn.hook_z")) == {f"blocks.{i}.attn.hook_z" for i in (0, 1)}
    _, everything = gpt2_mini.run_with_cache(tokens)
    assert not any(n.endswith(("pattern", "scores")) for n in everything)
    with pytest.raises(HookNameError, match="did you mean"):
        gpt2_mini.capture(tokens, "blocks.2.attn.hook_zz")
    with pytest.raises(LayerRangeError, match="layer 9 is out of range"):
        gpt2_mini.capture(tokens, "blocks.9.attn.hook_z")
    with pytest.raises(LayerRangeError):
        gpt2_mini.W_O(4)
    with pytest.raises(LayerRangeError):
        gpt2_mini.run_with_cache(tokens, stop_at_layer=5)
    with pytest.raises(ConfigError, match="is not reached"):
        gpt2_mini.run_with_cache(tokens, "blocks.3.attn.hook_z", stop_at_layer=2)


def test_bad_input(gpt2_mini: HookedModel, vit_mini: HookedModel, tmp_path: Path) -> None:
    with pytest.raises(ContextLengthError, match="257 tokens"):
        gpt2_mini(torch.ones(1, 257, dtype=torch.long))
    with pytest.raises(ConfigError, match="pixels must be float"):
        vit_mini(torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ConfigError, match="returned shape"), gpt2_mini.hooks({"hook_embed": lambda t, n: t[:, :1]}):
        gpt2_mini(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(ModelNotFoundError, match="gpt2-mini"):
        load_model("gpt2-mimi")
    with pytest.raises(ModelNotFoundError, match="network"):
        load_model("nobody/nothing-here")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match="'bert' has no adapter"):
        load_model(tmp_path)


def test_nan_is_named(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    model.layers[1].out_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layer 1, hook 'blocks.1.hook_attn_out'"):
        model.run_with_cache(torch.ones(1, 4, dtype=torch.long))
    cache = model.run_with_cache(torch.ones(1, 4, dtype=torch.long), check_finite=False)[1]  # to look at them
    assert cache["blocks.1.hook_attn_out"].isnan().any()
    with pytest.raises(NonFiniteError, match=r"layer 1, hook 'blocks.1.hook_attn_out'"):
        model(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(NonFiniteError, match=r"layer 2, hook 'blocks.2.attn.hook_z'"):
        model.capture(torch.ones(1, 4, dtype=torch.long), "blocks.2.attn.hook_z")
    with model.hooks({"blocks.1.hook_attn_out": lambda t, _: t.nan_to_num()}):  # interventions are their writer's own
        assert model(torch.ones(1, 4, dtype=torch.long)).isfinite().all()


def test_damaged_and_incomplete_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = EMBEDDED_DIR / "vit-mini"
    for case in ("damaged", "incomplete"):
        shutil.copytree(source, tmp_path / case)
    path = tmp_path / "damaged" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path / "damaged")
    path = tmp_path / "incomplete" / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(k for k in weights if "classifier.weight" in k))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as classifier\.weight"):
        load_model(tmp_path / "incomplete")


def test_gelu_of_gpt2_is_the_same_formula_in_one_pass(gpt2_mini):
    from transformers.activations import ACT2FN, GELUTanh, NewGELUActivation

    acts = [module for module in gpt2_mini.hf.modules() if isinstance(module, (GELUTanh, NewGELUActivation))]
    assert [type(act) for act in acts] == [GELUTanh] * gpt2_mini.cfg.n_layers
    x = torch.linspace(-9, 9, 4001)
    torch.testing.assert_close(acts[0](x), ACT2FN["gelu_new"](x), atol=2e-6, rtol=2e-6)


def test_models_can_be_loaded_by_several_threads() -> None:
    """transformers takes weight tying off a base class while it loads; after loads at once it must be there again."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_model("gpt2-mini", device="cpu"), range(8)))
    models.append(load_model("gpt2-mini", device="cpu"))
    for model in models:
        assert model.hf.lm_head.weight is model.hf.transformer.wte.weight
