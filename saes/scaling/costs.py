"""What one autoencoder's training takes by its sizes: bytes held, operations and bytes moved a step.

Every number is computed from the shapes of what the code allocates and multiplies (D = d_in, F = d_sae, B = batch_size,
P processes); tests compare parameters, Adam's state and the buffer with tensors of a real training, and the operations
with torch's own counter.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKSPACE = 128 * 2**20  # bytes of the encode kernel, at most (kernels.topk_encode_triton)
DEAD = 0.1
"""Share of the features that AuxK is taken to work on."""
MATRIX, MOVED, LINKED = 0.5, 0.75, 0.7
"""Shares of a device's peak arithmetic, memory and link rates that are counted on (assumed, not measured)."""
FUSED = ("topk",)
"""Architectures whose step on a GPU is fused (saes.training.fused)."""
TOPK = ("topk", "batchtopk", "matryoshka")


@dataclass(frozen=True)
class Costs:
    """Of one autoencoder on one process.

    Attributes:
        parameters: in all, of the whole autoencoder.
        weights, adam, gradients, step: bytes held by the process: float32 weights, Adam's two moments, gradients that are
            kept whole, and what a step needs besides (dense activations, AuxK, workspace).
        flops: operations of the process a step.
        traffic: bytes it reads and writes a step.
        sent: bytes it sends a step.
    """

    parameters: int
    weights: int
    adam: int
    gradients: int
    step: int
    flops: float
    traffic: float
    sent: float

    @property
    def held(self) -> int:
        """Peak bytes of the process for this autoencoder."""
        return self.weights + self.adam + self.gradients + self.step


def sae_costs(
    arch: str,
    d_in: int,
    d_sae: int,
    *,
    k: int,
    batch: int,
    processes: int = 1,
    form: str = "hooks",
    fused: bool = True,
    dead: float = DEAD,
) -> Costs:
    """Costs of a training step.

    Args:
        arch: architecture.
        d_in, d_sae, k, batch: D, F, k and the batch over all processes.
        processes: P.
        form: how they share the work; with "hooks" an autoencoder lies on one of them whole.
        fused: whether the fused step is asked for.
        dead: share of the features that AuxK works on.

    Example:
        >>> from attlas.saes.scaling.costs import sae_costs
        >>> costs = sae_costs("topk", 768, 24_576, k=32, batch=4096)
        >>> costs.parameters, f"{costs.adam / 1e9:.2f} GB of Adam state, {costs.gradients} bytes of gradients"
        (37774080, '0.30 GB of Adam state, 0 bytes of gradients')
    """
    shards = processes if form == "features" else 1
    rows = batch // processes if form == "data" else batch
    vectors = {"gated": 3, "jumprelu": 2}.get(arch, 1)
    parameters = 2 * d_in * d_sae + vectors * d_sae + d_in
    own = -(-d_sae // shards)
    weights = 4 * (2 * d_in * own + vectors * own + d_in)
    plain = form in ("data", "features") or not (fused and arch in FUSED)
    matrices = 2 * d_in * own  # numbers of both
    dead = dead if arch in (*TOPK, "jumprelu") else 0.0
    sparse = arch == "topk"
    held_rows = 0 if sparse else {"gated": 8, "standard": 5, "jumprelu": 7, "batchtopk": 6, "matryoshka": 6}[arch]
    step = 4 * rows * (own * held_rows + 8 * d_in + 6 * k) + int(4 * rows * own * dead * 3)
    step += (WORKSPACE if sparse else 0) + (4 * d_in * own if plain else 0)  # the decoder gradient's projection
    # a product of [rows, D] and [D, own] takes 2·rows·D·own operations
    product = 2.0 * rows * d_in * own
    flops = product * (1 if sparse else 8 if arch == "gated" else 6) + product * dead * 5
    flops += 8.0 * rows * d_in * k if sparse else 0.0
    adam = 24.0 * matrices + (
        12.0 * matrices if plain else 4.0 * matrices
    )  # read and write w, m, v; gradients; shadows
    traffic = adam + 4.0 * matrices * (2 if sparse else 3) + 4.0 * rows * own * (3 * held_rows) + 4.0 * rows * d_in * 12
    traffic += 4.0 * rows * k * d_in * 4 if sparse else 0.0
    ring = 2 * (processes - 1) / processes
    sent = 0.0
    if form == "data":
        sent = ring * weights
    elif form == "features":
        sent = ring * 4.0 * batch * d_in * (1 if arch == "standard" else 2) + (processes - 1) * 12.0 * batch * k
    return Costs(parameters, weights, 2 * weights, weights if plain else 0, step, flops, traffic, sent)


def buffer_bytes(widths: list[int], buffer_tokens: int, itemsize: int) -> tuple[int, int]:
    """(held, peak) bytes of the mixing buffer: a refill holds the old rows, the mixed ones, and one hook's once more."""
    held = buffer_tokens * sum(widths) * itemsize
    return held, 2 * held + buffer_tokens * max(widths, default=0) * itemsize
