"""Sizes of transformers, as far as a plan needs them: from a folder's config.json, or of published models by name."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attlas.data.models_catalog import EMBEDDED_DIR, fetched_dir
from attlas.errors import CheckpointError, ConfigError, nearest
from attlas.interp.checkpoint import read_config, weight_shapes
from attlas.interp.names import layer_of, match_hooks


@dataclass(frozen=True)
class ModelShape:
    """A decoder or a ViT in numbers.

    Attributes:
        name: as it was asked for.
        n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp, d_vocab: as in attlas.interp.config.
        gated: whether the MLP has a gate, and so three matrices.
        tied: whether embedding and unembedding are one matrix.
        counted: parameters as the checkpoint's headers count them; None takes the sum of the matrices.
    """

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    gated: bool = True
    tied: bool = False
    counted: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Matrices of one layer."""
        heads = (2 * self.n_heads + 2 * self.n_kv_heads) * self.d_head
        return self.d_model * heads + (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """All parameters; without a checkpoint, of the matrices (norms and biases are below 0.1 %)."""
        if self.counted is not None:
            return self.counted
        return self.n_layers * self.layer_parameters + (1 if self.tied else 2) * self.d_vocab * self.d_model

    def flops(self, n_layers: int, seq_len: int) -> float:
        """Of a token in a forward pass through the first layers: 2 a weight, and causal attention over seq_len tokens."""
        return n_layers * (2.0 * self.layer_parameters + 2.0 * seq_len * self.n_heads * self.d_head)

    def width(self, hook: str) -> int:
        """Numbers a token at a hook."""
        if hook.endswith(("attn.hook_k", "attn.hook_v", "attn.hook_rot_k")):
            return self.n_kv_heads * self.d_head
        if hook.endswith(("attn.hook_z", "attn.hook_q", "attn.hook_rot_q")):
            return self.n_heads * self.d_head
        return self.d_mlp if hook.endswith("mlp.hook_post") else self.d_model

    def hooks(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The hooks that names or globs match.

        Raises:
            HookNameError, LayerRangeError: one matches nothing.
        """
        inside = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_attn_out", "hook_resid_mid")
        parts = ("hook_resid_pre", *inside, "mlp.hook_post", "hook_mlp_out", "hook_resid_post")
        known = tuple(f"blocks.{layer}.{part}" for layer in range(self.n_layers) for part in parts)
        return match_hooks(patterns, known)


def depth(hook: str) -> int:
    """Layers that a forward pass runs for a hook."""
    layer = layer_of(hook)
    return 0 if layer is None else layer + (not hook.endswith("hook_resid_pre"))


# From the models' published config.json.
PUBLISHED = {
    shape.name: shape
    for shape in (
        ModelShape("gpt2", 12, 12, 12, 768, 64, 3072, 50_257, gated=False, tied=True),
        ModelShape("smollm2-135m", 30, 9, 3, 576, 64, 1536, 49_152, tied=True),
        ModelShape("llama-3.2-1b", 16, 32, 8, 2048, 64, 8192, 128_256, tied=True),
        ModelShape("llama-3.1-8b", 32, 32, 8, 4096, 128, 14_336, 128_256),
        ModelShape("llama-3.1-70b", 80, 64, 8, 8192, 128, 28_672, 128_256),
    )
}


def model_shape(name: str) -> ModelShape:
    """Sizes of a model: a folder's, an embedded or fetched one's, or a published one's; nothing is downloaded.

    Raises:
        ConfigError: none of these.
        CheckpointError: its config.json cannot be read or lacks a size.

    Example:
        >>> from attlas.saes.scaling.shapes import model_shape
        >>> model_shape("gpt2-mini").d_model, f"{model_shape('llama-3.1-70b').parameters / 1e9:.1f} billion"
        (192, '70.6 billion')
    """
    folders = (Path(name).expanduser(), EMBEDDED_DIR / name, fetched_dir(name))
    folder = next((f for f in folders if (f / "config.json").is_file()), None)
    if folder is not None:
        return _of_folder(folder, name)
    short = name.split("/")[-1].lower()
    found = [known for known in PUBLISHED if fnmatch.fnmatch(short, f"{known}*")]
    if not found:
        known = [*PUBLISHED, "gpt2-mini", "vit-mini"]
        raise ConfigError(
            f"the sizes of '{name}' are not known without its config.json; give a model folder or one of "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    return PUBLISHED[max(found, key=len)]


def _of_folder(folder: Path, name: str) -> ModelShape:
    config = read_config(folder)

    def first(*keys: str, otherwise: int | None = None) -> int:
        value: Any = next((config[key] for key in keys if config.get(key) is not None), otherwise)
        if not isinstance(value, int):
            raise CheckpointError(f"'{folder / 'config.json'}' lacks {keys[0]}; mend it")
        return value

    d_model, n_heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    shapes = weight_shapes(folder)
    sizes = [_product(shape) for shape in shapes.values()]
    return ModelShape(
        name=name,
        n_layers=first("num_hidden_layers", "n_layer"),
        n_heads=n_heads,
        n_kv_heads=first("num_key_value_heads", otherwise=n_heads),
        d_model=d_model,
        d_head=first("head_dim", otherwise=d_model // n_heads),
        d_mlp=first("intermediate_size", "n_inner", otherwise=4 * d_model),
        d_vocab=first("vocab_size", otherwise=0),
        gated=any("gate_proj" in key or "gate_up_proj" in key for key in shapes),
        tied=bool(config.get("tie_word_embeddings", False)),
        counted=sum(sizes) or None,
    )


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
