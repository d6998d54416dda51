"""What chapter 1 finds: sinks stand apart, one of them spoils a variance, words of a cycle stand in a ring."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from saema_utils.chapters.found import Found, of_rows
from saema_utils.geometry.circles import same_sentences
from saema_utils.text.concepts import ConceptPrompts

LEVEL = 0.01


def sink_gap(norms: pd.DataFrame) -> Found:
    """Whether all that is masked stands so far from ordinary tokens (``01_norms``) that any factor from one end of the
    gap to twice as much would mask the same."""
    is_ordinary, later = norms["kind"] == "ordinary", norms.loc[norms["kind"] == "sink", "context"]
    first = norms.loc[norms["kind"] == "first", "ratio"].median()
    smallest, ordinary = norms.loc[~is_ordinary, "ratio"].min(), norms.loc[is_ordinary, "ratio"].max()
    return Found(
        bool(smallest >= 2 * ordinary),
        f"norm over the median: first position {first:.3g}, smallest sink {smallest:.3g}, largest ordinary token "
        f"{ordinary:.3g} · later sinks: {(later == 'sentence').sum()} in sentences, "
        f"{(later == 'bare word').sum()} among words alone",
    )


def first_components(shares: pd.DataFrame) -> Found:
    """Whether one sink makes the first principal component of ``01_sink_variance`` seem to hold nearly everything."""
    first = shares[shares["components"] == 1].groupby("tokens")["share"].mean()
    masked, spoilt = first.reindex(["masked", "one sink let in"])
    return Found(
        bool(spoilt > 0.9 and masked < 0.5),
        f"share of the first direction: {spoilt:.1%} with one sink let in, {masked:.1%} without",
    )


@of_rows
def shared_part(parts: pd.DataFrame) -> Found:
    """Whether more than half of the length in ``01_shared_part`` is common to all tokens of each concept, and no
    coordinate holds half of what varies."""
    shares = {column: parts[column] for column in ("shared", "largest_coordinate", "largest_varying")}
    low, high = ({name: f"{end(share):.0%}" for name, share in shares.items()} for end in (min, max))
    common, of_length, of_variance = (low[n] if low[n] == high[n] else f"{low[n]} to {high[n]}" for n in shares)
    return Found(
        bool((shares["shared"] > 0.5).all() and (shares["largest_varying"] < 0.5).all()),
        f"common to all tokens of a concept: {common} of the squared length · the largest coordinate: {of_length} of "
        f"the length, {of_variance} of what varies",
    )


def rings(maps: pd.DataFrame, layer: int, prompts: Mapping[str, ConceptPrompts], concepts: Collection[str]) -> Found:
    """Whether the words of these concepts stand around their centre in cyclic order at a layer (``01_word_maps``).

    In more order than all but one shuffle in a hundred, that is, and each concept's words in the same sentences, so
    that these cannot make the ring. None if none of the concepts was drawn.
    """
    scores = maps.groupby(["concept", "layer"], sort=False)[["cyclic_order", "chance", "p_value"]].first().reset_index()
    perfect = scores["cyclic_order"].eq(1).groupby(scores["concept"])
    rows = scores[scores["layer"] == layer].set_index("concept").assign(perfect=perfect.sum(), layers=perfect.size())
    in_order = set(rows.index[rows["p_value"] < LEVEL])
    alike = all(same_sentences(prompts[concept]) for concept in rows.index)
    return Found(
        alike and set(concepts) <= in_order if set(concepts) & set(rows.index) else None,
        " · ".join(
            f"{row.Index}: {row.cyclic_order:.0%} of neighbours in order (shuffled {row.chance:.0%}, "
            f"p = {row.p_value:.2g}), all of them at {row.perfect} of {row.layers} layers"
            for row in rows.itertuples()
        ),
    )


def neighbours_and_others(similarities: Mapping[str, pd.DataFrame]) -> Found:
    """Whether neighbours in the cycle (the last and the first too) are more alike than other pairs, in every concept.

    Takes square frames ``[W, W]`` of similarities, by concept; pairs with a word that has no mean (NaN) are left out.
    """
    found = {}
    for concept, frame in similarities.items():
        n = len(frame)
        apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        is_near = (apart == 1) | (apart == n - 1)
        near, far = (frame.where(pairs).stack().mean() for pairs in (is_near, ~is_near & (apart > 0)))
        found[concept] = near, far
    return Found(
        all(near > far for near, far in found.values()) if found else None,
        " · ".join(f"{name}: neighbours {near:+.2f}, others {far:+.2f}" for name, (near, far) in found.items()),
    )
