"""Lorsa folders, in the layout of OpenMOSS's Language-Model-SAEs (`llamascopium`), which is Attlas's own too.

- `config.json`: the keys of their `LorsaConfig` and `SparseDictionaryConfig`, as `save_hyperparameters` writes them.
- `sae_weights.safetensors`: W_Q, W_K [G,D,Q], b_Q, b_K [G,Q], W_V, W_O [F,D], b_V [F], b_D [D]; ln_q.w, ln_k.w [G,Q] with
  query–key norms; activation_function.log_jumprelu_threshold [F]; and the buffers that their strict loader asks for (mask,
  IGNORE, rotary_sin, rotary_cos), which are computed anew when read.
- `attlas.json`, Attlas's own: the model and data it was trained on. Other programs need not know it.

Their documentation has the keys of config.json (docs/models/lorsa.md); names and shapes of the weights stand in their code
alone (src/llamascopium/models/lorsa.py). Written with norm_activation "inference": scales are folded in. Read: "dataset-wise"
too, where weights or config hold the average norms, with s = √D/E‖·‖ of either hook folded in; refused by name are norms of a
token or a batch, batchtopk and rotary_scale other than 1.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attlas._version import __version__
from attlas.data.files import atomic_path, write_text_atomic
from attlas.data.workspace import in_workspace
from attlas.errors import ConfigError, SAEFormatError
from attlas.saes.formats.fields import OPENMOSS_HARMLESS, flag, number, refuse_unknown, section, text, whole, words
from attlas.saes.formats.files import read_json, read_safetensors
from attlas.saes.lorsa.config import ACTIVATIONS, LorsaConfig, LorsaRotary
from attlas.saes.lorsa.model import Lorsa
from attlas.saes.lorsa.rotary import tables

FORMAT_VERSION = 1
CONFIG, WEIGHTS, OWN = "config.json", "sae_weights.safetensors", "attlas.json"
_NORM = "dataset_average_activation_norm"
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NAMES = {"w_norm_Q": "ln_q.w", "w_norm_K": "ln_k.w"}
_BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
_READ = words(f"""
    sae_type d_model d_sae expansion_factor use_decoder_bias act_fn norm_activation {_NORM} sparsity_include_decoder_norm top_k
    hook_point_in hook_point_out n_qk_heads d_qk_head positional_embedding_type rotary_dim rotary_base rotary_adjacent_pairs
    rotary_scale use_NTK_by_parts_rope NTK_by_parts_factor NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor
    old_context_len n_ctx attn_scale use_post_qk_ln normalization_type eps model_name
