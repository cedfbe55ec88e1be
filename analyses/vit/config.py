"""What `attlas.analyses.vit` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, require_counts, require_shares

ABLATIONS = ("mean_per_position", "zero", "mean", "resample")
GROUP_ABLATIONS = ("zero", "mean_per_position", "mean")


@dataclass(frozen=True)
class VitConfig:
    """What to measure on a vision model.

    Attributes:
        measure: "importance", "strength", or both.
        ablations: what a pruned head's z becomes, several, the first is the one that ranks: mean_per_position (its mean
            over images at each position), zero, mean (over positions too: CLS and patches alike), resample (that of
            another image).
        batch_size: images at a time.
        resample_draws: other images that stand in for each, for resample; the effect is their mean.
        seed: of the bootstrap, the probes' folds and those draws.
        n_bootstrap: resamples of each interval.
    """

    measure: tuple[str, ...] = ("importance", "strength")
    ablations: tuple[str, ...] = ("mean_per_position", "zero")
    batch_size: int = 32
    resample_draws: int = 4
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        for name, known in (("measure", ("importance", "strength")), ("ablations", ABLATIONS)):
            odd = sorted(set(getattr(self, name)) - set(known))
            if odd or not getattr(self, name):
                raise ConfigError(f"{name} {odd} are not known; choose from {', '.join(known)}")
        require_counts(self, "batch_size", "resample_draws", "n_bootstrap")


@dataclass(frozen=True)
class VitPruningConfig:
    """How heads are removed in groups.

    Attributes:
        n_search: images that choose the next head; the curves are measured on the others (the command line takes half of
            fewer than 400).
        n_candidates: heads tried a step, those that cost least when last tried; 0 tries all.
        max_heads: heads to remove; 0 goes on until none is left.
        n_random: random orders to compare with.
        ablation: what the z of removed heads becomes: zero, as in a checkpoint without them; or mean_per_position or mean,
            over the search images.
        batch_size: images at a time.
        seed: of the split and the random orders.
        n_bootstrap: resamples of each interval.
    """

    n_search: int = 200
    n_candidates: int = 8
    max_heads: int = 0
    n_random: int = 3
    ablation: str = "zero"
    batch_size: int = 64
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        require_counts(self, "n_search", "batch_size", "n_bootstrap")
        if self.ablation not in GROUP_ABLATIONS:
            raise ConfigError(f"ablation '{self.ablation}' is unknown; choose {', '.join(GROUP_ABLATIONS)}")


@dataclass(frozen=True)
class VitTokensConfig:
    """What to measure of a ViT's patches.

    Attributes:
        remove_at: layers before which patches are removed; none given takes the first and the middle one.
        fractions: shares of patches to remove.
        n_curve_images: images for the curves, drawn by the seed from all classes; column mass takes all.
        n_random: random orders to compare with.
        leaf_share: the share of patches that receive least and count as leaf tokens.
        residual: share of the skip connection in attention rollout.
        batch_size: images at a time.
        seed: of the random orders and the bootstrap.
        n_bootstrap: resamples of each interval.
    """

    remove_at: tuple[int, ...] = ()
    fractions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    n_curve_images: int = 500
    n_random: int = 2
    leaf_share: float = 0.1
    residual: float = 0.5
    batch_size: int = 64
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        if not self.fractions or any(not 0 <= f < 1 for f in self.fractions):
            raise ConfigError(f"fractions {self.fractions} must lie in [0, 1); at least one patch stays")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ConfigError(f"fractions {self.fractions} must rise")
        require_counts(self, "n_curve_images", "n_random", "batch_size", "n_bootstrap")
        require_shares(self, "leaf_share", "residual")


@dataclass(frozen=True)
class VitPatternsConfig:
    """How attention maps are drawn, coded and clustered.

    Attributes:
        n_maps: maps of a draw, equally many of every head; the first draw is shown.
        frame: "query" moves each map so that its query is in the middle; "grid" leaves it on the image.
        n_latent: size of the autoencoder's code.
        n_clusters: clusters (k-means).
        n_epochs: of the autoencoder.
        n_seeds: draws of maps, with a start of the autoencoder each, for the stability of clusters.
        layout: "tsne" or "pca", how codes become points in the plane.
        seed: of the draws; the first of the starts.
    """

    n_maps: int = 3600
    frame: str = "query"
    n_latent: int = 8
    n_clusters: int = 8
    n_epochs: int = 30
    n_seeds: int = 3
    layout: str = "tsne"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frame not in ("query", "grid"):
            raise ConfigError(f"frame '{self.frame}' is not known; choose query or grid")
        if self.layout not in ("tsne", "pca"):
            raise ConfigError(f"layout '{self.layout}' is not known; choose tsne or pca")
        for name, least in (("n_maps", 20), ("n_latent", 1), ("n_clusters", 2), ("n_epochs", 1), ("n_seeds", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} must be {least} or more")
