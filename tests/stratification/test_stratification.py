"""The rank measures against plain definitions, known answers, invariances and refusals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import ActivationError, EmptySpectrumError, SaemaError
from saema_utils.evidence.rank import (
    advantage,
    concept_rows,
    controls_table,
    movement,
    over_concepts,
    seeds_needed,
    stratification_table,
)
from saema_utils.evidence.verdicts import CONTRADICTED, NO_EFFECT, SUPPORTED, TOO_FEW, judge_alone
from saema_utils.rulers.strata import tucker_tensor
from saema_utils.runtime import PROGRESS_FILE
from saema_utils.saes.coders import RandomDictionary
from saema_utils.stratification import grams as token_grams
from saema_utils.stratification import noise as noise_engine
from saema_utils.stratification.anatomy import only_distinct, principal_angles, shuffle_latents, where_rank_moves
from saema_utils.stratification.grams import cloud_grams, eigenvalues, one_thread_each
from saema_utils.stratification.noise import COLUMNS, noise_rank_sweep, sweep_clouds
from saema_utils.stratification.spectra import (
    DEFAULT_RTOL,
    covariance_spectrum,
    effective_rank,
    measure_spectrum,
    numerical_rank,
    participation_ratio,
    unfold,
)
from saema_utils.stratification.token_cloud import TokenCloud

SHAPES = [(7, 5, 300), (7, 5, 20), (40, 30, 9), (1, 6, 8), (6, 1, 8), (2, 2, 1)]
seeds = st.integers(0, 10_000)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30).map(lambda v: torch.tensor(sorted(v)[::-1]).double())


def random_tensor(shape, seed=0, density=1.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=draw, dtype=torch.float64)
    return (tensor * (torch.rand(shape, generator=draw) < density)).to(dtype)


def plain_spectrum(tensor, mode):
    """numpy's covariance of the unfolding, in full, and its eigenvalues."""
    rows = np.moveaxis(tensor.double().numpy(), mode, 0).reshape(tensor.shape[mode], -1)
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(rows)))[::-1]
    return values[: min(rows.shape)]


# ---- spectra -----------------------------------------------------------------------------------


def test_unfolding_puts_one_index_in_rows():
    tensor = torch.arange(24).reshape(2, 3, 4)
    assert unfold(tensor, 0).tolist() == tensor.reshape(2, 12).tolist()
    assert unfold(tensor, 1)[2].tolist() == tensor[:, 2].reshape(-1).tolist()
    assert unfold(tensor, 2).tolist() == [tensor[:, :, f].reshape(-1).tolist() for f in range(4)]


@pytest.mark.parametrize("density", [1.0, 0.02])
@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_is_that_of_the_plain_covariance(shape, density):
    tensor = random_tensor(shape, density=density)
    for mode in range(3):
        found, expected = covariance_spectrum(tensor, mode).numpy(), plain_spectrum(tensor, mode)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(expected[0], 1e-30))
        assert (np.diff(found) <= 0).all()
        assert (found >= 0).all()


def test_without_centring_it_is_the_second_moment():
    tensor = random_tensor((4, 3, 10)) + 2
    rows = unfold(tensor, 2).double()
    expected = torch.linalg.eigvalsh(rows @ rows.T / 11).flip(0)
    torch.testing.assert_close(covariance_spectrum(tensor, 2, center=False), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0, 1, 2]), st.floats(1e-3, 1e3))
def test_spectrum_ignores_order_and_rotation_and_scales_with_the_square(seed, mode, scale):
    tensor = random_tensor((5, 4, 12), seed, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed + 1)
    expected = covariance_spectrum(tensor, mode)
    close = {"rtol": 1e-8, "atol": 1e-9 * float(expected[0])}
    turned = torch.linalg.qr(torch.randn(12, 12, generator=draw, dtype=torch.float64))[0]
    if mode == 2:  # rotating features turns the covariance; rotating columns would not commute with centring
        torch.testing.assert_close(covariance_spectrum(tensor @ turned, mode), expected, **close)
    shuffled = tensor[torch.randperm(5, generator=draw)][:, torch.randperm(4, generator=draw)]
    torch.testing.assert_close(covariance_spectrum(shuffled, mode), expected, **close)
    torch.testing.assert_close(covariance_spectrum(scale * tensor, mode) / scale**2, expected, **close)


