"""Every measure under every choice: clouds whose answer is known, and what no rotation may change."""

import dataclasses

import numpy as np
import pytest
import torch

from saema_utils.distances import pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.choices import (
    FAMILIES,
    geometry_under_choices,
    nearest_pole_of_other_sentences,
    neighbours_of_own_word,
    spread_and_scatter,
)
from saema_utils.geometry.circles import CYCLES, circularity, distance_score
from saema_utils.geometry.concept import ConceptClouds, centred_by_template
from saema_utils.geometry.dimension import mle_dimension
from saema_utils.geometry.matching import neighbour_purity

WORDS, SENTENCES, WIDTH = 12, 6, 12
MONTHS = CYCLES["year"]
KEYS = ["family", "measure", "items", "labels", "smallest", "space", "centring", "detail"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(change=lambda x: x, *, scatter=0.3, words=WORDS, sentences=SENTENCES, seed=0, poles=None):
    """Word vectors around poles; the code is a change of the residual stream. Tokens: two a prompt more."""
    prompt_words, templates = np.repeat(np.arange(words), sentences), np.tile(np.arange(sentences), words)
    poles = normal(words, WIDTH, seed=seed) if poles is None else poles
    x = poles[prompt_words] + scatter * normal(words * sentences, WIDTH, seed=seed + 1)
    n = len(x)
    tokens = torch.cat([x, *(x + 0.5 * normal(n, WIDTH, seed=seed + s) for s in (2, 3))])
    prompts = np.tile(np.arange(n), 3)
    changed = change(x), change(tokens)
    names = ("residual", "sae", "random_dictionary", "reconstruction", "random_reconstruction")
    sides = {name: (x, tokens) if name == "residual" else changed for name in names}
    return ConceptClouds(
        concept="made",
        words=tuple(MONTHS[:words]),
        points={name: side[1] for name, side in sides.items()},
        word_vectors={name: side[0] for name, side in sides.items()},
        tokens=["t"] * len(tokens),
        prompt_of=prompts,
        template_of=templates[prompts],
        word_of=prompt_words[prompts],
        is_word=np.arange(len(tokens)) < n,
        prompt_words=prompt_words,
        templates=templates,
        n_copies=0,
        contexts=[""] * len(tokens),
    )


def effect(clouds, family, name="sae", **where):
    """Code minus residual of every choice."""
    table = geometry_under_choices(clouds, families=(family,))
    for column, value in where.items():
        table = table[table[column] == value]
    wide = table.set_index([*KEYS, "representation"])["value"].unstack("representation")
    return wide[name] - wide.get("residual", 0)


def test_nothing_changed_is_no_effect_anywhere():
    for family in FAMILIES:
        if family != "shape":
            found = effect(world(), family, "reconstruction" if family == "reconstruction" else "sae").dropna()
            assert found.to_numpy() == pytest.approx(np.zeros(len(found)), abs=1e-9), family


def test_no_choice_stands_twice():
    table = geometry_under_choices(world())
    assert not table.duplicated([*KEYS, "representation"]).any()
    assert (table["reason"].eq("") == table["value"].notna()).all()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "reconstruction"])
def test_rotation_and_scale_change_nothing(family):
    turn = torch.linalg.qr(normal(WIDTH, WIDTH, seed=9))[0]
    found = effect(world(lambda x: 7 * x @ turn), family)
    if family != "shape":
        found = found[found.index.get_level_values("space") != "standardised"].dropna()  # z-scores know their axes
        assert found.to_numpy() == pytest.approx(np.zeros(len(found)), abs=1e-6)
    else:  # the same shape: nothing is left but chance
        assert (found[found.index.get_level_values("space") == "euclidean"] < 0).all()


def test_scale_moves_lengths_in_place_by_its_log():
    found = effect(world(lambda x: 3 * x), "reconstruction", "reconstruction").dropna()
    assert found.to_numpy() == pytest.approx(np.full(len(found), np.log(3)))