""")
_PROVENANCE = ("model_name", "model_hash", "data_name", "data_hash", "skip_positions", "exclude_tokens")


def is_lorsa(path: Path) -> bool:
    """Whether a folder holds a Lorsa of this layout."""
    try:
        return (path / CONFIG).is_file() and read_json(path / CONFIG).get("sae_type") == "lorsa"
    except SAEFormatError:
        return False


def save_lorsa(lorsa: Lorsa, folder: str | Path) -> Path:
    """Write the folder; each file appears whole or not at all.

    Example:
        >>> from attlas.saes import Lorsa, LorsaConfig, load_lorsa, save_lorsa
        >>> small = Lorsa(LorsaConfig(d_model=192, d_sae=48, n_qk_heads=6, d_qk_head=32, n_ctx=24, k=4))
        >>> written = save_lorsa(small, folder / "lorsa")
        >>> sorted(path.name for path in written.iterdir()), load_lorsa(written).hash == small.hash
        (['attlas.json', 'config.json', 'sae_weights.safetensors'], True)
    """
    folder, cfg = Path(folder), lorsa.cfg
    state = {_NAMES.get(name, name): t.detach().cpu().contiguous() for name, t in lorsa.state_dict().items()}
    if cfg.activation == "jumprelu":
        state[_LOG_THRESHOLD] = state.pop("threshold").clamp_min(1e-30).log()
    state["mask"] = torch.ones(cfg.n_ctx, cfg.n_ctx, dtype=torch.bool).tril()
    state["IGNORE"] = torch.tensor(-torch.inf)
    if cfg.rotary is not None:
        state["rotary_cos"], state["rotary_sin"] = (t.to(lorsa.W_Q.dtype) for t in tables(cfg.rotary, cfg.n_ctx))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary, {"version": f"attlas {__version__}"})
    write_text_atomic(folder / CONFIG, json.dumps(_record(cfg), indent=4) + "\n")
    own = {name: getattr(cfg, name) for name in _PROVENANCE} | {"exclude_tokens": list(cfg.exclude_tokens)}
    write_text_atomic(
        folder / OWN, json.dumps({"format": FORMAT_VERSION, "version": __version__, **own}, indent=1) + "\n"
    )
    return folder


def _record(cfg: LorsaConfig) -> dict[str, Any]:
    """config.json, every key of theirs."""
    rotary = cfg.rotary or LorsaRotary(2)
    ntk = rotary.ntk_factor is not None
    return {
        "sae_type": "lorsa",
        "d_model": cfg.d_model,
        "expansion_factor": cfg.d_sae / cfg.d_model,
        "use_decoder_bias": True,
        "act_fn": cfg.activation,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": True,
        "top_k": cfg.k,
        "hook_point_in": cfg.hook_in,
        "hook_point_out": cfg.hook_out,
        "n_qk_heads": cfg.n_qk_heads,
        "d_qk_head": cfg.d_qk_head,
        "positional_embedding_type": "none" if cfg.rotary is None else "rotary",
        "rotary_dim": rotary.dim,
        "rotary_base": int(rotary.base) if rotary.base == int(rotary.base) else rotary.base,
        "rotary_adjacent_pairs": rotary.adjacent_pairs,
        "rotary_scale": 1,
        "use_NTK_by_parts_rope": ntk,
        "NTK_by_parts_factor": rotary.ntk_factor if ntk else 1.0,
        "NTK_by_parts_low_freq_factor": rotary.ntk_low if ntk else 1.0,
        "NTK_by_parts_high_freq_factor": rotary.ntk_high if ntk else 1.0,
        "old_context_len": rotary.old_context,
        "n_ctx": cfg.n_ctx,
        "attn_scale": cfg.divisor,
        "use_post_qk_ln": cfg.qk_norm,
        "normalization_type": "RMS" if cfg.qk_norm else None,
        "eps": cfg.qk_norm_eps,
    }


def load_lorsa(path: str | Path, device: str | torch.device = "cpu") -> Lorsa:
    """Open a Lorsa: a folder of this layout, or a run's folder in a workspace. (`save_lorsa` has an example.)

    Raises:
        SAEFormatError: a file or weight is missing, damaged or unknown, or it is of a kind that is refused.
        WorkspaceError: it is a workspace's, and not the bytes that were written.

    Example:
        >>> from attlas.saes import Lorsa, LorsaConfig, load_lorsa, save_lorsa
        >>> small = Lorsa(LorsaConfig(d_model=192, d_sae=48, n_qk_heads=6, d_qk_head=32, n_ctx=24, k=4))
        >>> load_lorsa(save_lorsa(small, folder / "lorsa")).cfg.n_qk_heads
        6
    """
    folder = in_workspace(Path(path).expanduser())
    if (folder / "lorsa").is_dir():  # a run's folder
        folder = folder / "lorsa"
    source = folder / CONFIG
    record = read_json(source)
    if record.get("sae_type") != "lorsa":
        raise SAEFormatError(f"'{source}' has sae_type={record.get('sae_type')!r:.60}; a Lorsa's is 'lorsa'")
    refuse_unknown(record, _READ | OPENMOSS_HARMLESS, source)
    raw = read_safetensors(folder / WEIGHTS)
    norms = {name.removeprefix(f"{_NORM}."): raw.pop(name) for name in [n for n in raw if n.startswith(f"{_NORM}.")]}
    cfg = _config(record, raw, source, _provenance(folder, record, source))
    lorsa = Lorsa(cfg, raw["W_V"].dtype)
    _fill(lorsa, raw, record, folder / WEIGHTS, source)
    scales = [_scale(record, norms, hook, source) for hook in (cfg.hook_in, cfg.hook_out)]
    if not flag(record, "sparsity_include_decoder_norm", True, source) and cfg.activation != "relu":
        raise SAEFormatError(
            f"'{source}' has sparsity_include_decoder_norm=false: features chosen without their norm; Attlas refuses it"
        )
    if scales != [1.0, 1.0]:
        lorsa.fold_scales(*scales)
    return lorsa.requires_grad_(False).eval().to(device)


def _config(record: dict[str, Any], raw: dict[str, Tensor], source: Path, provenance: dict[str, Any]) -> LorsaConfig:
    kind, act = text(record, "positional_embedding_type", source) or "rotary", record.get("act_fn")
    if act not in ACTIVATIONS:
        raise SAEFormatError(f"'{source}' has act_fn={act!r:.60}; of a Lorsa {', '.join(ACTIVATIONS)} are read")
    if kind not in ("rotary", "none") or record.get("rotary_scale", 1) != 1:
        raise SAEFormatError(
            f"'{source}' has positional_embedding_type={kind!r:.40} and rotary_scale={record.get('rotary_scale')!r:.40}; "
            "rotary and none, with scale 1, are read"
        )
    qk_norm = flag(record, "use_post_qk_ln", False, source)
    if qk_norm and record.get("normalization_type") != "RMS":
        raise SAEFormatError(f"'{source}' has normalization_type={record.get('normalization_type')!r:.40}; RMS is read")
    if "W_V" not in raw or raw["W_V"].ndim != 2:
        raise SAEFormatError(f"'{source.with_name(WEIGHTS)}' lacks W_V [features, d_model]; it is no Lorsa's")
    try:
        return LorsaConfig(
            d_model=whole(record, "d_model", source),
            d_sae=raw["W_V"].shape[0],
            n_qk_heads=whole(record, "n_qk_heads", source),
            d_qk_head=whole(record, "d_qk_head", source),
            n_ctx=whole(record, "n_ctx", source),
            k=whole(record, "top_k", source) if act == "topk" else 1,
            activation=act,
            attn_scale=number(record, "attn_scale", 0.0, source) or None,
            rotary=_rotary(record, source) if kind == "rotary" else None,
            qk_norm=qk_norm,
            qk_norm_eps=number(record, "eps", 1e-6, source),
            hook_in=text(record, "hook_point_in", source),
            hook_out=text(record, "hook_point_out", source),
            **provenance,
        )
    except (ConfigError, TypeError) as error:
        raise SAEFormatError(f"'{source}': {error}") from error


def _rotary(record: dict[str, Any], source: Path) -> LorsaRotary:
    ntk = flag(record, "use_NTK_by_parts_rope", False, source)
    parts = {}
    if ntk:
        parts = {
            "ntk_factor": number(record, "NTK_by_parts_factor", 1.0, source),
            "ntk_low": number(record, "NTK_by_parts_low_freq_factor", 1.0, source),
            "ntk_high": number(record, "NTK_by_parts_high_freq_factor", 1.0, source),
        }
    old = whole(record, "old_context_len", source) if ntk else 2048
    adjacent = flag(record, "rotary_adjacent_pairs", True, source)
    base = number(record, "rotary_base", 10_000, source)
    return LorsaRotary(whole(record, "rotary_dim", source), base, adjacent, old_context=old, **parts)


def _provenance(folder: Path, record: dict[str, Any], source: Path) -> dict[str, Any]:
    """What attlas.json tells; of a foreign folder at most the model's name."""
    if not (folder / OWN).is_file():
        return {"model_name": text(record, "model_name", source)}
    own = read_json(folder / OWN)
    if whole(own, "format", folder / OWN) > FORMAT_VERSION:
        raise SAEFormatError(
            f"'{folder / OWN}' has format {own['format']}, this attlas reads {FORMAT_VERSION}; upgrade it"
        )
    found = {name: own[name] for name in _PROVENANCE if name in own}
    return found | {"exclude_tokens": tuple(found.get("exclude_tokens", ()))}