def test_a_constant_offset_of_each_row_is_centred_away():
    tensor = random_tensor((4, 5, 30), dtype=torch.float64)
    expected = covariance_spectrum(tensor, 2)
    moved = covariance_spectrum(tensor + 1e6 * torch.arange(30), 2)
    torch.testing.assert_close(moved, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_known_multilinear_rank_is_recovered(dtype, seed):
    tensor = tucker_tensor((14, 9, 80), (4, 3, 7), seed=seed, dtype=dtype)
    assert [numerical_rank(covariance_spectrum(tensor, mode)) for mode in range(3)] == [4, 3, 7]


def test_bfloat16_recovers_the_rank_at_its_own_tolerance():
    tensor = tucker_tensor((30, 9, 200), (3, 2, 4), seed=1, dtype=torch.bfloat16)
    assert [numerical_rank(covariance_spectrum(tensor, mode), rtol=1e-4) for mode in range(3)] == [3, 2, 4]


def test_equal_tokens_have_no_variance_at_all():
    tensor = torch.full((3, 4, 50), 0.1) * torch.arange(50)
    assert covariance_spectrum(tensor, 2).tolist() == [0.0] * 12
    assert covariance_spectrum(torch.zeros(3, 4, 5), 0).tolist() == [0.0] * 3


def test_duplicate_tokens_add_no_rank():
    few = random_tensor((3, 1, 40))
    assert numerical_rank(covariance_spectrum(few.repeat(5, 1, 1), 2)) == 2


def test_block_size_does_not_matter(monkeypatch):
    tensor = random_tensor((6, 5, 400))
    whole = [covariance_spectrum(tensor, mode) for mode in range(3)]
    monkeypatch.setattr(token_grams, "_BLOCK_BYTES", 1)
    for mode in range(3):
        torch.testing.assert_close(covariance_spectrum(tensor, mode), whole[mode], rtol=1e-10, atol=1e-12)


def test_many_latents_of_few_tokens_need_no_square_of_latents():
    # 200,000 x 200,000 in float64 would take 320 GB.
    tensor = random_tensor((5, 4, 200_000))
    values = covariance_spectrum(tensor, 2)
    assert values.shape == (20,)
    assert float(values.sum()) == pytest.approx(float(tensor.view(20, -1).double().var(0).sum()), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([6, 40, 600]), st.sampled_from([1.0, 0.02]))
def test_one_token_matrix_serves_all_modes_of_a_masked_tensor(seed, width, density):
    tensor = random_tensor((6, 4, width), seed, density)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask.view(-1)[:3] = True
    cloud = TokenCloud.of(tensor, mask)
    grams = cloud_grams(cloud.points, cloud, (0, 1, 2))
    for mode, (gram, floor, length) in grams.items():
        zeroed = tensor * mask[..., None] if mode < 2 else tensor[mask][:, None]
        expected = covariance_spectrum(zeroed, mode)
        found = eigenvalues([gram], [floor])[0][:length]
        assert len(found) == len(expected)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * max(float(expected[0]), 1e-30))


@pytest.mark.parametrize("size", [300, 2100])
def test_one_thread_finds_a_known_spectrum_of_small_and_of_large_matrices(size):
    known = torch.linspace(1, 0, size, dtype=torch.float64)
    mirror = torch.nn.functional.normalize(torch.ones(size, dtype=torch.float64), dim=0)
    half = torch.diag(known) - 2 * torch.outer(mirror, mirror * known)
    with one_thread_each(torch.device("cpu")):
        (found,) = eigenvalues([half - 2 * torch.outer(half @ mirror, mirror)], [1e-12])
    torch.testing.assert_close(found, known, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("tensor", "mode"),
    [
        (torch.zeros(1, 1, 5), 2),
        (torch.zeros(0, 3, 5), 0),
        (torch.zeros(2, 3, 0), 2),
        (torch.zeros(2, 3, 4), 3),
        (torch.zeros(2, 3, 4), -1),
        (torch.tensor(1.0), 0),
        (torch.full((2, 3, 4), math.nan), 1),
        (torch.full((2, 3, 400), math.inf), 2),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), 0),
    ],
)
def test_tensors_without_a_covariance_are_refused(tensor, mode):
    with pytest.raises(ActivationError) as caught:
        covariance_spectrum(tensor, mode)
    assert "\n" not in str(caught.value)


