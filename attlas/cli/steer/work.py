"""What `attlas steer` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attlas.analyses.steering import SteerConfig, SteeringResult, steer
from attlas.cli.common import Output, done, open_model, open_workspace
from attlas.cli.inputs import find_sae, load_text, open_model_of
from attlas.saes.formats import load_sae

if TYPE_CHECKING:
    from attlas.cli.steer import Args


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
