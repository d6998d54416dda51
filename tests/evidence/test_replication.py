"""Claims over several autoencoders: worlds whose variances are known, invariances, and what is missing."""

import numpy as np
import pandas as pd
import pytest

from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.replication import between_seeds, mixture, replication
from saema_utils.evidence.verdicts import DEPENDS, NO_EFFECT, NOT_LEARNED, SUPPORTED, TOO_FEW

CLAIM = next(claim for claim in load_claims() if claim.id == "compression")  # has a lead, and expects less
CONCEPTS = 9


def world(rng, mean=0.0, concept=0.0, layer=0.0, sae=0.0, rest=0.0, layers=3, seeds=3, concepts=CONCEPTS):
    """Effects with parts of known standard deviations."""
    of_concept = rng.normal(0, concept, concepts)
    rows = []
    for where in range(layers):
        of_layer = rng.normal(0, layer)
        for seed in range(seeds):
            of_sae = rng.normal(0, sae)
            own = mean + of_layer + of_sae + of_concept + rng.normal(0, rest, concepts)
            rows += [{"layer": where, "seed": seed, "concept": c, "effect": x} for c, x in enumerate(own)]
    return pd.DataFrame(rows)


def test_means_and_variances_of_balanced_effects_are_those_of_the_analysis_of_variance():
    """The oracle is the table of mean squares, which restricted maximum likelihood equals while all are positive."""
    effects = world(np.random.default_rng(3), 1.0, concept=0.5, layer=0.6, sae=0.4, rest=0.2)
    found = mixture(effects)
    x = effects["effect"].to_numpy().reshape(3, 3, CONCEPTS)
    grand, by_layer, by_sae, by_concept = x.mean(), x.mean((1, 2)), x.mean(2), x.mean((0, 1))
    squares = {
        "layer": 3 * CONCEPTS * ((by_layer - grand) ** 2).sum() / 2,
        "sae": CONCEPTS * ((by_sae - by_layer[:, None]) ** 2).sum() / 6,
        "concept": 9 * ((by_concept - grand) ** 2).sum() / (CONCEPTS - 1),
        "rest": ((x - by_sae[..., None] - by_concept + grand) ** 2).sum() / (8 * (CONCEPTS - 1)),
    }
    expected = {
        "layer": (squares["layer"] - squares["sae"]) / (3 * CONCEPTS),
        "sae": (squares["sae"] - squares["rest"]) / CONCEPTS,
        "concept": (squares["concept"] - squares["rest"]) / 9,
        "rest": squares["rest"],
    }
    assert min(expected.values()) > 0
    assert found.estimate == pytest.approx(grand, abs=1e-6)
    for part, variance in expected.items():
        assert found.variances[part] == pytest.approx(variance, rel=0.02), part


@pytest.mark.parametrize(
    "deviations",
    [
        {"concept": 0.3, "layer": 0.2, "sae": 0.1, "rest": 0.2},
        {"concept": 0.3, "rest": 0.2},
        {"concept": 0.3, "sae": 0.3, "rest": 0.1},
    ],
    ids=str,
)
def test_intervals_hold_what_they_promise(deviations):
    rng, held = np.random.default_rng(0), []
    spread = np.sqrt(sum(deviation**2 for deviation in deviations.values()))
    for _ in range(40):
        found = mixture(world(rng, 0.5, **deviations))
        new = rng.normal(0.5, spread)
        held.append((found.low <= 0.5 <= found.high, found.new_low <= new <= found.new_high))
    assert (np.mean(held, axis=0) > 0.84).all(), "95 % are promised; 40 draws scatter by 3.4"


def test_autoencoders_that_differ_widen_what_is_expected_of_the_next():
    """Many concepts in autoencoders that disagree: the mean over concepts of each is sharp, the next one's is not."""
    effects = world(np.random.default_rng(1), 1.0, concept=0.02, sae=0.5, rest=0.02, concepts=30)
    found = mixture(effects)
    one = effects[(effects["layer"] == 0) & (effects["seed"] == 0)]["effect"]
    assert found.new_high - found.new_low > 20 * one.std() / np.sqrt(len(one))
    assert max(found.variances, key=found.variances.get) in ("sae", "layer")


def test_what_does_not_matter_does_not_matter():
    effects = world(np.random.default_rng(2), 0.4, concept=0.3, layer=0.1, sae=0.1, rest=0.1)
    found = mixture(effects)
    renamed = effects.assign(concept=effects["concept"].map(lambda c: f"c{8 - c}"), seed=effects["seed"] + 7)
    for other in (effects.sample(frac=1, random_state=0), renamed):
        again = mixture(other)
        assert (again.estimate, again.low, again.new_high) == pytest.approx(
            (found.estimate, found.low, found.new_high), abs=2e-3
        )
    larger = mixture(effects.assign(effect=-1000 * effects["effect"]))
    assert (larger.estimate, larger.high) == pytest.approx((-1000 * found.estimate, -1000 * found.low), rel=1e-3)


