"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, TopK only.

encoder.weight [F,D], encoder.bias [F], W_dec [F,D], b_dec [D]; k and d_in in cfg.json: f = ReLU(TopK((x − b_dec)·W_enc +
b_enc)). A training writes a folder a hook, named after the module whose output it is (`layers.5`, `layers.5.attention`,
`h.5.mlp`; attlas.saes.formats.places), beside a config.json with the model's name; the hub's repositories are laid out so too.
Attlas adds its own configuration under the key "attlas", which sparsify passes over. Layout:
github.com/EleutherAI/sparsify, `sparse_coder.py` (save_to_disk, load_many) and `trainer.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from attlas.data.files import atomic_path, write_text_atomic
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.formats.fields import SPARSIFY_HARMLESS, neutral, refuse_unknown, section, whole, words
from attlas.saes.formats.files import build, read_json, read_safetensors
from attlas.saes.formats.pickled import take, transposed
from attlas.saes.formats.places import folders, hook_of

NAME = "sparsify"
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_READ = words("d_in k activation expansion_factor num_latents transcode skip_connection attlas")
_REPOSITORY = re.compile(r"^sae-(.+?)-\d+[kx]")
_REFUSED = {
    "signed": "the k largest by magnitude, with their sign",
    "embed_skip": "a skip connection from the embedding",
    "gram_lookup": "an n-gram table subtracted from the input",
}


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "cfg.json").is_file() and (path / "sae.safetensors").is_file()


def load(folder: Path) -> SAE:
    """Read a folder of sparsify's.

    Raises:
        SAEFormatError: keys or weights are missing or unknown, or it is not a plain TopK autoencoder.
    """
    source = folder / "cfg.json"
    record = read_json(source)
    d_in, k = whole(record, "d_in", source), whole(record, "k", source)
    if record.get("transcode") or record.get("skip_connection"):
        raise SAEFormatError(f"'{folder}' is a transcoder (its output is not its input); Attlas reads autoencoders")
    if record.get("activation", "topk") != "topk":
        raise SAEFormatError(f"'{folder}' has activation '{record['activation']}'; topk is supported")
    for key, meaning in _REFUSED.items():
        if not neutral(record.get(key)):
            raise SAEFormatError(f"'{source}' has {key}={record[key]!r:.60} ({meaning}); Attlas reads plain TopK SAEs")
    refuse_unknown(record, _READ | SPARSIFY_HARMLESS | _REFUSED.keys(), source)
    state = transposed(take(read_safetensors(folder / "sae.safetensors"), _NAMES, folder), "W_enc")
    own = section(record, "attlas", source)
    try:
        cfg = SAEConfig.from_json(own) if own else _config(record, d_in, k, source)
    except ConfigError as error:
        raise SAEFormatError(f"'{source}': {error}") from error
    if (cfg.d_in, cfg.k) != (d_in, k):
        raise SAEFormatError(f"'{source}' says d_in={d_in}, k={k} and, under attlas, d_in={cfg.d_in}, k={cfg.k}")
    return build(cfg, state, folder)


def _config(record: dict[str, Any], d_in: int, k: int, source: Path) -> SAEConfig:
    """The shape from cfg.json; the hook from the folder's name, the model from the training's config.json or the repository."""
    names = folders(source)[1:]
    training = source.parent.parent / "config.json"
    said = read_json(training) if training.is_file() else {}
    of_repository = next((found.group(1) for name in names if (found := _REPOSITORY.match(name))), "")
    model = said["model"] if isinstance(said.get("model"), str) else of_repository
    context = said.get("ctx_len")
    return SAEConfig(
        d_in=d_in,
        d_sae=_d_sae(record, d_in, source),
        k=k,
        hook_name=hook_of(names[0], model),
        model_name=model,
        context_size=context if isinstance(context, int) and context > 0 else None,
    )


def _d_sae(record: dict[str, Any], d_in: int, source: Path) -> int:
    """num_latents, or expansion_factor times d_in where that is 0 or absent."""
    if record.get("num_latents") in (None, 0):
        return d_in * whole(record, "expansion_factor", source)
    return whole(record, "num_latents", source)


def save(sae: SAE, folder: Path) -> Path:
    """Write a folder that sparsify's `SparseCoder.load_from_disk` reads.

    Raises:
        SAEFormatError: the SAE is not TopK (sparsify has nothing else), or normalises its input.
    """
    cfg = sae.cfg
    if cfg.arch != "topk" or cfg.normalisation != "none" or not cfg.apply_b_dec_to_input:
        raise SAEFormatError(
            f"sparsify holds plain TopK SAEs and this one is '{cfg.arch}' (normalisation '{cfg.normalisation}', b_dec "
            f"subtracted: {cfg.apply_b_dec_to_input}); export it to saelens instead"
        )
    record = {
        "activation": "topk",
        "expansion_factor": max(1, cfg.d_sae // cfg.d_in),
        "normalize_decoder": True,
        "num_latents": cfg.d_sae,
        "k": cfg.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": cfg.d_in,
        "attlas": cfg.to_json(),
    }
    weights = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "sae.safetensors") as temporary:
        named = {_NAMES[name]: t.contiguous() for name, t in transposed(weights, "W_enc").items()}
        save_file(named, temporary)
    write_text_atomic(folder / "cfg.json", json.dumps(record, indent=1) + "\n")
    return folder
