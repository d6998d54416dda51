"""Families of autoencoders at one sparsity: the search, the thresholds, and the tables made of them."""

from __future__ import annotations

import math
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.chapters.families import figures
from saema_utils.chapters.families.findings import (
    best_dose,
    excursion_by_recipe,
    family_spread,
    gaps_of_families,
    gaps_over_layers,
    sparsity_match,
)
from saema_utils.chapters.families.measures import DOSES, MEASURES, STREAM_MEASURES
from saema_utils.chapters.families.recipes import family_seeds, is_small, search_trials, training_tokens
from saema_utils.chapters.families.replicates import replicate_layers
from saema_utils.chapters.families.tables import FAMILY_NAMES
from saema_utils.errors import SaeError
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.families import calibrate_threshold, mean_l0, search_penalty, small_recipe, train_to_l0
from saema_utils.saes.loading import load_sae
from saema_utils.study import ARCHITECTURES, DEFAULT_STUDY, STUDIES, SaeRecipe

ROOT = Path(__file__).resolve().parents[2]


@given(scale=st.floats(-2, 2), slope=st.floats(0.3, 2.0), start=st.floats(-2, 2), target=st.sampled_from([8, 32, 64]))
@settings(max_examples=60, deadline=None)
def test_search_solves_every_power_law_in_a_few_trainings(scale, slope, start, target):
    def l0_of(penalty):
        return 32 * (penalty / 10**scale) ** -slope

    trials = search_penalty(l0_of, target, 10**start, max_trials=12)
    assert abs(trials[-1][1] / target - 1) <= 0.1
    assert all(abs(l0 / target - 1) > 0.1 for _, l0 in trials[:-1])


def test_search_keeps_inside_its_bracket_when_sparsity_falls_off_a_cliff():
    def l0_of(penalty):
        return 200.0 if penalty < 1 else 2.0 if penalty > 1.3 else 32.0

    trials = search_penalty(l0_of, 32, 0.1, max_trials=12)
    assert trials[-1][1] == 32
    too_many = [p for p, l0 in trials if l0 > 32]
    too_few = [p for p, l0 in trials if l0 < 32]
    assert max(too_many) < trials[-1][0] < min(too_few)


def test_search_that_starts_right_trains_once_and_nonsense_is_refused():
    assert len(search_penalty(lambda penalty: 32.0, 32, 1.0)) == 1
    with pytest.raises(SaeError, match="positive"):
        search_penalty(lambda penalty: 32.0, 0, 1.0)


@pytest.fixture(scope="module")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse sums of known directions, so that every family has something to find."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(40, 16, generator=generator)
    coefficients = torch.rand(2600, 40, generator=generator) * (torch.rand(2600, 40, generator=generator) < 0.08)
    x = 5 * coefficients @ directions + 0.05 * torch.randn(2600, 16, generator=generator)
    return x[:2200], x[2200:]


