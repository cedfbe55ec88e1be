"""The text or images that suit a model, for verbs that take either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attlas.cli.common import Output, open_model
from attlas.cli.options import ChatArgs, ClassArgs, ModelArgs, TextArgs
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.images.dataset import ImageDataset
    from attlas.data.text import TokenDataset
    from attlas.data.workspace import Run, Workspace
    from attlas.interp import HookedModel
    from attlas.saes.base import SAE
    from attlas.saes.scaling.passes import PassPlan


def show_plan(plan: PassPlan, out: Output) -> dict[str, Any]:
    """Print what a pass would take."""
    out.table("Nothing was run: what this pass would take (computed)", ("", ""), plan.rows())
    out.say("fits" if plan.advice is None else f"does not fit: {plan.advice}")
    return plan.summary()


@dataclass(frozen=True)
class DataArgs(TextArgs):
    """Text for language models, images for vision models."""

    images: str = "auto"
    """For vision models: embedded:glyphs, sklearn:samples, a folder or an .npz; auto suits the model."""
    n_images: int = 500
    """For vision models: how many images, drawn by the seed."""


@dataclass(frozen=True)
class JudgedArgs(DataArgs, ClassArgs):
    """Data, and for CLIP and SigLIP the classes that answers are judged by."""


def with_classes(model: HookedModel, args: ClassArgs, data: Any) -> HookedModel:
    """The model as a classifier of classes given as text, where that was asked for; else as it is.

    Raises:
        UnsupportedModelError: it has no text tower or tokenizer.
        ConfigError: no classes are named, by --classes or the images.
    """
    named = tuple(name.strip() for name in args.classes.split(",")) if args.classes else ()
    if not args.zero_shot and not named:
        return model
    from attlas.interp.vision.zero_shot import require_text_tower, zero_shot

    require_text_tower(model)
    if not (named or data.class_names):
        raise ConfigError(f"'{data.name}' names no classes; give them, as --classes cat,dog")
    return zero_shot(model, named or data.class_names, args.templates)


def load_data(model: HookedModel, args: DataArgs, seed: int = 0) -> TokenDataset | ImageDataset:
    """Read what the arguments name, in the seed's order, cut to the model's context window or image size."""
    from attlas.data.images.dataset import load_images

    if model.cfg.family == "vit":
        return load_images(image_source(model, args.images), model.image_spec, n_images=args.n_images, seed=seed)
    return load_text(model, args, seed)


def load_text(model: HookedModel, args: TextArgs, seed: int = 0) -> TokenDataset:
    """Read the text that the arguments name, in the seed's order, cut to the model's context window."""
    from attlas.data.text import load_tokens

    seq_len = model.cfg.sequence_length(args.seq_len)
    return load_tokens(
        args.text,
        model.tokenizer,
        seq_len=seq_len,
        n_tokens=args.n_tokens,
        seed=seed,
        column=args.column,
        split=args.split,
        d_vocab=model.cfg.d_vocab,
        packed=not args.pad,
        chat=args.chat,
    )


def as_typed(model: HookedModel, prompt: str, args: ChatArgs, out: Output | None = None) -> str:
    """A prompt as the model reads it: as it was typed, or with --chat a conversation by the model's chat template, which is
    shown."""
    if not args.chat:
        return prompt
    text = model.render_chat(prompt, generation_prompt=args.generation_prompt)
    if out is not None:
        out.say(f"prompt by the chat template of {model.name}: {text!r}")
    return text


def image_source(model: HookedModel, source: str) -> str:
    """`auto` → the embedded glyphs for grey models, sample pictures for the rest.

    Raises:
        UnsupportedModelError: a language model.
    """
    model.require_vision_model()
    if source != "auto":
        return source
    from attlas.data.images.dataset import default_images

    return default_images(model.image_spec)


def find_sae(workspace: Workspace, name: str | None) -> tuple[str, Run | None]:
    """(path, run) of the SAE a person names: a run id, a path (no run), or nothing for the newest.

    Raises:
        ConfigError: nothing is named and the workspace holds no SAE.
    """
    runs = workspace.runs("sae")
    if name is None:
        if not runs:
            raise ConfigError(f"workspace '{workspace.path}' holds no SAE; train one (attlas train) or give --sae")
        return str(workspace.folder(runs[0])), runs[0]
    for run_ in runs:
        if name in (run_.id, str(workspace.folder(run_))):
            return str(workspace.folder(run_)), run_
    if any(name == run_.id for run_ in workspace.runs("lorsa")):
        raise ConfigError(
            f"'{name}' is a Lorsa, which stands for an attention layer; this takes autoencoders (attlas eval and attlas "
            "features take both)"
        )
    return name, None


def find_lorsa(workspace: Workspace, name: str | None) -> tuple[str, Run | None] | None:
    """(path, run) where what a person names is a Lorsa, or where nothing is named and one is newer than every autoencoder."""
    from attlas.saes.lorsa.files import is_lorsa

    runs = workspace.runs("lorsa")
    if name is None:
        newest = [run.created for run in workspace.runs("sae")[:1]]
        return (str(workspace.folder(runs[0])), runs[0]) if runs and [runs[0].created] > newest else None
    for run in runs:
        if name in (run.id, str(workspace.folder(run))):
            return str(workspace.folder(run)), run
    folder = Path(name).expanduser()
    return (name, None) if is_lorsa(folder) or is_lorsa(folder / "lorsa") else None


def model_of(parent: Run | None, typed: str, default: str) -> str:
    """The model that is named, or else the one the autoencoder was trained on.

    Raises:
        ConfigError: that one's folder is not there any more.
    """
    name = str(parent.config.get("model", typed)) if parent is not None and typed == default else typed
    if Path(name).is_absolute() and parent is not None and not Path(name).exists():
        raise ConfigError(f"run '{parent.id}' was made on the model in '{name}', which is not there; give --model")
    return name


def find_saes(workspace: Workspace, name: str | None) -> list[tuple[str, Run | None]]:
    """`find_sae`, but with nothing named every SAE of the newest training, in the order of its hooks.

    Raises: as `find_sae`.
    """
    source, parent = find_sae(workspace, name)
    if name is not None or parent is None:
        return [(source, parent)]
    same = [r for r in workspace.runs("sae") if r.model == parent.model and _training(r) == _training(parent)]
    return [(str(workspace.folder(r)), r) for r in reversed(same)]


def _training(run: Run) -> dict[str, Any]:
    """A training's configuration without the hook: equal for all SAEs of one training."""
    return {key: value for key, value in run.config.items() if key != "hooks"}


