"""Chapter 5: what its pages define equals the package, and its judgements follow from the numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saema_utils.chapters.intervention import figures, findings
from saema_utils.errors import InterventionError
from saema_utils.evidence.effects import (
    CHOSEN,
    causal_verdict,
    coefficient_effects,
    effects,
    paired_p,
    partial_correlation,
    training_values,
)
from saema_utils.evidence.verdicts import CONTRADICTED, SUPPORTED, TOO_FEW
from saema_utils.intervention.doses import optimum
from saema_utils.intervention.edits import scale_separation
from saema_utils.intervention.separation import separation_scale_free
from saema_utils.statistics import paired_interval

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "05_separability_interventions.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def tagged(cells, tag):
    return ["".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", [])]


@pytest.fixture(scope="module")
def page(cells):
    names: dict = {}
    for source in tagged(cells, "definition"):
        exec(source, names)
    return names


@pytest.fixture
def clusters():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 5
    return torch.randn(5, 8, generator=draws).double()[labels] + torch.randn(60, 8, generator=draws).double(), labels


def test_the_edit_on_the_page_is_the_packages(page, clusters):
    latents, labels = clusters
    for alpha in (-1.0, 0.0, 0.3, 2.0):
        by_hand = page["scale_separation_by_hand"](latents, labels, alpha)
        assert torch.allclose(by_hand, scale_separation(latents, labels, alpha))


def test_the_best_dose_on_the_page_is_the_packages(page, clusters):
    latents, labels = clusters
    decoder = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    target = torch.randn(60, 6, generator=torch.Generator().manual_seed(2)).double()
    step = (scale_separation(latents, labels, 1.0) - latents) @ decoder
    by_hand = page["best_dose_by_hand"](latents @ decoder - target, step)
    assert by_hand == pytest.approx(optimum(latents, labels, lambda z: z @ decoder, target).alpha)


def test_the_separation_on_the_page_is_the_packages(page, clusters):
    latents, labels = clusters
    uneven = labels.clone()
    uneven[:20] = 0
    for names in (labels, uneven):
        by_hand = page["separation_by_hand"](latents, names)
        assert by_hand == pytest.approx(float(separation_scale_free(latents, names)))


# ---- judgement -------------------------------------------------------------------------------------


def course(seeds, steps, slope_between, slope_along, noise, seed=0):
    """Runs whose seeds differ in separation by u, and in explained variance by slope_between * u."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(seeds):
        u = rng.normal()
        for step in range(steps):
            rows.append(
                {
                    "seed": s,
                    "step": step,
                    "separation": step + u,
                    "explained_variance": slope_along * step + slope_between * u + noise * rng.normal(),
                }
            )
    return pd.DataFrame(rows)


def test_time_alone_is_no_relation_once_the_step_is_held_fixed():
    table = course(8, 6, slope_between=0, slope_along=1, noise=0.3)
    raw = table["separation"].corr(table["explained_variance"])
    r, freedom = partial_correlation(table, "separation", "explained_variance", "step")
    assert raw > 0.8
    assert abs(r) < 0.4
    assert freedom == 48 - 6 - 1


def test_a_relation_between_seeds_is_found_against_the_course_of_time():
    table = course(8, 6, slope_between=1, slope_along=-5, noise=0.05)
    assert table["separation"].corr(table["explained_variance"]) < -0.5
    assert partial_correlation(table, "separation", "explained_variance", "step")[0] > 0.95


def test_partial_correlation_is_the_mean_of_the_correlations_at_each_step():
    table = course(5, 4, 0.5, 1, 1.0)
    at_each = [np.corrcoef(t["separation"], t["explained_variance"])[0, 1] for _, t in table.groupby("step")]
    r, _ = partial_correlation(table, "separation", "explained_variance", "step")
    assert r == pytest.approx(np.mean(at_each))


