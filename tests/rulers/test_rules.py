"""The laboratory measures with the package's own measures, its effects are what they say, and the rules are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saema_utils.errors import SaemaError
from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.multiverse import ITSELF, contrasts_of, effects_of, in_short, specifications, verdict_of
from saema_utils.evidence.verdicts import NOT_LEARNED, SUPPORTED, VERDICTS
from saema_utils.geometry import choices
from saema_utils.geometry.choices import geometry_under_choices
from saema_utils.geometry.concept import ConceptClouds
from saema_utils.geometry.matching import procrustes_test
from saema_utils.intervention.cross_fit import doses_under_choices
from saema_utils.rulers import rules, worlds_of_edits, worlds_of_geometry
from saema_utils.rulers.rules import (
    AS_LARGE,
    RULES,
    WORLDS,
    between,
    cases,
    few_analyses,
    laboratory_of,
    values_of_world,
    verdicts_on,
)
from saema_utils.rulers.worlds import BASE, CODE, read_backwards
from saema_utils.rulers.worlds_of_edits import ARMS, WIDE, dose_target, dose_unit, dose_values
from saema_utils.rulers.worlds_of_geometry import GEOMETRY, SENTENCES, SHUFFLES, WORDS, D, draw_words
from saema_utils.rulers.worlds_of_ranks import RANKS, draw_clouds, movements
from saema_utils.stratification.movement import rank_movement
from saema_utils.stratification.token_cloud import TokenCloud
from saema_utils.text.concepts import WORDS as NAMES

CLAIMS = {claim.id: claim for claim in load_claims()}
CHEAP = [*RANKS, "gradient", "cause-during-training"]


def row_of(table, choices):
    """The one row of a table that was chosen so."""
    for name, way in choices.items():
        if name in table and name != "prompts":
            table = table[table[name] == way]
    (value,) = table["value"]
    return value


# ---- every claim has a world, of its own analyses ---------------------------------------------------------


def test_every_claim_has_a_world():
    assert tuple(CLAIMS) == RULES


@pytest.mark.parametrize("rule", RULES)
def test_analyses_are_those_of_the_claim_and_the_named_one_comes_first(rule):
    claim, (first, *others) = CLAIMS[rule], WORLDS[rule].analyses
    assert first == {}
    assert others
    assert {} not in others
    for name, way in ((name, way) for analysis in others for name, way in analysis.items()):
        assert way in (claim.measures if name == "measure" else claim.choices[name])
    few = few_analyses(claim)
    assert few.primary == claim.primary
    assert few.minimum_n == claim.minimum_n


# ---- what is measured is what chapter 7 measures ------------------------------------------------------------


def clouds_of(rule, vectors):
    """A concept of twelve months or of tokens, in which every representation is what a world has made."""
    on_words = len(next(iter(vectors.values()))) == len(WORDS) and rule not in ("pieces", "more-dimensions")
    words = {name: torch.as_tensor(x if on_words else np.resize(x, (len(WORDS), D))) for name, x in vectors.items()}
    tokens = {name: torch.as_tensor(x) for name, x in vectors.items()}
    n = len(next(iter(tokens.values())))
    nowhere = np.zeros(n, dtype=int)
    texts = [""] * n
    facts = {"prompt_of": nowhere, "template_of": nowhere, "word_of": nowhere, "is_word": nowhere.astype(bool)}
    facts |= {"prompt_words": WORDS, "templates": SENTENCES, "n_copies": 0, "contexts": texts, "tokens": texts}
    return ConceptClouds(concept="months", words=NAMES["months"], points=tokens, word_vectors=words, **facts)


@pytest.mark.parametrize("rule", GEOMETRY)
def test_geometry_is_measured_as_under_every_choice(rule, monkeypatch):
    monkeypatch.setattr(choices, "SHUFFLES", SHUFFLES)
    world, claim = GEOMETRY[rule], CLAIMS[rule]
    raw = world.draw(np.random.default_rng(1))
    made = {"residual": world.made(raw, world.base, BASE), claim.code: world.made(raw, 0.8 * world.base, CODE)}
    table = geometry_under_choices(clouds_of(rule, made), families=(claim.where["family"],))
    for name in (claim.baseline, claim.code) if claim.baseline else (claim.code,):
        found = list(world.measured(raw, made[name]))
        for analysis, value in zip(world.analyses, found, strict=True):
            expected = row_of(table, {**claim.primary, **analysis, "representation": name})
            assert value == pytest.approx(expected, abs=1e-9), (name, analysis)


@pytest.mark.parametrize("mode", ["feature", "prompt", "position"])
def test_ranks_are_measured_as_under_every_choice(mode):
    x, _ = draw_clouds(np.random.default_rng(0), 1, mode)
    cloud = TokenCloud.of(torch.from_numpy(x[0]), torch.ones(x.shape[1:3], dtype=torch.bool))
    assert cloud.rms == pytest.approx(1)
    gain = torch.ones(D, dtype=torch.float64)
    gain[4:] = 1.7
    table = rank_movement([cloud], {"sae": lambda z: z * gain}, seeds=[3])
    table = table[(table["mode"] == mode) & (table["noise"] == "isotropic") & (table["tokens"] == "all")]
    measures = ("effective_rank", "participation_ratio", "rank@0.01", "rank@0.001")
    asked = [
        {"measure": measure, "change": change, "upto": upto}
        for measure in measures
        for change in ("signed", "absolute")
        for upto in (0.1, 0.3, 1.0)
    ]
    noise = cloud.noise(3).reshape(x.shape).numpy()
    found = movements(x, noise, np.array([1.7]), mode, asked)[:, 0]
    assert found == pytest.approx(np.array([row_of(table, one) for one in asked]), abs=1e-6)


@pytest.mark.parametrize("rule", ["correlation", "cause-after-training", "worth-after-training"])
def test_doses_are_measured_as_under_every_choice(rule):
    claim, rng = CLAIMS[rule], np.random.default_rng(0)
    z, directions = dose_unit(0, 0)
    write = torch.from_numpy(np.linalg.qr(rng.normal(size=(WIDE, D)))[0].T)
    target = (z + 0.1 * directions["poles", "in-sample"]) @ write + torch.from_numpy(rng.normal(size=(len(z), WIDE)))
    labels = {"words": torch.from_numpy(WORDS)}
    table = doses_under_choices(z, lambda y: y @ write, target, labels, torch.from_numpy(SENTENCES), seeds=[0])
    for arm in ARMS:
        for analysis in ({**claim.primary, **one} for one in WORLDS[rule].analyses):
            (value,) = dose_values(analysis, z, directions, arm, write, target[None])
            assert value == pytest.approx(row_of(table, {**analysis, "representation": arm}), rel=1e-6, abs=1e-12)


# ---- effects are what they say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "effect"), [("correlation", -0.11), ("cause-after-training", 0.13), ("worth-after-training", 0.024)]
)
def test_doses_are_exact_where_noise_is_orthogonal(rule, effect):
    claim, rng = CLAIMS[rule], np.random.default_rng(0)
    z, directions = dose_unit(0, 1)
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0])
    write, beside = turn[:D], turn[D:]
    noise = torch.from_numpy(rng.normal(size=(len(z), WIDE - D))) @ beside
    noise = noise * (noise.numel() / noise.square().sum()).sqrt()
    for arm, other in (ARMS, ARMS[::-1]):
        target = dose_target(claim, z, directions, arm, effect, write, noise)
        found, nothing = (
            dose_values(claim.primary, z, directions, name, write, target[None])[0] for name in (arm, other)
        )
        assert found == pytest.approx(effect, rel=1e-9)
        assert nothing == pytest.approx(0, abs=1e-9)


def test_contracted_poles_have_the_spread_that_was_asked_for():
    """Without scatter in the words the squared spread is that of the poles; the formula adds what scatter would."""
    words = draw_words(np.random.default_rng(0))
    for effect in (-0.3, 0.1):
        scale = worlds_of_geometry._scale_of_compression(words, effect)
        assert np.log(scale) == pytest.approx(effect)
        scale = worlds_of_geometry._scale_in_place(words, effect)
        added = worlds_of_geometry.BETWEEN
        change = np.log((scale**2 * words.square + added) / (words.square + added)) / 2
        assert change == pytest.approx(effect)


def test_scatter_adds_and_leaves_what_the_formulas_say():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, len(WORDS), D))
    shaped = noise.reshape(400, worlds_of_geometry.N_WORDS, worlds_of_geometry.N_SENTENCES, D)
    shaped = shaped - shaped.mean(1, keepdims=True)
    means = shaped.mean(2)
    assert (means**2).sum(-1).mean() == pytest.approx(worlds_of_geometry.BETWEEN, rel=0.03)
    assert ((shaped - means[:, :, None]) ** 2).sum(-1).mean() == pytest.approx(worlds_of_geometry.WITHIN, rel=0.03)


@pytest.mark.parametrize(
    "rule",
    [
        *CHEAP,
        "distinctions",
        "compression",
        "compression-in-place",
        "shape-kept",
        "correlation",
        "worth-after-training",
    ],
)
def test_effects_are_true_to_a_tenth_of_a_margin_and_units_differ_as_much_as_is_said(rule):
    n = 150 if rule in GEOMETRY or rule in worlds_of_edits.EDITS else 1500
    claim = few_analyses(CLAIMS[rule])
    values = values_of_world(claim, n, seed=3)
    for truth, control in cases(claim):
        effects = effects_of(values, case := between(claim, truth, control), ITSELF)
        named = effects.loc[tuple(claim.primary[name] for name in effects.index.names)] / case.margin
        assert named.mean() == pytest.approx(truth, abs=0.1 + 3 * named.std() / n**0.5), truth
        if truth == 2:  # what measuring adds is no more than what the units differ by
            assert 0.8 * rules.SPREAD < named.std() < 2**0.5 * rules.SPREAD


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_a_code_does_not_share_is_the_disparity_of_its_poles_in_every_unit(share):
    for seed in range(5):
        raw = worlds_of_geometry._draw_shape(np.random.default_rng(seed))
        for other in raw.other:
            places = np.sqrt(share) * raw.words.poles + np.sqrt(1 - share) * other
            assert procrustes_test(raw.words.poles, places, n_resamples=1).disparity == pytest.approx(1 - share)


def test_curves_are_read_backwards():
    places = np.array([0.0, 1.0, 2.0])
    assert read_backwards((places, 3 * places), np.array([1.5, 6.0])) == pytest.approx([0.5, 2])
    assert read_backwards((places, 5 - places), np.array([4.5, 3.0])) == pytest.approx([0.5, 2])
    assert read_backwards((places, places), np.array([*np.ones(20), 9.0])).max() == 2
    with pytest.raises(SaemaError, match="Widen its grid"):
        read_backwards((places, places), np.array([1.0, 9.0]))


@pytest.mark.parametrize("rule", [name for name, world in GEOMETRY.items() if world.grid])
def test_grids_hold_their_base_and_curves_do_not_turn(rule, monkeypatch):
    monkeypatch.setattr(worlds_of_geometry, "CALIBRATED_ON", 12)
    parameters, means = worlds_of_geometry.calibrated.__wrapped__(GEOMETRY[rule])
    steps = np.diff(means)
    assert min(parameters) < GEOMETRY[rule].base <= max(parameters)
    assert (steps > 0).all() or (steps < 0).all()


# ---- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rank-moves", "cause-during-training", "gradient"])
def test_verdicts_are_those_of_the_specifications(rule):
    claim, n_units = few_analyses(CLAIMS[rule]), 9
    values = values_of_world(claim, 3 * n_units, seed=1)
    for truth, control in cases(claim):
        case = between(claim, truth, control)
        found = verdicts_on(values, case, n_units)
        units = list(dict.fromkeys(values[claim.unit]))
        for draw, verdict in enumerate(found):
            own = values[values[claim.unit].isin(units[draw * n_units : (draw + 1) * n_units])]
            assert verdict == verdict_of(specifications(own, case), in_short(own, case), case)


@pytest.mark.parametrize("rule", CHEAP)
def test_rules_support_what_is_there_and_not_what_is_not(rule):
    table = laboratory_of(rule, n_draws=25, seed=2).set_index(["truth", "control"])
    assert table[list(VERDICTS)].sum(axis=1).to_numpy() == pytest.approx(np.ones(len(table)))
    alone = table.xs("nothing there", level="control")[SUPPORTED]
    assert alone[0] <= 0.05
    assert alone[3] >= 0.9
    if "lead" in contrasts_of(CLAIMS[rule]):
        assert table.loc[(2, AS_LARGE), SUPPORTED] == 0
        assert table.loc[(2, AS_LARGE), NOT_LEARNED] >= 0.6
    assert set(table["n"]) == {25}
    assert set(table["units"]) == {6 if CLAIMS[rule].unit == "seed" else 9}


@pytest.mark.parametrize("rule", [name for name in RULES if name not in CHEAP])
def test_every_rule_is_judged_and_never_supports_what_nothing_shows(rule, monkeypatch):
    monkeypatch.setattr(worlds_of_geometry, "CALIBRATED_ON", 20)
    worlds_of_geometry.calibrated.cache_clear()
    table = laboratory_of(rule, n_draws=2, seed=0)
    worlds_of_geometry.calibrated.cache_clear()
    assert list(table) == list(rules.COLUMNS)
    assert table["truth"].tolist() == [0, 1, 2, 3, 2]
    assert table[list(VERDICTS)].sum(axis=1).to_numpy() == pytest.approx(np.ones(5))
    assert table[SUPPORTED].iloc[[0, 4]].tolist() == [0, 0]


def test_seeds_repeat_and_differ():
    first, again, other = (laboratory_of("rank-moves-more", 10, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_an_unknown_rule_is_refused():
    with pytest.raises(SaemaError, match="rank-moves"):
        laboratory_of("rank-move", 1)
