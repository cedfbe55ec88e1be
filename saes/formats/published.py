"""Published releases of SAEs in one table: what `attlas models saes` lists and `load_sae("RELEASE/PATH")` opens.

Repositories, paths, hooks and models as the hub's pages and SAELens's directory (6.54, `pretrained_saes.yaml`) have them. An
SAE of a release is read from a local copy (`$ATTLAS_CACHE/saes/RELEASE/PATH`, or the hub's own cache), else from the hub.
SAELens's directory knows more: `saelens:RELEASE/ID`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from attlas.data.files import cache_dir
from attlas.errors import SAEFormatError, nearest

_FIELD = re.compile(r"\{\w+\}")


@dataclass(frozen=True)
class Release:
    """SAEs that were published together.

    Attributes:
        name: what `load_sae` and `--sae` take, followed by / and the path of one SAE, or its layer.
        repository: on the hub.
        model: hub id of the model they were trained on.
        hook: where their activations are read, with {layer}.
        layout: one of `attlas.saes.formats.FORMATS`.
        path: of one SAE in the repository, with {layer} and what else sets them apart.
    """

    name: str
    repository: str
    model: str
    hook: str
    layout: str
    path: str

    @property
    def local(self) -> Path:
        """Where a local copy of the repository is looked for."""
        return cache_dir() / "saes" / self.name

    @property
    def present(self) -> bool:
        """Whether there is a local copy, of one SAE at least."""
        return self.local.is_dir() and any(self.local.iterdir())

    def pattern(self, path: str) -> str:
        """A path as it is; a layer ("5", "L5") as the path with * for whatever else sets the SAEs apart."""
        layer = re.fullmatch(r"L?(\d+)", path)
        return _FIELD.sub("*", self.path.replace("{layer}", layer.group(1))) if layer else path.strip("/")


_Z, _ATTN, _MLP, _RES = (
    f"blocks.{{layer}}.{part}" for part in ("attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
)
_SCOPE_1 = "layer_{layer}/width_{width}/average_l0_{l0}"


def _gemma_scope() -> Iterable[Release]:
    suites = [("2b", "pt"), ("9b", "pt"), ("27b", "pt"), ("9b", "it")]
    for size, tuning in suites:
        model = f"google/gemma-2-{size}{'-it' * (tuning == 'it')}"
        for kind, hook in (("att", _Z), ("mlp", _MLP), ("res", _RES)):
            if kind == "res" or (tuning == "pt" and size != "27b"):
                name = f"gemma-scope-{size}-{tuning}-{kind}"
                yield Release(name, f"google/{name}", model, hook, "gemma-scope", _SCOPE_1)
    for size in ("270m", "1b", "4b", "12b", "27b"):
        for tuning in ("pt", "it"):
            name, model = f"gemma-scope-2-{size}-{tuning}", f"google/gemma-3-{size}-{tuning}"
            model = model.removesuffix("-pt") if size == "270m" else model
            path = "attn_out/layer_{layer}_width_{width}_l0_{l0}"
            yield Release(f"{name}-att", f"google/{name}", model, _Z, "gemma-scope", path)


def _llama_scope() -> Iterable[Release]:
    for letter, hook in (("A", _ATTN), ("M", _MLP), ("R", _RES)):
        for width in ("8x", "32x"):
            repository = f"fnlp/Llama3_1-8B-Base-LX{letter}-{width}"
            path = f"Llama3_1-8B-Base-L{{layer}}{letter}-{width}"
            name = f"llama-scope-lx{letter.lower()}-{width}"
            yield Release(name, repository, "meta-llama/Llama-3.1-8B", hook, "openmoss", path)
    yield Release(
        "llama-scope-r1-distill",
        "fnlp/Llama-Scope-R1-Distill",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        _RES,
        "openmoss",
        "{data}/L{layer}R",
    )


RELEASES: tuple[Release, ...] = (
    Release(
        "gpt2-small-hook-z-kk",
        "ckkissane/attn-saes-gpt2-small-all-layers",
        "openai-community/gpt2",
        _Z,
        "original",
        "gpt2-small_L{layer}_Hcat_z_{training}.pt",
    ),
    *_gemma_scope(),
    *_llama_scope(),
    *(
        Release(
            f"gpt2-small-attn-out-v5-{width}",
            f"jbloom/GPT2-Small-OAI-v5-{width}-attn-out-SAEs",
            "openai-community/gpt2",
            _ATTN,
            "saelens",
            f"v5_{width}_layer_{{layer}}",
        )
        for width in ("32k", "128k")
    ),
    Release(
        "pythia-70m-deduped-att-sm",
        "ctigges/pythia-70m-deduped__att-sm_processed",
        "EleutherAI/pythia-70m-deduped",
        _ATTN,
        "saelens",
        "{layer}-att-sm",
    ),
    *(
        Release(
            f"{name}-{part}",
            f"EleutherAI/{name}",
            f"EleutherAI/{model}",
            hook,
            "sparsify",
            f"layers.{{layer}}.{part}",
        )
        for name, model, part, hook in (
            ("sae-pythia-70m-deduped-32k", "pythia-70m-deduped", "attention", _ATTN),
            ("sae-pythia-70m-deduped-32k", "pythia-70m-deduped", "mlp", _MLP),
            ("sae-pythia-160m-32k", "pythia-160m", "mlp", _MLP),
        )
    ),
    *(
        Release(f"andyrdt-{name}", f"andyrdt/saes-{name}", model, _RES, "dictionary_learning", path)
        for name, model, path in (
            (
                "llama-3.1-8b-instruct",
                "meta-llama/Llama-3.1-8B-Instruct",
                "resid_post_layer_{layer}/trainer_{trainer}",
            ),
            ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", "resid_post_layer_{layer}/trainer_{trainer}"),
        )
    ),
)


def find(name: str) -> Path | None:
    """The folder or file of "RELEASE/PATH" or "RELEASE/LAYER", fetched where it is not here; None: no such release.

    Raises:
        SAEFormatError: the path names no SAE of the release, or several, or the hub cannot be reached.
    """
    release = next((r for r in RELEASES if name == r.name or name.startswith(r.name + "/")), None)
    release = release or next((r for r in RELEASES if name.startswith(r.repository + "/")), None)
    if release is None:
        return None
    head = release.name if name.startswith(release.name) else release.repository
    rest = name[len(head) :].strip("/")
    if not rest or ".." in Path(rest).parts:
        raise SAEFormatError(f"'{name}' names no SAE of the release; give {release.name}/{release.path}, or a layer")
    pattern = release.pattern(rest)
    return _only(_under(release.local, pattern), name) or _from_hub(release, pattern, name)


def _under(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _only(found: list[Path], name: str) -> Path | None:
    if len(found) > 1:
        shown = ", ".join("/".join(path.parts[-3:]) for path in found[:3])
        raise SAEFormatError(f"'{name}' names {len(found)} SAEs, such as {shown}; give the path of one")
    return found[0] if found else None


def _from_hub(release: Release, pattern: str, name: str) -> Path:
    """From the hub's cache, else from the hub: one SAE and the files beside it that its format reads."""
    import huggingface_hub as hub

    try:
        cached = Path(hub.snapshot_download(release.repository, local_files_only=True))
        if found := _only(_under(cached, pattern), name):
            return found
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        siblings = hub.model_info(release.repository, timeout=10).siblings or []  # one request, without retries
        files = [file.rfilename for file in siblings]
        wanted = _matching(files, pattern)
        if len(wanted) == 1:
            one = wanted[0]
            beside = [one, f"{one}/*", f"{one.removesuffix('.pt')}_cfg.json", "config.json"]
            return Path(hub.snapshot_download(release.repository, allow_patterns=beside)) / one
    except Exception as error:  # the hub's client raises many kinds, and says little in most
        raise SAEFormatError(
            f"'{name}' is not here and could not be fetched from hf.co/{release.repository} ({type(error).__name__}); it "
            f"needs the network once, or a copy in '{release.local}'"
        ) from error
    if not wanted:
        raise SAEFormatError(
            f"hf.co/{release.repository} has no '{pattern}'{nearest(pattern, _prefixes(files, pattern))}"
        )
    raise SAEFormatError(f"'{name}' names {len(wanted)} SAEs, such as {', '.join(wanted[:3])}; give the path of one")


def _prefixes(files: Iterable[str], pattern: str) -> list[str]:
    """Leading parts of the files' paths, as many as the pattern has."""
    n_parts = len(pattern.split("/"))
    return sorted({"/".join(file.split("/")[:n_parts]) for file in files})


def _matching(files: Iterable[str], pattern: str) -> list[str]:
    parts = pattern.split("/")
    found = [path for path in _prefixes(files, pattern) if len(path.split("/")) == len(parts)]
    return [path for path in found if all(map(fnmatchcase, path.split("/"), parts))]


def markdown() -> str:
    """The table for docs/saes.md."""
    rows = ["| release | SAEs of | hook | layout | one SAE's path in hf.co/REPOSITORY |", "|---|---|---|---|---|"]
    for r in RELEASES:
        hook = r.hook.replace("blocks.{layer}.", "")
        rows.append(f"| `{r.name}` | {r.model} | `{hook}` | {r.layout} | {r.repository}: `{r.path}` |")
    return "\n".join(rows)