@pytest.fixture(scope="module")
def matched(tokens):
    recipe = {"d_sae": 48, "k": 4, "epochs": 4, "batch": 128, "learning_rate": 5e-3}
    return {
        name: train_to_l0(*tokens, SaeRecipe(architecture=name, **recipe), max_trials=10, description="")
        for name in ARCHITECTURES
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_reaches_the_sparsity_asked_for(matched, tokens, name):
    found = matched[name]
    assert abs(found.l0 / 4 - 1) < 0.25
    assert found.l0 == pytest.approx(mean_l0(found.trained.sae, tokens[0]), rel=0.05)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_is_kept_in_sae_lens_format(matched, tokens, name, tmp_path):
    matched[name].trained.sae.save_model(tmp_path)
    again = load_sae(tmp_path, "cpu", 16)
    x = tokens[1][:50]
    one, two = SaeCoder(matched[name].trained.sae), SaeCoder(again)
    torch.testing.assert_close(two.encode(x), one.encode(x))
    torch.testing.assert_close(two.decode(two.encode(x)), one.decode(one.encode(x)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_formula_of_the_chapter_is_what_each_family_computes(matched, tokens, name):
    notebook = nbformat.read(ROOT / "notebooks" / "09_sae_families.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "definition" in c.metadata.get("tags", [])]
    names: dict = {}
    exec(cell.source, names)
    sae, x = matched[name].trained.sae, tokens[1][:60]
    by_hand = names["encode_by_hand"](x, sae.state_dict(), name, k=4)
    torch.testing.assert_close(by_hand, SaeCoder(sae).encode(x), atol=1e-4, rtol=1e-4)


def test_thresholds_move_to_any_reachable_sparsity(matched, tokens):
    sae = load_sae_copy(matched["batchtopk"].trained.sae)
    for target in (2.0, 3.0, 6.0):
        reached = calibrate_threshold(sae, tokens[0], target)
        assert reached == pytest.approx(target, rel=0.1)
        assert reached == pytest.approx(mean_l0(sae, tokens[0]))


def load_sae_copy(sae):
    import copy

    return copy.deepcopy(sae)


def test_small_recipes_are_small_and_valid_for_every_study():
    for study in STUDIES.values():
        for architecture in ARCHITECTURES:
            recipe = small_recipe(study.sae, architecture)
            assert recipe.source == "train"
            assert recipe.architecture == architecture
            assert recipe.d_sae <= 1152
            assert recipe.k < recipe.d_sae


def test_only_studies_of_little_text_try_families_once_and_briefly(tmp_path):
    from saema_utils.runs.directory import RunDirectory

    runs = {name: RunDirectory(tmp_path / name, STUDIES[name], device="cpu") for name in ("smoke", DEFAULT_STUDY)}
    assert {name: is_small(run) for name, run in runs.items()} == {"smoke": True, DEFAULT_STUDY: False}
    assert len(family_seeds(runs["smoke"])) < len(family_seeds(runs[DEFAULT_STUDY])) == 2
    assert training_tokens(runs["smoke"]) < training_tokens(runs[DEFAULT_STUDY]) == 40_000
    assert search_trials(runs["smoke"]) < search_trials(runs[DEFAULT_STUDY]) == 4


@given(n_layers=st.integers(1, 80), data=st.data())
def test_layers_always_hold_the_studied_one(n_layers, data):
    studied = data.draw(st.integers(0, n_layers - 1))
    layers = replicate_layers(n_layers, studied)
    assert studied in layers
    assert 1 <= len(layers) <= 3
    assert list(layers) == sorted(set(layers))
    assert layers[0] >= 0
    assert layers[-1] < n_layers


def test_spread_separates_families_from_seeds():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"architecture": name, "seed": seed, "apart": 10 * i + rng.normal(), "alike": rng.normal()}
            for i, name in enumerate(ARCHITECTURES)
            for seed in range(2)
        ]
        + [{"architecture": "residual", "seed": 0, "apart": 1e6, "alike": 1e6}]
    )
    spread = family_spread(table, ["apart", "alike"]).set_index("measure")
    assert spread.loc["apart", "ratio"] > 5
    assert spread.loc["alike", "ratio"] < 5
    one_seed = family_spread(table[table["seed"] == 0], ["apart"])
    assert math.isnan(one_seed["ratio"].iloc[0])


@pytest.fixture
def families() -> pd.DataFrame:
    """Two families of two seeds and the residual stream: ``excursion`` splits them, all else lies below the stream."""
    rows = [
        {
            "architecture": name,
            "seed": seed,
            **dict.fromkeys(MEASURES, 0.5),
            **dict.fromkeys(DOSES, 0.5),
            "excursion": x,
        }
        for name, x in (("topk", 0.5), ("standard", 1.5))
        for seed in (0, 1)
    ]
    stream = {"architecture": "residual", "seed": 0, **dict.fromkeys(STREAM_MEASURES, 1.0)}
    return pd.DataFrame([stream, *rows])


def test_families_are_measured_against_the_residual_stream(families):
    gaps = gaps_of_families(families)
    assert gaps["excursion"].to_dict() == {"topk": -0.5, "standard": 0.5}
    assert (gaps[["merging", "intrinsic_dimension", "circularity"]] == -0.5).all(axis=None)


def test_a_measure_that_nobody_has_leaves_no_gap(families):
    assert "circularity" not in gaps_of_families(families.assign(circularity=math.nan))
    assert gaps_of_families(families.assign(**dict.fromkeys(STREAM_MEASURES, math.nan))).size == 0


def test_gaps_over_layers_are_those_of_the_means_over_concepts():
    rows = [
        {"representation": name, "layer": layer, "concept": concept, **dict.fromkeys(STREAM_MEASURES, value + shift)}
        for name, values in (("residual", (1.0, 2.0)), ("sae", (0.5, 3.0)))
        for layer, value in zip((3, 9), values, strict=True)
        for concept, shift in (("months", 1.0), ("days", -1.0))
    ]
    gaps = gaps_over_layers(pd.DataFrame(rows))
    assert gaps["merging"].to_dict() == pytest.approx({3: -0.5, 9: 1.0})


@pytest.mark.parametrize(
    ("family", "by_layer", "holds"), [(-0.5, (0.1, 0.0), True), (-0.5, (0.1, -0.1), False), (0.5, (0.1, 0.1), False)]
)
def test_what_the_rank_does_is_compared_between_recipes(families, family, by_layer, holds):
    given = families.copy()
    given.loc[given["architecture"] == "topk", "excursion"] += family + 0.5  # the world's own gap is half below
    rows = [
        {"representation": name, "layer": layer, **dict.fromkeys(STREAM_MEASURES, value)}
        for layer, gap in zip((3, 9), by_layer, strict=True)
        for name, value in (("residual", 2.0), ("sae", 2.0 + gap))
    ]
    layers = pd.DataFrame(rows)
    found = excursion_by_recipe(given, layers)
    assert found.holds is holds
    assert f"family {family:+.2f}" in found.shows
    nobody = given.assign(excursion=math.nan)
    assert excursion_by_recipe(nobody, layers).holds is None


def test_the_best_dose_is_that_of_the_family_that_gains_most(families):
    families.loc[families["architecture"] == "standard", ["gain", "gain_beyond"]] = (0.9, 0.1)
    found = best_dose(families)
    assert found.shows.startswith(FAMILY_NAMES["standard"])
    assert found.holds
    families.loc[families["architecture"] == "standard", "gain_beyond"] = 0.6
    assert best_dose(families).holds is False
    families.loc[families["architecture"] != "residual", ["gain", "gain_beyond"]] = (0.001, 0.0)
    assert best_dose(families).holds is None, "less than what chapter 7 asks for"
    assert best_dose(families.assign(**dict.fromkeys(DOSES, math.nan))).holds is None


def test_a_family_is_as_sparse_as_its_worst_seed():
    training = pd.DataFrame(
        {"architecture": ["topk", "topk", "gated"], "l0_off": [0.02, -0.2, 0.05], "explained_variance": [0.5, 0.7, 0.4]}
    )
    found = sparsity_match(training)
    assert found["off"].to_dict() == {"TopK": 0.2, "gated": 0.05}
    assert found.loc["TopK", "explained_variance"] == pytest.approx(0.6)


def test_figures_are_drawn_with_one_seed_and_with_two(families, tmp_path):
    training = pd.DataFrame(
        {"architecture": ARCHITECTURES, "k": 32, "l0": 30.0, "l0_trained": 35.0, "explained_variance": 0.5}
    )
    stream = {"layer": 3, "concept": "months", **dict.fromkeys(STREAM_MEASURES, 1.0)}
    layers = pd.DataFrame(
        [{**stream, "representation": name, "layer": n} for name in ("residual", "sae") for n in (3, 9)]
    )
    drawn = [figures.sparsity_dots(training), figures.over_depth(layers, 9)]
    for table in (families, families[families["seed"] == 0]):
        drawn += [figures.family_strips(table), figures.families_or_seeds(family_spread(table, list(MEASURES)))]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size > 1000