# ---- ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 17])
def test_a_flat_spectrum_has_full_rank_in_every_sense(n):
    flat = torch.ones(n)
    assert numerical_rank(flat) == n
    assert effective_rank(flat) == pytest.approx(n)
    assert participation_ratio(flat) == pytest.approx(n)


def test_ranks_of_a_spectrum_worked_by_hand():
    spectrum = torch.tensor([8.0, 4.0, 4.0, 0.0])
    assert effective_rank(spectrum) == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4): 1.5 bits
    assert participation_ratio(spectrum) == pytest.approx(16**2 / (64 + 16 + 16))
    assert numerical_rank(spectrum) == 3


@given(spectra, st.floats(1e-3, 1e3))
def test_ranks_ignore_scale_and_keep_their_order(spectrum, scale):
    for measure in (effective_rank, participation_ratio):
        assert measure(scale * spectrum) == pytest.approx(measure(spectrum), rel=1e-9)
    participation, effective = participation_ratio(spectrum), effective_rank(spectrum)
    assert 1 - 1e-9 <= participation <= effective * (1 + 1e-9)  # Renyi entropies of order 2 and 1
    assert effective <= (spectrum > 0).sum() * (1 + 1e-9)
    assert numerical_rank(spectrum, rtol=0) == len(spectrum)
    together = measure_spectrum(spectrum)
    assert together["effective_rank"] == pytest.approx(effective)
    assert together["rank"] == numerical_rank(spectrum)


def test_tolerance_is_a_share_of_the_largest():
    spectrum = torch.tensor([1.0, 2 * DEFAULT_RTOL, 0.5 * DEFAULT_RTOL])
    assert numerical_rank(spectrum) == 2
    assert numerical_rank(1e9 * spectrum, rtol=1e-7) == 3
    assert numerical_rank(torch.zeros(4)) == 0


@pytest.mark.parametrize("measure", [effective_rank, participation_ratio])
@pytest.mark.parametrize("empty", [torch.zeros(3), torch.zeros(0), torch.zeros(2, 2)])
def test_shares_of_nothing_are_refused(measure, empty):
    with pytest.raises(EmptySpectrumError):
        measure(empty)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, math.nan]), torch.tensor([math.inf])])
def test_broken_spectra_are_refused(bad):
    with pytest.raises(ActivationError):
        numerical_rank(bad)
    with pytest.raises(EmptySpectrumError):
        numerical_rank(torch.zeros(0))
    with pytest.raises(ActivationError, match="rtol"):
        numerical_rank(torch.ones(2), rtol=-1)


# ---- noise -------------------------------------------------------------------------------------


def identity(x):
    return x


def sweep(residual, encode=identity, mask=None, levels=(0.0, 0.5, 2.0), noise_seeds=(0, 1), **options):
    mask = torch.ones(residual.shape[:2], dtype=torch.bool) if mask is None else mask
    return noise_rank_sweep(residual, encode, mask=mask, noise_levels=levels, seeds=noise_seeds, **options)


def test_sweep_has_the_columns_and_one_row_for_each_case():
    table = sweep(random_tensor((5, 4, 9)), concept="months", representation="sae")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * 3 * 2
    assert not table.duplicated(["mode", "noise", "seed"]).any()
    assert set(table["concept"]) == {"months"}
    assert set(table["representation"]) == {"sae"}
    clean = table[table["noise"] == 0].drop(columns="seed").drop_duplicates()
    assert len(clean) == 3  # deterministic: the same for every seed


def test_sweep_measures_what_the_plain_loop_measures():
    residual = random_tensor((5, 4, 9))
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) < 0.8
    table = sweep(residual, torch.relu, mask).set_index(["mode", "noise", "seed"])
    for level in (0.0, 2.0):
        for seed in (0, 1):
            noisy = TokenCloud.of(residual, mask).noisy(level, seed)
            latents = torch.zeros(5, 4, 9)
            latents[mask] = noisy.relu()
            for mode in range(3):
                spectrum = covariance_spectrum(latents if mode < 2 else latents[mask][:, None], mode)
                row = table.loc[(mode, level, seed)]
                assert row["rank"] == numerical_rank(spectrum)
                assert row["effective_rank"] == pytest.approx(effective_rank(spectrum), rel=1e-6)
                assert row["participation_ratio"] == pytest.approx(participation_ratio(spectrum), rel=1e-6)
                assert row["l0"] == pytest.approx(float((noisy > 0).sum(1).float().mean()))


