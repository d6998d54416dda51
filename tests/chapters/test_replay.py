"""Chapter 6: its page's function is the package's, signs follow from structures, and findings from tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from reading import defined_on

from saema_utils.chapters.replay import figures, findings
from saema_utils.chapters.replay.tables import CLOSELY, ReplayTokens, replay_concept
from saema_utils.evidence.replay import PAPER_SIGNS, SIGNS, replay_signs, sign
from saema_utils.replay.nudges import N_STEPS, SCALES, kept_records
from saema_utils.replay.structure import RECIPES, STEPS, kinds_of_tokens
from saema_utils.runtime import generator
from saema_utils.saes.coders import PcaCoder, RandomDictionary, SaeCoder
from saema_utils.saes.training import untrained_sae
from saema_utils.study import STUDIES
from saema_utils.text.concepts import WORDS, authors_prompts

NOTEBOOK = "06_replay.ipynb"


@pytest.fixture(scope="module")
def page():
    return defined_on(NOTEBOOK)


def test_the_choice_on_the_page_is_the_packages(page):
    draws = np.random.default_rng(0)
    steps = pd.DataFrame([(scale, step) for scale in SCALES for step in range(N_STEPS)], columns=["scale", "step"])
    steps["separation"], steps["mse"] = draws.uniform(1, 9, len(steps)), draws.uniform(0, 1, len(steps))
    kept = kept_records(steps).set_index(["scale", "loss"])["step"]
    for scale, walk in steps.groupby("scale"):
        by_hand = page["kept_by_hand"](walk["separation"].to_numpy(), walk["mse"].to_numpy())
        assert tuple(kept.loc[scale]) == by_hand


def test_the_authors_prompts_are_theirs_and_say_whose():
    prompts = authors_prompts()
    assert sum(map(len, prompts.values())) == 555
    assert set(prompts) == set(WORDS)
    assert all(isinstance(text, str) and text.strip() for texts in prompts.values() for text in texts)


# ---- one concept ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens():
    """Sixty tokens around four corners, ten of them copies of one, the first six no ordinary tokens."""
    draws = generator(0, "replay")
    corners = 4 * torch.randn(4, 16, generator=draws)
    residual = corners.repeat_interleave(15, 0) + 0.2 * torch.randn(60, 16, generator=draws)
    residual[20:30] = residual[20]
    ordinary = np.arange(60) >= 6
    return ReplayTokens(residual, kinds_of_tokens(residual, ordinary), torch.as_tensor(ordinary))


@pytest.fixture(scope="module")
def coders(tokens):
    recipe = STUDIES["smoke"].changed(**{"sae.d_sae": 40, "sae.k": 4}).sae
    return {
        "sae": SaeCoder(untrained_sae(tokens.residual, recipe, seed=1)),
        "random_dictionary": RandomDictionary(16, 40, 4, bias=tokens.residual.mean(0)),
        "pca": PcaCoder.fit(tokens.residual, 5),
    }


@pytest.fixture(scope="module")
def replayed(tokens, coders):
    rows, walks = replay_concept(tokens, coders, (0, 1), True)
    return pd.DataFrame(rows), pd.concat(walks)


def test_every_code_is_measured_as_published_and_some_step_by_step(replayed):
    rows, _ = replayed
    recipes = rows.groupby("coder")["recipe"].unique().map(set)
    assert all(recipes[name] == set(RECIPES) for name in CLOSELY)
    assert recipes["pca"] == {"as published"}
    counts = rows[rows["coder"] == "residual"].drop_duplicates("recipe").set_index("recipe")["n_tokens"]
    assert (counts["as published"], counts["mask"], counts["copies"]) == (60, 54, 51)
    assert set(rows[(rows["coder"] == "sae") & (rows["recipe"] == "as published")]["seed"]) == {0, 1}
    missing = rows["mst_weight"].isna()
    assert (rows["reason"].ne("") == missing).all()


def test_walks_are_those_of_codes_with_poles_to_move(replayed):
    rows, walks = replayed
    published = rows[(rows["recipe"] == "as published") & (rows["coder"] != "residual")]
    with_poles = published[published["n_local"] > 1]
    assert len(walks) == len(SCALES) * N_STEPS * len(with_poles)
    start = walks[walks["step"] == 0].groupby(["coder", "seed"])["mse"]
    assert (start.max() - start.min() < 1e-9).all(), "at step 0 nothing has moved, whatever the scale"


def test_a_concept_of_too_few_tokens_gives_reasons(tokens, coders):
    few = ReplayTokens(tokens.residual[:9], kinds_of_tokens(tokens.residual[:9], np.ones(9, bool)), tokens.counted[:9])
    rows, walks = replay_concept(few, coders, (0,), False)
    assert not walks
    assert all("9 tokens" in row["reason"] for row in rows)


def test_an_untrained_autoencoder_is_of_its_recipe_and_of_its_seed(tokens):
    recipe = STUDIES["smoke"].changed(**{"sae.d_sae": 40, "sae.k": 4, "sae.architecture": "gated"}).sae
    one, same, other = (untrained_sae(tokens.residual, recipe, seed) for seed in (1, 1, 2))
    assert (one.cfg.architecture(), one.cfg.d_sae, one.cfg.k) == ("topk", 40, 4)
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    assert torch.allclose(one.b_dec, tokens.residual.mean(0), atol=1e-4)
    assert bool(((one.encode(tokens.residual) != 0).sum(1) <= 4).all())


# ---- signs ---------------------------------------------------------------------------------------


def structure_table(ratios, recipe="as published", prompts="authors"):
    """Six concepts; by code, the factors on count plus one, dimension, tree weight and scale-free tree."""
    rows = []
    for number in range(6):
        wobble = 1 + 0.02 * number
        for coder, factors in {"residual": (1, 1, 1, 1), **ratios}.items():
            mine = 1 if coder == "residual" else wobble
            count, dimension, tree, free = (mine * factor for factor in factors)
            rows.append(
                {
                    "prompts": prompts,
                    "coder": coder,
                    "concept": "abcdef"[number],
                    "recipe": recipe,
                    "seed": 0,
                    "n_local": 12 * count - 1,
                    "intrinsic_dimension": 5 * dimension,
                    "mst_weight": 9 * tree,
                    "mst_weight_scale_free": 0.3 * free,
                }
            )
    return pd.DataFrame(rows)


def test_signs_are_those_of_the_ratios_and_the_scale_is_a_step():
    table = structure_table({"sae": (0.5, 2, 0.5, 2), "pca": (2, 0.5, 2, 0.5)})
    signs = replay_signs(table).set_index(["coder", "recipe", "measure"])
    assert set(signs.loc["sae"].loc["as published"]["sign"]) == {"as in the paper"}
    assert set(signs.loc["pca"].loc["as published"]["sign"]) == {"opposite"}
    scale = signs.xs("scale", level="recipe")
    assert list(scale.index.get_level_values("measure").unique()) == ["mst_weight"]
    assert scale.loc[("sae", "mst_weight"), "sign"] == "opposite"
    row = signs.loc[("sae", "as published", "n_local")]
    wobbles = np.log(0.5 * (1 + 0.02 * np.arange(6)))
    assert row["estimate"] == pytest.approx(wobbles.mean())
    assert row["n_concepts"] == 6


def test_no_change_is_neither_and_one_concept_has_no_interval():
    table = structure_table({"sae": (0.95, 0.95, 0.95, 0.95)})
    assert set(replay_signs(table)["sign"]) == {"neither"}
    alone = replay_signs(table[table["concept"] == "a"])
    assert set(alone["sign"]) == {"no interval"}
    assert (sign(0.1, 0.2, 1), sign(0.1, 0.2, -1), sign(-0.1, 0.2, 1)) == SIGNS


def test_findings_tell_what_comes_back_for_whom_and_what_makes_it():
    table = pd.concat(
        [
            structure_table({"sae": (0.5, 2, 0.5, 2), "random_dictionary": (0.5, 2, 0.5, 2), "pca": (1, 2, 0.5, 2)}),
            structure_table({"sae": (0.9, 2, 0.5, 2), "pca": (1, 2, 0.5, 2)}, recipe="mask"),
            structure_table({"sae": (2, 2, 0.5, 2), "pca": (1, 4, 0.2, 2)}, recipe="copies"),
        ]
    )
    signs = replay_signs(table)
    assert findings.come_back(signs, "sae", PAPER_SIGNS).holds is True
    assert findings.come_back(signs, "pca", PAPER_SIGNS).holds is False
    assert findings.come_back(signs, "sae", ["mst_weight"]).holds is True, "others may come back as well"
    assert findings.come_back(signs, "pca", ["mst_weight"]).holds is False, "and none may be turned round"
    assert findings.come_back(signs, "untrained_sae", PAPER_SIGNS).holds is None
    assert findings.shown_too(signs, "sae", "random_dictionary").holds is True
    assert findings.shown_too(signs, "sae", "pca").holds is False
    assert findings.shown_too(signs, "pca", "sae").holds is True
    assert findings.shown_too(signs, "untrained_sae", "sae").holds is None
    assert findings.makes_the_sign(signs, "n_local", "copies").holds is True
    assert findings.makes_the_sign(signs, "n_local", "mask").holds is False
    assert findings.makes_the_sign(signs, "intrinsic_dimension", "copies", coder="pca").holds is False, "it stays"
    assert findings.makes_the_sign(signs, "n_local", "mask", coder="untrained_sae").holds is None
    turned = signs.assign(sign=signs["sign"].where(signs["recipe"] != "as published", SIGNS[1]))
    assert findings.makes_the_sign(turned, "n_local", "copies").holds is None, "no step makes a sign that is not there"
    assert findings.what_a_step_moves(signs, "n_local")["copies"] == pytest.approx(np.log(4))
    alone = replay_signs(table[table["concept"] == "a"])
    assert findings.come_back(alone, "sae", PAPER_SIGNS).holds is None


def test_what_is_measured_counts_each_token_once(tokens):
    found = findings.what_is_measured(tokens)
    assert found.holds is False
    assert found.shows == "of 60 tokens 10% are special, padding or sinks · 15% repeat another · 75% are left"


def test_unrelated_walks_are_related_by_the_choice_alone():
    found = findings.unrelated_walks(0, worlds=40).set_index("records")["correlation"]
    assert abs(found["all steps"]) < 0.06
    assert found["kept"] < -0.1


def test_correlations_are_averaged_over_seeds_and_then_over_concepts():
    rows = [("authors", "a", "sae", 0, -1.0), ("authors", "a", "sae", 1, 0.0), ("authors", "b", "sae", 0, 1.0)]
    table = pd.DataFrame(rows, columns=["prompts", "concept", "coder", "seed", "r_all"])
    table = table.assign(r_kept=table["r_all"], r_null=0.5)
    assert findings.mean_correlations(table, "sae")["r_all"] == pytest.approx(0.25)


def test_poles_move_by_the_largest_change_of_any_walk():
    steps = pd.DataFrame({"coder": "sae", "concept": "a", "seed": 0, "scale": [1, 1, 1, 2, 2], "prompts": "authors"})
    steps["separation"] = [10.0, 10.1, 10.05, 10.0, 9.5]
    assert findings.how_far_poles_move(steps)["sae"] == pytest.approx(0.05)


def test_the_choice_relates_where_kept_records_correlate_more_than_all_steps():
    names = ["coder", "r_all", "r_kept", "r_null"]
    head = {"prompts": "authors", "concept": "a", "seed": 0}
    made = pd.DataFrame([("sae", -0.4, -0.7, -0.3), ("random_dictionary", 0.0, -0.6, -0.3)], columns=names).assign(
        **head
    )
    assert findings.choice_relates(made).holds is True
    assert findings.choice_relates(made.assign(r_all=[-0.6, -0.3])).holds is True, "not asked: it hangs on the clusters"
    assert findings.choice_relates(made.assign(r_kept=made["r_all"])).holds is False
    assert findings.choice_relates(made.assign(r_null=[-0.3, 0.0])).holds is False, "shuffled errors must have one"
    assert findings.choice_relates(made[:1]).holds is None
    assert findings.choice_relates(made, prompts="ours").holds is None


def test_the_first_walk_is_one_concepts(replayed):
    _, walks = replayed
    walks = walks.assign(concept="a", prompts="authors")
    both = pd.concat([walks, walks.assign(concept="b")])
    code = both["coder"].iloc[0]
    assert len(findings.first_walk(both, code)) == len(SCALES) * N_STEPS
    assert not len(findings.first_walk(both, "no such code"))


# ---- figures -------------------------------------------------------------------------------------


def test_figures_are_drawn_with_few_codes_and_with_many(tmp_path, replayed):
    _, walks = replayed
    many = structure_table({name: (0.5, 2, 0.5, 2) for name in ("sae", "random_dictionary", "untrained_sae", "pca")})
    few = structure_table({"sae": (0.5, 2, 0.5, 2)}, prompts="ours")
    rows = [("authors", c, n, 0, r, r, -r) for c, r in (("a", -0.5), ("b", 0.2)) for n in ("sae", "pca")]
    columns = ["prompts", "concept", "coder", "seed", "r_all", "r_kept", "r_null"]
    correlations = pd.DataFrame(rows, columns=columns)
    walk = walks[(walks["coder"] == walks["coder"].iloc[0]) & (walks["seed"] == 0)]
    drawn = [
        *[figures.signs_forest(replay_signs(table)) for table in (many, few, few[few["concept"] == "a"])],
        *[figures.steps_forest(replay_signs(table)) for table in (many, few)],
        *[figures.correlations_strip(table) for table in (correlations, correlations[:1], correlations[:0])],
        figures.one_walk(walk),
        figures.one_walk(walk[:0]),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size > 1000
    assert set(figures.RECIPE_NAMES) == {"as published", *STEPS}
