"""Where an SAE's activations come from, as other libraries say it: names of modules and folders, turned into hook names.

| said | hook |
|---|---|
| `layers.5`, `model.layers.5`, `h.5`, `resid_post_layer_5` | `blocks.5.hook_resid_post` |
| `layers.5.attention`, `layers.5.self_attn`, `h.5.attn`, `attn_out_layer5` | `blocks.5.hook_attn_out` |
| `layers.5.mlp`, `h.5.mlp`, `mlp_out_layer5` | `blocks.5.hook_mlp_out` |
| `model.layers.5.self_attn.o_proj.input` | `blocks.5.attn.hook_z` |

A module's output is not what joins the residual stream where a norm stands between the two (Gemma 2 and 3, OLMo 2 and 3):
for these models sub-layers are left unnamed rather than guessed.
"""

from __future__ import annotations

import re
from pathlib import Path

_LAYER = re.compile(r"(?:^|[._])(?:layers|layer|h|blocks)[._]?(\d+)(?=$|[._])")
_INPUT_OF_W_O = re.compile(r"\.(?:self_attn\.o_proj|attn\.c_proj|attention\.dense)\.input$")
_ATTENTION = re.compile(r"(?:^|[._])(?:attention|self_attn|attn|attn_out|attention_out)(?=$|[._])")
_MLP = re.compile(r"(?:^|[._])(?:mlp|mlp_out)(?=$|[._])")
_RESIDUAL = re.compile(
    r"^(?:(?:resid|resid_post|resid_out|residual)[._])?(?:(?:\w+\.)*(?:layers|h|blocks)\.|layer_?)\d+$"
)
_NORM_BETWEEN = re.compile(r"gemma-?[23]|olmo-?[23]", re.IGNORECASE)
OURS = re.compile(r"^(?:hook_embed|blocks\.\d+\.\S*hook_\w+)$")


def hook_of(said: str, model_name: str = "") -> str:
    """The hook that a module's, a folder's or a hook's name means; "" where it means none for certain.

    Args:
        said: such as "layers.5.attention", "resid_post_layer_5" or, as it is, "blocks.5.attn.hook_z".
        model_name: the model, which decides whether a sub-layer's output is what joins the residual stream.
    """
    if OURS.match(said):
        return said
    found = _LAYER.search(said)
    if found is None:
        return "hook_embed" if said.split(".")[-1] in ("embed_tokens", "wte", "embed_in") else ""
    layer = found.group(1)
    if _INPUT_OF_W_O.search(said):
        return f"blocks.{layer}.attn.hook_z"
    sub_layer = "attn" if _ATTENTION.search(said) else "mlp" if _MLP.search(said) else ""
    if sub_layer:
        return "" if _NORM_BETWEEN.search(model_name) else f"blocks.{layer}.hook_{sub_layer}_out"
    return f"blocks.{layer}.hook_resid_post" if _RESIDUAL.match(said) else ""


def folders(path: Path) -> tuple[str, ...]:
    """The names of a path's folders, the innermost first; a folder of the hub's cache under its repository's name.

    Links are not followed: in the hub's cache they lead to files named by their contents.
    """
    return tuple(part.split("--")[-1] if part.startswith("models--") else part for part in path.absolute().parts[::-1])
