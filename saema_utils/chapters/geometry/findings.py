"""Chapter 4's sentences: words for what the tables say, whichever way they say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.figures import NAMES
from saema_utils.statistics import holm

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
TOKEN_TEXTS, WORDS, NEITHER = "the *texts of tokens*", "the *words* of the concept", "neither tokens nor words closely"
FOLLOWED = 0.5  # of an agreement that is 0 by chance and 1 when two partitions are the same
ONCE = "From the word on, a token of a sentence occurs once per word"
NO_CYCLE = "The words of this study form no cycle that this book knows, so there is no circle to look for."


def corrected_circles(circles: pd.DataFrame) -> pd.DataFrame:
    """Circles with p-values corrected over the cycles of each representation (column ``p_holm``)."""
    corrected = circles.groupby("representation")["p_value"].transform(lambda p: holm(p.to_numpy()))
    return circles.assign(p_holm=corrected)


def circles_sentence(circles: pd.DataFrame) -> str:
    """Which circles the residual stream has, and which are left in the latents and in the controls."""
    if not len(circles):
        return NO_CYCLE
    rows = corrected_circles(circles).set_index(["representation", "concept"])
    there = [c for c in rows.loc["residual"].index if rows.loc[("residual", c), "p_holm"] < LEVEL]
    looked = ", ".join(rows.loc["residual"].index)
    if not there:
        return f"Of the cycles looked for ({looked}), none is significant in the residual stream: nothing to lose."
    text = f"Of the cycles looked for ({looked}), the residual stream holds **{_listed(there)}** (p below {LEVEL:g} "
    text += "after Holm's correction over the cycles; the figure shows p as it is). "
    for name in ("sae", "reconstruction", "random_dictionary"):
        if name not in rows.index.get_level_values(0):
            continue
        kept = [c for c in there if rows.loc[(name, c), "p_holm"] < LEVEL]
        scores = ", ".join(
            f"{c} {rows.loc[('residual', c), 'score']:.2f} → {rows.loc[(name, c), 'score']:.2f}" for c in there
        )
        verb = "keep" if name == "sae" else "keeps"
        text += f"The {NAMES[name]} {verb} {_listed(kept) if kept else 'none of them'} ({scores}). "
    return text.strip()


def distances_sentence(circles: pd.DataFrame) -> str:
    """The circle in the whole space rather than in one plane, and what homology says of it."""
    if not len(circles):
        return NO_CYCLE
    rows = circles.set_index(["representation", "concept"])
    first = rows.loc["residual"]["score"].idxmax()
    before, after = rows.loc[("residual", first)], rows.loc[("sae", first)]
    loops = circles.groupby("representation")["betti1"].sum()
    holes = f"Homology in the full space counts {loops['residual']} loops over all cycles, and {loops['sae']} after."
    if not loops["residual"] and not loops["sae"]:
        holes = (
            "Homology in the full space counts no loop in any of the cycles, before or after: words so few, and so far "
            "from the plane, leave no hole that growing balls could find."
        )
    return (
        f"The plane shows {before['variance_share']:.0%} of the variance of {first} in the residual "
        "stream and "
        f"{after['variance_share']:.0%} in the latents. Over all dimensions, the rank correlation of distances "
        f"with steps "
        f"around the cycle goes from {before['distance_score']:.2f} to **{after['distance_score']:.2f}**. {holes}"
    )


def clusters_sentence(merging: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """What the paper's clusters follow: the texts of tokens, the words, or neither."""
    agreement = _agreement_of_the_papers_clusters(merging)
    before, after = agreement.loc["residual"], agreement.loc["sae"]
    copies = geometry.drop_duplicates("concept")
    shown = copies["n_copies"].sum() / (copies["n_copies"] + copies["n_points"]).sum()
    follows = [_followed(row) for row in (before, after)]
    if follows[0] == follows[1]:
        main = f"clusters follow {follows[0]} in both representations"
    else:
        main = f"clusters follow {follows[0]} in the residual stream and {follows[1]} in the SAE"
    text = (
        f"**{shown:.0%}** of the tokens are copies: prompts that begin alike share their first vectors exactly, so "
        f"each is counted once. Of what is left, {main} (the paper's protocol, over all concepts and seeds): adjusted "
        f"mutual information with the token's text is **{before['ami_token']:.2f}** in the residual stream and "
        f"**{after['ami_token']:.2f}** in the SAE; with the concept's words, over their own tokens, it is "
        f"{before['ami']:.2f} and {after['ami']:.2f}."
    )
    if set(follows) == {TOKEN_TEXTS}:
        text += " So a count of clusters mostly counts the different tokens of our sentences."
    return text