def test_a_step_that_scatters_much_does_not_decide_alone():
    """At the first step both vary a hundred times as much, and the other way round."""
    table = course(6, 5, slope_between=1, slope_along=0, noise=0.01)
    first = table["step"] == 0
    table.loc[first, "separation"] *= 100
    table.loc[first, "explained_variance"] *= -100
    r, _ = partial_correlation(table, "separation", "explained_variance", "step")
    assert r == pytest.approx(3 / 5, abs=0.02)


def test_without_variation_there_is_no_correlation():
    table = course(1, 3, 1, 1, 0)
    assert np.isnan(partial_correlation(table, "separation", "explained_variance", "step")[0])


def test_few_pairs_get_students_interval():
    estimate, low, high = paired_interval(np.array([1.0, 2.0, 3.0]))
    assert estimate == pytest.approx(2)
    assert (low, high) == (pytest.approx(2 - 4.302653 / np.sqrt(3)), pytest.approx(2 + 4.302653 / np.sqrt(3)))
    assert np.isnan(paired_interval(np.array([1.0]))[1])


def test_the_p_value_agrees_with_the_interval_beside_it():
    """Few pairs or many: p is below 0.05 where the 95 % interval leaves zero out (up to what a bootstrap can tell)."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 9):
        for centre in (0.0, 0.5, 1.0, 2.0, 8.0):
            d = centre + rng.normal(size=n)
            _, low, high = paired_interval(d)
            assert (paired_p(d) < 0.05) == (not low <= 0 <= high)
    clear = np.array([0.99, 1.0, 1.01])
    assert paired_p(clear) < 0.001, "three clear pairs are evidence; of sign flips they would get 0.25"
    assert np.isnan(paired_p(np.array([1.0])))


def test_every_coefficient_gets_an_interval_on_every_measure():
    from saema_utils.evidence.effects import SWEPT

    rng = np.random.default_rng(0)
    base = {s: rng.normal() for s in range(3)}
    trained = pd.DataFrame(
        [
            {"seed": s, "coefficient": c, **{name: base[s] + c * (1 + 0.01 * s) for name in SWEPT}}
            for s in range(3)
            for c in (-0.1, 0.0, 0.1)
        ]
    )
    found = coefficient_effects(trained)
    assert {tuple(row) for row in found[["coefficient", "measure"]].to_numpy()} == {
        (c, name) for c in (-0.1, 0.1) for name in SWEPT
    }
    # The spread between seeds (order 1) is paired away: what is left is the coefficient's own effect.
    assert np.allclose(found["estimate"], found["coefficient"] * 1.01)
    assert ((found["low"] <= found["estimate"]) & (found["estimate"] <= found["high"])).all()
    assert (np.sign(found["low"]) == np.sign(found["coefficient"])).all()
    assert (found["p_holm"] >= found["p"]).all()


ASKED = [
    ("explained_variance", "running text", "tokens", "alone", "all tokens"),
    ("explained_variance", "unseen words", "relative", "joint", "by group"),
    ("cosine", "unseen words", "relative", "", "all tokens"),
]


def swept(coefficients, seeds=3):
    """Autoencoders whose every value is a + b c + d c^2, with numbers of the seed's and the question's own."""
    rng, rows = np.random.default_rng(0), []
    truth = {(seed, *asked): rng.normal(size=3) for seed in range(seeds) for asked in ASKED}
    for (seed, *asked), (a, b, d) in truth.items():
        named = {"seed": seed, **dict(zip(CHOSEN, asked, strict=True))}
        rows += [{**named, "coefficient": c, "value": a + b * c + d * c**2} for c in coefficients]
    return pd.DataFrame(rows), truth


def test_the_odd_part_is_what_the_sign_decides_and_the_even_part_what_any_wish_costs(tmp_path):
    trained, truth = swept((-0.1, 0.1, 0.03, 0.0, -0.03))
    trained.sample(frac=1, random_state=0).to_csv(tmp_path / "trained.csv", index=False)
    found = training_values(pd.read_csv(tmp_path / "trained.csv"))
    assert len(found) == len(truth) * 2 * 2
    assert set(found["coefficient"]) == {0.03, 0.1}
    assert (found["reason"] == "").all()
    for row in found.itertuples():
        _, b, d = truth[(row.seed, *(getattr(row, name) for name in CHOSEN))]
        expected = b * row.coefficient if row.representation == "odd" else d * row.coefficient**2
        assert row.value == pytest.approx(expected, abs=1e-12)


def test_a_part_that_needs_what_was_not_trained_has_no_value_and_says_so():
    both = training_values(swept((-0.1, 0.1, 0.3))[0]).set_index(["coefficient", "representation"]).sort_index()
    assert both.loc[(0.1, "odd"), "value"].notna().all()
    for lacking, what in (((0.1, "even"), "coefficient 0"), ((0.3, "odd"), "coefficient -0.3")):
        assert both.loc[lacking, "value"].isna().all()
        assert both.loc[lacking, "reason"].str.endswith(what).all()


def test_what_could_not_be_measured_has_no_parts():
    trained, _ = swept((-0.1, 0.0, 0.1))
    trained.loc[(trained["seed"] == 1) & (trained["measure"] == "cosine"), "value"] = np.nan
    found = training_values(trained)
    missing = found[found["value"].isna()]
    assert {(row.seed, row.measure, row.on) for row in missing.itertuples()} == {(1, "cosine", "unseen words")}
    assert (missing["reason"] != "").all()
    assert (found.loc[found["value"].notna(), "reason"] == "").all()


def made_tables(best: float, gain_of_training: float, punish: float):
    """A study of eight concepts and three seeds in which poles have a given best dose."""
    rng = np.random.default_rng(0)
    doses, stars, losses = [], [], []
    for concept in map(str, range(8)):
        for arm, centre in (("poles", best), ("random_direction", 0), ("permuted_labels", 0), ("global_scaling", 0)):
            star = centre + 0.02 * rng.normal()
            common = {"concept": concept, "arm": arm, "seed": 0, "preserve_sparsity": False}
            stars.append({**common, "alpha_star": star, "slope": -2 * star})
            doses += [{**common, "alpha": a, "mse": 1 + (a - star) ** 2 - star**2} for a in (-0.5, 0, 0.5)]
            spliced = {"position": "concept", "error_term": False, "cross_entropy": 3 - star + 0.01 * rng.normal()}
            losses.append({**common, **spliced, "alpha": 0.5})
        losses.append({**common, **spliced, "arm": "unedited", "alpha": 0.0, "cross_entropy": 3.0})
    trained = [
        {"seed": s, "coefficient": c, **dict.fromkeys(("explained_variance", "ev_words", "ev_sentences"), value)}
        for s in range(3)
        for c, shift in ((-0.1, punish), (0.0, 0.0), (0.1, gain_of_training))
        for value in (0.7 + shift + 1e-4 * rng.normal(),)
    ]
    return [pd.DataFrame(rows) for rows in (doses, stars, losses, trained)] + [course(5, 4, 0, 1, 0.1)]


def test_a_world_in_which_separation_is_the_cause_is_recognised():
    found = effects(*made_tables(best=0.4, gain_of_training=0.05, punish=-0.05))
    verdicts = causal_verdict(found)
    assert verdicts["after training"] == SUPPORTED
    assert verdicts["during training"] == SUPPORTED
    assert (found["p_holm"].dropna() >= found["p"].dropna() - 1e-12).all()
    seeds = found[(found["unit"] == "seed") & (found["control"] == "coefficient 0")]
    assert seeds["survives"].all(), "three seeds that agree this well stand against the whole table"
    assert set(found.loc[found["survives"], "verdict"]) <= {SUPPORTED, CONTRADICTED}
    assert (found.loc[found["survives"], "p_holm"] < 0.05).all()


def test_a_world_in_which_any_pressure_costs_is_not_mistaken_for_support():
    """Rewarding and punishing separation both lose: the comparison with zero contradicts, the twin decides nothing."""
    found = effects(*made_tables(best=0.0, gain_of_training=-0.03, punish=-0.03))
    verdicts = causal_verdict(found)
    assert verdicts["during training"] == CONTRADICTED
    twin = found[found["control"] == "coefficient -0.1"]
    assert len(twin) == 3
    assert (twin["verdict"] == TOO_FEW).all()
    assert verdicts["after training"] == TOO_FEW


def test_separation_that_hurts_is_said_to_contradict():
    found = effects(*made_tables(best=-0.4, gain_of_training=-0.05, punish=0.05))
    assert causal_verdict(found)["after training"] == CONTRADICTED
    assert set(found.loc[found["unit"] == "seed", "verdict"]) == {CONTRADICTED}


# ---- what the page finds, whichever way the tables turn out ----------------------------------------


def measured(preserve: bool, best: float = 0.2, stopped: float = 0.0):
    """Doses and best doses of one concept whose error is a parabola, and left by ``stopped`` beyond dose 0.5."""
    from saema_utils.intervention.edits import ARMS

    doses, stars = [], []
    for arm in ARMS:
        common = {"concept": "months", "arm": arm, "seed": 0, "preserve_sparsity": preserve}
        closed = {"alpha_star": best, "slope": -2 * best, "curvature": 4.0, "mse_at_zero": 2.0, "exact": stopped == 0}
        stars.append(common | closed)
        for alpha in np.linspace(-1, 1, 9):
            value = 2 * (1 - 2 * best * alpha + alpha**2) - (stopped if alpha > 0.5 else 0)
            doses.append({**common, "alpha": alpha, "mse": value})
    return pd.DataFrame(doses), pd.DataFrame(stars)


@pytest.mark.parametrize("stopped", [0.0, 0.4])
def test_the_closed_form_is_the_curve_until_a_latent_stops(stopped):
    table = findings.with_parabola(*measured(True, stopped=stopped))
    assert table.loc[table["alpha"] <= 0.5, "misfit"].max() < 1e-12
    assert table.loc[table["alpha"] > 0.5, "misfit"].max() == pytest.approx(stopped / 2)


def test_the_closed_form_of_the_table_fits_what_is_measured_of_real_edits(clusters):
    import dataclasses

    from saema_utils.intervention.doses import dose_response

    latents, labels = clusters
    decoder = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    target = torch.randn(60, 6, generator=torch.Generator().manual_seed(2)).double()
    tables = []
    for preserve in (False, True):
        choices, common = {"preserve_sparsity": preserve}, {"concept": "c", "seed": 0, "preserve_sparsity": preserve}
        given = (latents, labels, lambda z: z @ decoder, target)
        doses = dose_response(*given, alphas=[-1, 0, 1, 2], arms=("poles",), **choices).assign(**common)
        best = dataclasses.asdict(optimum(*given, **choices)) | common | {"arm": "poles"}
        tables.append(findings.with_parabola(doses, pd.DataFrame([best])))
    free, kept = tables
    assert free["misfit"].max() < 1e-9
    assert kept["misfit"].max() > findings.STOPS  # latents of these clusters are pushed through zero


@pytest.mark.parametrize("stopped", [0.0, 0.4])
def test_a_parabola_is_drawn_only_where_it_is_exact(stopped):
    free, kept = measured(False), measured(True, stopped=stopped)
    doses, best = (pd.concat(pair, ignore_index=True) for pair in zip(free, kept, strict=True))
    left, right, *below = figures.dose_curves(findings.with_parabola(doses, best), best).axes
    smooth = [max(len(line.get_xdata()) for line in ax.lines) for ax in (left, right)]
    assert smooth[0] > 100
    assert (smooth[1] > 100) == (stopped == 0)
    crosses = [len(line.get_xdata()) for ax in below for line in ax.lines if line.get_marker() == "x"]
    assert sum(crosses) == (0 if stopped == 0 else 4)


@pytest.fixture
def moved(clusters):
    """Three words whose poles span a plane, edited in every arm: rows of ``05_planes``, and what they say."""
    from saema_utils.chapters.intervention.tables import WordTokens, planes_of
    from saema_utils.text.concepts import ConceptPrompts, Prompt

    latents, labels = clusters
    latents, labels = latents[labels < 3], 2 * labels[labels < 3]  # of five words, two have no token left
    words = tuple(Prompt(word, word, "{}", "c") for word in ("one", "two", "three", "four", "five"))
    told = type("Told", (), {"prompts": ConceptPrompts("c", words)})
    tokens = WordTokens(told, latents, latents, labels, labels, lambda z: z)
    return planes_of(tokens, seed=4).assign(concept="c"), latents, labels


@pytest.mark.parametrize("dose", [-1.0, -0.4, 0.0, 0.7])
@pytest.mark.parametrize("arm", ["poles", "permuted_labels", "global_scaling"])
def test_poles_stand_in_their_plane_as_far_apart_as_the_edit_puts_them(moved, arm, dose):
    """Arms that stay in the plane of three poles keep all their distances there, at every dose."""
    from saema_utils.intervention.edits import apply_edit, edit_direction

    planes, latents, labels = moved
    mine = planes[planes["arm"] == arm]
    assert list(mine["word"]) == ["one", "three", "five"]
    seen = mine[["x", "y"]].to_numpy() + dose * mine[["step_x", "step_y"]].to_numpy()
    edited = apply_edit(latents, edit_direction(latents, labels, arm, seed=4), dose)
    poles = torch.stack([edited[labels == k].mean(0) for k in (0, 2, 4)])
    assert torch.pdist(torch.tensor(seen)).numpy() == pytest.approx(torch.pdist(poles).numpy(), abs=1e-9)


def test_a_direction_that_leaves_the_plane_seems_shorter_in_it(moved):
    from saema_utils.intervention.edits import edit_direction

    planes, latents, labels = moved
    seen = planes[planes["arm"] == "random_direction"][["step_x", "step_y"]].to_numpy()
    step = edit_direction(latents, labels, "random_direction", seed=4)
    whole = torch.stack([step[labels == k].mean(0) for k in (0, 2, 4)])
    assert (seen**2).sum() < 0.9 * float((whole - whole.mean(0)).square().sum())


def test_two_poles_stand_on_a_line():
    from saema_utils.chapters.intervention.tables import in_plane

    poles, other = torch.randn(2, 6).double(), torch.randn(2, 6).double()
    places, steps = in_plane(poles, other)
    assert (places[:, 1] == 0).all()
    assert (steps[:, 1] == 0).all()
    assert abs(places[0, 0] - places[1, 0]) == pytest.approx(float(torch.pdist(poles)))


def with_hover(table):
    return table.assign(aedp=1.0, separation_scale_free=0.5, l0=3.0)


def test_each_step_of_the_dose_puts_the_dot_on_the_parabola_and_the_poles_where_they_go():
    curves = with_hover(findings.with_parabola(*measured(False)))
    angles, words = 2 * np.pi * np.arange(6) / 6, list("abcdef")
    ring = {"word": words, "place": range(6), "period": 6, "x": 3 * np.cos(angles), "y": 3 * np.sin(angles)}
    swap = 3 * np.cos(angles[[3, 4, 5, 0, 1, 2]])
    planes = pd.concat(
        [
            pd.DataFrame({"concept": "months", "arm": arm, "seed": 0, **ring})
            for arm in ("poles", "random_direction", "permuted_labels", "global_scaling")
        ],
        ignore_index=True,
    )
    along = ~planes["arm"].isin(["permuted_labels"])
    planes["step_x"] = planes["x"].where(along, np.tile(swap, 4) - planes["x"])
    planes["step_y"] = planes["y"].where(along, 0.0)
    figure = figures.dose_explorer(curves, planes)
    (control,) = figure.layout.sliders
    assert [float(step.label.replace("−", "-")) for step in control.steps] == list(np.linspace(-1, 1, 9))
    assert float(control.steps[control.active].label) == 0
    for step in control.steps:
        dose, (frame, places) = float(step.label.replace("−", "-")), step.args
        assert len(frame["x"]) == len(places) == 9
        for i, x, y, name in zip(places, frame["x"], frame["y"], frame["name"], strict=True):
            trace = figure.data[i]
            if trace.mode == "markers":  # the dot: 1 - 2 a* dose + dose ** 2, with the best dose a* at 0.2
                assert (x, y) == ([dose], [pytest.approx(1 - 0.4 * dose + dose**2, abs=1e-4)])
                assert f"error {y[0]:.3f}" in name
                circle = "in one point" if dose == -1 and "labels" not in name else "circularity"
                assert circle in name
                if "labels" not in name and dose > -1:
                    assert "circularity 1.00" in name, "a ring that grows is a ring"
            elif trace.name == "poles":
                assert np.hypot(x, y) == pytest.approx(np.full(7, 1 + dose), abs=0.01)
    assert "circularity 1.00" not in control.steps[-1].args[0]["name"][5], "poles of others' labels leave the ring"
    assert len({str(figure.layout[axis].range) for axis in ("xaxis", "yaxis")}) == 1
    assert figures.dose_explorer(curves[:0], planes).layout.annotations


@pytest.mark.parametrize("claimed", [1, -1])
def test_an_effect_is_drawn_with_the_two_ends_of_its_own_interval(claimed):
    """In half-widths, turned towards the claim; beyond eight, the whole interval is moved."""
    rows = [("lopsided", 0.25, 0.0, 0.4), ("far", 20.0, 19.0, 21.0), ("none", np.nan, np.nan, np.nan)]
    table = pd.DataFrame(rows, columns=["effect", "estimate", "low", "high"])
    figure = figures.effect_forest(table.assign(control="zero", claimed=claimed, verdict=TOO_FEW))
    bars = [path.vertices[:, 0] for path in figure.axes[0].collections[0].get_paths()]
    np.testing.assert_allclose(bars[:2], claimed * np.array([[0, 2], [7, 9]]))
    assert all(np.isnan(bar).all() for bar in bars[2:])


def test_draws_of_one_concept_count_as_one_in_the_mean_of_an_arm():
    rows = [("poles", "a", 1.0), ("random_direction", "a", 0.0), ("random_direction", "a", 4.0)]
    rows += [("poles", "b", 3.0), ("random_direction", "b", 8.0)]
    free = pd.DataFrame(rows, columns=["arm", "concept", "gain"]).assign(preserve_sparsity=False)
    kept = free.assign(preserve_sparsity=True, gain=100.0)
    means = findings.mean_by_arm(pd.concat([free, kept]), "gain")
    assert means.to_dict() == {"poles": 2.0, "random_direction": 5.0}
    assert findings.mean_by_arm(free.drop(columns="preserve_sparsity"), "gain").equals(means)


def test_both_sides_of_a_parabola_have_their_own_correlation():
    """Poles at their best dose before the edit: the error falls towards it from either side."""
    from saema_utils.intervention.doses import separation_error_correlation

    doses, _ = measured(False, best=0.0)
    doses["aedp"] = 1 + doses["alpha"]
    r = findings.sides(separation_error_correlation(doses.assign(separation_scale_free=0.5)))
    assert r["poles together"] == pytest.approx(-r["poles apart"])
    assert r["poles together"] < -0.9
    assert r["global scaling together"] == pytest.approx(r["poles together"])


def test_a_search_costs_what_its_error_ends_at_over_what_it_began_with():
    rows = [
        {"concept": c, "restart": 0, "search": s, "direction": "raise", "step": step, "mse": size * (1 + cost * step)}
        for c, size in (("a", 1.0), ("b", 50.0))
        for s, cost in (("aedp", -0.1), ("random", 0.2))
        for step in (0, 1, 2)
    ]
    costs = findings.search_costs(pd.DataFrame(rows))
    assert costs == pytest.approx({"raise pole distance": -0.2, "random, equal size": 0.4})


def test_costs_at_the_word_are_those_of_the_reconstruction_alone():
    rows = [
        (arm, alpha, error_term, position, 1.0 if error_term or position == "after" else cost)
        for arm, alpha, cost in (("unedited", 0.0, 0.1), ("poles", 0.5, 0.3), ("poles", -0.5, 0.2))
        for error_term in (False, True)
        for position in ("concept", "after")
    ]
    losses = pd.DataFrame(rows, columns=["arm", "alpha", "error_term", "position", "ce_change"])
    assert findings.costs_at_the_word(losses) == {"no edit": 0.1, "poles +0.5": 0.3, "poles -0.5": 0.2}


def test_ratios_tell_units_from_separation():
    before = {"aedp": 2.0, "latent_rms": 3.0, "separation": 0.4, "ev_train": 0.5}
    doubled = before | {"aedp": 4.0, "latent_rms": 6.0}
    rows = [{"autoencoder": "before", **before}, {"autoencoder": "doubled", **doubled}]
    assert findings.gaming_ratios(pd.DataFrame(rows)).to_numpy().tolist() == [[2, 2, 1, 1]]


@pytest.mark.parametrize(("size", "unexplained", "holds"), [(3, 0.4, True), (3, 0.2, False), (1, 0.4, False)])
def test_size_is_bought_where_reward_beats_the_same_training_without(size, unexplained, holds):
    before = {"aedp": 1.0, "latent_rms": 1.0, "separation": 0.4, "ev_train": 0.5}
    rows = [
        {"autoencoder": "before", **before},
        {"autoencoder": "trained on AEDP", **before, "latent_rms": size, "ev_train": 1 - unexplained},
        {"autoencoder": "trained on neither", **before, "latent_rms": 2.0, "ev_train": 0.7},
    ]
    found = findings.size_was_bought(pd.DataFrame(rows).groupby("autoencoder", sort=False).last().reset_index())
    assert found.holds is holds
    assert all(number in found.shows for number in (f"{size:.2f} against 2.00", f"{2 * unexplained:.2f} against 0.60"))
    assert findings.size_was_bought(pd.DataFrame(rows[:1])).holds is None


def test_whom_the_reward_serves_is_told_by_the_plain_way_of_counting():
    plain = {"measure": "explained_variance", "weight": "tokens", "scaling": "alone", "pooled": "all tokens"}
    slopes = {"unseen sentences": 0.1, "unseen words": -0.1}
    rows = [
        {**plain, "on": on, "seed": seed, "coefficient": c, "value": (slope + 0.01 * seed) * c + c**2}
        for on, slope in slopes.items()
        for seed in range(5)
        for c in (-0.1, 0.0, 0.1)
    ]
    table = pd.DataFrame(rows)
    other = table.assign(pooled="by group", value=-table["value"])  # counts otherwise, and is not told
    found = findings.whom_the_reward_serves(pd.concat([table, other], ignore_index=True))
    assert found.holds is True
    assert "unseen sentences +1.2%" in found.shows
    assert findings.whom_the_reward_serves(other.assign(pooled="all tokens")).holds is False
    assert findings.whom_the_reward_serves(table[table["seed"] == 0]).holds is None


def test_reward_buys_separation_where_no_reconstruction_gains_beyond_its_interval():
    lows = dict(zip(findings.REWARDED, (0.1, -0.2, -0.3, -0.001), strict=True))
    rows = [
        {"coefficient": 0.1, "measure": m, "estimate": low + 0.1, "low": low, "high": 1.0} for m, low in lows.items()
    ]
    effects = pd.DataFrame(rows)
    found = findings.reward_buys_separation(effects)
    assert found.holds is True
    assert found.shows.count(" to ") == len(lows), "a gain that may be none shows its interval"
    assert findings.reward_buys_separation(effects.assign(low=0.05)).holds is False
    assert findings.reward_buys_separation(effects.assign(low=np.nan)).holds is None


def test_time_makes_a_relation_over_all_checkpoints_only():
    r = findings.natural_relation(course(8, 6, slope_between=-1, slope_along=5, noise=0.05))
    assert r["over all checkpoints"] > 0.8
    assert r["at one step"] < -0.9
    assert np.isnan(findings.natural_relation(course(1, 3, 1, 1, 0))["at one step"])


def test_a_reversed_change_is_taken_from_the_smallest_level_to_the_largest():
    rows = [
        ("k", 64, 0.9, 0.2),
        ("k", 16, 0.6, 0.4),
        ("k", 32, 0.0, 0.0),
        ("steps", 5, 0.1, 0.1),
        ("steps", 50, 0.3, 0.5),
    ]
    table = pd.DataFrame(rows, columns=["change", "level", "explained_variance", "separation"])
    change = findings.reversed_changes(table)
    np.testing.assert_allclose(change.loc[["k", "steps"]], [[0.3, -0.2], [0.2, 0.4]])


def test_the_largest_coefficient_is_that_of_the_most_reward():
    rows = [(c, measure, c) for c in (-1.0, 0.03, 0.1) for measure in reversed(findings.REWARDED)]
    found = findings.at_largest_coefficient(pd.DataFrame(rows, columns=["coefficient", "measure", "estimate"]))
    assert (found["estimate"] == 0.1).all()
    assert found.index[0] == findings.REWARDED["separation_words"]


def test_counts_are_of_verdicts_and_of_those_that_survive():
    rows = [("concept", "random_direction", SUPPORTED, True), ("concept", "permuted_labels", SUPPORTED, False)]
    rows += [("seed", "coefficient 0", CONTRADICTED, True), ("degrees of freedom", "no relation", TOO_FEW, False)]
    effects = pd.DataFrame(rows, columns=["unit", "control", "verdict", "survives"]).assign(low=0.0, high=1.0)
    text = findings.verdict_counts(effects)
    assert [int(number) for number in re.findall(r"\d+", text)] == [4, 2, 1, 1]


# ---- a study in which nothing can be moved ---------------------------------------------------------


@pytest.fixture
def lonely(tmp_path, monkeypatch):
    """A run whose only concept has tokens of one word."""
    from saema_utils.chapters.intervention import tables
    from saema_utils.runs.directory import RunDirectory
    from saema_utils.runs.tables import Parts
    from saema_utils.study import get_study

    x = torch.ones(3, 4)
    tokens = tables.WordTokens(None, x, x, torch.zeros(3, dtype=torch.long), torch.arange(3), lambda z: z)
    monkeypatch.setattr(tables, "word_tokens", lambda run: dict.fromkeys(("months", "days", "color"), tokens))
    monkeypatch.setattr(Parts, "key", lambda self, run: "key")
    return RunDirectory(tmp_path, get_study("smoke"), device="cpu")


def test_a_concept_of_one_word_gives_no_rows_and_a_study_of_such_is_refused(lonely):
    from saema_utils.chapters.intervention import tables

    assert tables.beyond_scaling_table.__wrapped__(lonely).empty
    assert tables.planes_table.__wrapped__(lonely).empty
    best = tables.optimum_table.__wrapped__(lonely)
    assert best["reason"].str.contains("at least 2").all()
    with pytest.raises(InterventionError, match="no concept of study 'smoke'"):
        tables.example_concept(lonely)
    with pytest.raises(InterventionError, match="no concept of study 'smoke'"):
        tables.dose_response_table.__wrapped__(lonely)