def test_noise_is_in_units_of_the_unmasked_rms():
    residual = random_tensor((5, 4, 9))
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[0, 0] = False
    residual[0, 0] = 1e9
    table = sweep(residual, mask=mask)
    rms = float(residual[mask].double().square().mean().sqrt())
    np.testing.assert_allclose(table["noise_rms"], table["noise"] / rms, rtol=1e-9)


def test_noise_is_paired_across_representations_levels_and_masks():
    residual = random_tensor((5, 4, 9))
    cloud = TokenCloud.of(residual, torch.ones(5, 4, dtype=torch.bool), "days")
    draw = cloud.noise(3)
    torch.testing.assert_close(cloud.noisy(2.0, 3), cloud.points + 2 * draw)
    assert torch.equal(cloud.noise(3), draw)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1] = False
    assert torch.equal(TokenCloud.of(residual, mask, "days").noise(3), draw.view(5, 4, 9)[mask])
    assert not torch.equal(TokenCloud.of(residual, mask, "months").noise(3), draw.view(5, 4, 9)[mask])
    assert draw.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_tokens_of_one_context_count_once(scale):
    """Rounding parts equal contexts by about 1e-6 of the RMS, wherever they stand; different ones lie far apart."""
    first = random_tensor((8, 1, 64), seed=1)
    rounding = 1e-6 * random_tensor((16, 1, 64), seed=2)
    copies = torch.cat([first, first, first]) + torch.cat([torch.zeros_like(first), rounding])
    cloud = TokenCloud.of(scale * copies, torch.ones(24, 1, dtype=torch.bool))
    assert cloud.first_of_each.tolist() == list(range(8))
    assert torch.equal(cloud.distinct.prompt, torch.arange(8))
    apart = first + 1e-3 * random_tensor(tuple(first.shape), seed=3)
    cloud = TokenCloud.of(scale * torch.cat([first, apart]), torch.ones(16, 1, dtype=torch.bool))
    assert len(cloud.first_of_each) == 16


def test_contexts_are_told_apart_as_copies_of_points_are():
    """Chapters 3 and 4 count the same contexts."""
    points = random_tensor((6, 4, 64), seed=4).double()
    points[3:, :2] = points[:3, :2] + 3e-6 * random_tensor((3, 2, 64), seed=5)
    points[3:, 2] = points[:3, 2] + 3e-5 * random_tensor((3, 64), seed=6)
    cloud = TokenCloud.of(points, torch.ones(6, 4, dtype=torch.bool))
    kept = first_copies(pairwise_distances(cloud.points))
    assert cloud.first_of_each.tolist() == kept.nonzero()[0].tolist()
    assert kept.sum() == 24 - 6


def test_modes_may_be_asked_for_in_any_order():
    points = random_tensor((4, 3, 20))
    cloud = TokenCloud.of(points, torch.ones(4, 3, dtype=torch.bool))
    forward, backward = (cloud_grams(cloud.points, cloud, modes) for modes in ((0, 1, 2), (2, 1, 0)))
    assert list(backward) == [2, 1, 0]
    for mode, (gram, floor, length) in forward.items():
        assert torch.equal(backward[mode][0], gram)
        assert backward[mode][1:] == (floor, length)


def test_many_concepts_at_once_give_the_rows_of_single_calls():
    tensors = {name: random_tensor((5, n, 30), n) for name, n in (("a", 3), ("b", 4))}
    mask = {name: torch.ones(t.shape[:2], dtype=torch.bool) for name, t in tensors.items()}
    clouds = [TokenCloud.of(t, mask[name], name) for name, t in tensors.items()]
    encoders = {"residual": identity, "sae": torch.relu}
    together = sweep_clouds(clouds, encoders, noise_levels=(0.0, 1.0), seeds=(0, 1))
    for (name, representation), part in together.groupby(["concept", "representation"]):
        alone = sweep(tensors[name], encoders[representation], levels=(0.0, 1.0), concept=name)
        assert part["rank"].tolist() == alone["rank"].tolist()
        np.testing.assert_allclose(part["effective_rank"], alone["effective_rank"], rtol=1e-8)


def five_clouds() -> list[TokenCloud]:
    mask = torch.ones(4, 2, dtype=torch.bool)
    return [TokenCloud.of(random_tensor((4, 2, 30), seed), mask, str(seed)) for seed in range(5)]