def _agreement_of_the_papers_clusters(merging: pd.DataFrame) -> pd.DataFrame:
    return merging[merging["protocol"] == "paper"].groupby("representation")[["ami", "ami_token"]].mean()


def _followed(agreement: pd.Series) -> str:
    if max(agreement["ami_token"], agreement["ami"]) < FOLLOWED:
        return NEITHER
    return TOKEN_TEXTS if agreement["ami_token"] >= agreement["ami"] else WORDS


def seeds_sentence(geometry: pd.DataFrame) -> str:
    """How many local representations there are, and how far seeds disagree."""
    paper = geometry[geometry["protocol"] == "paper"]
    mean = paper.groupby("representation")["n_local"].mean()
    rows = paper[paper["representation"].isin(["residual", "sae"])]
    spread = rows.groupby(["concept", "representation"])["n_local"].agg(lambda n: n.max() - n.min())
    return (
        f"By the paper's protocol a concept has {mean['residual']:.1f} local representations in the residual "
        "stream and "
        f"**{mean['sae']:.1f}** in the SAE, on average; from one seed to the next the number differs by up to "
        f"{int(spread.max())}. Read off the embedding, as the paper does, their dimension is "
        f"{rows['intrinsic_dimension_embedding'].mean():.1f}; in the data's own space it is "
        f"{rows['intrinsic_dimension'].mean():.1f}."
    )


def size_sentence(geometry: pd.DataFrame, min_cluster_size: int) -> str:
    """That the number of local representations follows the number of words and the smallest cluster allowed."""
    rows = geometry[geometry["representation"] == "residual"]
    words = rows[rows["protocol"] == "words"].set_index("concept")["n_local"]
    found = rows[rows["protocol"] == "paper"].groupby("concept")["n_local"].mean()
    large = words >= min_cluster_size
    few, many = (found[found.index.isin(words.index[side])] for side in (~large, large))
    if not len(few) or not len(many):
        return f"{ONCE}: a cluster of them is as large as there are words."
    decided = "Most of the number is decided before any model is asked. " if many.mean() >= 2 * few.mean() else ""
    return (
        f"{decided}{ONCE}, and {min_cluster_size} is the smallest cluster: "
        f"concepts of fewer words have **{few.mean():.1f}** local representations in the residual stream, those of at "
        f"least as many words **{many.mean():.1f}**."
    )


def merging_sentence(comparison: pd.DataFrame, merged: pd.DataFrame) -> str:
    """Whether words merge, by both measures, and which do in the SAE but not before."""
    rows = comparison[(comparison["protocol"] == "words") & (comparison["against"] == "residual")].set_index("measure")
    text = (
        f"Agreement of clusters with words changes by **{rows.loc['ami', 'estimate']:+.2f}** "
        f"({_interval(rows.loc['ami'])}; {_plain(rows.loc['ami'])}), and the share of prompts whose "
        f"nearest neighbour "
        f"has the same word by **{rows.loc['purity', 'estimate']:+.2f}** ({_interval(rows.loc['purity'])}; "
        f"{_plain(rows.loc['purity'])}), over {int(rows.loc['ami', 'n_concepts'])} concepts. "
    )
    fresh = fresh_merges(merged)
    if fresh:
        others = ", among others" if len(fresh) > 6 else ""
        return text + f"Together in the SAE's clusters, no two of them before: {'; '.join(fresh[:6])}{others}."
    return text + "In the SAE no group of words shares a cluster of which no two did before."


