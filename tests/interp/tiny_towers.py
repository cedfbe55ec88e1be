"""Folders of a whole CLIP and SigLIP with random weights, a tokenizer and an image processor, as they are published."""

from __future__ import annotations

import json
from pathlib import Path

from tests.interp.tiny_vision import make

CLIP_PROCESSOR = {  # as openai/clip-vit-base-patch32 has it, but for its size
    "crop_size": 28, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 28,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SIGLIP_PROCESSOR = {  # as google/siglip-base-patch16-224
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_processor_type":
    "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"height": 24, "width": 24},
}  # fmt: skip


def _clip_tokenizer(folder: Path) -> None:
    """CLIP's byte-level tokenizer with three merges; the end token is the last of the vocabulary, as in the published one."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["a t</w>", "c at</w>", "o f</w>"]
    vocab = [*letters, *(letter + "</w>" for letter in letters), *("".join(m.split()) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _word_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "a", "photo", "of", "cat", "dog", "owl", ".", "red", "green", "blue", "tall", "picture"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", unk_token="<unk>").save_pretrained(folder)


def write(name: str, folder: Path) -> Path:
    """A folder of "clip" or "siglip" (see tiny_vision), ready to open."""
    folder.mkdir(parents=True, exist_ok=True)
    make(name).save_pretrained(folder)
    (_clip_tokenizer if name == "clip" else _word_tokenizer)(folder)
    processor = CLIP_PROCESSOR if name == "clip" else SIGLIP_PROCESSOR
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
