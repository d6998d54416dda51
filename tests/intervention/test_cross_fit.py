"""Doses with poles from other sentences: known doses, pure noise, brute force, invariances and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.errors import InterventionError
from saema_utils.intervention.cross_fit import MEASURES, MOVED, cross_fitted_direction, doses_under_choices
from saema_utils.intervention.doses import dose_beyond_scaling, optimum
from saema_utils.intervention.edits import edit_direction

CHOICES = ["representation", "measure", "labels", "poles", "scaling", "support", "weight"]
ARM_OF_CHANCE = ("permuted_labels", "random_direction")

seeds = st.integers(0, 10_000)


def crossed_latents(seed: int = 0, words: int = 4, sentences: int = 5, copies: int = 1, f: int = 40, active: int = 8):
    """Sparse latents of words crossed with sentences, with their labels and groups."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(words).repeat_interleave(sentences * copies)
    groups = torch.arange(sentences).repeat(words * copies)
    word, sentence = (torch.rand(k, f, generator=draws, dtype=torch.float64) for k in (words, sentences))
    z = 2 * word[labels] + sentence[groups] + torch.rand(len(labels), f, generator=draws, dtype=torch.float64)
    kept = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(active).indices, True)
    return z * kept, labels, groups


def linear_decoder(f: int = 40, d: int = 12, seed: int = 1):
    draws = torch.Generator().manual_seed(seed)
    weights = torch.randn(f, d, generator=draws, dtype=torch.float64)
    bias = torch.randn(d, generator=draws, dtype=torch.float64)
    return lambda z: z @ weights + bias