def fresh_merges(merged: pd.DataFrame) -> list[str]:
    """Groups of words that share a cluster in the SAE while no two of them did in the residual stream."""
    found = []
    for concept, rows in merged.groupby("concept", sort=False):
        groups = {name: [w.split(", ") for w in part["words"]] for name, part in rows.groupby("representation")}
        for group in groups.get("sae", []):
            if all(len(set(group) & set(before)) < 2 for before in groups.get("residual", [])):
                found.append(f"{_listed(group)} ({concept})")
    return found


def dimension_sentence(comparison: pd.DataFrame) -> str:
    """Does sparse coding add dimensions? Against the residual stream and a random code, near and far."""
    rows = comparison[comparison["protocol"].eq("direct")].set_index(["measure", "against"])
    own, other = (rows.loc[("intrinsic_dimension", against)] for against in ("residual", "random_dictionary"))
    spread = rows.loc[("effective_rank", "residual")]
    return (
        f"Found directly, the SAE's local representations have **{own['ratio']:.2f}** times the intrinsic dimension of "
        f"the residual stream's (95 % interval {np.exp(own['low']):.2f} to {np.exp(own['high']):.2f}, "
        f"{int(own['n_concepts'])} concepts: {_plain(own)}), and {other['ratio']:.2f} times that of a random "
        f"dictionary's ({np.exp(other['low']):.2f} to {np.exp(other['high']):.2f}: {_plain(other)}). The effective "
        f"rank of their covariance, which looks across a cluster (at equally many of its tokens) instead of at next "
        f"neighbours, is "
        f"**{spread['ratio']:.2f}** times the residual stream's ({np.exp(spread['low']):.2f} to "
        f"{np.exp(spread['high']):.2f}: {_plain(spread)})."
    )


