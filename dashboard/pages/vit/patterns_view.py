"""Patterns of heads on the ViT page: the plane of maps, clusters with their prototypes."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import dcc, html

from attlas.dashboard.components import button_link, card, columns, picker, short, table
from attlas.dashboard.components.maps import colored, data_url
from attlas.dashboard.components.vit_figures import Head, heads_of, pattern_map
from attlas.dashboard.page import Data
from attlas.dashboard.pages.vit.urls import here
from attlas.dashboard.pictures import pattern_url
from attlas.dashboard.theme import Theme

COLORS = {"cluster": "cluster", "layer": "layer", "head": "head", "importance": "importance"}


def patterns_cards(data: Data, theme: Theme, importance: dict[Head, float]) -> list[Any]:
    """The plane beside the clusters; or how to get them."""
    found = data["patterns"]
    if not found:
        command = html.Code(f"attlas vit patterns --model {data['model']}")
        return [card("Patterns", html.P(["What single queries attend to, in clusters: ", command], className="note"))]
    return [columns(_plane(data, theme, importance), _clusters(data))]


def _plane(data: Data, theme: Theme, importance: dict[Head, float]) -> Any:
    found = data["patterns"]
    chosen = found["chosen"]
    figure = pattern_map(
        found["points"],
        theme,
        color=found["color"],
        names={c["cluster"]: c["name"] for c in found["clusters"]},
        importance=importance,
        lit=heads_of(data["lit"]),
        cluster=found["cluster"],
        chosen=chosen["map"] if chosen else None,
        picture=pattern_url(found["run"], "{}"),
    )
    quality = {q["method"]: q for q in found["quality"]}
    names = {
        "method": "code",
        "explained": "explained",
        "ari": "ARI of draws",
        "ari_null": "null",
        "silhouette": "silhouette",
    }
    names |= {"silhouette_null": "its null"}
    return card(
        "Patterns",
        figure,
        _one(found, chosen) if chosen else None,
        table(found["quality"], names, summary="Codes and their controls"),
        note="A point is one query's attention map; hover to see it, click to keep it, draw a box to light up heads."
        + _trust(quality),
        controls=picker("color", "Colour", list(COLORS.items()), found["color"], "cluster"),
    )


def _trust(quality: dict[str, dict[str, Any]]) -> str:
    """What held-out maps say of the codes and their clusters; nothing of runs that compared seeds from one start."""
    if not {"autoencoder", "autoencoder_random", "pca"} <= set(quality):
        return ""
    ae, other, pca = quality["autoencoder"], quality["autoencoder_random"], quality["pca"]
    return (
        f" Codes of {ae['n_latent']} numbers explain {short(ae['explained'])} of maps of held-out images (from random weights "
        f"{short(other['explained'])}, PCA {short(pca['explained'])}). Clusters of fresh draws of maps agree there by "
        f"{short(ae['ari'])} ARI ({short(other['ari'])} from random weights), silhouette {short(ae['silhouette'])}; Gaussian "
        f"vectors of the same covariance, without clusters: {short(ae['ari_null'])} and {short(ae['silhouette_null'])}."
    )


def _one(found: dict[str, Any], chosen: dict[str, Any]) -> Any:
    said = (
        f"Map {chosen['map']}: head {chosen['layer']}.{chosen['head']}, image {chosen['image']}, query row {chosen['row']}, "
        f"column {chosen['column']}. On itself {short(chosen['self'])}, near {short(chosen['near'])}, "
        f"evenness {short(chosen['evenness'])}."
    )
    picture = html.Img(src=pattern_url(found["run"], chosen["map"]), alt=said, className="wide")
    return html.Div([picture, html.P(said, className="note")], id="chosen-map")


def _clusters(data: Data) -> Any:
    found = data["patterns"]
    cells = []
    for c in found["clusters"]:
        number = c["cluster"]
        lit = number == found["cluster"]
        picture: Any = None
        if number < len(found["prototypes"]):
            prototype = data_url(colored(np.array(found["prototypes"][number])))
            picture = html.Img(src=prototype, alt=f"prototype of cluster {number}")
        said = f"{number} {c['name']} · {c['share']:.0%}, {c['n_heads']} heads"
        href = here(data, cluster=None if lit else number)
        cells.append(dcc.Link([picture, said], href=href, className="map" + (" here" if lit else "")))
    parts: list[Any] = [html.Div(cells, className="maps")]
    if found["cluster"] is not None:
        shown = [html.Img(src=pattern_url(found["run"], m), alt=f"map {m}", className="wide") for m in found["members"]]
        parts += [
            html.Div([button_link("All clusters", here(data, cluster=None))], className="buttons"),
            html.Div(shown, className="maps", id="members"),
        ]
    names = {"cluster": "cluster", "name": "name", "n_maps": "maps", "self": "self", "near": "near"}
    names |= {"same_row": "row", "same_column": "column", "evenness": "evenness", "patch_mass": "on patches"}
    return card(
        "Clusters",
        *parts,
        table(found["clusters"], names, summary="The numbers"),
        note="Mean map of each cluster, the query in the middle; click one to light it up and see members.",
    )
