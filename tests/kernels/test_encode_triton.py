"""What the Triton encode asks of its device, without one: its launches are stubbed and its tensors are meta, at true sizes."""

from __future__ import annotations

import ast
import math
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attlas.kernels
from attlas.kernels import threshold_encode, topk_encode
from attlas.kernels.dispatch import or_torch

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
KERNELS = Path(attlas.kernels.__file__).parent
LIMIT = 128_000_000


class Stub:
    """A kernel that counts its launches and computes nothing."""

    n_launches = 0

    def __getitem__(self, grid):
        assert 0 < math.prod(grid) < 2**31

        def launch(*_, **__):
            self.n_launches += 1

        return launch


class Live:
    """`torch.empty` that knows how many bytes it handed out are still held, and the most that ever were."""

    def __init__(self, kept):
        self.now, self.peak, self.kept, self.plain = 0, 0, kept, torch.empty

    def __call__(self, *shape, **options):
        made = self.plain(*shape, **options)
        if tuple(made.shape) not in self.kept:  # results, of N·k
            self.now += made.nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(made, self.drop, made.nbytes)
        return made

    def drop(self, n_bytes):
        self.now -= n_bytes


@needs_triton
@settings(max_examples=25, deadline=None)
@given(
    N=st.one_of(st.integers(1, 3000), st.integers(1, 300_000)),
    F=st.one_of(st.integers(1, 9000), st.integers(1, 2_000_000)),
    k=st.one_of(st.integers(1, 64), st.integers(1, 2048)),
    grid=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_workspace_is_bounded_whatever_the_shape(N, F, k, grid):
    """Nothing is read back from the device either: a meta tensor has no number to give."""
    from attlas.kernels import block_product_triton, topk_encode_triton

    k = min(k, F)
    live, select = Live({(N, k)}), Stub()
    x, W, b = (torch.zeros(*shape, device="meta") for shape in ((N, 64), (64, F), (F,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_product_triton, "_block_product_kernel", product := Stub())
        patch.setattr(topk_encode_triton, "_select_kernel", select)
        patch.setattr(topk_encode_triton, "_evaluate_kernel", Stub())
        patch.setattr(torch, "empty", live)
        values, indices = topk_encode_triton.select_triton(x, W, b, k, grid)
    assert values.shape == indices.shape == (N, k)
    assert product.n_launches == select.n_launches > 0
    assert 0 < live.peak <= LIMIT
    tiles = block_product_triton.tiling(N, F, k, grid.itemsize, topk_encode_triton.select_bytes(k))
    assert min(F, tiles.columns) >= k  # what the selection of the first chunk relies on
    if N >= 4096 and k <= 64:
        assert tiles.rows >= 1000  # the product is not starved of rows


@needs_triton
def test_workspace_bound_would_be_noticed():
    live = Live(set())
    first = live(40, 10)
    live(3, dtype=torch.int64)
    assert (live.now, live.peak) == (first.nbytes, first.nbytes + 24)


def launches(tree):
    """(name, whether it stands inside `with on_device(...)`) of every `kernel[grid](...)`."""

    def walk(node, guarded):
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
            guarded |= any(isinstance(c, ast.Call) and getattr(c.func, "id", "") == "on_device" for c in calls)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            name = node.func.value
            if isinstance(name, ast.Name) and name.id.endswith("_kernel"):
                yield name.id, guarded
        for child in ast.iter_child_nodes(node):
            yield from walk(child, guarded)

    return list(walk(tree, False))


def test_every_launch_stands_inside_the_device_guard():
    """Triton launches on the current device, and `cuda:1` is not that."""
    for file in sorted(KERNELS.glob("*_triton.py")):
        source = file.read_text()
        found = launches(ast.parse(source))
        defined = source.count("@triton.jit\ndef _") and [
            node.name for node in ast.parse(source).body if getattr(node, "name", "").endswith("_kernel")
        ]
        assert {name for name, _ in found} == set(defined), file.name  # each kernel is launched by its name
        assert all(guarded for _, guarded in found), file.name
    assert launches(ast.parse("with on_device(x):\n    a_kernel[g](x)\nb_kernel[g](x)")) == [
        ("a_kernel", True),
        ("b_kernel", False),
    ]


@needs_triton
@pytest.mark.parametrize("name", ["topk", "threshold"])
def test_out_of_memory_is_never_swallowed(name, monkeypatch):
    from attlas.kernels import threshold_encode_triton, topk_encode_triton

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    module = {"topk": topk_encode_triton, "threshold": threshold_encode_triton}[name]
    monkeypatch.setattr(module, "block_product", full)
    monkeypatch.setenv("ATTLAS_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, W, b = torch.randn(3, 4), torch.randn(4, 32), torch.zeros(32)
    with pytest.raises(torch.OutOfMemoryError):
        topk_encode(x, W, b, 2) if name == "topk" else threshold_encode(x, W, b, 1.0)
    with pytest.raises(torch.OutOfMemoryError):
        or_torch(full, lambda: 7)