def test_contracted_poles_are_compressed_by_the_log():
    made = world()
    labels = made.prompt_words
    centres = torch.stack([made.word_vectors["residual"][labels == k].mean(0) for k in range(WORDS)])

    def contract(x):
        return x - 0.4 * (centres - centres.mean(0))[torch.as_tensor(labels)] if len(x) == len(labels) else x

    found = effect(world(contract), "compression", labels="words", space="euclidean", detail="plain", centring="none")
    lengths = found[found.index.get_level_values("measure") != "geodesic"]
    assert lengths.to_numpy() == pytest.approx(np.full(3, np.log(0.6)))
    assert (effect(world(contract), "distinctions", measure="eta2", space="euclidean") < 0).all()


def test_scatter_alone_has_no_unbiased_spread():
    x = normal(150 * 6, 30)
    labels = np.repeat(np.arange(150), 6)
    spread, scatter, chance = spread_and_scatter(labels, pairwise_distances(x))
    assert spread**2 == pytest.approx(chance, rel=0.05)
    assert scatter**2 == pytest.approx(30 * 5 / 6, rel=0.05)


def test_words_perfectly_apart_and_words_of_no_meaning():
    table = geometry_under_choices(world(scatter=0.01), families=("merging", "distinctions"))
    table = table[(table["representation"] == "residual") & (table["space"] == "euclidean")]
    values = table[table["items"] == "words"].groupby("measure")["value"].min()
    assert values[["purity", "nearest_pole", "auc"]].to_numpy() == pytest.approx([1, 1, 1])
    assert values[["eta2", "silhouette"]].min() > 0.95
    blank = geometry_under_choices(world(poles=torch.zeros(WORDS, WIDTH)), families=("merging", "distinctions"))
    blank = blank[(blank["representation"] == "residual")].groupby("measure")["value"].mean()
    assert blank[["purity", "nearest_pole"]].max() < 0.3
    assert blank["auc"] == pytest.approx(0.5, abs=0.1)


def test_neighbours_of_the_own_sentence_are_not_asked():
    words, sentences = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    x = np.array([[0.0], [5.0], [0.1], [5.1]])  # nearest is always the own sentence
    assert neighbours_of_own_word(pairwise_distances(x), words, sentences, 1) == pytest.approx(0.5)
    assert nearest_pole_of_other_sentences(np.array([[0.0], [0.2], [9.0], [9.1]]), words, sentences) == 1
    # Each pole is the other sentence's only member: of these, half lie nearer to the wrong word.
    assert nearest_pole_of_other_sentences(np.array([[0.0], [9.0], [9.1], [0.1]]), words, sentences) == 0


@pytest.mark.parametrize("d", [2, 5])
def test_dimension_of_a_ball(d):
    x = normal(800, d, seed=d)
    x = x / x.norm(dim=1, keepdim=True) * torch.rand(800, 1, generator=torch.Generator().manual_seed(3)) ** (1 / d)
    embedded = torch.cat([x, torch.zeros(800, 4)], dim=1)
    assert mle_dimension(pairwise_distances(embedded)) == pytest.approx(d, rel=0.12)
    assert mle_dimension(pairwise_distances(1000 * embedded)) == pytest.approx(mle_dimension(pairwise_distances(x)))
    assert np.isnan(mle_dimension(pairwise_distances(x[:5])))


def test_fewer_dimensions_are_seen_by_all_four_measures():
    x = normal(3 * WORDS * SENTENCES, WIDTH)
    flat = torch.cat([x[:, :3], torch.zeros(len(x), WIDTH - 3)], dim=1)
    made = dataclasses.replace(world(), points={"residual": x, "sae": flat})
    found = effect(made, "dimension", labels="whole cloud", space="euclidean")
    assert len(found) == 4
    assert found.between(np.log(3 / 12) - 0.2, np.log(3 / 8) + 0.2).all()


