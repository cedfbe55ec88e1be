"""`attlas steer`: what a model writes while features or heads are raised, set or taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from attlas.analyses.steering import SteerConfig, SteeringResult, steer
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import find_sae, load_text, open_model_of
from attlas.cli.options import ModelArgs, OutArgs, TextArgs
from attlas.saes.formats import load_sae

_USUAL = SteerConfig(features=(0,))


@dataclass(frozen=True)
class Args(TextArgs, ModelArgs, OutArgs):
    """Generate from a prompt while features of an autoencoder, or heads, are changed.

    Beside the text stand the model's own and one under a random direction that is as long at every position (the control),
    and how far both changes move the next token's distribution (KL) and the loss, on the prompt and on a corpus.

    For example:

        attlas steer --feature 746 --strength 5 --prompt "The captain said" --workspace workspace
        attlas steer --feature 746 --mode ablate --positions generated
        attlas steer --head 3.0 --mode ablate --prompt "one two three one two"
    """

    n_tokens: int = 4096
    """How many tokens of the corpus to measure on; 0 measures on the prompt alone."""
    sae: str | None = None
    """A run id of the workspace, a path, RELEASE/PATH or saelens:RELEASE/ID; by default the newest of the workspace."""
    hook: str | None = None
    """Where it sits; by default the hook it was trained on."""
    feature: tuple[int, ...] = ()
    """Features of the autoencoder, all changed alike."""
    head: tuple[str, ...] = ()
    """Heads, such as 3.0."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = "Once upon a time"
    """The text to go on from."""
    mode: str = _USUAL.mode
    """add (raise by the strength; of a head, z times 1 + strength), clamp (set to the strength), ablate (set to 0)."""
    strength: float = _USUAL.strength
    """In units of the feature's activation; of a head a factor."""
    positions: str = _USUAL.positions
    """all (but the first), or generated: from the prompt's last token on."""
    n_new: int = _USUAL.n_new
    """How many tokens to generate."""
    temperature: float = _USUAL.temperature
    """Of sampling; 0 takes the likeliest token."""
    seed: int = _USUAL.seed
    """Of sampling, and of the random direction."""


def run(args: Args, out: Output) -> dict[str, Any]:
    """Generate, measure, save, show."""
    config = SteerConfig(
        features=args.feature,
        heads=args.head,
        mode=args.mode,
        strength=args.strength,
        positions=args.positions,
        n_new=args.n_new,
        temperature=args.temperature,
        seed=args.seed,
        n_rows=max(1, args.n_tokens // args.seq_len),
    )
    workspace = open_workspace(args)
    sae = parent = None
    if args.feature:
        source, parent = find_sae(workspace, args.sae)
        model = open_model_of(args, parent, out)
        sae = load_sae(source).to(model.device)
    else:
        model = open_model(args, out)
    text = load_text(model, args, args.seed) if args.n_tokens else None
    result = steer(model, args.prompt, config, sae, text, hook=args.hook, track=out.track)
    saved = result.save(workspace, model.ref, text.ref if text else None, parents=(parent.id,) if parent else ())
    _show(result, out)
    return done(saved, workspace, result.summary(), out)


def _show(result: SteeringResult, out: Output) -> None:
    def moved(values: tuple[float, float, float] | None) -> str:
        return "–" if values is None else f"{values[0]:.3g} [{values[1]:.3g}, {values[2]:.3g}]"

    out.table(
        f"after {''.join(result.prompt)[-60:]!r}; KL and ΔCE in nats a token, on the corpus with 95 % intervals",
        ["text", "generated", "KL, prompt", "KL, corpus", "ΔCE, corpus"],
        [(t.variant, t.text, t.prompt[0], *(moved(part) for part in (t.corpus or (None, None)))) for t in result.texts],
    )
