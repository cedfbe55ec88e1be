"""Addresses of the pages about vision heads."""

from __future__ import annotations

from typing import Any

from attlas.dashboard.page import Data, link


def here(data: Data, **changed: Any) -> str:
    """This page's address with some parameters changed."""
    patterns = data.get("patterns") or {}
    tokens = data.get("tokens") or {}
    chosen = patterns.get("chosen")
    now = {
        "run": data["run"],
        "metric": data["metric"] if data["metric"] != data["default_metric"] else None,
        "ablation": data["ablation"] if data["ablation"] != data["ablations"][0] else None,
        "strength": data["strength"] if data["strength"] != "mean_distance_px" else None,
        "layer": data["layer"],
        "head": data["head"],
        "heads": ",".join(f"{a}.{b}" for a, b in data["lit"]),
        "color": patterns.get("color") if patterns.get("color") != "cluster" else None,
        "cluster": patterns.get("cluster"),
        "map": chosen["map"] if chosen else None,
        "before": tokens["before"] if tokens and tokens["before"] != tokens["layers"][0] else None,
    }
    return link("/vit", **(now | changed))