def test_pieces_are_counted():
    far = torch.cat([torch.zeros(1, WIDTH), torch.eye(WIDTH)])[:3] * 100
    made = world(poles=far.double(), scatter=0.5, words=3)
    table = geometry_under_choices(made, families=("pieces",))
    here = table[(table["items"] == "tokens") & (table["space"] == "euclidean") & (table["detail"] == "3")]
    assert np.exp(here["value"]).to_numpy() == pytest.approx(np.full(3, 3.0))


def test_a_circle_scores_one_and_a_shuffled_one_less():
    angles = torch.arange(12) * (2 * np.pi / 12)
    ring = torch.zeros(12, WIDTH, dtype=torch.float64)
    ring[:, 0], ring[:, 1] = 5 * angles.cos(), 5 * angles.sin()
    table = geometry_under_choices(world(poles=ring, scatter=0.01), families=("circle",))
    scores = table[(table["measure"] == "score") & (table["space"] != "standardised")]["value"]
    assert scores.min() > 0.99
    shuffled = ring[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    other = geometry_under_choices(world(poles=shuffled, scatter=0.01), families=("circle",))
    assert other[other["measure"] == "score"]["value"].mean() < 0.6


def test_poles_paired_at_random_share_no_shape():
    poles = normal(WORDS, 2, seed=4)
    ring = torch.cat([poles, torch.zeros(WORDS, WIDTH - 2)], dim=1)
    kept = effect(
        world(lambda x: 2 * x, poles=ring, scatter=0.01), "shape", detail="first 2 components", labels="words"
    )
    assert (kept[kept.index.get_level_values("space") == "euclidean"] < -0.5).all()


def test_one_sentence_a_word_says_why_there_is_nothing():
    made = world(sentences=1)
    table = geometry_under_choices(made, families=("merging", "distinctions", "compression"))
    words = table[(table["items"] == "words") & table["measure"].isin(["purity", "homogeneity", "eta2", "auc"])]
    assert words["value"].isna().all()
    assert words["reason"].str.len().gt(0).all()


def test_an_unknown_family_is_refused():
    with pytest.raises(GeometryError, match="merging"):
        geometry_under_choices(world(), families=("merge",))


# ---- the order of prompts, sentences that words share, too little to measure ----------------------------------------


def shuffled(clouds, seed=0):
    """The same concept with its prompts and its tokens in another order."""
    rng = np.random.default_rng(seed)
    prompts, tokens = rng.permutation(len(clouds.prompt_words)), rng.permutation(len(clouds.tokens))
    return dataclasses.replace(
        clouds,
        points={name: x[torch.as_tensor(tokens)] for name, x in clouds.points.items()},
        word_vectors={name: x[torch.as_tensor(prompts)] for name, x in clouds.word_vectors.items()},
        prompt_words=clouds.prompt_words[prompts],
        templates=clouds.templates[prompts],
        prompt_of=np.argsort(prompts)[clouds.prompt_of][tokens],
    )


def test_the_order_of_prompts_and_tokens_changes_nothing_but_what_is_drawn():
    made = world(lambda x: x.relu(), words=7)
    keys = [*KEYS, "representation"]
    one, other = (geometry_under_choices(c).set_index(keys)["value"] for c in (made, shuffled(made)))
    assert one.index.equals(other.index)
    assert one.isna().equals(other.isna())
    drawn = one.index.get_level_values("measure").isin(["effective_rank", "components90", "disparity"])
    assert other[~drawn].to_numpy() == pytest.approx(one[~drawn].to_numpy(), abs=1e-9, nan_ok=True)
    assert other[drawn].to_numpy() == pytest.approx(one[drawn].to_numpy(), abs=0.15, nan_ok=True)


def test_what_sentences_add_to_all_words_is_not_taken_for_spread_by_chance():
    words, sentences, width = 100, 6, 40
    labels, templates = np.repeat(np.arange(words), sentences), np.tile(np.arange(sentences), words)
    noise = normal(words * sentences, width)
    x = noise + 5 * normal(sentences, width, seed=1)[torch.as_tensor(templates)]
    crossed = pairwise_distances(centred_by_template(x, templates)[0])
    for seen in (pairwise_distances(x), crossed):
        spread, _, chance = spread_and_scatter(labels, seen, crossed)
        assert spread**2 == pytest.approx(chance, rel=0.1)
    assert spread_and_scatter(labels, pairwise_distances(x))[2] > 5 * chance


def test_the_known_spread_of_poles_is_found_whatever_sentences_add():
    def with_sentences(x):
        moved = 3 * normal(SENTENCES, WIDTH, seed=8)[torch.as_tensor(np.tile(np.arange(SENTENCES), WORDS))]
        return x + moved if len(x) == len(moved) else x

    found = effect(world(with_sentences, scatter=1.0), "compression", measure="pole_rms", labels="words")
    found = found.xs("euclidean", level="space").xs("sentence", level="centring")
    assert found.to_numpy() == pytest.approx(np.zeros(2), abs=1e-9)
    table = geometry_under_choices(world(with_sentences, scatter=1.0), families=("compression",))
    table = table[(table["labels"] == "words") & (table["measure"] == "pole_rms") & (table["space"] == "euclidean")]
    ratio = table.set_index(["representation", "centring", "detail"])["value"]["sae"].unstack("detail")
    # Centring changes what spread is divided by, not how much of it is chance.
    shares = (ratio["unbiased"] - ratio["plain"]).to_numpy()
    assert shares[0] == pytest.approx(shares[1])
    assert shares[0] < 0


def test_one_neighbour_is_the_purity_of_chapter_4():
    made = world(scatter=1.5)
    d = pairwise_distances(made.word_vectors["residual"])
    expected = neighbour_purity(d, made.prompt_words, made.templates)[0]
    assert neighbours_of_own_word(d, made.prompt_words, made.templates, 1) == expected


def test_the_distance_score_is_that_of_circularity():
    x, order = normal(7, 5).numpy(), np.array([3, 0, 6, 1, 5, 2, 4])
    assert distance_score(x, order, 7) == pytest.approx(circularity(x, order, period=7, n_resamples=9).distance_score)


@pytest.mark.parametrize("made", [world(words=1), world(words=2, sentences=2)], ids=["one word", "four vectors"])
def test_too_little_to_measure_says_so(made):
    table = geometry_under_choices(made)
    assert (table["reason"].eq("") == table["value"].notna()).all()
    missing = set(table[table["value"].isna()]["measure"])
    if len(made.words) == 1:
        assert {"purity", "homogeneity", "eta2", "silhouette", "nearest_pole", "auc"} <= missing
    words = table[(table["items"] == "words") & (table["labels"] != "tokens")]
    assert words[(words["measure"] == "log_count") & (words["smallest"] == 8)]["value"].isna().all()
    assert words[words["measure"] == "disparity"]["value"].isna().all()


def test_copies_have_no_nearest_neighbour_to_measure_by():
    made = world()
    copied = made.word_vectors["residual"][::2].repeat_interleave(2, dim=0)
    made = dataclasses.replace(made, word_vectors=dict(made.word_vectors) | {"sae": copied})
    table = geometry_under_choices(made, families=("pieces",))
    lacking = (table["items"] == "words") & (table["representation"] == "sae")
    assert table[lacking]["value"].isna().all()
    assert table[~lacking]["value"].notna().all()


def test_prompts_that_repeat_a_vector_are_not_asked_twice():
    made, half = world(words=7), torch.arange(7 * SENTENCES) % 2 == 0
    again = {name: torch.cat([x, x[half]]) for name, x in made.word_vectors.items()}
    repeated = dataclasses.replace(
        made,
        word_vectors=again,
        prompt_words=np.append(made.prompt_words, made.prompt_words[half]),
        templates=np.append(made.templates, made.templates[half] + SENTENCES),
    )
    families = ("merging", "distinctions", "compression", "circle")
    one, other = (geometry_under_choices(c, families=families) for c in (made, repeated))
    assert other.drop(columns="value").equals(one.drop(columns="value"))
    assert other["value"].to_numpy() == pytest.approx(one["value"].to_numpy(), nan_ok=True)
