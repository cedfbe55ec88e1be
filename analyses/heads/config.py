"""How `attlas.analyses.heads` measures."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.errors import ConfigError, require_counts

BY = ("weight", "norm")
MAPS = ("none", "umap", "tsne")


@dataclass(frozen=True)
class HeadsConfig:
    """How to read every head over a corpus.

    Attributes:
        batch_size: sequences or images at a time.
        n_intervals: parts of equal size that sequences are divided into by their activation.
        n_top: sequences of the largest activation that are kept whole.
        n_sampled: sequences kept of each other interval, drawn by the seed.
        keys_per_query: most keys kept of each query of a kept sequence.
        least_weight: smallest weight kept there.
        active: mass off the sink and the query itself from which a query counts as doing anything.
        window: width of the rule "local window", positions (the query's own among them).
        alike: cosine of two tokens' embeddings (their mean taken off) from which the rule "induction, alike" takes them
            for each other.
        high_norm: a patch counts as of high norm from this many times the median patch's (images).
        n_control: sequences of the negative controls (a model of random weights, shuffled text); 0 for none.
        n_repeats: sequences of repeated random tokens, for the induction score and the positive control; 0 for none.
        seed: of the sampled sequences, of the controls and of the bootstrap.
    """

    batch_size: int = 8
    n_intervals: int = 5
    n_top: int = 10
    n_sampled: int = 3
    keys_per_query: int = 8
    least_weight: float = 0.005
    active: float = 0.5
    window: int = 8
    alike: float = 0.5
    high_norm: float = 3.0
    n_control: int = 64
    n_repeats: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.n_intervals, self.n_top, self.keys_per_query, self.window) < 1:
            raise ConfigError(
                f"batch_size {self.batch_size}, n_intervals {self.n_intervals}, n_top {self.n_top}, keys_per_query "
                f"{self.keys_per_query} and window {self.window} must be 1 or more"
            )
        if min(self.n_sampled, self.n_control, self.n_repeats) < 0:
            raise ConfigError(
                f"n_sampled {self.n_sampled}, n_control {self.n_control} and n_repeats {self.n_repeats} must be 0 or more"
            )
        if not (0 < self.least_weight < 1 and 0 < self.active < 1 and -1 <= self.alike <= 1 and self.high_norm > 1):
            raise ConfigError(
                f"least_weight {self.least_weight} and active {self.active} must lie between 0 and 1, alike {self.alike} "
                f"between -1 and 1, high_norm {self.high_norm} above 1"
            )


@dataclass(frozen=True)
class LogitsConfig:
    """How to attribute logits to heads over a corpus.

    Attributes:
        batch_size: sequences at a time.
        seed: of the bootstrap.
    """

    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, "batch_size")


@dataclass(frozen=True)
class SimilarConfig:
    """How to find heads that are alike.

    Attributes:
        batch_size: sequences or images at a time.
        n_rows: queries of each sequence whose patterns are compared, positions drawn anew every batch.
        n_similar: heads kept for each head, by each measure.
        alike: mean similarity of patterns off the first position from which heads form one cluster.
        weights: compare what heads read and write by their weights too.
        n_control: sequences on which a model of random weights is read; 0 for none.
        seed: of the queries and of the random weights.
    """

    batch_size: int = 8
    n_rows: int = 16
    n_similar: int = 8
    alike: float = 0.8
    weights: bool = True
    n_control: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.n_rows, self.n_similar) < 1 or self.n_control < 0:
            raise ConfigError(
                f"batch_size {self.batch_size}, n_rows {self.n_rows} and n_similar {self.n_similar} must be 1 or more, "
                f"n_control {self.n_control} 0 or more"
            )
        if not 0 < self.alike < 1:
            raise ConfigError(f"alike {self.alike} must lie between 0 and 1")


@dataclass(frozen=True)
class ProjectConfig:
    """How to project what heads read and write.

    Attributes:
        batch_size: sequences or images at a time.
        n_points: pairs of query and key drawn of each head.
        n_rows: queries of each sequence that pairs are drawn from, positions drawn anew every batch.
        n_axes: principal components kept.
        sink: draw pairs whose key is the first position too.
        map: a map in two dimensions besides: none, umap (needs umap-learn), or tsne.
        map_heads: heads that get one, such as "3.0"; none named: all, at a second or so a head.
        seed: of the draws and of the map.
    """

    batch_size: int = 8
    n_points: int = 128
    n_rows: int = 16
    n_axes: int = 3
    sink: bool = False
    map: str = "none"
    map_heads: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.n_points, self.n_rows, self.n_axes) < 1:
            raise ConfigError(
                f"batch_size {self.batch_size}, n_points {self.n_points}, n_rows {self.n_rows} and n_axes {self.n_axes} must "
                "be 1 or more"
            )
        if self.map not in MAPS:
            raise ConfigError(f"map '{self.map}' is unknown; choose {', '.join(MAPS)}")
