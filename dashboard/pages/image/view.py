"""How the image page looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import dcc, html

from attlas.dashboard.components import (
    attributes,
    button_link,
    card,
    columns,
    empty,
    heading,
    job_panel,
    picker,
    short,
    table,
    tag,
    upload,
)
from attlas.dashboard.components.maps import colored, data_url, download, overlaid, patch_picker, pixels_of, sheet
from attlas.dashboard.page import Data, link
from attlas.dashboard.theme import Theme

LEAD = "One picture under every head. Click a head, click a patch, take heads away."


def here(data: Data, **changed: Any) -> str:
    """This page's address with some parameters changed; None leaves one out."""
    heads = ",".join(f"{a}.{b}" for a, b in data.get("pruned") or [])
    now = {
        "model": data["asked"],
        "image": data["image"] if data["image"] != "0" else None,
        "beside": data["beside"],
        "layer": data.get("layer"),
        "head": data.get("head"),
        "row": data.get("row"),
        "column": data.get("column"),
        "prune": heads,
        "sheet": "overlay" if data["overlay"] else None,
        "class": data.get("class"),
        "sae": data.get("sae") if data.get("sae") and data["sae"] != data["saes"][0]["id"] else None,
    }
    return link("/image", **(now | changed))


def view(data: Data, theme: Theme) -> Any:
    """Choosing, the answer, the large picture, the contact sheet, the features."""
    if data["model"] is None:
        text = f"{data['asked']} is no vision model that can run here; there are {', '.join(data['models'])}."
        return html.Div([heading("Image", LEAD), empty("No picture", text, "attlas models get dinov2-small")])
    names = data["models"]
    chooser = [
        dcc.Link(n, href=link("/image", model=n), className="button" + (" here" if n == data["model"] else ""))
        for n in names
    ]
    parts: list[Any] = [heading(f"A picture in {data['model']}", LEAD, *chooser), job_panel(data["job"])]
    parts.append(_choose(data))
    if data["picture"] is not None:
        parts += [
            columns(_large(data, theme), _side(data, theme)),
            _sheet(data),
            _features(data),
        ]
    hint: list[Any] = [
        "Measured on many pictures: ",
        html.Code(f"attlas vit --model {data['model']}"),
        ", then ViT heads.",
    ]
    return html.Div([*parts, html.P(hint, className="note")])


def _choose(data: Data) -> Any:
    cells = [
        dcc.Link(
            [html.Img(src=item["png"], alt=item["caption"]), html.Span(item["caption"])],
            href=here(data, image=item["image"] if item["image"] != "0" else None),
            className="map" + (" here" if item["image"] == data["image"] else ""),
        )
        for item in data["gallery"]
    ]
    options = [("", "nothing"), *[(g["image"], f"{g['image']} {g['caption']}") for g in data["gallery"]]]
    known = data["beside"] in {value for value, _ in options}
    if data["beside"] and not known:
        options.append((data["beside"], "your picture"))
    return card(
        "Picture",
        html.Div(cells, className="maps small"),
        html.Div(
            [upload("image", "Drop a picture here, or click."), upload("beside", "Drop one to compare with.")],
            className="pair",
        ),
        note="PNG or JPEG of any size and colour; it is brought to the model's own size.",
        controls=picker("beside", "Beside it", options, data["beside"], ""),
    )


def _large(data: Data, theme: Theme) -> Any:
    """The chosen head's attention from one query over the picture, and the same over the other one."""
    layer, head = data["layer"], data["head"]
    first = data["picture"]
    said = _query_name(data)
    values = np.array(first["maps"][layer][head])
    name = f"head {layer}.{head} from {said}"
    both = [_one(first, values, data, theme, f"attention of {name}, over the picture")]
    if data.get("other"):
        other = data["other"]
        both.append(
            _one(other, np.array(other["maps"][layer][head]), data, theme, f"attention of {name}, over the other")
        )
    gone = [layer, head] in [list(p) for p in data["pruned"]]
    rest = [p for p in data["pruned"] if list(p) != [layer, head]]
    toggled = ",".join(f"{a}.{b}" for a, b in (rest if gone else [*rest, (layer, head)]))
    buttons = [
        button_link(
            f"Put head {layer}.{head} back" if gone else f"Prune head {layer}.{head}", here(data, prune=toggled)
        ),
        button_link("From " + _whole_name(data), here(data, row=None, column=None))
        if data["query"] is not None
        else None,
        button_link("This head over many pictures", link("/vit-head", model=data["model"], layer=layer, head=head)),
        download(overlaid(pixels_of(first["png"]), values), f"attlas-{layer}.{head}.png"),
    ]
    mass = float(values.sum())
    return card(
        f"Head {layer}.{head}, from {said}",
        html.Div(both, className="pair" if len(both) > 1 else ""),
        html.Div(buttons, className="buttons"),
        note=f"Where it looks; click a patch to ask from there. On patches: {short(mass)} of this query's attention.",
    )