def test_concepts_are_encoded_together_as_far_as_memory_allows(monkeypatch):
    """Five concepts of eight tokens, room for the latents of twenty tokens: two, two and one."""
    monkeypatch.setattr(noise_engine, "_ENCODED_BYTES", 4 * 30 * 20)
    sizes = []

    def encode(x):
        sizes.append(len(x))
        return x

    sweep_clouds(five_clouds(), {"residual": encode}, noise_levels=(0.0, 1.0), seeds=(0,))
    assert sorted(sizes) == [1, 8, 8, 16, 16, 16, 16]  # one token first, to learn how wide latents are


def test_eigenproblems_are_collected_as_far_as_memory_allows(monkeypatch):
    """A concept's three matrices take 672 bytes; with room for 1000, two concepts are solved together."""
    monkeypatch.setattr(noise_engine, "_SOLVED_BYTES", 1000)
    solved, solve = [], noise_engine.eigenvalues

    def counted(grams, floors):
        solved.append(sum(gram.nbytes for gram in grams))
        return solve(grams, floors)

    monkeypatch.setattr(noise_engine, "eigenvalues", counted)
    sweep_clouds(five_clouds(), {"residual": identity}, noise_levels=(1.0,), seeds=(0,))
    one = 8 * (8 * 8 + 4 * 4 + 2 * 2)
    assert solved == [2 * one, 2 * one, one]


def test_progress_ends_where_it_said(monkeypatch, tmp_path):
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress"))
    encoders = {"residual": identity, "sae": RandomDictionary(30, 64, 4).encode}
    sweep_clouds(five_clouds(), encoders, noise_levels=(0.0, 1.0, 2.0), seeds=(0, 1), description="sweep")
    assert (tmp_path / "progress").read_text() == "sweep\t50\t50"  # 2 encoders, 5 concepts, 1 + 2 x 2 draws


def test_results_do_not_depend_on_the_number_of_threads():
    residual, before = random_tensor((6, 5, 80)), torch.get_num_threads()
    tables = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tables.append(sweep(residual, torch.relu))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    # a library may sum in another order on more threads: ranks stay, and the rest to the last digits
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


def test_shaped_noise_has_the_length_of_isotropic_noise():
    cloud = TokenCloud.of(random_tensor((5, 4, 9)), torch.ones(5, 4, dtype=torch.bool))
    shape = torch.diag(torch.tensor([3.0] + [0.01] * 8))
    torch.testing.assert_close(cloud.noise(0, shape).norm(dim=1), cloud.noise(0).norm(dim=1))
    assert cloud.noise(0, shape)[:, 0].abs().mean() > 50 * cloud.noise(0, shape)[:, 1].abs().mean()


def test_silent_latents_give_rank_zero_and_no_effective_rank():
    table = sweep(random_tensor((3, 4, 5)), torch.zeros_like)
    assert (table["rank"] == 0).all()
    assert table["effective_rank"].isna().all()


@pytest.mark.parametrize(
    "change",
    [
        {"mask": torch.zeros(5, 4, dtype=torch.bool)},
        {"mask": torch.ones(4, 5, dtype=torch.bool)},
        {"levels": (-1.0,)},
        {"levels": ()},
        {"levels": (math.nan,)},
        {"levels": (0.0, 1.0, 1.0)},
        {"noise_seeds": ()},
        {"modes": (3,)},
        {"modes": ()},
        {"encode": lambda x: x * math.nan},
        {"encode": lambda x: x[:1]},
        {"encode": lambda x: x.sum()},
    ],
)
def test_sweeps_that_cannot_be_measured_are_refused(change):
    with pytest.raises(SaemaError) as caught:
        sweep(random_tensor((5, 4, 9)), **change)
    assert "\n" not in str(caught.value)


def test_a_nan_is_refused_where_it_counts_and_ignored_where_it_is_masked():
    residual, mask = random_tensor((5, 4, 9)), torch.ones(5, 4, dtype=torch.bool)
    residual[2, 2, 0] = math.nan
    with pytest.raises(ActivationError, match="NaN"):
        sweep(residual, mask=mask)
    mask[2, 2] = False
    assert sweep(residual, mask=mask)["effective_rank"].notna().all()


# ---- anatomy -----------------------------------------------------------------------------------


