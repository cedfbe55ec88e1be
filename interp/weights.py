"""The parts of a model by name: shape, layers, projections in one layout for every family, and whether it has a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from attlas.data.tokenizing import conversation as messages_of
from attlas.data.tokenizing import render
from attlas.errors import LayerRangeError, UnsupportedModelError
from attlas.interp.config import TRAITS, ModelConfig
from attlas.interp.structure import LayerModules, ModelStructure, linear_bias, linear_weight
from attlas.interp.wrappers.compiled import uncompiled


class Weights:
    """What HookedModel says of its module without running it."""

    hf: Any
    name: str
    tokenizer: Any
    structure: ModelStructure

    @property
    def cfg(self) -> ModelConfig:
        return self.structure.cfg

    @property
    def layers(self) -> tuple[LayerModules, ...]:
        return self.structure.layers

    @property
    def has_head(self) -> bool:
        """Whether outputs are logits; a backbone's are hidden states, from which there is no loss."""
        return self.structure.unembed is not None

    def require_head(self, purpose: str) -> None:
        """The one check of all that needs logits or losses.

        Raises:
            UnsupportedModelError: the model is a backbone; names its class and `purpose`.
        """
        if not self.has_head and self.cfg.n_classes:
            raise UnsupportedModelError(
                f"the classes of {self.name} ({type(uncompiled(self.hf)).__name__}) are no linear map of the normed state of a "
                f"token, so there is no {purpose}"
            )
        if not self.has_head:
            head = "a classifier (…ForImageClassification)" if self.cfg.family == "vit" else "a language-model head"
            raise UnsupportedModelError(
                f"{self.name} ({type(uncompiled(self.hf)).__name__}) is a backbone without {head}, so there is no "
                f"{purpose}; open the model with its head, or measure attention alone (entropy, capture, train)"
            )

    def require_text_head(self, purpose: str) -> None:
        """`require_head` of a language model; a vision backbone passes: its features are compared where it has no loss."""
        if self.cfg.family != "vit":
            self.require_head(purpose)

    def require_tokenizer(self, purpose: str) -> Any:
        """The tokenizer, for all that reads or writes text.

        Raises:
            UnsupportedModelError: there is none; says what for ("which `purpose` need").
        """
        if self.tokenizer is None:
            raise UnsupportedModelError(
                f"{self.name} has no tokenizer, which {purpose} need; put its tokenizer.json (or vocab.json and merges.txt, or "
                "tokenizer.model) beside its weights, or give token ids"
            )
        return self.tokenizer

    def render_chat(self, conversation: str | Sequence[Mapping[str, Any]], *, generation_prompt: bool = True) -> str:
        """A conversation as the text that this model was trained on, by its tokenizer's chat template.

        Args:
            conversation: messages with "role" and "content"; their JSON, `@file.json`, or plain text as one of the user's.
            generation_prompt: end where the assistant's answer begins (inside a last message of the assistant's).

        Raises:
            UnsupportedModelError: no tokenizer, or no chat template.
            PromptError: no conversation, or one that the template refuses.
        """
        return render(self.tokenizer, messages_of(conversation), generation_prompt=generation_prompt, name=self.name)

    def require_language_model(self) -> None:
        """Raises UnsupportedModelError for a model that predicts no next token: a vision model, or a backbone."""
        if self.cfg.family == "vit":
            raise UnsupportedModelError(
                f"{self.name} ({self.cfg.family}) predicts no next token; give a language model"
            )
        self.require_head("prediction of the next token")

    def require_vision_model(self) -> None:
        """Raises UnsupportedModelError for a model that reads no images."""
        if self.cfg.family != "vit":
            raise UnsupportedModelError(f"{self.name} is a {self.cfg.family} model and reads no images; give a ViT")

    def layer(self, index: int) -> LayerModules:
        """The modules of a layer.

        Raises:
            LayerRangeError: there is no such layer.
        """
        if not 0 <= index < self.cfg.n_layers:
            raise LayerRangeError(f"layer {index} is out of range; {self.name} has layers 0–{self.cfg.n_layers - 1}")
        return self.layers[index]

    def W_O(self, layer: int) -> Tensor:
        """Output projection [head, d_head, d_model]: attn_out = Σ_h z^h · W_O[h] + b_O."""
        weight = linear_weight(self.layer(layer).out_proj)
        return weight.reshape(self.cfg.n_heads, self.cfg.d_head, -1)

    def b_O(self, layer: int) -> Tensor:
        """Bias of the output projection [d_model]."""
        return linear_bias(self.layer(layer).out_proj, self.cfg.d_model)

    def _projection(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        parts = self.layer(layer)
        module = (parts.q, parts.k, parts.v)[slot]
        weight = linear_weight(module)
        bias = linear_bias(module, weight.shape[1])
        if parts.fused is not None:
            kind = "qkv"[slot]
            return parts.fused.take(weight, kind).transpose(0, 1), parts.fused.take(bias, kind)
        heads = self.cfg.n_heads if slot == 0 else self.cfg.n_kv_heads
        return (
            weight.reshape(self.cfg.d_model, heads, self.cfg.d_head).transpose(0, 1),
            bias.reshape(heads, self.cfg.d_head),
        )

    def W_Q(self, layer: int) -> Tensor:
        """[head, d_model, d_head]"""
        return self._projection(layer, 0)[0]

    def W_K(self, layer: int) -> Tensor:
        """[kv head, d_model, d_head]"""
        return self._projection(layer, 1)[0]

    def W_V(self, layer: int) -> Tensor:
        """[kv head, d_model, d_head]"""
        return self._projection(layer, 2)[0]

    def b_Q(self, layer: int) -> Tensor:
        """[head, d_head]"""
        return self._projection(layer, 0)[1]

    def b_K(self, layer: int) -> Tensor:
        """[kv head, d_head]"""
        return self._projection(layer, 1)[1]

    def b_V(self, layer: int) -> Tensor:
        """[kv head, d_head]"""
        return self._projection(layer, 2)[1]

    def ln1(self, layer: int) -> nn.Module:
        """The norm in front of attention.

        Raises:
            UnsupportedModelError: there is none.
        """
        return self._norm(self.layer(layer).ln1, "attention")

    def ln2(self, layer: int) -> nn.Module:
        """The norm in front of the MLP (GPT-J: the one in front of both).

        Raises:
            UnsupportedModelError: there is none.
        """
        parts = self.layer(layer)
        return self._norm(parts.ln1 if parts.ln2 is None else parts.ln2, "the MLP")

    def _norm(self, norm: nn.Module | None, before: str) -> nn.Module:
        if norm is None:
            raise UnsupportedModelError(f"{self.name} ({self.cfg.model_type}) has no norm in front of {before}")
        return norm

    def require_plain(self, purpose: str, *traits: str) -> None:
        """Refuse a model that does what `purpose` does not take into account.

        Args:
            traits: names of `attlas.interp.config.TRAITS`.

        Raises:
            UnsupportedModelError: the model has one of them.
        """
        found = [TRAITS[trait] for trait in traits if trait in self.cfg.traits]
        if found:
            raise UnsupportedModelError(
                f"{self.name} ({self.cfg.model_type}) has {' and '.join(found)}, which {purpose} cannot take into account; "
                "docs/models.md says what works for each family"
            )

    def norm_weight(self, norm: nn.Module) -> Tensor:
        """What a norm multiplies with [d_model]: its weight, of Gemma 1 + its weight."""
        weight: Tensor = norm.weight  # type: ignore[assignment]
        return weight + self.structure.gain_offset if self.structure.gain_offset else weight

    @property
    def final_norm(self) -> nn.Module:
        return self.structure.final_norm

    @property
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab], or classifier [d_model, n_classes] ([2 · d_model, n_classes] for DINOv2's, which
        reads CLS beside the mean of the patches).

        Raises:
            UnsupportedModelError: the model is a backbone.
        """
        self.require_head("unembedding or classifier")
        assert self.structure.unembed is not None
        return linear_weight(self.structure.unembed)
