"""The token that a text begins with (BOS): where a tokenizer has one for it, and never twice."""

from __future__ import annotations

from typing import Any


def bos_of(tokenizer: Any) -> int | None:
    """The id that a text begins with, or None.

    It is the tokenizer's BOS where the tokenizer puts it in front of texts itself (Llama, Gemma, Mistral), or where it is
    the end-of-text token too (GPT-2, Pythia): documents stand behind that in training, and TransformerLens and most
    published autoencoders begin with it. A BOS of its own that the tokenizer does not put there (gpt-oss, Phi-3, SmolLM2's
    chat models) is left out, as in training. A sentencepiece file beside which nothing is stated (`add_bos_token`) has it:
    its models are trained so, and transformers 5 no longer adds it.

    Args:
        tokenizer: a Hugging Face tokenizer; None has no BOS. Of another kind its `bos_token_id` is taken.

    Example:
        >>> from attlas.data.tokenizing import bos_of
        >>> bos_of(model.tokenizer)  # <|endoftext|>
        0
    """
    bos: int | None = getattr(tokenizer, "bos_token_id", None)
    if bos is None or bos == tokenizer.eos_token_id or not hasattr(tokenizer, "added_tokens_decoder"):
        return bos
    if tokenizer("a", verbose=False)["input_ids"][:1] == [bos]:
        return bos
    stated = tokenizer.init_kwargs
    bare = str(stated.get("vocab_file")).endswith(".model") and stated.get("add_bos_token") is None
    return bos if bare else None


def begun(ids: list[int], bos: int | None) -> list[int]:
    """Token ids that begin with one BOS: as they are where they do already.

    Example:
        >>> from attlas.data.tokenizing import begun
        >>> begun([5, 6], 1), begun([1, 5, 6], 1), begun([5], None)
        ([1, 5, 6], [1, 5, 6], [5])
    """
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def without_bos(ids: list[int], bos: int | None) -> list[int]:
    """Token ids without a BOS in front.

    Example:
        >>> from attlas.data.tokenizing import without_bos
        >>> without_bos([1, 5, 6], 1), without_bos([5, 6], 1)
        ([5, 6], [5, 6])
    """
    return ids[1:] if bos is not None and ids[:1] == [bos] else ids
