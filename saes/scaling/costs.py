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
TOPK = ("topk", "batchtopk", "matryoshka")
SLOTS, PREFIXES = {"topk": 1, "batchtopk": 4, "matryoshka": 4}, 5
"""Slots a row of the fused step as a multiple of k (kernels.gpu.sparse); nested reconstructions of matryoshka by default."""


@dataclass(frozen=True)
class Costs:
    """Of one autoencoder on one process.

    Attributes:
        parameters: in all, of the whole autoencoder.
        weights, adam, gradients, step: bytes held by the process: float32 weights (and, of the fused step in bfloat16, rounded
            copies of the matrices), Adam's two moments, gradients that are kept whole, and what a step needs besides (dense
            activations, AuxK, workspace).
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
    precision: str = "bfloat16",
    dead: float = DEAD,
) -> Costs:
    """Costs of a training step.

    Args:
        arch: architecture.
        d_in, d_sae, k, batch: D, F, k and the batch over all processes.
        processes: P.
        form: how they share the work; with "hooks" an autoencoder lies on one of them whole.
        fused: whether the fused step is asked for; where processes share one autoencoder there is none.
        precision: of the fused step's products.
        dead: share of the features that AuxK works on.

    Example:
        >>> from attlas.saes.scaling.costs import sae_costs
        >>> costs = sae_costs("topk", 768, 24_576, k=32, batch=4096)
        >>> costs.parameters, f"{costs.adam / 1e9:.2f} GB of Adam state, {costs.gradients} bytes of gradients"
        (37774080, '0.30 GB of Adam state, 0 bytes of gradients')
    """
    vectors = {"gated": 3, "jumprelu": 2}.get(arch, 1)
    parameters = 2 * d_in * d_sae + vectors * d_sae + d_in
    dead = dead if arch in (*TOPK, "jumprelu") else 0.0
    if fused and form not in ("data", "features"):
        item = 2 if precision == "bfloat16" else 4
        weights, copies = 4 * parameters, 4 * d_in * d_sae if item == 2 else 0
        if arch in TOPK:
            gradients, step, flops, traffic = _slots(arch, d_in, d_sae, k, batch, item)
        else:
            gradients, step, flops, traffic = _dense(arch, d_in, d_sae, batch, item)
        columns = int(dead * d_sae)
        flops += 5 * 2.0 * batch * d_in * columns
        step += columns * (3 * batch * item + 2 * d_in * (item + 4)) + (2 * batch * d_in * item if columns else 0)
        flops += 2.0 * d_in * d_sae  # the encoder's share in b_dec's gradient
        # for it the encoder is read; w, m, v are read and written, and the rounded copies written
        traffic += 2.0 * d_in * d_sae * (2 + 24 + (2 if item == 2 else 0)) + columns * batch * item * 6.0
        return Costs(parameters, weights + copies, 2 * weights, gradients, step, flops, traffic, 0.0)
    return _plain(arch, parameters, vectors, d_in, d_sae, k, batch, processes, form, dead)


def _slots(arch: str, d_in: int, d_sae: int, k: int, rows: int, item: int) -> tuple[int, int, float, float]:
    """(gradients, step, flops, traffic) of the fused step of the TopK families without Adam and AuxK: one product to choose,
    and the pairs; no gradient of a matrix exists."""
    slots, groups = SLOTS[arch] * k, PREFIXES if arch == "matryoshka" else 1
    held = rows * (d_in * (4 + item + groups * item) + 16 * slots) + 4 * d_sae
    narrow = item == 2  # the chosen values are then computed again
    flops = 2.0 * rows * d_in * (d_sae + (slots if narrow else 0) + 4 * k)
    # the pre-activations go through the workspace once; rows of both matrices and of both gradients' sources are gathered
    traffic = item * (1.0 * d_in * d_sae + rows * d_sae + 3.0 * rows * k * d_in)
    traffic += (4.0 * rows * slots * d_in if narrow else 0.0) + 4.0 * rows * d_in * (6 + 2 * groups)
    return 0, held + WORKSPACE, flops, traffic


def _dense(arch: str, d_in: int, d_sae: int, rows: int, item: int) -> tuple[int, int, float, float]:
    """The same of ReLU, JumpReLU and Gated: pre-activations, activations and their gradients of all features, and the matrices'
    gradients, in the products' type."""
    groups = 2 if arch == "gated" else 1  # reconstructions
    gradients = 2 * d_in * d_sae * item
    step = rows * d_sae * item * (1 + 2 * groups) + rows * d_in * (4 + item + 2 * groups * item)
    flops = 2.0 * rows * d_in * d_sae * (3 + 2 * groups)
    activations = rows * d_sae * item * (3.0 + 7.0 * groups)  # as written and read by five products and two passes
    traffic = activations + item * 3.0 * d_in * d_sae + 2.0 * gradients + 4.0 * rows * d_in * (6 + 2 * groups)
    return gradients, step, flops, traffic


def _plain(
    arch: str,
    parameters: int,
    vectors: int,
    d_in: int,
    d_sae: int,
    k: int,
    batch: int,
    processes: int,
    form: str,
    dead: float,
) -> Costs:
    """Autograd's step in float32, and torch's Adam; the only one where processes share an autoencoder."""
    shards = processes if form == "features" else 1
    rows = batch // processes if form == "data" else batch
    own = -(-d_sae // shards)
    weights = 4 * (2 * d_in * own + vectors * own + d_in)
    matrices = 2 * d_in * own  # numbers of both
    sparse = arch == "topk"
    held_rows = 0 if sparse else {"gated": 8, "standard": 5, "jumprelu": 7, "batchtopk": 6, "matryoshka": 6}[arch]
    step = 4 * rows * (own * held_rows + 8 * d_in + 6 * k) + int(4 * rows * own * dead * 3)
    step += (WORKSPACE if sparse else 0) + 4 * d_in * own  # the decoder gradient's projection
    # a product of [rows, D] and [D, own] takes 2·rows·D·own operations
    product = 2.0 * rows * d_in * own
    flops = product * (1 if sparse else 8 if arch == "gated" else 6) + product * dead * 5
    flops += 8.0 * rows * d_in * k if sparse else 0.0
    traffic = 36.0 * matrices  # of Adam: w, m, v read and written, gradients
    traffic += 4.0 * matrices * (2 if sparse else 3) + 4.0 * rows * own * (3 * held_rows) + 4.0 * rows * d_in * 12
    traffic += 4.0 * rows * k * d_in * 4 if sparse else 0.0
    ring = 2 * (processes - 1) / processes
    sent = 0.0
    if form == "data":
        sent = ring * weights
    elif form == "features":
        sent = ring * 4.0 * batch * d_in * (1 if arch == "standard" else 2) + (processes - 1) * 12.0 * batch * k
    return Costs(parameters, weights, 2 * weights, weights, step, flops, traffic, sent)


def buffer_bytes(widths: list[int], buffer_tokens: int, itemsize: int) -> tuple[int, int]:
    """(held, peak) bytes of the mixing buffer: a refill holds the old rows, the mixed ones, and one hook's once more."""
    held = buffer_tokens * sum(widths) * itemsize
    return held, 2 * held + buffer_tokens * max(widths, default=0) * itemsize
