"""Rebuild a Dinov2Model from an ONNX export of a network that has one as its backbone.

Biases, norms and layer scales keep their names in the file; the weight of each MatMul is an anonymous initialiser, and
only the node's name ("/backbone/encoder/layer.0/attention/attention/key/MatMul") says which weight it is, transposed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import CheckpointError, MissingExtraError

_RENAME = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def backbone_from_onnx(path: Path) -> tuple[Any, int]:
    """Read the backbone.

    Returns: (Dinov2Model in float32, image size in pixels). Position embeddings are resized once, as the file does on
    every run, so that an image of the exported size is exact.

    Raises:
        MissingExtraError: onnx is not installed.
        CheckpointError: a weight is missing or of another shape.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("reading ONNX needs the package onnx: pip install 'attlas[models]'") from error
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(path)).graph
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    size = graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    state = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    for name, node in nodes.items():
        if node.op_type == "MatMul" and node.input[1] in tensors and name.startswith("/backbone/"):
            key = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{key}.weight"] = tensors[node.input[1]].T.contiguous()
    patch = state["embeddings.patch_embeddings.projection.weight"]
    grid = size // patch.shape[-1]
    state["embeddings.position_embeddings"] = _positions(nodes, tensors, grid)
    config = Dinov2Config(
        hidden_size=patch.shape[0],
        num_hidden_layers=1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.layer.")),
        num_attention_heads=6,
        mlp_ratio=4,
        image_size=size,
        patch_size=patch.shape[-1],
    )
    model = Dinov2Model(config)
    _fill(model, state)
    return model.eval(), size


def _positions(nodes: dict[str, Any], tensors: dict[str, Tensor], grid: int) -> Tensor:
    """Position embeddings [1, 1 + grid², d] from the file's native grid, by the bicubic resize that the file holds."""
    native = tensors[nodes["/backbone/embeddings/Reshape_1"].input[0]]
    cls = tensors[nodes["/backbone/embeddings/Concat_6"].input[0]].reshape(1, 1, -1)
    d_model = cls.shape[-1]
    side = round((native.numel() // d_model) ** 0.5)
    image = native.reshape(1, side, side, d_model).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, resized.permute(0, 2, 3, 1).reshape(1, grid * grid, d_model)], dim=1)


def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy by name, under the old or the new names of transformers' modules."""
    filled = {}
    for key, value in model.state_dict().items():
        source = key.replace("encoder.layers.", "encoder.layer.").replace("model.layer.", "encoder.layer.")
        for old, new in _RENAME.items():
            source = source.replace(new, old)
        if key.endswith("mask_token"):
            filled[key] = torch.zeros_like(value)
        elif source not in state or state[source].shape != value.shape:
            raise CheckpointError(f"the ONNX file has no weight for '{key}' of shape {tuple(value.shape)}")
        else:
            filled[key] = state[source]
    model.load_state_dict(filled)