def _one(shown: dict[str, Any], values: np.ndarray, data: Data, theme: Theme, label: str) -> Any:
    same = shown["grid"] == data["picture"]["grid"]
    picture = pixels_of(shown["png"])
    height = 300 if data.get("other") else 440
    figure = patch_picker(picture, values, theme, label=label, query=data["query"] if same else None, height=height)
    return html.Div([figure, html.P(shown["caption"], className="note")])


def _whole_name(data: Data) -> str:
    return "CLS" if data["picture"]["n_prefix"] else "all patches"


def _query_name(data: Data) -> str:
    return _whole_name(data) if data["query"] is None else f"patch ({data['row']}, {data['column']})"


def _side(data: Data, theme: Theme) -> Any:
    """The answer, with and without the pruned heads; rollout."""
    pruned = [tuple(p) for p in data["pruned"]]
    tags = [
        dcc.Link(
            tag(f"{a}.{b} ×"),
            href=here(data, prune=",".join(f"{c}.{d}" for c, d in pruned if (c, d) != (a, b))),
            **attributes({"title": f"put head {a}.{b} back"}),
        )
        for a, b in pruned
    ]
    parts: list[Any] = []
    if pruned:
        parts.append(
            html.Div(["Without ", *tags, button_link("All back", here(data, prune=None))], className="buttons")
        )
    parts += _answer(data["picture"], data.get("effect"), bool(pruned))
    if data.get("other"):
        parts += [html.H3(f"The other: {data['other']['caption']}")]
        parts += _answer(data["other"], data.get("other_effect"), bool(pruned))
    rolled = [_rollout(data["picture"])]
    if data.get("other"):
        rolled.append(_rollout(data["other"]))
    parts += _pooling(data["picture"])
    parts += [html.H3("Attention rollout"), html.Div(rolled, className="pair"), *_relevance(data)]
    note = (
        "Heads are set to zero in this model and the picture is run again."
        if pruned
        else "Prune a head to see its part."
    )
    return card("What the model says", *parts, note=note)


def _answer(shown: dict[str, Any], effect: dict[str, Any] | None, pruned: bool) -> list[Any]:
    if not pruned or effect is None:
        if not shown["top"]:
            return [html.P("A backbone: it has no classes. What pruning changes is its output.", className="note")]
        names = {"name": "class", "probability": "probability"}
        return [table(shown["top"], names, summary="Most probable classes", open_=True)]
    told: list[Any] = [html.B(short(effect["cls_distance"])), " change of its output (1 − cosine)"]
    if "js" in effect:
        told += [", ", html.B(short(effect["js"])), " nats (Jensen-Shannon)"]
    found: list[Any] = [html.P(told, className="effect", id="effect")]
    if effect["rows"]:
        names = {"name": "class", "before": "before", "after": "after", "change": "change"}
        found.append(table(effect["rows"], names, summary="Classes", open_=True))
    return found


def _relevance(data: Data) -> list[Any]:
    """What raises a class, chosen among the likeliest."""
    if not data.get("classes"):
        return []
    likeliest = data["classes"][0]
    listed = [(str(c["class"]), f"{c['name']}, {c['probability']:.1%}") for c in data["classes"][1:]]
    options = [("", f"{likeliest['name']}, {likeliest['probability']:.1%} (likeliest)"), *listed]
    if data["class"] is not None and str(data["class"]) not in {value for value, _ in options}:
        options.append((str(data["class"]), f"class {data['class']}"))
    value = "" if data["class"] is None else str(data["class"])
    parts: list[Any] = [
        html.H3("Relevance for a class"),
        picker("class", "Class", options, value, "", wide=True),
        html.P(
            "Attention weighted by its gradient for the class's logit, over all layers (Chefer et al. 2021); rollout knows no "
            "class. Of the whole model, no heads pruned.",
            className="note",
        ),
    ]
    if data["relevance"] is None:
        return [*parts, html.P("Not ready.", className="note")]
    over = overlaid(pixels_of(data["picture"]["png"]), np.array(data["relevance"]), side=224)
    image = html.Img(src=data_url(over), alt="relevance for the class over the picture", className="wide")
    return [*parts, html.Div([html.Div([image, download(over, "attlas-relevance.png")])], className="pair")]


