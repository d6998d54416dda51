"""Chapter 4: what its page defines equals the package, and one concept's tables follow from its tokens."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from reading import defined_on

from saema_utils.chapters import geometry as chapter4
from saema_utils.chapters.families.measures import DOSES, concept_measures
from saema_utils.chapters.geometry.findings import ClusterAgreement
from saema_utils.distances import pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.evidence.geometry import RATIOS, compare_representations, paired_changes
from saema_utils.evidence.verdicts import TOO_FEW
from saema_utils.geometry import concept as cg
from saema_utils.geometry import resamples as pr
from saema_utils.geometry.circles import circle_rows, circularity, cycle_of
from saema_utils.geometry.dimension import intrinsic_dimension, spectrum_from_distances
from saema_utils.model.residual_stream import ConceptActivations
from saema_utils.rulers.shapes import ordered_circle, random_rotation, sphere
from saema_utils.stratification.spectra import effective_rank, participation_ratio
from saema_utils.study import STUDIES
from saema_utils.text.concepts import ConceptPrompts, Prompt

NOTEBOOK = "04_local_and_global_geometry.ipynb"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
TEMPLATES = ("In {} it rains.", "Nobody left in {} .", "{} was cold.", "Call me by {} .")
D = 24


@pytest.fixture(scope="module")
def page():
    return defined_on(NOTEBOOK)


# ---- the page ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_circularity_on_the_page_is_the_packages(page, noise):
    x = ordered_circle(np.random.default_rng(1), 12, noise)
    by_hand = page["circularity_by_hand"](torch.tensor(x))
    assert by_hand == pytest.approx(circularity(x, np.arange(12), n_resamples=19).score, abs=1e-9)


@pytest.mark.parametrize("dimension", [1, 3, 8])
def test_dimension_on_the_page_is_the_packages(page, dimension):
    x = sphere(np.random.default_rng(dimension), 120, dimension)
    assert page["two_nn_by_hand"](torch.tensor(x)) == pytest.approx(float(intrinsic_dimension(x)), rel=1e-6)


# ---- a concept of known geometry ---------------------------------------------------------------


class Rotated:
    """A coder that keeps every distance: what it shows must be what the residual stream shows."""

    name = "sae"

    def __init__(self, seed=0):
        self.turn = torch.tensor(random_rotation(np.random.default_rng(seed), D), dtype=torch.float32)

    def encode(self, x):
        return torch.cat([x @ self.turn, x.new_zeros(*x.shape[:-1], 40)], dim=-1)

    def decode(self, z, like=None):
        return z[..., :D] @ self.turn.T


class Nothing(Rotated):
    """A coder that gives every token the same code."""

    name = "random_dictionary"

    def encode(self, x):
        return x.new_ones(*x.shape[:-1], 3)

    def decode(self, z, like=None):
        return z.new_zeros(*z.shape[:-1], D)


def made_up_activations(words=MONTHS, templates=TEMPLATES, seed=0):
    """Four tokens a prompt: a BOS, a shared prefix (the same for every word), the word on a circle, an ending."""
    rng = np.random.default_rng(seed)
    circle = 6 * ordered_circle(rng, 12, 0.0, D)[: len(words)]
    prefixes, endings = 10 * rng.normal(size=(2, len(templates), D))
    residual = np.zeros((len(words) * len(templates), 4, D), dtype=np.float32)
    prompts = []
    for p, (w, t) in enumerate((w, t) for w in range(len(words)) for t in range(len(templates))):
        residual[p] = np.full(D, 100.0), prefixes[t], endings[t] + circle[w], endings[t] + 0.3 * circle[w] + 5
        residual[p, 2:] += 0.2 * rng.normal(size=(2, D))
        prompts.append(Prompt(templates[t].format(words[w]), words[w], templates[t], "months"))
    mask = torch.ones(residual.shape[:2], dtype=torch.bool)
    mask[:, 0] = False
    word_mask = torch.zeros_like(mask)
    word_mask[:, 2] = True
    strings = [["<s>", "pre", f" {p.word}", " end"] for p in prompts]
    texts, tokens = ConceptPrompts("months", tuple(prompts)), torch.zeros_like(mask, dtype=torch.long)
    counts = (len(prompts), 0, 0, 1.0)
    return ConceptActivations(texts, torch.tensor(residual), tokens, mask, word_mask, strings, *counts)


@pytest.fixture(scope="module")
def clouds():
    return cg.concept_clouds(made_up_activations(), {"sae": Rotated(), "random_dictionary": Nothing()})


def test_a_prefix_shared_by_all_words_counts_once(clouds):
    n_words, n_templates = len(MONTHS), len(TEMPLATES)
    assert clouds.n_copies == n_templates * (n_words - 1)
    assert len(clouds.tokens) == n_templates + 2 * n_templates * n_words
    assert clouds.is_word.sum() == n_templates * n_words
    assert all(clouds.tokens[i].strip() == clouds.words[clouds.word_of[i]] for i in np.flatnonzero(clouds.is_word))


def test_representations_share_tokens_and_drop_silent_latents(clouds):
    assert list(clouds.points) == ["residual", "sae", "reconstruction", "random_dictionary"]
    assert len({len(x) for x in clouds.points.values()}) == 1
    assert clouds.points["sae"].shape[1] == D


def test_distances_are_made_once(clouds):
    assert clouds.distances("residual") is clouds.distances("residual")
    assert clouds.distances("sae") == pytest.approx(clouds.distances("residual"), abs=1e-3)


def test_a_rotation_changes_no_measure_of_clusters_or_words(clouds):
    local = {name: cg.cluster_cloud(clouds, name, "direct", min_cluster_size=5, seed=0) for name in ("residual", "sae")}
    rows = {name: cg.cluster_row(clouds, name, found, local["residual"], 5) for name, found in local.items()}
    words = {name: cg.word_row(clouds, name, 5) for name in ("residual", "sae")}
    for before, after in ((rows["residual"], rows["sae"]), (words["residual"], words["sae"])):
        for column in ("n_local", "betti0", "intrinsic_dimension", "mst_weight", "average_geodesic_distance"):
            assert after[column] == pytest.approx(before[column], rel=1e-3, nan_ok=True)
        assert after["procrustes_disparity"] == pytest.approx(0, abs=1e-6)


def test_words_far_apart_are_not_merged_and_equal_codes_say_why(clouds):
    row, labels = cg.word_merging_row(clouds, "sae")
    assert row["ami"] == pytest.approx(1)
    assert row["purity"] == 1
    assert len(np.unique(labels)) == len(MONTHS)
    lost = cg.cluster_cloud(clouds, "random_dictionary", "direct", min_cluster_size=5, seed=0)
    found = cg.cluster_row(clouds, "random_dictionary", lost, lost, 5)
    assert lost.n_local == 0
    assert np.isnan(found["mst_weight"])
    assert "equal" in found["reason"]


def test_too_few_tokens_give_a_row_with_a_reason():
    few = cg.concept_clouds(made_up_activations(MONTHS[:2], TEMPLATES[:2]), {"sae": Rotated()})
    for protocol in ("direct", "paper"):
        local = cg.cluster_cloud(few, "sae", protocol, min_cluster_size=10, seed=0)
        row = cg.cluster_row(few, "sae", local, local, 10)
        assert "allowed: at least 11" in row["reason"]
        assert np.isnan(row["intrinsic_dimension"])
        assert np.isnan(row["average_geodesic_distance"])


def test_one_point_is_refused_with_the_concepts_name():
    found = made_up_activations(MONTHS[:2], TEMPLATES[:1])
    same = replace(found, residual=torch.ones_like(found.residual))
    with pytest.raises(GeometryError, match="'months' has 1 distinct"):
        cg.concept_clouds(same, {})


def test_a_word_whose_tokens_are_all_masked_is_left_out():
    found = made_up_activations()
    hidden = found.mask.clone()
    hidden[0, 2] = False
    clouds = cg.concept_clouds(replace(found, mask=hidden, word_mask=found.word_mask & hidden), {"sae": Rotated()})
    assert clouds.n_prompts == len(found.mask) - 1
    assert torch.isfinite(clouds.word_vectors["sae"]).all()


def test_template_centring_removes_the_sentence_and_needs_shared_ones():
    found = made_up_activations()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    templates = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    centred, done = cg.centred_by_template(x + 100 * torch.tensor(templates)[:, None], templates)
    assert done
    assert centred[:4].mean(0).numpy() == pytest.approx(np.zeros(3), abs=1e-9)
    assert not cg.centred_by_template(x, np.arange(8))[1]
    renamed, done = cg.centred_by_template(x + 100 * torch.tensor(templates)[:, None], 2 * templates + 1)
    assert done, "a sentence whose words are all masked leaves a gap in the numbers"
    assert torch.equal(renamed, centred)
    assert len(found.prompts.words) == len(MONTHS)


def test_spectrum_needs_distances_only():
    x = np.random.default_rng(0).normal(size=(12, 40))
    expected = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2 / 11
    assert spectrum_from_distances(pairwise_distances(x)) == pytest.approx(expected, abs=1e-9)
    assert spectrum_from_distances(np.zeros((3, 3))) == pytest.approx(np.zeros(3))


def test_spectra_of_clusters_come_in_order_of_label(clouds):
    labels = np.where(clouds.is_word, 1, -1)
    labels[:5] = 0
    found = cg.local_spectra(labels, clouds.distances("residual"), 5)
    assert [f["n_tokens"] for f in found] == [(labels == 0).sum(), (labels == 1).sum()]
    assert all(1 <= f["participation_ratio"] <= f["effective_rank"] for f in found)
    for size in (3, 4):  # equal points, and fewer of them than are asked for
        assert np.isnan(cg.local_spectra(np.zeros(3, dtype=int), np.zeros((3, 3)), size)[0]["effective_rank"])


@pytest.mark.parametrize("size", [10, 20, 40])
def test_the_effective_rank_of_clusters_does_not_follow_their_size(size):
    x = np.random.default_rng(0).normal(size=(400, 60))
    labels = np.random.default_rng(size).permutation(400) // size  # one cloud, cut at random
    found = cg.local_spectra(labels, pairwise_distances(x), 10)
    ranks = [row["effective_rank"] for row in found]
    assert np.mean(ranks) == pytest.approx(8.2, abs=0.15)
    assert (found[0]["effective_rank_error"] > 0) == (size > 10)
    whole = [cg.local_spectra(labels == k, pairwise_distances(x), size)[-1]["effective_rank"] for k in range(3)]
    assert (np.mean(whole) > 12) == (size > 10)  # what it would be if size were let in


def test_ranks_of_many_clouds_are_those_of_each():
    x = np.random.default_rng(0).normal(size=(12, 5)) * np.arange(1, 6)
    (row,) = cg.local_spectra(np.zeros(12, dtype=int), pairwise_distances(x), 12)
    spectrum = torch.tensor(spectrum_from_distances(pairwise_distances(x)).copy())
    assert row["effective_rank"] == pytest.approx(effective_rank(spectrum))
    assert row["participation_ratio"] == pytest.approx(participation_ratio(spectrum))


def test_spectra_of_random_members_can_be_made_again():
    x = np.random.default_rng(0).normal(size=(40, 9))
    once, again = (cg.local_spectra(np.zeros(40, dtype=int), pairwise_distances(x), 8) for _ in range(2))
    assert once == again


# ---- errors over sentences ---------------------------------------------------------------------


def test_leaving_prompts_out_gives_the_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(size=100)
    means = [x[keep].mean() for keep in pr.dropped_prompts(100, 400, 0)]
    row = pr.interval_row(x.mean(), means, np.arange(100), drawn=False)
    assert row["error"] == pytest.approx(x.std(ddof=1) / 10, rel=0.15)


def test_drawing_gives_the_standard_error_of_a_mean_and_loses_no_word():
    rng = np.random.default_rng(0)
    x, words = rng.normal(size=100), np.repeat([0, 1], 50)
    draws = list(pr.drawn_prompts(words, 400, 0))
    assert all((np.bincount(words[draw]) == 50).all() for draw in draws)
    assert np.std([x[draw].mean() for draw in draws]) == pytest.approx(x.std() / 10, rel=0.15)


def test_resamples_of_the_words_start_from_their_own_measure_and_are_paired(clouds):
    found = pr.pole_rows(clouds, ("residual", "sae"), 30, 0)
    own = cg.word_row(clouds, "residual", 3)
    assert found["residual"][0]["mst_weight_scale_free"] == pytest.approx(own["mst_weight_scale_free"])
    assert len(found["residual"]) == 1 + len(TEMPLATES)
    twice = replace(clouds, word_vectors={**clouds.word_vectors, "sae": 2 * clouds.word_vectors["residual"]})
    for free in (twice, replace(twice, templates=np.arange(twice.n_prompts))):
        same = pr.pole_rows(free, ("residual", "sae"), 30, 0)
        for a, b in zip(same["residual"], same["sae"], strict=True):
            assert a == pytest.approx(b)  # the same sentences, and no unit
    assert len(same["residual"]) == 31


def test_a_template_is_left_out_for_every_word_and_token(clouds):
    rows = pr.resampled_rows(clouds, "residual", min_cluster_size=5, n_neighbors=5, n_resamples=99, seed=0)
    assert len(rows) == len(TEMPLATES)
    texts = {t: [p for p in range(len(MONTHS) * len(TEMPLATES)) if p % len(TEMPLATES) == t] for t in range(4)}
    assert all(clouds.prompt_of[i] in texts[t] for i, t in enumerate(clouds.template_of))


def crossed(rng, word_means, n_templates, of_template, of_prompt):
    """Word vectors of words x templates with known variance components, and a code of them that is not linear."""
    n, d = word_means.shape
    shared = of_template * rng.normal(size=(1, n_templates, d))
    x = (word_means[:, None] + shared + of_prompt * rng.normal(size=(n, n_templates, d))).reshape(-1, d)
    words, templates = np.repeat(np.arange(n), n_templates), np.tile(np.arange(n_templates), n)
    vectors = {"residual": torch.tensor(x), "sae": torch.relu(torch.tensor(x))}
    none = np.zeros(0, dtype=int)
    return cg.ConceptClouds("c", (), {}, vectors, (), none, none, none, none > 0, words, templates, 0, ())


def test_the_interval_over_templates_covers_and_one_over_prompts_does_not():
    """Templates carry most of the variance, as they do for months: over many sets of six templates, how often does
    the interval of the log ratio of tree weights hold the value that sets of six give on average?"""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(8, 10))
    designs = [crossed(rng, means, 6, 2.0, 0.2) for _ in range(200)]

    def rows(clouds, templates):
        found = pr.pole_rows(replace(clouds, templates=templates), ("residual", "sae"), 40, 0)
        sae, residual = (np.array([r["mst_weight_scale_free"] for r in found[n]]) for n in ("sae", "residual"))
        own, *drawn = np.log(sae / residual)
        return pr.interval_row(own, drawn, templates, drawn=True)

    joint = pd.DataFrame([rows(clouds, clouds.templates) for clouds in designs])
    alone = pd.DataFrame([rows(clouds, np.arange(clouds.n_prompts)) for clouds in designs[:60]])
    truth = joint["estimate"].mean()
    covered = [((part["low"] <= truth) & (truth <= part["high"])).mean() for part in (joint, alone)]
    assert (set(joint["unit"]), set(alone["unit"])) == ({"template"}, {"prompt"})
    assert 0.91 <= covered[0] <= 0.99
    assert covered[1] < 0.8
    assert joint["error"].mean() == pytest.approx(joint["estimate"].std(), rel=0.35)


def test_one_template_has_no_error(clouds):
    row = pr.interval_row(0.5, [], np.zeros(8, dtype=int), drawn=True)
    assert row["unit"] == "template"
    assert np.isnan(row["error"])
    assert np.isnan(row["low"])
    once = replace(clouds, templates=np.zeros_like(clouds.templates))
    assert len(pr.pole_rows(once, ("residual",), 20, 0)["residual"]) == 1


# ---- circles -----------------------------------------------------------------------------------


def test_cycles_are_known_by_their_words():
    name, places, period = cycle_of(["monday", "Tuesday", "Friday", "Sunday", "Saturday", "payday"])
    assert (name, period) == ("week", 7)
    assert places.tolist() == [0, 1, 4, 6, 5, -1]
    name, places, period = cycle_of(["blue", "red", "green", "yellow", "purple", "white"])
    assert (name, period, places.tolist()) == ("hue", 5, [3, 0, 2, 1, 4, -1])
    assert cycle_of(["Monday", "Tuesday", "hydrogen"]) is None


def test_a_circle_in_the_words_is_found_in_a_rotated_code(clouds):
    for name in ("residual", "sae"):
        (row,), points = circle_rows(clouds, name, n_resamples=20, seed=0)
        assert row["score"] > 0.95
        assert row["p_value"] < 0.01
        assert row["low"] <= row["high"]
        assert [p["word"] for p in points] == list(MONTHS)
    (lost,), _ = circle_rows(clouds, "random_dictionary", n_resamples=20, seed=0)
    assert np.isnan(lost["score"])
    assert "same vector" in lost["reason"]


# ---- comparison --------------------------------------------------------------------------------


def made_up_tables(ratio=0.5, n=8, seed=0):
    rng = np.random.default_rng(seed)
    rows, scores = [], []
    for concept in range(n):
        for protocol in ("paper", "direct", "words"):
            base = rng.uniform(5, 10)
            for name, factor in (("residual", 1.0), ("sae", ratio), ("pca", 1.0), ("random_dictionary", 1.0)):
                for s in range(2):
                    value = base * factor * np.exp(0.02 * rng.normal())
                    head = {"concept": f"c{concept}", "protocol": protocol, "representation": name, "seed": s}
                    measures = tuple(RATIOS)
                    rows.append(head | dict.fromkeys(measures, value))
                    scores.append(head | dict.fromkeys(("ami", "purity", "ami_token"), 0.5 + 0.01 * rng.normal()))
    return pd.DataFrame(rows), pd.DataFrame(scores)


def test_a_halving_is_found_and_its_ratio_is_right():
    table = compare_representations(*made_up_tables(0.5)).set_index(["protocol", "measure", "against"])
    row = table.loc[("direct", "intrinsic_dimension", "residual")]
    assert row["ratio"] == pytest.approx(0.5, rel=0.05)
    assert row["change"] == "lower"
    assert table.loc[("words", "ami", "residual"), "change"] == "unclear"
    assert ("words", "n_local", "residual") not in table.index


def test_no_change_is_not_called_one_and_few_concepts_call_nothing():
    same = compare_representations(*made_up_tables(1.0, seed=3))
    assert same["change"].isin(["higher", "lower"]).mean() < 0.1
    few = compare_representations(*made_up_tables(0.5, n=3))
    assert set(few["change"]) == {TOO_FEW}


def test_concepts_without_a_value_are_left_out_of_their_pair():
    geometry, _ = made_up_tables(0.5)
    geometry.loc[geometry["concept"] == "c0", "n_local"] = np.nan
    assert len(paired_changes(geometry, "paper", "n_local", "residual")) == 7
    assert len(paired_changes(geometry, "paper", "n_local", "unknown")) == 0


def test_no_cluster_at_all_counts_as_the_fewest():
    geometry, _ = made_up_tables(1.0)
    geometry["n_local"] = np.where(geometry["representation"] == "sae", 0, 7)
    assert paired_changes(geometry, "paper", "n_local", "residual") == pytest.approx([-np.log(8)] * 8)
    geometry["intrinsic_dimension"] = np.where(geometry["representation"] == "sae", 0, 7)
    assert len(paired_changes(geometry, "paper", "intrinsic_dimension", "residual")) == 0  # no dimension is no value


@pytest.mark.slow
def test_every_table_of_a_concept_is_made_even_when_a_code_is_degenerate(clouds):
    from saema_utils.chapters.geometry.tables import concept_tables, measured_concepts
    from saema_utils.runs.tables import RESULTS

    tables = concept_tables(clouds, STUDIES["smoke"])
    assert set(tables) == {result.name for result in RESULTS.values() if result.needs == (measured_concepts,)}
    assert all(len(frame) for name, frame in tables.items() if name != "04_merged_words")
    geometry = tables["04_geometry"]
    missing = geometry[geometry["mst_weight"].isna()]
    assert (missing["reason"] != "").all()
    paper = geometry[(geometry["protocol"] == "paper") & (geometry["representation"] == "sae")]
    assert len(paper) == STUDIES["smoke"].n_seeds


# ---- what the page finds -------------------------------------------------------------------------


def circle_rows_of(**p_values):
    """A table like ``04_circles``: by representation, a p-value for each of three concepts."""
    rows = [
        {"concept": c, "representation": name, "p_value": p, "score": 1 - p, "distance_score": 0.5}
        for name, ps in p_values.items()
        for c, p in zip(("months", "days", "color"), ps, strict=True)
    ]
    return pd.DataFrame(rows)


def test_circles_are_kept_only_if_they_were_there_and_p_values_are_corrected():
    circles = circle_rows_of(residual=(0.001, 0.03, 0.04), sae=(0.2, 0.001, 0.9), pca=(0.001, 0.5, 0.5))
    found = chapter4.significant_circles(circles)
    assert found.most_faded() == "months"  # color falls further, but was no circle
    assert found.there == {"months"}  # 0.03 is not enough where three were tried
    assert (found.kept(), found.kept("pca"), found.kept("random_dictionary")) == (set(), {"months"}, set())
    assert re.findall(r"\w+(?= \d.* →)", found.in_short()) == ["months"]  # of what was no circle nothing is told
    assert "p = 0.4" in found.in_short()  # 0.2, the second of three
    assert found.scores.loc["months"].to_dict() == pytest.approx({"residual": 0.999, "sae": 0.8, "pca": 0.999})


def test_a_study_without_a_cycle_has_no_circle_and_an_empty_picture():
    none = circle_rows_of(residual=(0.1,) * 3)[:0]
    found = chapter4.significant_circles(none)
    assert (found.there, found.kept(), found.in_short(), found.most_faded()) == (set(), set(), "", None)
    assert chapter4.circle_grid(pd.DataFrame(columns=["concept", "representation", "x", "y"]), none).axes


@pytest.mark.parametrize(("ratio", "direction"), [(0.5, "lower"), (2.0, "higher"), (1.0, "unclear")])
def test_a_change_knows_its_direction_and_is_a_ratio_where_it_was_one(ratio, direction):
    comparison = compare_representations(*made_up_tables(ratio, seed=3))
    found = chapter4.change(comparison, "direct", "intrinsic_dimension")
    assert found.estimate == pytest.approx(ratio, rel=0.05)
    assert found.low < found.estimate < found.high
    assert [d for d in ("lower", "higher", "unclear") if found.says(d)] == [direction]
    assert abs(chapter4.change(comparison, "words", "ami").estimate) < 0.05  # a difference, not a ratio
    assert "p =" not in str(found), "an interval that says the same needs no more"
    few = chapter4.change(compare_representations(*made_up_tables(ratio, n=3)), "direct", "intrinsic_dimension")
    assert few.says(direction) is None
    assert TOO_FEW in str(few)


def test_an_interval_clear_of_nought_that_the_correction_undoes_says_so():
    row = {"protocol": "words", "measure": "purity", "against": "residual", "effect": "difference", "n_concepts": 9}
    row |= {"estimate": -0.04, "low": -0.09, "high": -0.003, "p_holm": 0.31, "change": "unclear"}
    assert str(chapter4.change(pd.DataFrame([row]), "words", "purity")).endswith(
        "(-0.09 to -0.003; p = 0.31 among all measures)"
    )
    assert "p =" not in str(chapter4.change(pd.DataFrame([row | {"high": 0.02}]), "words", "purity"))


@pytest.mark.parametrize(
    ("tokens", "words", "follows"), [(0.8, 0.1, "tokens"), (0.1, 0.8, "words"), (0.12, 0.1, "neither")]
)
def test_what_the_papers_clusters_follow_is_read_off_the_papers_clusters(tokens, words, follows):
    rows = [
        {"protocol": protocol, "representation": "sae", "ami_token": a, "ami": b}
        for protocol, a, b in (("paper", tokens, words), ("direct", words, tokens), ("paper", tokens, words))
    ]
    assert chapter4.cluster_agreement(pd.DataFrame(rows)) == {"sae": ClusterAgreement(tokens, words)}
    assert ClusterAgreement(tokens, words).follows == follows


def numbers_of_clusters(**rows):
    """A table like ``04_geometry``: by protocol and representation, numbers of clusters of (concept, seed)."""
    found = [
        {"protocol": protocol, "representation": name, "concept": concept, "n_local": n}
        for protocol, given in rows.items()
        for name, concept, n in given
    ]
    return pd.DataFrame(found)


def test_seeds_are_compared_within_a_concept_and_a_representation():
    paper = [("residual", "days", 4), ("residual", "days", 6), ("residual", "months", 20), ("sae", "days", 9)]
    geometry = numbers_of_clusters(paper=paper + [("pca", "months", n) for n in (1, 99)], direct=paper[:1] * 2)
    assert chapter4.seed_spread(geometry) == 2


def test_number_of_clusters_is_split_by_the_number_of_words():
    words = [("residual", "days", 7), ("residual", "months", 12), ("sae", "days", 7)]
    paper = [("residual", "days", 4), ("residual", "months", 27), ("residual", "months", 29), ("sae", "days", 90)]
    geometry = numbers_of_clusters(words=words, paper=paper)
    assert chapter4.clusters_by_words(geometry, 10) == {"few": 4, "many": 28}
    assert chapter4.clusters_by_words(geometry, 4) == {"many": 16}


def test_copies_are_counted_once_a_concept():
    geometry = pd.DataFrame({"concept": ["months"] * 2 + ["days"], "n_copies": [10, 10, 0], "n_points": [20, 20, 10]})
    assert chapter4.share_of_copies(geometry) == pytest.approx(10 / 40)


def test_fresh_merges_were_apart_before():
    rows = [("residual", "June, July"), ("sae", "June, July"), ("sae", "May, April")]
    merged = pd.DataFrame([{"concept": "months", "representation": r, "words": w} for r, w in rows])
    assert chapter4.fresh_merges(merged) == ["May and April (months)"]
    assert chapter4.fresh_merges(merged[:0]) == []


def test_trees_that_move_have_an_interval_on_one_side_of_no_change():
    rows = [
        {"measure": measure, "representation": f"{name} / residual", "low": low, "high": low + 0.2}
        for measure in ("mst_weight_scale_free", "aedp_scale_free")
        for name, low in (("sae", -0.5), ("sae", -0.4), ("sae", -0.1), ("sae", 0.1), ("random_dictionary", 0.1))
    ]
    table = pd.DataFrame(rows)
    assert chapter4.moved_trees(table, "sae") == (2, 1, 4)
    assert chapter4.moved_trees(table, "random_dictionary") == (0, 1, 1)


def test_one_hole_counted_wrong_is_seen():
    known = [("5-sphere, 400 points", "intrinsic dimension"), ("20-sphere, 400 points", "intrinsic dimension")]
    known += [("5-sphere, 400 points", "dimension of its UMAP embedding"), ("torus", "Betti-0"), ("torus", "Betti-1")]
    known += [("12 unrelated poles, 576 dimensions", "Procrustes disparity")]
    ruler = pd.DataFrame(known, columns=["shape", "measure"]).assign(estimate=range(6), bias=0.0)
    found = chapter4.ruler_facts(ruler)
    assert found == {"holes": 0, "five": 0, "twenty": 1, "embedded": 2, "alike": 5}
    ruler.loc[ruler["measure"] == "Betti-1", "bias"] = -0.1
    assert chapter4.ruler_facts(ruler)["holes"] == 0.1


def test_the_words_shape_is_that_of_the_sae_and_its_weakest_test_counts():
    rows = [("words", "sae", 0.1, 0.3, 0.01), ("words", "sae", 0.3, 0.5, 0.2), ("paper", "sae", 9, 9, 0.9)]
    names = ["protocol", "representation", "procrustes_disparity", "procrustes_chance", "procrustes_p"]
    geometry = pd.DataFrame([*rows, ("words", "pca", 9, 9, 0.9)], columns=names)
    assert chapter4.words_shape(geometry) == pytest.approx((0.2, 0.4, 0.2))


# ---- the maps ------------------------------------------------------------------------------------


def test_every_token_of_the_map_stands_in_brackets_in_its_own_prompt(clouds):
    assert len(clouds.contexts) == len(clouds.tokens)
    for i, context in enumerate(clouds.contexts):
        assert f"[{clouds.tokens[i].strip()}]" in context
        assert clouds.words[clouds.word_of[i]] in context
    assert cg.in_brackets(["<s>", "In", " May", " it", " rains", "."], 2, "In May it rains.") == "In [May] it rains."
    assert cg.in_brackets(["In", " May"], 0, "In May") == "[In] May"


def map_rows(representation: str, turn: float = 0.0, merged: bool = False) -> pd.DataFrame:
    """Four clusters of three tokens and one token of noise on a map that may be turned, of a code that merges two."""
    rng = np.random.default_rng(0)
    middles = np.array([(0, 0), (9, 1), (2, 7), (20, 12)]).repeat(3, axis=0)
    places = np.vstack([middles + rng.normal(size=(12, 2)), [(5, 5)]])
    places = places @ np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    cluster = np.array([*np.arange(4).repeat(3), -1])
    rows = pd.DataFrame(places, columns=["x", "y"]).assign(cluster=np.where(merged & (cluster == 3), 2, cluster))
    rows["context"] = [f"In [May] it <rains> {i}." for i in range(13)]
    rows["token"], rows["is_word"] = [" it"] * 12 + ["."], [True, *[False] * 12]
    return rows.assign(concept="months", representation=representation, word="May")


def test_the_map_shows_every_prompt_and_a_style_a_cluster():
    traces = chapter4.map_to_hover(map_rows("sae"), "months").data
    text = "".join(t for trace in traces for t in trace.text)
    assert all(f"In [May] it &lt;rains&gt; {i}." in text for i in range(13))
    dots = traces[0].marker
    assert len(set(zip(dots.color, dots.symbol, strict=True))) == 5


def test_the_switch_keeps_each_tokens_colour_and_says_what_was_merged():
    table = pd.concat([map_rows("residual"), map_rows("sae", turn=2.0), map_rows("random_dictionary", merged=True)])
    figure = chapter4.map_to_hover(table, "months")
    (control,) = figure.layout.updatemenus
    assert [button.label for button in control.buttons] == ["residual stream", "SAE latents", "random dictionary"]
    stream, sae, random = (trace for trace in figure.data if trace.mode == "markers")
    assert stream.marker.color == sae.marker.color == random.marker.color
    numbers = [[int(n) for n in re.findall(r"\d+", trace.name)] for trace in (stream, sae, random)]
    assert numbers == [[4, 100], [4, 100], [3, 75]]  # of six tokens in the merged cluster three are of its colour
    assert np.array([sae.x, sae.y]) == pytest.approx(np.array([stream.x, stream.y]), abs=0.01), "turned back"
    for trace in (stream, sae, random):
        assert np.abs([trace.x, trace.y]).max() <= 1
    names = [trace.text for trace in figure.data if trace.mode == "text"]
    assert [len(text) for text in names] == [4, 4, 3]


# ---- the same measures, lined up for families and layers -------------------------------------------


class Shrunk(Rotated):
    """A faithful coder but for its latents, which come out a fifth too small."""

    name = "shrunk"

    def encode(self, x):
        return 0.8 * super().encode(x)


def test_families_that_shrink_their_latents_are_not_taken_for_badly_separated():
    coders = {"exact": Rotated(), "shrunk": Shrunk()}
    table = concept_measures(made_up_activations(), coders, min_cluster_size=5).set_index("representation")
    assert table.loc["residual", list(DOSES)].isna().all(), "nothing to decode"
    assert table.loc["exact", "alpha_star"] == pytest.approx(0, abs=1e-5)
    shrunk = table.loc["shrunk"]
    assert shrunk["alpha_star"] > 0.05, "moving poles apart enlarges latents too"
    assert shrunk["gain_scaling"] == pytest.approx(1, abs=1e-6)
    assert (shrunk["alpha_beyond"], shrunk["gain_beyond"]) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-6))
    # A turn of the coordinates, or a scale for all of them, leaves the shape as it is.
    for measure in ("merging", "intrinsic_dimension", "circularity", "excursion"):
        assert table.loc["shrunk", measure] == pytest.approx(table.loc["residual", measure], rel=1e-3)