def noise(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def doses(z, decode, target, labels, groups, draws=(0,)):
    """Values, errors and reasons by every choice, of one labelling called words."""
    table = doses_under_choices(z, decode, target, {"words": labels}, groups, seeds=draws)
    return table.drop(columns="labels").set_index([name for name in CHOICES if name != "labels"])


def of(table, column: str = "value", **choices) -> np.ndarray:
    """Slope, best dose and gain under the choices named, beside those of the claims."""
    primary = {
        "representation": "poles",
        "poles": "cross-fitted",
        "scaling": "alone",
        "support": "free",
        "weight": "tokens",
    }
    rows = table[column].xs(tuple((primary | choices).values()), level=tuple(primary))
    return rows.reindex(list(MEASURES)).to_numpy()


# ---- the direction ------------------------------------------------------------------------------


@pytest.mark.parametrize("preserve", [False, True])
def test_a_token_moves_by_the_means_of_the_other_groups(preserve):
    z, y, g = crossed_latents(copies=2)
    y[3] = -1
    found, usable = cross_fitted_direction(z, y, g, preserve_sparsity=preserve)
    for i in range(len(z)):
        poles = torch.stack([z[(y == k) & (g != g[i])].mean(0) for k in range(4)])
        wanted = poles[y[i]] - poles.mean(0) if y[i] >= 0 else torch.zeros(z.shape[1])
        wanted = torch.where(z[i] != 0, wanted, 0) if preserve else wanted
        torch.testing.assert_close(found[i], wanted.to(found), atol=1e-12, rtol=0)
    assert torch.equal(usable, y >= 0)


@given(seeds, st.sampled_from(MOVED))
@settings(max_examples=15, deadline=None)
def test_no_token_has_a_part_in_its_own_direction(seed, arm):
    z, y, g = crossed_latents(seed)
    changed = torch.where((g == 2)[:, None], z * noise(*z.shape, seed=seed), z)
    before, after = (cross_fitted_direction(own, y, g, arm)[0] for own in (z, changed))
    torch.testing.assert_close(before[g == 2], after[g == 2])
    assert not torch.allclose(before[g == 1], after[g == 1])


@given(seeds, st.sampled_from(ARM_OF_CHANCE), st.booleans())
@settings(max_examples=15, deadline=None)
def test_controls_go_elsewhere_and_as_far(seed, arm, preserve):
    z, y, g = crossed_latents(seed)
    ours, theirs = (cross_fitted_direction(z, y, g, a, preserve_sparsity=preserve)[0] for a in ("poles", arm))
    torch.testing.assert_close(ours.norm(dim=1), theirs.norm(dim=1))
    assert (torch.nn.functional.cosine_similarity(ours, theirs) < 1 - 1e-6).all()


def test_a_control_moves_a_word_alike_in_every_group():
    """Where all sentences are copies, every fold has the same poles, and every arm its direction in-sample."""
    z, y, _ = crossed_latents(sentences=1)
    copies, labels, groups = z.repeat(3, 1), y.repeat(3), torch.arange(3).repeat_interleave(len(z))
    for arm in MOVED:
        found, _ = cross_fitted_direction(copies, labels, groups, arm, seed=4)
        torch.testing.assert_close(found, edit_direction(z, y, arm, seed=4).repeat(3, 1))


@pytest.mark.parametrize("arm", MOVED)
def test_a_word_of_one_group_stays_there_and_is_a_pole_elsewhere(arm):
    z, y, g = crossed_latents()
    alone = (y != 1) | (g == 0)
    z, y, g = z[alone], y[alone], g[alone]
    found, usable = cross_fitted_direction(z, y, g, arm, seed=1)
    assert torch.equal(usable, y != 1)
    assert (found[y == 1] == 0).all()
    assert torch.isfinite(found).all()
    others = y != 1
    torch.testing.assert_close(
        found[(g == 0) & others].norm(dim=1),
        cross_fitted_direction(z[others], y[others], g[others])[0][g[others] == 0].norm(dim=1),
    )
    if arm == "poles":
        poles = torch.stack([z[(y == k) & (g != 3)].mean(0) for k in range(4)])
        torch.testing.assert_close(found[(y == 2) & (g == 3)][0], poles[2] - poles.mean(0))


def test_in_sample_the_nth_part_of_a_step_is_the_tokens_own():
    """What it differs by from its sentence's other words; the rest is the cross-fitted step."""
    z, y, g = crossed_latents(sentences=5)
    of_sentence = torch.stack([z[g == own].mean(0) for own in range(5)])[g]
    cross_fitted, _ = cross_fitted_direction(z, y, g)
    torch.testing.assert_close(edit_direction(z, y), 4 / 5 * cross_fitted + (z - of_sentence) / 5)


# ---- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dose", [-0.4, 0.25])
@pytest.mark.parametrize("support", ["free", "kept"])
@pytest.mark.parametrize("poles", ["cross-fitted", "in-sample"])
def test_a_dose_that_made_the_target_is_found_again(dose, support, poles):
    """What else the target holds is orthogonal to the step and to scaling's: the gain is the step's share of it all."""
    z, y, g = crossed_latents()
    decode, kept = linear_decoder(), support == "kept"
    direction = {
        "cross-fitted": cross_fitted_direction(z, y, g, preserve_sparsity=kept)[0],
        "in-sample": edit_direction(z, y, preserve_sparsity=kept),
    }[poles]
    base = decode(z)
    steps = torch.stack([decode(z + direction) - base, decode(2 * z) - base], dim=2)
    basis = torch.linalg.qr(steps)[0]
    rest = noise(*base.shape)
    rest = rest - (basis @ (basis.mT @ rest[:, :, None]))[:, :, 0]
    table = doses(z, decode, base + dose * steps[:, :, 0] + rest, y, g)

    squares = {"alone": steps[:, :, 0].square().sum(), "joint": None}
    s, t = steps.unbind(2)
    squares["joint"] = squares["alone"] - (s * t).sum() ** 2 / t.square().sum()
    error = dose**2 * squares["alone"] + rest.square().sum()
    for scaling, square in squares.items():
        wanted = [-2 * dose * square / error, dose, dose**2 * square / error if dose > 0 else 0]
        np.testing.assert_allclose(of(table, scaling=scaling, support=support, poles=poles), wanted, atol=1e-9)
    assert of(table, weight="relative", support=support, poles=poles)[1] == pytest.approx(dose)


@pytest.mark.parametrize("sentences", [3, 9])
def test_in_pure_noise_a_token_is_the_nth_part_of_its_pole(sentences):
    """Words that mean nothing, and an error that goes along with half of the latents' coordinates.

    In-sample the slope is (1 - 1/K) / n of scaling's and the best dose is scaling's, -1/2. Cross-fitted both are 0.
    """
    words, f = 6, 2000
    y, g = torch.arange(words).repeat_interleave(sentences), torch.arange(sentences).repeat(words)
    half = (torch.arange(f) % 2).double()
    found = {"in-sample": [], "cross-fitted": []}
    for seed in range(6):
        z = noise(len(y), f, seed=seed)
        table = doses(z, lambda v: v, (1 - half) * z, y, g)
        for poles, rows in found.items():
            rows.append(of(table, poles=poles)[:2])
    slope_of_scaling = 2.0  # 2 <e, t> / <e, e>, for e is t where it is not zero
    slopes, best = np.mean(found["in-sample"], axis=0)
    assert slopes == pytest.approx((1 - 1 / words) / sentences * slope_of_scaling, rel=0.03)
    assert best == pytest.approx(-0.5, rel=0.03)
    crossed = np.array(found["cross-fitted"])
    error = crossed.std(0, ddof=1) / np.sqrt(len(crossed))
    assert (np.abs(crossed.mean(0)) < 4 * error).all()
    assert np.abs(crossed).max() < 0.1


def test_mere_scaling_is_not_taken_for_missing_separation():
    z, y, g = crossed_latents()
    decode = linear_decoder()
    table = doses(z, decode, decode(1.1 * z), y, g)
    for poles in ("cross-fitted", "in-sample"):
        assert of(table, poles=poles)[1] > 0.01
        for weight in ("tokens", "relative"):
            np.testing.assert_allclose(of(table, poles=poles, weight=weight, scaling="joint"), 0, atol=1e-9)


def test_in_sample_the_doses_are_those_of_chapter_five():
    z, y, g = crossed_latents(3)
    decode = linear_decoder()
    target = decode(z + 0.3 * edit_direction(z, y) + 0.1 * z) + 0.2 * noise(len(z), 12)
    table = doses(z, decode, target, y, g, draws=(5,))
    for arm in MOVED:
        for support in ("free", "kept"):
            best = optimum(z, y, decode, target, arm=arm, seed=5, preserve_sparsity=support == "kept", n_resamples=2)
            wanted = [best.slope, best.alpha, best.gain if best.alpha > 0 else 0]
            np.testing.assert_allclose(
                of(table, representation=arm, poles="in-sample", support=support), wanted, rtol=1e-9
            )
        beside = dose_beyond_scaling(z, y, decode, target, arm=arm, seed=5, n_resamples=2)
        joint = of(table, representation=arm, poles="in-sample", scaling="joint")
        np.testing.assert_allclose(joint[1:], [beside.alpha, beside.gain if beside.alpha > 0 else 0], rtol=1e-9)


def test_the_joint_slope_is_that_of_the_error_left_by_scaling():
    """Along the part of the step that scaling cannot make, in error space: by finite differences and lstsq."""
    z, y, g = crossed_latents(5)
    decode = linear_decoder()
    target = decode(z) + noise(len(z), 12)
    base, direction = decode(z), cross_fitted_direction(z, y, g)[0]
    step, scaled = ((decode(z + d) - base).reshape(-1).numpy() for d in (direction, z))
    part = step - scaled * np.linalg.lstsq(scaled[:, None], step, rcond=None)[0]
    error = (base - target).reshape(-1).numpy()
    up, down = (np.square(error + h * part).sum() for h in (1e-4, -1e-4))
    slope = of(doses(z, decode, target, y, g), scaling="joint")[0]
    assert slope == pytest.approx((up - down) / 2e-4 / np.square(error).sum(), rel=1e-6)


def test_the_error_is_the_jackknife_of_leaving_each_group_out():
    z, y, g = crossed_latents(4, copies=2)
    decode = linear_decoder()
    target = decode(z + 0.2 * edit_direction(z, y)) + noise(len(z), 12)
    table = doses(z, decode, target, y, g)
    error, step = decode(z) - target, decode(z + cross_fitted_direction(z, y, g)[0]) - decode(z)
    for weight in ("tokens", "relative"):
        per_token = torch.stack([(a * b).sum(1) for a, b in ((error, error), (error, step), (step, step))])
        per_token = per_token / (per_token[0] if weight == "relative" else 1)
        without = []
        for left_out in range(5):
            a, b, c = per_token[:, g != left_out].sum(1).tolist()
            without.append([2 * b / a, -b / c, b * b / (a * c) if b < 0 else 0])
        spread = np.square(without - np.mean(without, axis=0)).sum(0)
        np.testing.assert_allclose(of(table, "error", weight=weight), np.sqrt(4 / 5 * spread), rtol=1e-9)


def test_draws_of_chance_are_averaged_as_values():
    z, y, g = crossed_latents()
    decode, target = linear_decoder(), linear_decoder(seed=8)(z)
    both, *each = (doses(z, decode, target, y, g, draws=draws) for draws in ((3, 4), (3,), (4,)))
    np.testing.assert_allclose(both["value"], (each[0]["value"] + each[1]["value"]) / 2, rtol=1e-9)
    poles = both.xs("poles", level="representation")
    assert np.array_equal(poles["error"], each[1].xs("poles", level="representation")["error"])


# ---- invariances --------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_rotating_the_target_or_reordering_tokens_changes_nothing(seed):
    z, y, g = crossed_latents(seed)
    decode = linear_decoder()
    target = decode(z) + noise(len(z), 12, seed=seed)
    table = doses(z, decode, target, y, g)
    turn = torch.linalg.qr(noise(12, 12, seed=seed))[0]
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    renamed = torch.tensor([7, 8, 30, 31])[y[order]]
    for other in (
        doses(z, lambda v: 3 * decode(v) @ turn, 3 * target @ turn, y, g),
        doses(z[order], decode, target[order], renamed, g[order] + 5),
    ):
        np.testing.assert_allclose(table[["value", "error"]], other[["value", "error"]], rtol=1e-6, atol=1e-9)


def test_relative_errors_ignore_the_size_of_each_token():
    """As a decoder that restores each token's own norm gives them."""
    z, y, g = crossed_latents()
    decode = linear_decoder()
    target, sizes = decode(z) + noise(len(z), 12), torch.arange(1, len(z) + 1)[:, None]
    plain = doses(z, decode, target, y, g)
    sized = doses(z, lambda v: sizes * decode(v), sizes * target, y, g)
    for scaling in ("alone", "joint"):
        a, b = (of(table, weight="relative", scaling=scaling) for table in (plain, sized))
        np.testing.assert_allclose(a, b, rtol=1e-9)
        assert not np.allclose(of(plain, scaling=scaling)[0], of(sized, scaling=scaling)[0], rtol=1e-3)


def test_tokens_that_do_not_move_are_not_counted():
    z, y, g = crossed_latents()
    decode = linear_decoder()
    target = decode(z) + noise(len(z), 12)
    table = doses(z, decode, target, y, g)
    more = torch.cat([z, 5 * z[:7]]), torch.cat([target, target[:7]]), torch.cat([y, torch.full((7,), -1)])
    other = doses(more[0], decode, more[1], more[2], torch.cat([g, torch.arange(7)]))
    np.testing.assert_allclose(table[["value", "error"]], other[["value", "error"]], rtol=1e-6, atol=1e-12)


# ---- no value, and refusals ---------------------------------------------------------------------


def test_where_there_is_no_value_there_is_a_reason():
    z, y, g = crossed_latents()
    decode = linear_decoder()
    target = decode(z) + noise(len(z), 12)
    labellings = {
        "words": y,
        "one word": torch.zeros_like(y),
        "no word": torch.full_like(y, -1),
        "a sentence each": torch.where(y == g, y, -1),
        "one pole without group 0": torch.where((y == 0) | (g == 0), y, -1),
    }
    table = doses_under_choices(z, decode, target, labellings, g, seeds=(0,))
    assert not table.duplicated(CHOICES).any()
    assert (table.groupby("labels").size() == 3 * 3 * 2**4).all()
    assert (table["value"].isna() == (table["reason"] != "")).all()
    crossed = table["poles"] == "cross-fitted"
    known = table["value"].notna().groupby([table["labels"], crossed]).all().unstack()
    assert known.loc["words"].all()
    assert known.loc["one pole without group 0"].all(), "the tokens of the other groups are left"
    assert not known.loc[["one word", "no word"]].any(axis=None)
    assert known.loc["a sentence each"].to_dict() == {True: False, False: True}
    assert table.loc[table["value"].isna(), "error"].isna().all()


def test_what_cannot_be_compared_has_a_reason():
    z, y, g = crossed_latents()
    decode = linear_decoder()
    perfect = doses(z, decode, decode(z), y, g)
    assert perfect["value"].isna().all()
    assert perfect["reason"].str.contains("no error").all()
    target = decode(z) + noise(len(z), 12)
    one_perfect = doses(z, decode, torch.cat([decode(z)[:1], target[1:]]), y, g)
    assert (one_perfect["value"].isna() == (one_perfect.index.get_level_values("weight") == "relative")).all()
    same = doses(z, lambda v: decode(0 * v), target, y, g)
    assert same["reason"].str.contains("poles coincide").all()


def test_one_group_has_no_jackknife():
    z, y, _ = crossed_latents()
    decode = linear_decoder()
    table = doses(z, decode, decode(z) + noise(len(z), 12), y, torch.zeros_like(y))
    assert np.isfinite(of(table, poles="in-sample")).all()
    assert np.isnan(of(table, "error", poles="in-sample")).all()
    assert np.isnan(of(table)).all()


def test_impossible_requests_are_refused():
    z, y, g = crossed_latents()
    decode = linear_decoder()
    with pytest.raises(InterventionError, match="global_scaling"):
        cross_fitted_direction(z, y, g, "global_scaling")
    with pytest.raises(InterventionError, match="groups"):
        cross_fitted_direction(z, y, g[:3])
    with pytest.raises(InterventionError, match="1 cluster"):
        cross_fitted_direction(z, torch.zeros_like(y), g)
    with pytest.raises(InterventionError, match="seeds"):
        doses(z, decode, decode(z), y, g, draws=())
    with pytest.raises(InterventionError, match="NaN"):
        doses(torch.full_like(z, torch.nan), decode, decode(z), y, g)
