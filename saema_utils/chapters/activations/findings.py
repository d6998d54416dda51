"""What chapter 1 finds: sinks stand apart, one of them spoils a variance, words of a cycle stand in a ring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saema_utils.geometry.circles import same_sentences
from saema_utils.text.concepts import ConceptPrompts

LEVEL = 0.01


@dataclass(frozen=True)
class SinkGap:
    """How far the tokens that are masked stand from those that are not, in medians of the ordinary norm.

    Attributes
    ----------
    first
        Median over the first positions.
    smallest, ordinary
        The smallest of all that is masked, and the largest that is not.
    in_sentences, alone
        Sinks behind the first position, in sentences and in prompts of one word.
    """

    first: float
    smallest: float
    ordinary: float
    in_sentences: int
    alone: int

    @property
    def is_wide(self) -> bool:
        """Whether the gap leaves room for any factor from one end to twice as much."""
        return self.smallest >= 2 * self.ordinary

    def in_short(self) -> str:
        return (
            f"norm over the median: first position {self.first:.3g}, smallest sink {self.smallest:.3g}, "
            f"largest ordinary token {self.ordinary:.3g} · later sinks: {self.in_sentences} in sentences, "
            f"{self.alone} among words alone"
        )


def sink_gap(norms: pd.DataFrame) -> SinkGap:
    """The gap between ordinary tokens and all that is masked, from the table ``01_norms``."""
    is_ordinary, later = norms["kind"] == "ordinary", norms[norms["kind"] == "sink"]
    return SinkGap(
        first=float(norms.loc[norms["kind"] == "first", "ratio"].median()),
        smallest=float(norms.loc[~is_ordinary, "ratio"].min()),
        ordinary=float(norms.loc[is_ordinary, "ratio"].max()),
        in_sentences=int((later["context"] == "sentence").sum()),
        alone=int((later["context"] == "bare word").sum()),
    )


@dataclass(frozen=True)
class FirstComponents:
    """Share of the variance in the first principal component, mean over concepts: masked, and with a sink let in."""

    masked: float
    spoilt: float

    @property
    def is_spoilt(self) -> bool:
        return self.spoilt > 0.9 and self.masked < 0.5

    def in_short(self) -> str:
        return f"share of the first direction: {self.spoilt:.1%} with one sink let in, {self.masked:.1%} without"


def first_components(shares: pd.DataFrame) -> FirstComponents:
    """What one sink does to the first principal component, from the table ``01_sink_variance``."""
    first = shares[shares["components"] == 1].groupby("tokens")["share"].mean()
    return FirstComponents(masked=float(first["masked"]), spoilt=float(first["one sink let in"]))


@dataclass(frozen=True)
class Rings:
    """Which words stand around their centre in cyclic order, at one layer.

    Attributes
    ----------
    rows
        By concept: ``cyclic_order``, ``chance`` and ``p_value`` at the layer, and at how many of all ``layers`` the
        order is ``perfect``.
    same_sentences
        Whether the words of each concept stood in the same sentences, so that these cannot make the ring.
    """

    rows: pd.DataFrame
    same_sentences: bool

    @property
    def in_order(self) -> set[str]:
        """The concepts with more order than all but one shuffle in a hundred."""
        return set(self.rows.index[self.rows["p_value"] < LEVEL])

    def holds(self, *concepts: str) -> bool | None:
        """Whether these concepts stand in rings that their sentences did not make; None if none was drawn."""
        if not set(concepts) & set(self.rows.index):
            return None
        return self.same_sentences and set(concepts) <= self.in_order

    def in_short(self) -> str:
        return " · ".join(
            f"{row.Index}: {row.cyclic_order:.0%} of neighbours in order (shuffled {row.chance:.0%}, "
            f"p = {row.p_value:.2g}), all of them at {row.perfect} of {row.layers} layers"
            for row in self.rows.itertuples()
        )


def rings(maps: pd.DataFrame, layer: int, prompts: Mapping[str, ConceptPrompts]) -> Rings:
    """Cyclic order at a layer, from the table ``01_word_maps`` and the prompts behind it."""
    scores = maps.groupby(["concept", "layer"], sort=False)[["cyclic_order", "chance", "p_value"]].first().reset_index()
    perfect = scores["cyclic_order"].eq(1).groupby(scores["concept"])
    rows = scores[scores["layer"] == layer].set_index("concept").drop(columns="layer")
    rows = rows.assign(perfect=perfect.sum(), layers=scores.groupby("concept").size())
    return Rings(rows, all(same_sentences(prompts[concept]) for concept in rows.index))


@dataclass(frozen=True)
class Likeness:
    """Mean cosine similarity of neighbours in the order of words, and of other pairs, by concept."""

    pairs: dict[str, tuple[float, float]]

    @property
    def neighbours_are_alike(self) -> bool | None:
        """Whether neighbours are more alike than others in every concept; None without any."""
        return all(near > other for near, other in self.pairs.values()) if self.pairs else None

    def in_short(self) -> str:
        return " · ".join(
            f"{name}: neighbours {near:+.2f}, others {far:+.2f}" for name, (near, far) in self.pairs.items()
        )


def neighbours_and_others(similarities: Mapping[str, pd.DataFrame]) -> Likeness:
    """Whether neighbours in the cycle (the last and the first too) are more alike than other pairs of words.

    Takes square frames ``[W, W]`` of similarities, by concept; pairs with a word that has no mean (NaN) are left out.
    """
    pairs = {}
    for concept, frame in similarities.items():
        n = len(frame)
        apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        is_near = (apart == 1) | (apart == n - 1)
        matrix = frame.to_numpy()
        pairs[concept] = float(np.nanmean(matrix[is_near])), float(np.nanmean(matrix[~is_near & (apart > 0)]))
    return Likeness(pairs)