@pytest.mark.parametrize("shape", [{"layers": 1, "seeds": 1}, {"concepts": 1}], ids=str)
def test_one_autoencoder_or_concept_gives_no_interval(shape):
    found = mixture(world(np.random.default_rng(0), 1.0, concept=0.1, rest=0.1, **shape))
    assert np.isfinite(found.estimate)
    assert "nan" not in str(found)
    assert np.isnan([found.low, found.high, found.new_low, found.new_high, *found.variances.values()]).all()


@pytest.mark.parametrize("shape", [{"layers": 3, "seeds": 1}, {"layers": 1, "seeds": 3}], ids=str)
def test_what_cannot_be_told_apart_counts_as_the_autoencoders(shape):
    found = mixture(world(np.random.default_rng(0), 1.0, concept=0.1, layer=0.3, sae=0.3, rest=0.1, **shape))
    assert found.variances["layer"] == 0
    assert found.variances["sae"] > 0
    assert np.isfinite(found.new_low)


def test_equal_effects_have_no_width():
    found = mixture(world(np.random.default_rng(0), 0.7))
    assert (found.low, found.new_low, found.new_high) == pytest.approx((0.7, 0.7, 0.7))


def test_effects_that_are_missing_are_left_out():
    effects = world(np.random.default_rng(4), 0.4, concept=0.3, sae=0.1, rest=0.1)
    effects.loc[effects["concept"] == 2, "effect"] = np.nan
    assert mixture(effects) == mixture(effects.dropna())


def test_starts_are_compared_within_a_layer():
    rng = np.random.default_rng(5)
    effects = world(rng, 0.0, concept=0.3, layer=5.0, sae=0.2, seeds=40)
    assert between_seeds(effects) == pytest.approx(0.4, rel=0.25)
    assert np.isnan(between_seeds(world(rng, seeds=1)))


def replicates(own, lead):
    """Effects of one claim from worlds of its effect and of its lead."""
    pairs = zip(("itself", "lead"), (own, lead), strict=True)
    effects = pd.concat([found.assign(claim=CLAIM.id, contrast=name) for name, found in pairs])
    return effects.assign(median=effects["effect"] / CLAIM.margin)


@pytest.mark.parametrize(
    ("own", "lead", "verdict"), [(3.0, 3.0, SUPPORTED), (3.0, 0.0, NOT_LEARNED), (0.0, 0.0, NO_EFFECT)]
)
def test_the_rule_speaks_of_the_next_autoencoder(own, lead, verdict):
    rng, size = np.random.default_rng(6), abs(CLAIM.margin)
    parts = {"concept": 0.1 * size, "sae": 0.1 * size, "rest": 0.1 * size}
    table = replicates(*(world(rng, CLAIM.margin * mean, **parts) for mean in (own, lead)))
    found = replication(table, [CLAIM]).set_index("contrast")
    assert (found.loc["itself", "holds_up"], found.loc["itself", "holds_up_mean"]) == (verdict, verdict)
    assert found[["n", "saes", "layers"]].to_numpy().tolist() == [[9, 9, 3]] * 2
    shares = found[[name for name in found if name.startswith("share_")]].sum(axis=1)
    assert shares.tolist() == pytest.approx([1, 1])


def test_an_effect_that_other_analyses_do_not_show_depends_on_the_analysis():
    rng, size = np.random.default_rng(9), abs(CLAIM.margin)
    parts = {"concept": 0.1 * size, "sae": 0.1 * size, "rest": 0.1 * size}
    table = replicates(*(world(rng, 3 * CLAIM.margin, **parts) for _ in range(2)))
    found = replication(table.assign(median=table["median"] - 2.5), [CLAIM])
    assert found.loc[0, ["holds_up_mean", "holds_up"]].tolist() == [DEPENDS, DEPENDS]
    assert found.loc[0, "median"] == pytest.approx(0.5, abs=0.2)


def test_a_sharp_mean_does_not_speak_for_an_autoencoder_that_may_differ():
    """Autoencoders on both sides of the margin: the mean lies beyond it, and the next one need not."""
    rng, size = np.random.default_rng(7), abs(CLAIM.margin)
    parts = {"concept": 0.1 * size, "sae": 1.5 * size, "rest": 0.05 * size, "layers": 10, "seeds": 4}
    found = replication(replicates(*(world(rng, 3 * CLAIM.margin, **parts) for _ in range(2))), [CLAIM])
    assert found.loc[0, ["holds_up_mean", "holds_up"]].tolist() == [SUPPORTED, TOO_FEW]


def test_claims_without_effects_have_no_row():
    table = replicates(*(world(np.random.default_rng(8)) for _ in range(2)))
    found = replication(table, load_claims())
    assert list(found["claim"]) == [CLAIM.id, CLAIM.id]
    assert list(found["contrast"]) == ["itself", "lead"]