def global_sentence(comparison: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """Is the global representation compressed? Tree and geodesics in units of the cloud, and Procrustes."""
    rows = comparison[comparison["protocol"].eq("direct") & comparison["against"].eq("residual")].set_index("measure")
    tree, path = rows.loc["mst_weight_scale_free"], rows.loc["geodesic_scale_free"]
    words = geometry[geometry["protocol"].eq("words") & geometry["representation"].eq("sae")]
    return (
        "In units of the cloud's own radius the mean edge of the tree that joins the poles (direct protocol) is "
        f"**{tree['ratio']:.2f}** times as long in the SAE ({_plain(tree)}) and the way along the "
        f"cloud from cluster to cluster "
        f"**{path['ratio']:.2f}** times as long ({_plain(path)}). The configuration of the words "
        f"keeps its shape up "
        f"to a Procrustes disparity of {words['procrustes_disparity'].mean():.2f}, where matching words at "
        f"random gives "
        f"{words['procrustes_chance'].mean():.2f}."
    )


def words_sentence(uncertainty: pd.DataFrame) -> str:
    """Per concept, does a code move the words' poles apart or together, beyond the chance of our sentences?"""
    rows = uncertainty[uncertainty["measure"] == "mst_weight_scale_free"].set_index(["representation", "concept"])
    parts = []
    for name, words in (("sae", "the SAE"), ("random_dictionary", "a random dictionary")):
        own = rows.loc[f"{name} / residual"]
        lighter, heavier = int((own["high"] < 0).sum()), int((own["low"] > 0).sum())
        parts.append(f"in {words} it is lighter for **{lighter}** and heavier for **{heavier}** of {len(own)}")
    return (
        "Of concepts whose interval leaves out 1, for the tree that joins the words: "
        f"{'; '.join(parts)}. Where both codes do the same, sparsity does it, and learning need not be thanked."
    )


def learned_bullets(circles: pd.DataFrame, comparison: pd.DataFrame, merging: pd.DataFrame) -> str:
    """Three bullets of what the chapter found."""
    rows = comparison[comparison["against"] == "residual"].set_index(["protocol", "measure"])
    number = rows.loc[("paper", "n_local")]
    near, far = rows.loc[("direct", "intrinsic_dimension")], rows.loc[("direct", "effective_rank")]
    agreement = _agreement_of_the_papers_clusters(merging).loc["residual"]
    return (
        f"- {kept_circles(circles)}\n"
        f"- Local representations, as the paper finds them in the residual stream, follow {_followed(agreement)} "
        f"(agreement with token texts {agreement['ami_token']:.2f}, with words {agreement['ami']:.2f}). Sparse coding "
        "changes their number (plus one, on geometric average) "
        f"by a factor of {number['ratio']:.2f}: {_plain(number)}.\n"
        f"- Next neighbours span {near['ratio']:.2f} times the dimensions ({_plain(near)}), equal samples of clusters "
        f"{far['ratio']:.2f} times ({_plain(far)}): {_near_and_far(near, far)}."
    )


def _near_and_far(near: pd.Series, far: pd.Series) -> str:
    """Whether dimensions are added, from the verdicts on next neighbours and on equal samples of clusters."""
    verdicts = {near["verdict"], far["verdict"]}
    if "too few concepts" in verdicts:
        return "too few concepts to say whether dimensions are added"
    if verdicts == {"SAE higher"}:
        return "dimensions are added, near and far"
    if verdicts == {"SAE lower"}:
        return "dimensions are lost, near and far"
    if verdicts == {"no clear difference"}:
        return "neither scale says clearly that dimensions are added or lost"
    return "whether dimensions are added depends on how far one looks"


def kept_circles(circles: pd.DataFrame) -> str:
    """One line: of the circles in the residual stream, how many are left in the SAE and in a random code."""
    if not len(circles):
        return NO_CYCLE
    corrected = corrected_circles(circles)
    found = {name: set(part[part["p_holm"] < LEVEL]["concept"]) for name, part in corrected.groupby("representation")}
    there = found["residual"]
    if not there:
        return "None of the cycles looked for is a circle in the residual stream."
    random = f", a random dictionary {len(there & found['random_dictionary'])}" if "random_dictionary" in found else ""
    return (
        f"Of {len(there)} {'circle' if len(there) == 1 else 'circles'} in the residual stream, the SAE's latents keep "
        f"**{len(there & found['sae'])}**{random}."
    )


def ruler_sentence(table: pd.DataFrame) -> str:
    """How good the rulers are where they are good, and where they are not."""
    rows = table.set_index(["shape", "measure"])
    holes = table[table["measure"].str.startswith("Betti")]
    right = (holes["bias"] == 0) & (holes["spread"] == 0)
    five = rows.loc[("5-sphere, 400 points", "intrinsic dimension")]
    twenty = rows.loc[("20-sphere, 400 points", "intrinsic dimension")]
    embedded = rows.loc[("5-sphere, 400 points", "dimension of its UMAP embedding")]
    alarms = rows.loc[("12 items of pure noise", "circularity, false alarms at 0.05")]
    alike = rows.loc[("12 unrelated poles, 576 dimensions", "Procrustes disparity")]
    return (
        f"Holes are counted right in {right.sum()} of {len(holes)} rows without a single error. "
        f"Five dimensions read "
        f"{five['estimate']:.1f}, but twenty read {twenty['estimate']:.1f}: four hundred points cannot show twenty. "
        f"From a UMAP embedding the same five read **{embedded['estimate']:.1f}**: the embedding's dimension, "
        f"not the data's. "
        f"The circle test raises a false alarm {alarms['estimate']:.0%} of the time at its 5 % level. And twelve "
        f"poles that have "
        f"*nothing* to do with each other differ by a Procrustes disparity of only {alike['estimate']:.2f} in "
        f"576 dimensions."
    )


def _interval(row: pd.Series) -> str:
    return f"95 % interval {row['low']:+.2f} to {row['high']:+.2f}"


def _plain(row: pd.Series) -> str:
    """A verdict in words that keep an interval and its corrected test apart."""
    if row["verdict"] != "no clear difference":
        return {"SAE higher": "clearly up", "SAE lower": "clearly down"}.get(row["verdict"], row["verdict"])
    if row["low"] > 0 or row["high"] < 0:
        return f"{'up' if row['low'] > 0 else 'down'}, but not clearly after correction for several tests"
    return "no clear difference"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
