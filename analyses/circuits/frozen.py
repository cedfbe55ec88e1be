"""One prompt's forward pass as a linear system: attention patterns and norm scales frozen at what they were.

With these frozen, the residual stream at a position is the sum of embeddings, MLP outputs and, for every earlier
attention layer, its autoencoder's features, bias and error (or its heads, where there is no autoencoder); and what a
head moves is linear in the residual stream at its sources (Kissane et al. 2024, arXiv 2406.17759, recursive DFA). MLPs
are not looked into: they are sources. All sums are taken in float64 from the model's own activations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import ConfigError, PromptError
from attlas.interp import AnyModel, as_hooked
from attlas.interp.names import layer_index
from attlas.interp.structure import norm_eps
from attlas.saes.base import SAE
from attlas.saes.decompose import SAEs, check_saes, decompose

ATTENTION_HOOKS = ("attn.hook_z", "hook_attn_out")


@dataclass(frozen=True)
class Part:
    """A term of the residual stream.

    Attributes:
        kind: "embed", "position", "feature", "error", "head", "mlp", or "bias" (b_O, and an autoencoder's b_dec).
        layer: that wrote it; −1 for embeddings.
        position: where it stands.
        head: for heads, otherwise −1.
        feature: for features, otherwise −1.
    """

    kind: str
    layer: int
    position: int
    head: int = -1
    feature: int = -1

    @property
    def id(self) -> str:
        """Unique name, such as "feature 2/831 @5" or "head 3.0 @7"."""
        where = f" @{self.position}"
        if self.kind == "feature":
            return f"feature {self.layer}/{self.feature}{where}"
        if self.kind == "head":
            return f"head {self.layer}.{self.head}{where}"
        return self.kind + ("" if self.layer < 0 else f" {self.layer}") + where


_IDS = (
    ("feature", re.compile(r"(?:feature )?(\d{1,4})/(\d{1,9}) ?@(-?\d{1,9})")),
    ("head", re.compile(r"(?:head )?(\d{1,4})\.(\d{1,4}) ?@(-?\d{1,9})")),
    ("layer", re.compile(r"(error|mlp|bias) (\d{1,4}) ?@(-?\d{1,9})")),
)


def parse_part(id: str) -> Part:
    """The part of an id: "feature 2/831 @5" (or "2/831@5"), "head 3.0 @7" ("3.0@7"), "mlp 2 @4", "error 2 @4".

    Positions below 0 count from the end.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> from attlas.analyses.circuits import parse_part
        >>> parse_part("feature 2/831 @5")
        Part(kind='feature', layer=2, position=5, head=-1, feature=831)
        >>> parse_part("3.0@-1").head
        0
    """
    for kind, pattern in _IDS:
        found = pattern.fullmatch(id.strip())
        if not found:
            continue
        if kind == "feature":
            return Part(kind, int(found[1]), int(found[3]), feature=int(found[2]))
        if kind == "head":
            return Part(kind, int(found[1]), int(found[3]), head=int(found[2]))
        return Part(found[1], int(found[2]), int(found[3]))
    raise ConfigError(f"'{id}' names no part; write 2/831@5 (feature), 3.0@7 (head), mlp 2 @4 or error 2 @4")


class FrozenPass:
    """The activations of one prompt, and the linear maps between them.

    Args:
        model: a language model.
        tokens: int64 [T] or [1, T].
        saes: hook → autoencoder on attn.hook_z or hook_attn_out, at most one a layer.

    Raises:
        UnsupportedModelError: not a language model.
        ConfigError: an autoencoder sits elsewhere, or two on one layer.
        PromptError: more than one prompt.

    Example:
        >>> from attlas.analyses.circuits import FrozenPass
        >>> frozen = FrozenPass(model, task.tokens[0], {hook: sae})
        >>> frozen.logits.shape == (task.tokens.shape[1], model.cfg.d_vocab)
        True
        >>> parts, vectors = frozen.parts(frozen.at(-1), model.cfg.n_layers)  # what the last residual stream is the sum of
        >>> vectors.shape == (len(parts), model.cfg.d_model)
        True
    """

    def __init__(self, model: AnyModel, tokens: Tensor, saes: SAEs | None = None) -> None:
        model = as_hooked(model)
        model.require_language_model()
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.shape[0] != 1:
            raise PromptError(f"one prompt is traced at a time, not {tokens.shape[0]}; give one row of tokens")
        self.model = model
        self.saes: dict[int, tuple[str, SAE]] = {}
        for hook, sae in check_saes(model, saes or {}).items():
            if not hook.endswith(ATTENTION_HOOKS):
                raise ConfigError(
                    f"the autoencoder sits on '{hook}'; tracing takes those on attn.hook_z or hook_attn_out"
                )
            layer = layer_index(hook)
            if layer in self.saes:
                raise ConfigError(f"two autoencoders read layer {layer}; give one a layer")
            self.saes[layer] = (hook, sae)
        self.tokens = tokens.to(model.device)
        self._run()
        self._parts: dict[int, tuple[list[Part], Tensor]] = {}

    @torch.no_grad()
    def _run(self) -> None:
        model = self.model
        wanted = [
            name
            for name in model.hook_names()
            if name.endswith(
                ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out", "hook_z", "hook_v", "hook_pattern")
            )
            or name.endswith(("hook_scale", "hook_resid_pre", "hook_resid_post", "hook_attn_scores", "attn.hook_q"))
            or name.endswith(("attn.hook_k", "ln_final.hook_normalized"))
        ]
        # What turns queries and keys, (cos, sin) [T, …] of every layer: Gemma 3's local layers turn at another speed.
        self.rope: list[tuple[Tensor, Tensor]] = []

        def receive(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            if (pair := kwargs.get("position_embeddings")) is not None:
                self.rope.append((pair[0][0].double(), pair[1][0].double()))

        handles = [parts.attn.register_forward_pre_hook(receive, with_kwargs=True) for parts in model.layers]
        try:
            logits, cache = model.run_with_cache(self.tokens, wanted)
        finally:
            for handle in handles:
                handle.remove()
        self.logits = logits[0].double()
        # [T, …]; patterns and scores are [head, dest, src].
        self.cache = {name: tensor[0].double() for name, tensor in cache.items()}

    @property
    def n_positions(self) -> int:
        return int(self.tokens.shape[1])

    def str_tokens(self) -> list[str]:
        """Text of each token; its id where there is no tokenizer."""
        if self.model.tokenizer is None:
            return [str(int(i)) for i in self.tokens[0]]
        return self.model.to_str_tokens(self.tokens[0])

    def at(self, position: int) -> int:
        """A position counted from the front.

        Raises:
            ConfigError: out of range.
        """
        if not -self.n_positions <= position < self.n_positions:
            raise ConfigError(f"position {position} is out of range; the prompt has {self.n_positions} tokens")
        return position % self.n_positions

    # -- the residual stream as a sum ------------------------------------------------------------------------------

    def parts(self, position: int, layer: int) -> tuple[list[Part], Tensor]:
        """Terms of the residual stream that enters `layer` (n_layers: the final norm) at a position.

        Returns: n parts and their vectors, float64 [n, d_model]; their sum is the residual stream.
        """
        if position not in self._parts:
            self._parts[position] = self._all_parts(position)
        parts, vectors = self._parts[position]
        n = sum(part.layer < layer for part in parts)
        return parts[:n], vectors[:n]

    def _all_parts(self, position: int) -> tuple[list[Part], Tensor]:
        parts = [Part("embed", -1, position)]
        vectors = [self.cache["hook_embed"][position][None]]
        if "hook_pos_embed" in self.cache:
            table = self.cache["hook_pos_embed"]
            parts.append(Part("position", -1, position))
            vectors.append((table[position] if table.ndim == 2 else table[0, position])[None])
        for layer in range(self.model.cfg.n_layers):
            found, rows = self._attention_parts(layer, position)
            parts += [*found, Part("mlp", layer, position)]
            vectors += [rows, self.cache[f"blocks.{layer}.hook_mlp_out"][position][None]]
        return parts, torch.cat(vectors)

    @torch.no_grad()
    def written(self, layer: int, position: int) -> tuple[Tensor, Tensor]:
        """W_O [head, d_head, d_model] and b_O [d_model] at a position, float64, on to the residual stream.

        A norm behind attention (Gemma 2, OLMo 2) is in them, its scale frozen.
        """
        W_O, b_O = self.model.W_O(layer).detach().double(), self.model.b_O(layer).detach().double()
        if "post_norm" not in self.model.cfg.traits:
            return W_O, b_O
        norm = self.model.layers[layer].attn_out
        out = torch.einsum("he,hed->d", self.cache[f"blocks.{layer}.attn.hook_z"][position], W_O) + b_O
        factor = self.model.norm_weight(norm).detach().double() / (out.pow(2).mean() + norm_eps(norm)).sqrt()
        return W_O * factor, b_O * factor

    @torch.no_grad()
    def _attention_parts(self, layer: int, position: int) -> tuple[list[Part], Tensor]:
        W_O, b_O = self.written(layer, position)
        if layer not in self.saes:
            z = self.cache[f"blocks.{layer}.attn.hook_z"][position]
            rows = torch.einsum("he,hed->hd", z, W_O)
            parts = [Part("head", layer, position, head=h) for h in range(len(z))]
            return [*parts, Part("bias", layer, position)], torch.cat([rows, b_O[None]])
        coefficients, bias, error, W_dec = self.decomposed(layer, position)
        active = coefficients.nonzero()[:, 0]
        rows = torch.cat([coefficients[active, None] * W_dec[active].double(), error[None], bias[None]])
        if self.saes[layer][0].endswith("hook_z"):
            rows = rows @ W_O.flatten(0, 1)
            rows[-1] += b_O
        parts = [Part("feature", layer, position, feature=int(f)) for f in active]
        return [*parts, Part("error", layer, position), Part("bias", layer, position)], rows

    @torch.no_grad()
    def decomposed(self, layer: int, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Coefficients [F], bias [D], error [D] of a layer's autoencoder at a position, float64; its W_dec [F, D]."""
        hook, sae = self.saes[layer]
        x = self.cache[hook][position].flatten()
        split = decompose(sae, x.to(sae.W_enc.dtype)[None])
        W_dec, coefficients, bias = sae.W_dec.detach(), split.coefficients[0].double(), split.bias[0].double()
        # few: the whole of a wide W_dec in float64 would take longer than all else
        active = coefficients.nonzero().squeeze(1)
        return coefficients, bias, x - bias - coefficients[active] @ W_dec[active].double(), W_dec

    @torch.no_grad()
    def strongest(self, layer: int, n: int) -> list[list[tuple[int, float]]]:
        """At each position, (feature, amount) of the n strongest active features of a layer's autoencoder."""
        hook, sae = self.saes[layer]
        coefficients = decompose(sae, self.cache[hook].flatten(1).to(sae.W_enc.dtype)).coefficients
        top = coefficients.topk(min(n, coefficients.shape[1]))
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [[(f, a) for f, a in zip(*row, strict=True) if a > 0] for row in rows]

    # -- covectors back through norms and attention ----------------------------------------------------------------

    def norm(self, which: str) -> tuple[nn.Module, Tensor]:
        """(module, scale [T, 1]) of "ln_final" or "blocks.{l}.ln1"."""
        module = self.model.final_norm if which == "ln_final" else self.model.ln1(layer_index(which))
        return module, self.cache[f"{which}.hook_scale"]

    def through_norm(self, which: str, position: int | slice, covector: Tensor) -> tuple[Tensor, Tensor]:
        """A functional of the norm's output as one of its input, its scale frozen; itself where there is no norm (OLMo 2).

        Args:
            covector: [..., d_model].

        Returns: (covector on the input [..., d_model], constant from the norm's bias [...]).
        """
        if f"{which}.hook_scale" not in self.cache:
            return covector, covector.sum(-1) * 0
        module, scale = self.norm(which)
        weight = self.model.norm_weight(module).detach().double()
        bias = getattr(module, "bias", None)
        constant = covector @ bias.detach().double() if bias is not None else covector.sum(-1) * 0
        inner = covector * weight
        if self.model.cfg.norm == "ln":
            inner = inner - inner.mean(-1, keepdim=True)
        return inner / scale[position], constant

    def logit_covector(self, position: int, right: list[int], wrong: list[int]) -> tuple[Tensor, float, float]:
        """Mean logit of `right` − mean logit of `wrong` as a functional of the last residual stream.

        Of a model that caps its logits (Gemma 2): logits before the cap.

        Returns: (covector [d_model], constant, the model's own value).
        """
        W_U = self.model.W_U.detach().double()
        direction = W_U[:, right].mean(1)
        logits = self.logits[position] if self.model.structure.logit_softcap is None else self._uncapped(position)
        value = logits[right].mean()
        bias = getattr(self.model.structure.unembed, "bias", None)
        extra = 0.0 if bias is None else float(bias.detach().double()[right].mean())
        if wrong:
            direction = direction - W_U[:, wrong].mean(1)
            value = value - logits[wrong].mean()
            extra -= 0.0 if bias is None else float(bias.detach().double()[wrong].mean())
        covector, constant = self.through_norm("ln_final", position, direction)
        return covector, float(constant) + extra, float(value)

    @torch.no_grad()
    def _uncapped(self, position: int) -> Tensor:
        """Logits [d_vocab] as the unembedding gives them."""
        unembed = self.model.structure.unembed
        assert unembed is not None
        return unembed(self.cache["ln_final.hook_normalized"][position].to(self.model.dtype)).double()

    def attention_to(self, dest: int, src: int) -> Tensor:
        """Attention of every head from one position to another, [n_layers, n_heads]; 0 to what comes later."""
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(self.model.cfg.n_layers)]
        return torch.stack([self.cache[name][:, dest, src] for name in names])

    def back_through_attention(self, layer: int, dest: int, row: Tensor) -> tuple[Tensor, Tensor, float]:
        """A functional Σ_h row[h] · z^h at dest, as one of the residual streams at its sources.

        Args:
            row: [head, d_head]; heads with a row of zeros take no part.

        Returns:
            covectors [head, src, d_model] on the stream that enters the layer, with the pattern's weight;
            by source, [head, src]: A[h, dest, src]·(v_src · row[h]), the DFA, bias included;
            constant: what the norm's bias and b_V add.
        """
        cfg = self.model.cfg
        group = cfg.n_heads // cfg.n_kv_heads
        n = self.model.layers[layer].rule.span(dest, dest, self.n_positions)[1]
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"][:, dest, :n]
        W_V = self.model.W_V(layer).detach().double().repeat_interleave(group, 0)
        b_V = self.model.b_V(layer).detach().double().repeat_interleave(group, 0)
        v = self.cache[f"blocks.{layer}.attn.hook_v"][:n].repeat_interleave(group, 1)  # [src, head, d_head]
        dfa = pattern * torch.einsum("she,he->hs", v, row)
        onto_norm = torch.einsum("hde,he->hd", W_V, row)[:, None].expand(-1, n, -1)
        covectors, constants = self.through_norm(f"blocks.{layer}.ln1", slice(0, n), onto_norm)
        constants = constants + (b_V * row).sum(-1)[:, None]
        return pattern[..., None] * covectors, dfa, float((pattern * constants).sum())