def test_principal_angles_of_a_known_turn():
    turn = math.radians(30)
    a = torch.eye(5, 2).double()
    b = torch.tensor([[math.cos(turn), 0], [0, 1], [math.sin(turn), 0], [0, 0], [0, 0]]).double()
    torch.testing.assert_close(principal_angles(a, b), torch.tensor([0.0, 30.0]).double(), atol=1e-6, rtol=0)
    assert float(principal_angles(a, torch.eye(5).double()[:, 3:]).min()) == pytest.approx(90)
    with pytest.raises(ActivationError):
        principal_angles(a, torch.eye(4, 2).double())


def test_shuffling_keeps_values_and_sparsity_of_every_token():
    cloud = TokenCloud.of(random_tensor((3, 4, 60), density=0.2), torch.ones(3, 4, dtype=torch.bool), "c")
    shuffled, same = shuffle_latents(cloud.points, cloud, seed=5)
    assert same is cloud
    assert torch.equal(shuffled.sort(1).values, cloud.points.sort(1).values)
    assert not torch.equal(shuffled, cloud.points)
    assert torch.equal(shuffle_latents(cloud.points, cloud, seed=5)[0], shuffled)


def test_distinct_contexts_are_found_and_the_gain_is_the_number_of_repeats():
    contexts = random_tensor((4, 1, 30))
    residual = torch.cat([contexts, contexts, contexts], dim=0)
    cloud = TokenCloud.of(residual, torch.ones(12, 1, dtype=torch.bool), "c")
    latents, tokens = only_distinct(cloud.points, cloud)
    assert torch.equal(latents, contexts[:, 0])
    assert tokens.prompt.tolist() == [0, 1, 2, 3]
    found = where_rank_moves([cloud], {"residual": identity}, level=0.5, seed=0).query("axis == 'position'").iloc[0]
    assert (found["rank_clean"], found["rank_gain"], found["n_distinct"]) == (3, 8, 4)


# ---- verdicts ----------------------------------------------------------------------------------


def rows(representation, ranks, effective, concept="c", n_seeds=8, rms=(0, 0.1, 0.9, 3)):
    return pd.DataFrame(
        {
            "concept": concept,
            "representation": representation,
            "mode": 2,
            "noise": 10.0 * level,
            "noise_rms": level,
            "seed": seed,
            "rank": rank,
            "effective_rank": value * (1 + 0.001 * seed * (level > 0)),
        }
        for seed in range(n_seeds)
        for level, rank, value in zip(rms, ranks, effective, strict=True)
    )


def test_the_first_noise_is_the_lowest_level_at_which_most_seeds_moved():
    def first_noise(table):
        return stratification_table(table)["first_noise"].iloc[0]

    table = rows("sae", (5, 5, 7, 7), (1, 1, 1, 1))
    assert first_noise(table) == 9
    table.loc[(table["noise"] == 9) & (table["seed"] < 4), "rank"] = 5  # only half of the seeds
    assert first_noise(table) == 30
    assert math.isnan(first_noise(rows("sae", (5, 5, 5, 5), (1, 1, 1, 1))))
    with pytest.raises(SaemaError, match="include 0"):
        first_noise(table[table["noise"] > 0])


def test_stratification_table_reads_range_onset_and_verdict():
    table = pd.concat([rows("sae", (5, 4, 7, 7), (3, 3, 4, 6)), rows("residual", (9, 9, 9, 9), (2, 2, 2, 2))])
    found = stratification_table(table).set_index("representation")
    assert found.loc["sae", ["rank_clean", "rank_min", "rank_max", "first_noise", "called"]].tolist() == [
        5,
        4,
        7,
        1.0,
        "stratified",
    ]
    assert found.loc["sae", "first_noise_rms"] == pytest.approx(0.1)
    assert found.loc["residual", "called"] == "smooth"
    assert math.isnan(found.loc["residual", "first_noise"])


def test_excursion_stops_at_one_rms_and_onset_counts_levels():
    moved = movement(rows("sae", (5, 5, 7, 7), (2, 2, 4, 400), n_seeds=1)).iloc[0]
    assert moved["excursion"] == pytest.approx(math.log(2))
    assert moved["onset"] == 2
    assert movement(rows("sae", (5, 5, 5, 5), (2, 2, 1, 2), n_seeds=1)).iloc[0]["onset"] == 4


