"""How far noise moves a rank: areas by hand, clouds whose spectrum is known, invariances, refusals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.errors import ActivationError
from saema_utils.stratification.movement import COLUMNS, LEVELS, MEASURES, mean_over_log, rank_movement
from saema_utils.stratification.noise import noise_rank_sweep
from saema_utils.stratification.spectra import effective_rank, participation_ratio
from saema_utils.stratification.token_cloud import TokenCloud

LOGS = np.log(LEVELS)
VARIANCES = (9.0, 4.0, 1.0, 0.25, 0.04, 0.01)
ALIKE, LAST_IS_LOUD = (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 100)
KINDS = 3  # isotropic noise on all tokens and on distinct ones, shaped noise on these
CHOICES = ["representation", "measure", "mode", "noise", "tokens", "change", "upto"]


def itself(x):
    return x


def random_points(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whitened(prompts, positions, width):
    """Points with mean zero and covariance exactly one, up to rounding."""
    x = random_points(prompts * positions, width).double()
    x = x - x.mean(0)
    root = torch.linalg.cholesky(torch.linalg.inv(x.T @ x / (len(x) - 1)))
    return (x @ root).float().view(prompts, positions, width)


def gaussian(variances, prompts=40, positions=25):
    return whitened(prompts, positions, len(variances)) * torch.tensor(variances).sqrt()


def turned(width):
    return torch.linalg.qr(random_points(width, width, seed=2).double())[0].float()


def table_of(residual, encode=itself, mask=None, seeds=(0,), **options):
    mask = torch.ones(residual.shape[:2], dtype=torch.bool) if mask is None else mask
    encoders = encode if isinstance(encode, dict) else {"code": encode}
    return rank_movement([TokenCloud.of(residual, mask, "made")], encoders, seeds=seeds, **options)


def pick(table, **where):
    """Values by measure; of all tokens (distinct ones under shaped noise, which knows no others), the feature mode,
    isotropic noise, signed, up to one RMS unless said."""
    tokens = "distinct" if where.get("noise") == "shaped" else "all"
    where = {"mode": "feature", "noise": "isotropic", "tokens": tokens, "change": "signed", "upto": 1.0} | where
    for name, value in where.items():
        table = table[table[name] == value]
    return table.set_index("measure")["value"]


def assert_same(found, expected, **close):
    wide = found.merge(expected, on=CHOICES, how="outer", suffixes=("", "_expected"))
    assert len(wide) == len(found) == len(expected)
    np.testing.assert_allclose(wide["value"], wide["value_expected"], **close)


# ---- areas -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_the_mean_over_log_of_a_line_is_its_middle(a, b):
    line = a + b * LOGS
    assert mean_over_log(line, np.array(LEVELS)) == pytest.approx(a + b * (LOGS[0] + LOGS[-1]) / 2)
    assert mean_over_log(line[:1], np.array(LEVELS[:1])) == pytest.approx(line[0])


def test_the_mean_over_log_of_a_constant_is_it_and_curves_are_averaged_one_by_one():
    curves = np.array([[2.5] * 3, [0.0, 1.0, 1.0]])
    # Two decades, of which the second is full and the first is climbed.
    assert mean_over_log(curves, np.array([0.01, 0.1, 1.0])) == pytest.approx([2.5, 0.75])


# ---- known answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variances", "gains"),
    [(VARIANCES, ALIKE), (VARIANCES, LAST_IS_LOUD), ((1.0, 1.0, 0.0), (1, 1, 12))],
    ids=["rises", "falls", "rises, then falls"],
)
def test_a_gaussian_cloud_moves_as_its_covariance_says(variances, gains):
    """Independent noise adds its variance to each direction before the encoder scales it."""
    found = table_of(gaussian(variances), lambda x: x * torch.tensor(gains))
    variances = np.array(variances)
    for name, rank in (("effective_rank", effective_rank), ("participation_ratio", participation_ratio)):
        spectra = [np.square(gains) * (variances + level**2 * variances.mean()) for level in (0.0, *LEVELS)]
        clean, *noisy = (math.log(rank(torch.from_numpy(spectrum))) for spectrum in spectra)
        for change, curve in (("signed", noisy - np.array(clean)), ("absolute", abs(noisy - np.array(clean)))):
            for n, upto in enumerate(LEVELS[1:], 2):
                value = pick(found, upto=upto, change=change)[name]
                assert value == pytest.approx(mean_over_log(curve[:n], np.array(LEVELS[:n])), abs=0.02)


def test_numerical_ranks_step_where_the_noise_passes_their_tolerance():
    """Four directions of variance 1 among eight: noise of s RMS adds s^2 / 2 to each, the strongest has 1 + s^2 / 2."""
    found = table_of(torch.cat([whitened(30, 20, 4), torch.zeros(30, 20, 4)], dim=2))
    share = np.square(LEVELS) / 2 / (1 + np.square(LEVELS) / 2)
    for name, tolerance in (("rank", 1e-6), ("rank@0.001", 1e-3), ("rank@0.01", 1e-2)):
        steps = np.where(share > tolerance, math.log(2), 0.0)
        for n, upto in enumerate(LEVELS[1:], 2):
            expected = mean_over_log(steps[:n], np.array(LEVELS[:n]))
            assert pick(found, upto=upto)[name] == pytest.approx(expected)


def test_shaped_noise_is_isotropic_for_a_round_cloud_and_keeps_a_long_one_in_shape():
    found = table_of(whitened(20, 15, 5))
    np.testing.assert_allclose(pick(found, noise="shaped"), pick(found), atol=1e-4)
    found = table_of(gaussian(VARIANCES))
    assert abs(pick(found, noise="shaped")["effective_rank"]) < pick(found)["effective_rank"] / 4


def test_a_code_that_rounds_the_noise_away_does_not_move():
    whole = torch.randint(-3, 4, (12, 8, 5), generator=torch.Generator().manual_seed(1)).float()
    found = table_of(whole, torch.round, levels=(0.001, 0.01))  # fifty standard deviations below a half
    assert (found["value"] == 0).all()
    assert len(found) == len(MEASURES) * 3 * KINDS * 2


def test_seeds_are_averaged_over_ranks_of_each_mode_of_a_masked_tensor():
    x, mask = random_points(6, 4, 7), torch.rand(6, 4, generator=torch.Generator().manual_seed(3)) < 0.8
    found, cloud = table_of(x, torch.relu, mask, seeds=(0, 1)), TokenCloud.of(x, mask, "made")
    levels = [0.0, *(level * cloud.rms for level in LEVELS)]
    sweep = noise_rank_sweep(x, torch.relu, mask=mask, noise_levels=levels, seeds=(0, 1), concept="made")
    for mode, name in enumerate(("prompt", "position", "feature")):
        for measure in ("effective_rank", "participation_ratio", "rank"):
            by_seed = sweep[sweep["mode"] == mode].pivot(index="seed", columns="noise", values=measure).to_numpy()
            expected = mean_over_log(np.log(by_seed[:, 1:] / by_seed[:, :1]), np.array(LEVELS))
            assert pick(found, mode=name)[measure] == pytest.approx(expected.mean())


# ---- invariances -------------------------------------------------------------------------------


def test_scale_of_the_stream_changes_nothing():
    x = gaussian(VARIANCES, 8, 6)
    assert_same(table_of(1000 * x), table_of(x), atol=1e-4)


def test_rotation_changes_nothing_in_the_feature_mode():
    x, turn = gaussian(VARIANCES), turned(len(VARIANCES))
    found = table_of(x, {"itself": itself, "turned": lambda x: x @ turn})
    for noise in ("isotropic", "shaped"):
        plain, after = (pick(found[found["representation"] == name], noise=noise) for name in ("itself", "turned"))
        np.testing.assert_allclose(after, plain, atol=1e-4)
        # Of the stream itself: it meets another draw of the same noise, and 1000 tokens leave little of that.
        before = pick(table_of(x @ turn), noise=noise)
        smooth = ["effective_rank", "participation_ratio"]
        np.testing.assert_allclose(before[smooth], plain[smooth], atol=0.02)


def test_order_of_the_prompts_does_not_matter():
    x = gaussian(VARIANCES)
    found, shuffled = table_of(x), table_of(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(4))])
    for mode in ("feature", "position"):
        smooth = ["effective_rank", "participation_ratio"]
        np.testing.assert_allclose(pick(shuffled, mode=mode)[smooth], pick(found, mode=mode)[smooth], atol=0.02)


def test_distinct_tokens_are_those_that_are_left_without_copies():
    x = random_points(4, 5, 6)
    doubled, mask = torch.cat([x, x]), torch.ones(8, 5, dtype=torch.bool)
    mask[4:] = False
    found, once = table_of(doubled), table_of(doubled, mask=mask)
    found, once = (table[table["noise"] == "isotropic"] for table in (found, once))
    tokens, alone = found[found["tokens"] == "distinct"], once[once["tokens"] == "all"].assign(tokens="distinct")
    assert_same(tokens, alone, atol=1e-4)
    assert_same(once[once["tokens"] == "distinct"], alone, atol=1e-12)
    # Noise parts the copies: eight prompts differ where four did.
    ranks = {kept: pick(found, mode="prompt", tokens=kept)["rank"] for kept in ("all", "distinct")}
    assert ranks == pytest.approx({"all": math.log(8 / 4), "distinct": 0})


# ---- every choice, and cases without a value ---------------------------------------------------


def test_every_choice_of_every_cloud_is_there_once_and_no_cloud_minds_the_others():
    clouds = [TokenCloud.of(random_points(4, 3, 5, seed=n), torch.ones(4, 3).bool(), f"made {n}") for n in range(2)]
    encoders = {"residual": itself, "cosine": torch.cos}
    table = rank_movement(clouds, encoders, seeds=(0, 1))
    assert list(table) == COLUMNS
    assert len(table) == 2 * 2 * len(MEASURES) * 3 * KINDS * 2 * 3
    assert not table.duplicated(["concept", *CHOICES]).any()
    assert table["value"].notna().all()
    assert (table["reason"] == "").all()
    wide = table.set_index(["concept", *CHOICES])["value"].unstack("change")
    assert (wide["absolute"] >= wide["signed"].abs() - 1e-12).all()
    alone = pd.concat([rank_movement([cloud], encoders, seeds=(0, 1)) for cloud in clouds], ignore_index=True)
    pd.testing.assert_frame_equal(table, alone)


@pytest.mark.parametrize("token", [torch.zeros(5), torch.arange(5.0)])
def test_one_distinct_token_has_no_ranks_and_says_so(token):
    table = table_of(token.expand(4, 3, 5), seeds=(0, 1))
    assert len(table) == len(table.drop_duplicates(CHOICES)) == len(MEASURES) * 3 * KINDS * 2 * 3
    assert table["value"].isna().all()
    assert (table["reason"] != "").all()


def test_equal_latents_have_no_rank_and_say_so():
    table = table_of(random_points(4, 3, 2), lambda x: torch.ones(len(x), 3))
    assert table["value"].isna().all()
    assert (table["reason"] != "").all()


def test_a_seed_without_rank_leaves_no_mean_of_the_others():
    x = random_points(12, 10, 4).sign()
    cloud = TokenCloud.of(x, torch.ones(12, 10).bool(), "made")
    quiet, loud = sorted((0, 1), key=lambda seed: float(cloud.noisy(1.0, seed).abs().max()))
    limit = sum(float(cloud.noisy(1.0, seed).abs().max()) for seed in (quiet, loud)) / 2
    assert float(cloud.noisy(0.3, loud).abs().max()) < limit
    dies = {"dies": lambda x: x * (x.abs().max() < limit)}
    assert pick(table_of(x, dies, seeds=(quiet,))).notna().all()
    both = table_of(x, dies, seeds=(quiet, loud))
    assert pick(both).isna().all()
    assert pick(both, upto=0.3).notna().all()
    assert ((both["reason"] == "") == both["value"].notna()).all()


@pytest.mark.parametrize("levels", [(), (0.1,), (0.0, 0.1), (1.0, 0.1), (0.1, 0.1), (0.1, math.inf)])
def test_levels_are_two_or_more_positive_numbers_ascending(levels):
    with pytest.raises(ActivationError):
        table_of(random_points(4, 3, 5), levels=levels)


def test_no_cloud_or_no_encoder_is_refused():
    with pytest.raises(ActivationError):
        rank_movement([], {"code": itself}, seeds=(0,))
    with pytest.raises(ActivationError):
        table_of(random_points(4, 3, 5), {})
