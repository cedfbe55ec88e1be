"""Which positions of a sequence count: one rule and one mask for capture, training, evaluation, features and heads.

Left out are the leading positions (BOS; CLS and registers of an image) and, in text, every position that holds one of the
excluded tokens, such as the separators between packed documents. By default text is read without its BOS and images
whole, since a classifier reads CLS. An SAE records what it was trained without, and that is the default wherever it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attlas.data.tokenizing import bos_of
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.dataset import Dataset
    from attlas.interp import HookedModel
    from attlas.saes.config import SAEConfig

SPECIAL = ("bos", "eos", "pad", "sep")


@dataclass(frozen=True)
class Positions:
    """The rule, for one model.

    Attributes:
        skip: leading positions left out.
        exclude: token ids left out.
        names: the ids as they were named, for the record.
    """

    skip: int = 0
    exclude: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def mask(self, inputs: Tensor, n_positions: int | None = None, text: Tensor | None = None) -> Tensor:
        """True where a position counts, bool [B, T], on the device of `inputs`.

        Args:
            inputs: tokens int64 [B, T], or pixels [B, C, H, W].
            n_positions: T, needed for pixels.
            text: bool [B, T], False in padding, which never counts; None where there is none.
        """
        if inputs.ndim == 2:
            keep = torch.ones_like(inputs, dtype=torch.bool)
            if self.exclude:
                keep = ~torch.isin(inputs, torch.tensor(self.exclude, device=inputs.device))
        else:
            assert n_positions is not None
            keep = torch.ones(len(inputs), n_positions, dtype=torch.bool, device=inputs.device)
        keep[:, : self.skip] = False
        return keep if text is None else keep & text.to(keep.device)

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.skip == 0 and not self.exclude

    def require_some(self, data: Dataset) -> None:
        """Raise when no position of any sequence counts.

        Raises:
            ConfigError: says what is left out.
        """
        rows = data.tensor
        if rows.ndim == 2 and len(rows) and not bool(self.mask(rows, text=data.mask).any()):
            raise ConfigError(
                f"no position is left with skip_positions={self.skip} and exclude_tokens={list(self.names)}; leave out less"
            )


def positions_for(
    model: HookedModel,
    skip_positions: int | None = None,
    exclude_tokens: Sequence[str] | None = None,
    sae: SAEConfig | None = None,
) -> Positions:
    """The rule for a model: what is asked for, else what the SAE records, else the default (see above).

    Args:
        skip_positions: leading positions to leave out, or None.
        exclude_tokens: names (bos, eos, pad, sep), token strings or ids, or None.
        sae: of the SAE that reads the positions, if any.

    Raises:
        ConfigError: a token is unknown, or the model has no tokens; or an image's patches would be skipped.
    """
    if skip_positions is None:
        recorded = sae.skip_positions if sae is not None else None
        skip_positions = recorded if recorded is not None else _default_skip(model)
    vision = model.cfg.family == "vit"
    if vision and skip_positions > model.cfg.n_prefix_tokens:
        raise ConfigError(
            f"skip_positions={skip_positions} would leave out patches: {model.name} puts {model.cfg.n_prefix_tokens} tokens "
            "(CLS, registers) in front of them; give that many or fewer"
        )
    names = tuple(exclude_tokens) if exclude_tokens is not None else (sae.exclude_tokens if sae is not None else ())
    if vision and exclude_tokens:
        raise ConfigError(f"{model.name} is a vision model: it has no tokens to exclude; use skip_positions for CLS")
    ids = () if vision else tuple(dict.fromkeys(token_id(model, name) for name in names))
    return Positions(skip_positions, ids, () if vision else names)


def _default_skip(model: HookedModel) -> int:
    """Packed rows begin with BOS where the tokenizer has one for texts."""
    return int(model.cfg.family != "vit" and bos_of(model.tokenizer) is not None)


def token_id(model: HookedModel, name: str) -> int:
    """The id of bos, eos, pad or sep, of a token's text, or of a number.

    Raises:
        ConfigError: the tokenizer has no such token, or the text is several.
    """
    tokenizer: Any = model.tokenizer
    if name in SPECIAL:
        found = getattr(tokenizer, f"{name}_token_id", None)
        if found is None:
            there = [kind for kind in SPECIAL if getattr(tokenizer, f"{kind}_token_id", None) is not None]
            raise ConfigError(f"the tokenizer of {model.name} has no {name} token; it has {', '.join(there) or 'none'}")
        return int(found)
    if name.isdecimal():
        if int(name) >= model.cfg.d_vocab:
            raise ConfigError(f"token id {name} is beyond the vocabulary of {model.name} (0–{model.cfg.d_vocab - 1})")
        return int(name)
    if tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer to look up '{name}'; give token ids")
    if name in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids(name))
    ids = tokenizer(name, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"'{name}' is {len(ids)} tokens for {model.name}; give one token, its id, or {', '.join(SPECIAL)}"
        )
    return int(ids[0])
