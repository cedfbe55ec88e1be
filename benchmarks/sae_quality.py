"""TopK autoencoders: Attlas against SAELens, on the same activations, tokens, width, k, learning rate and seeds.

    python benchmarks/sae_quality.py --model gpt2-mini --hook blocks.2.attn.hook_z

Both libraries get the same batches in the same order (one mixing buffer's, by seed), the same learning-rate schedule,
and call a feature dead after the same number of tokens. Everything else is each library's default: starting weights,
auxiliary loss, input normalisation. SAELens is run as it comes ("none") and with its input normalisation
("expected_average_only_in"), which is the kind Attlas has on by default. Both are measured by `attlas.saes.evaluate`
on the same held-out text; the dead fraction is over those tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import attlas
from attlas.saes import SAE, EvalConfig, TrainConfig, evaluate, load_sae
from attlas.saes.activations import Rows, capture_rows
from attlas.saes.buffer import MixingBuffer
from attlas.saes.loop import train_loop
from attlas.saes.sources import Inputs, held_out, load_inputs
from attlas.saes.train import SAMPLE_TOKENS, start_trainee
from attlas.saes.trainee import default_learning_rate


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    model = attlas.load_model(args.model)
    base = TrainConfig(
        model=args.model,
        hooks=(args.hook,),
        k=args.k,
        d_sae=args.d_sae,
        n_tokens=args.tokens,
        lr=args.lr,
        buffer_tokens=args.buffer_tokens,
        batch_size=args.batch_size,
    )
    val = held_out(model, n_tokens=args.eval_tokens, seed=0)
    source = cached_rows(model, load_inputs(model, base), args.hook, args.tokens)
    width = source(0)[args.hook].shape[-1]

    learners: dict[str, Callable[[TrainConfig, MixingBuffer], SAE]] = {
        "attlas": lambda config, buffer: ours(model, config, buffer),
        "attlas, random start": lambda config, buffer: ours(model, config, buffer, active_subspace=False),
        "attlas, encoder scale 1": lambda config, buffer: ours(model, config, buffer, encoder_scale=1.0),
        "SAELens": lambda config, buffer: saelens(config, buffer, width, "none"),
        "SAELens, normalised": lambda config, buffer: saelens(config, buffer, width, "expected_average_only_in"),
    }
    if args.only:
        learners = {name: learner for name, learner in learners.items() if name in args.only}
    print(
        f"{args.model} {args.hook}: d_in {width}, {base.sae_config(width).d_sae} features, k {args.k}, "
        f"{args.tokens:,} tokens, lr {args.lr or default_learning_rate(base.sae_config(width).d_sae):.2g}, "
        f"seeds {args.seeds}, {args.threads} thread; measured on {val.tensor.numel():,} held-out tokens"
    )
    print("| | explained variance | CE recovered | dead features | training s |\n|---|---|---|---|---|")
    for name, learner in learners.items():
        results = []
        for seed in args.seeds:
            config = TrainConfig(**{**vars(base), "seed": seed})
            buffer = MixingBuffer(source, config.buffer_tokens, seed)
            began = time.perf_counter()
            sae = learner(config, buffer)
            seconds = time.perf_counter() - began
            found = evaluate(sae, model, val, EvalConfig(controls=(), n_bootstrap=0), hook=args.hook)
            metrics = [found.value(m) for m in ("explained_variance", "ce_recovered", "dead_fraction")]
            results.append([*metrics, seconds])
        cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in map(mean_and_spread, zip(*results, strict=True))]
        print(f"| {name} | {' | '.join(cells[:3])} | {mean_and_spread([r[3] for r in results])[0]:.1f} |", flush=True)


def mean_and_spread(values: object) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    listed = list(values)  # type: ignore[call-overload]
    return statistics.mean(listed), statistics.stdev(listed) if len(listed) > 1 else 0.0


def cached_rows(model: attlas.HookedModel, inputs: Inputs, hook: str, n_tokens: int) -> Callable[[int], Rows]:
    """Capture once, for all libraries and seeds; goes round when more is asked for."""
    chunks: list[Tensor] = []
    held = 0
    for batch in inputs.tensor.split(32):
        chunks.append(capture_rows(model, batch, [hook])[hook].half())
        held += len(chunks[-1])
        if held >= n_tokens:
            break
    return lambda chunk: {hook: chunks[chunk % len(chunks)].float()}


def ours(model: attlas.HookedModel, config: TrainConfig, buffer: MixingBuffer, **changes: object) -> SAE:
    (hook,) = config.hooks
    config = TrainConfig(**{**vars(config), **changes})
    trainee = start_trainee(hook, hook, model, buffer.peek(SAMPLE_TOKENS)[hook], config)
    train_loop([trainee], buffer, config)
    return trainee.finish()


def saelens(config: TrainConfig, buffer: MixingBuffer, width: int, normalisation: str) -> SAE:
    """SAELens's TopK trainer on the buffer's batches, read back through its own inference format."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(config.seed)
    (hook,) = config.hooks
    d_sae = config.sae_config(width).d_sae
    rate = config.lr or default_learning_rate(d_sae)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=width, d_sae=d_sae, k=config.k, normalize_activations=normalisation)
    )
    trainer = SAETrainerConfig(
        total_training_samples=config.n_steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=rate,
        lr_end=rate / 10,  # must be given; a constant schedule with decay does not use it
        lr_warm_up_steps=round(config.lr_warmup * config.n_steps),
        lr_decay_steps=round(config.lr_decay * config.n_steps),
        dead_feature_window=math.ceil(config.dead_tokens / config.batch_size),
        n_batches_for_norm_estimate=16,
    )

    def batches() -> Iterator[Tensor]:
        while True:
            yield buffer.next_batch(config.batch_size)[hook]

    if normalisation != "none":  # its estimate of the norm uses up batches; give it other ones
        from sae_lens.training.activation_scaler import ActivationScaler

        scaler = ActivationScaler()
        sample = iter(buffer.peek(SAMPLE_TOKENS)[hook].split(config.batch_size))
        scaler.estimate_scaling_factor(width, sample, n_batches_for_norm_estimate=SAMPLE_TOKENS // config.batch_size)
    run = SAETrainer(trainer, sae, batches())
    if normalisation != "none":
        run.activation_scaler.scaling_factor = scaler.scaling_factor
    run.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load_sae(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--hook", default="blocks.2.attn.hook_z")
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--eval-tokens", type=int, default=32_768)
    parser.add_argument("--d-sae", type=int, default=None, help="default 8 × the hook's width")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--buffer-tokens", type=int, default=65_536)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=None, help="names of rows to run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