def _fill(lorsa: Lorsa, raw: dict[str, Tensor], record: dict[str, Any], file: Path, source: Path) -> None:
    """Put the weights in, each checked for its shape; their loader repeats query–key heads where the file has fewer."""
    known = {name: _NAMES.get(name, name) for name in lorsa.state_dict()}
    if "threshold" in known:
        known["threshold"] = _LOG_THRESHOLD
    if not flag(record, "use_decoder_bias", True, source):
        del known["b_D"]
    unknown = sorted(set(raw) - {*known.values(), *_BUFFERS})
    if unknown:
        raise SAEFormatError(f"'{file}' holds '{unknown[0]}', which is no weight of a Lorsa that Attlas knows")
    state = lorsa.state_dict()
    for name, theirs in known.items():
        if theirs not in raw:
            raise SAEFormatError(f"'{file}' lacks '{theirs}'; the Lorsa is incomplete")
        found = raw[theirs].exp() if name == "threshold" else raw[theirs]
        repeated = state[name].shape[0] // max(1, found.shape[0]) if found.ndim else 1
        if name in ("W_Q", "W_K", "b_Q", "b_K", "w_norm_Q", "w_norm_K") and repeated > 1:
            found = found.repeat_interleave(repeated, 0)
        if found.shape != state[name].shape:
            raise SAEFormatError(
                f"'{file}' has '{theirs}' of shape {list(found.shape)}; the configuration says {list(state[name].shape)}"
            )
        state[name] = found
    lorsa.load_state_dict(state)


def _scale(record: dict[str, Any], norms: dict[str, Tensor], hook: str, source: Path) -> float:
    """s = √D / E‖·‖ of a hook; 1 where it is folded in."""
    said = text(record, "norm_activation", source) or "dataset-wise"
    if said == "inference":
        return 1.0
    average = number(section(record, _NORM, source), hook, 0.0, source)
    if said == "dataset-wise" and hook in norms and norms[hook].numel() == 1:
        average = float(norms[hook])
    if said != "dataset-wise" or not 0 < average < math.inf:
        raise SAEFormatError(
            f"'{source}' has norm_activation={said!r:.40} and no average norm of '{hook}' that could be folded in; "
            "Attlas refuses it"
        )
    return math.sqrt(whole(record, "d_model", source)) / average