@pytest.mark.parametrize(
    ("sae", "more", "sooner"),
    [((2, 3, 9, 9), SUPPORTED, SUPPORTED), ((2, 2, 3, 9), NO_EFFECT, NO_EFFECT), ((2, 2, 2, 2), CONTRADICTED, None)],
)
def test_the_test_against_controls_says_what_the_numbers_say(sae, more, sooner):
    ranks = (5, 6, 6, 6) if sae[1] == 3 else (5, 5, 6, 6)
    parts = [rows("sae", ranks, sae, c, n_seeds=10) for c in "abcdefghi"]
    parts += [rows(n, (5, 5, 6, 6), (2, 2, 3, 9), c, n_seeds=10) for n in ("residual", "pca") for c in "abcdefghi"]
    found = controls_table(pd.concat(parts))
    found = found[(found["control"] == "strongest control")].set_index(["concept", "statistic"])
    for concept in ("a", "all concepts"):
        assert found.loc[(concept, "excursion"), "verdict"] == more
        if sooner:
            assert found.loc[(concept, "onset"), "verdict"] == sooner
    assert (found["p_holm"] >= found["p"] - 1e-12).all()


def test_the_rows_over_concepts_are_corrected_for_their_number():
    gaps = np.full(9, 2.0) + np.arange(9)
    (alone,) = over_concepts({("excursion", "pca"): gaps})
    assert (alone["p"], alone["p_holm"], alone["verdict"]) == (2 / 512, 2 / 512, SUPPORTED)
    many = over_concepts({(s, c): gaps for s in ("excursion", "onset") for c in map(str, range(7))})
    assert [row["p_holm"] for row in many] == pytest.approx([14 * 2 / 512] * 14)
    assert {row["verdict"] for row in many} == {TOO_FEW}


@pytest.mark.parametrize("sign", [1, -1])
def test_contradicted_needs_a_small_p_as_supported_does(sign):
    assert judge_alone(sign - 0.1, sign + 0.1, 0.5, 0.2) == TOO_FEW
    assert judge_alone(sign - 0.1, sign + 0.1, 0.5, 0.01) == (SUPPORTED if sign > 0 else CONTRADICTED)


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize("statistic", ["excursion", "onset"])
def test_false_differences_are_rare_over_all_concepts_of_a_study(statistic, n_seeds):
    """Representations that differ by chance only: of 150 studies of nine concepts at most 5 % (and the chance of a
    count) may support or contradict it for any concept."""
    rng = np.random.default_rng(n_seeds)
    where = pd.MultiIndex.from_product([range(9), range(n_seeds), ("sae", "other")])
    wrong = 0
    for _ in range(150):
        # Whole levels near a threshold: with few seeds all of them often agree by chance.
        drawn = rng.integers(1, 3, len(where)) * 2.0 if statistic == "onset" else rng.normal(0, 1, len(where))
        moves = pd.DataFrame({"value": drawn}, index=where.set_names(["concept", "seed", "representation"]))
        gaps = advantage(moves.reset_index().rename(columns={"value": statistic}), statistic)["other"]
        found = concept_rows(statistic, "other", {c: part.to_numpy() for c, part in gaps.groupby("concept")})
        wrong += any(row["verdict"] in (SUPPORTED, CONTRADICTED) for row in found)
    assert wrong / 150 <= 0.05 + 2 * (0.05 * 0.95 / 150) ** 0.5


def test_enough_seeds_let_the_corrected_test_reject():
    for concepts in (1, 3, 9, 40):
        n = seeds_needed(concepts)
        assert concepts * 2.0**-n < 0.05 <= concepts * 2.0 ** -(n - 1)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_no_seeds_and_seeds_given_twice_are_refused(seeds):
    with pytest.raises(ActivationError, match="each once"):
        sweep(random_tensor((3, 4, 5)), torch.relu, noise_seeds=seeds)


def test_a_mode_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ActivationError, match=r"mode is 3 .* allowed: 0 to 2\."):
        unfold(torch.zeros(2, 3, 4), 3)


def test_two_columns_are_enough_and_one_is_not():
    """Two prompts of one position and two features: the prompts' unfolding has two columns."""
    points, place = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.arange(2)
    cloud = TokenCloud("c", points, place, torch.zeros(2, dtype=torch.long), (2, 1))
    square, _, length = cloud_grams(points, cloud, (0,))[0]
    assert torch.allclose(square, torch.cov(points.double()))
    assert length == 2
    with pytest.raises(ActivationError, match="1 column"):
        cloud_grams(points[:, :1], cloud, (0,))