def _pooling(shown: dict[str, Any]) -> list[Any]:
    """What the heads of attention pooling draw the image's embedding from (SigLIP)."""
    if shown["pool"] is None:
        return []
    maps = [
        html.Span([html.Img(src=data_url(colored(np.array(m))), alt=f"pooling head {i}"), str(i)], className="map")
        for i, m in enumerate(shown["pool"])
    ]
    note = "The learned query that draws the embedding from the patches; a map a head, each on its own scale."
    return [html.H3("Attention pooling"), html.Div(maps, className="maps small"), html.P(note, className="note")]


def _rollout(shown: dict[str, Any]) -> Any:
    over = overlaid(pixels_of(shown["png"]), np.array(shown["rollout"]), side=224)
    return html.Div(
        [
            html.Img(src=data_url(over), alt="attention rollout over the picture", className="wide"),
            download(over, "attlas-rollout.png"),
        ]
    )


def _sheet(data: Data) -> Any:
    """All layers × heads, each map a link."""
    shown = data["picture"]
    maps = np.array(shown["maps"])
    n_layers, n_heads = maps.shape[:2]
    picture = pixels_of(shown["png"])
    gone = {tuple(p) for p in data["pruned"]}
    cells: list[Any] = []
    for layer in range(n_layers):
        cells.append(html.Span(f"{layer}", className="row-name"))
        for head in range(n_heads):
            values = maps[layer, head]
            pixels = overlaid(picture, values, side=64) if data["overlay"] else colored(values)
            marks = " here" if (layer, head) == (data["layer"], data["head"]) else ""
            marks += " gone" if (layer, head) in gone else ""
            cells.append(
                dcc.Link(
                    [html.Img(src=data_url(pixels), alt=f"head {layer}.{head}"), f"{layer}.{head}"],
                    href=here(data, layer=layer, head=head),
                    className="map" + marks,
                )
            )
    style = {"gridTemplateColumns": f"auto repeat({n_heads}, minmax(34px, 1fr))"}
    return card(
        "All heads",
        html.Div(cells, className="sheet", style=style),
        html.Div(
            [download(sheet(maps, picture if data["overlay"] else None), "attlas-heads.png", "Sheet as PNG")],
            className="buttons",
        ),
        note=f"Attention from {_query_name(data)} over patches; a row a layer; each map has its own scale.",
        controls=picker(
            "sheet",
            "Show",
            [("", "attention"), ("overlay", "on the picture")],
            "overlay" if data["overlay"] else "",
            "",
        ),
        span=2,
    )


def _features(data: Data) -> Any:
    """The sparse features that fire most in this picture."""
    if not data["saes"]:
        command = f"attlas train --model {data['model']} --hooks 'blocks.*.attn.hook_z'"
        return card(
            "Sparse features",
            html.P(["No autoencoder of this model yet: ", html.Code(command)], className="note"),
            span=2,
        )
    options = [(s["id"], f"{s['hook']}") for s in data["saes"]]
    control = picker("sae", "Autoencoder", options, data["sae"], data["saes"][0]["id"])
    if data["features"] is None:
        return card("Sparse features", html.P("Not ready.", className="note"), controls=control, span=2)
    picture = pixels_of(data["picture"]["png"])
    cells = []
    for f in data["features"]:
        image = html.Img(
            src=data_url(overlaid(picture, np.array(f["heat"]), side=112)), alt=f"where feature {f['feature']} fires"
        )
        said = f"{f['feature']}: {short(f['strongest'])}"
        run = data["features_run"]
        cells.append(
            dcc.Link([image, said], href=link("/feature", run=run, id=f["feature"]), className="map")
            if run
            else html.Div([image, said], className="map")
        )
    return card(
        "Sparse features",
        html.Div(cells, className="maps") if cells else html.P("None fires on this picture.", className="note"),
        note="The features that fire most strongly on a patch: number and strongest activation; warm where they fire.",
        controls=control,
        span=2,
    )