def families_of(workspace: Workspace, sae_run: Run) -> dict[int, str]:
    """feature → family, from the newest features run of this autoencoder; empty without one."""
    for found in workspace.runs("features"):
        if sae_run.id in found.parents:
            table = workspace.read_table(found, "features").select(["feature", "family"]).to_pydict()
            return dict(zip(table["feature"], table["family"], strict=True))
    return {}


@dataclass(frozen=True)
class SAEArgs:
    """The sparse autoencoders, at most one a hook."""

    sae: tuple[str, ...] = ()
    """Run ids of the workspace, folders, RELEASE/PATH of a published release (attlas models saes), or saelens:RELEASE/ID;
    each serves the hook it was trained on."""


def load_saes(model: HookedModel, args: SAEArgs, workspace: Workspace, out: Output) -> dict[str, SAE]:
    """hook → autoencoder.

    Raises:
        ConfigError: two serve the same hook, or one does not say its hook.
    """
    from attlas.saes import load_sae
    from attlas.saes.decompose import check_saes

    found: dict[str, SAE] = {}
    for name in args.sae:
        sae = load_sae(find_sae(workspace, name)[0])
        hook = sae.cfg.hook_name
        if not hook:
            raise ConfigError(f"the autoencoder '{name}' does not say which hook it was trained on")
        if hook in found:
            raise ConfigError(f"two autoencoders serve '{hook}' (the second is '{name}'); give one a hook")
        found[hook] = sae
    if found:
        out.say(f"autoencoders on {', '.join(found)}")
    return check_saes(model, found)


def open_model_of(args: ModelArgs, parent: Run | None, out: Output) -> HookedModel:
    """The model that is named, or else the one the autoencoder was trained on."""
    name = model_of(parent, args.model, ModelArgs.model)
    return open_model(named(name, args), out)


def named(model: str, args: ModelArgs) -> ModelArgs:
    """The options of opening a model, with another one's name."""
    return ModelArgs(model, args.device, args.dtype, args.device_map, args.trust_remote_code)
