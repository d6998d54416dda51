"""Poles, arms and doses: facts of geometry, a toy decoder with a known optimum, and refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import peak_bytes
from saema_utils import geometry
from saema_utils.errors import InterventionError
from saema_utils.intervention.doses import (
    dose_beyond_scaling,
    dose_response,
    error_statistics,
    optimum,
    separation_error_correlation,
)
from saema_utils.intervention.edits import ARMS, apply_edit, edit_direction, scale_separation
from saema_utils.intervention.search import optimise_separability
from saema_utils.intervention.separation import (
    cluster_means,
    distance_matrix,
    gromov_wasserstein,
    mean_pole_distance,
    separation_scale_free,
)


def sparse_latents(seed: int = 0, n: int = 24, f: int = 40, k: int = 4, active: int = 6):
    """Non-negative latents with a few active entries each, labelled 0 to k-1."""
    draws = torch.Generator().manual_seed(seed)
    z = torch.rand(n, f, generator=draws, dtype=torch.float64) + 0.05
    kept = torch.zeros(n, f, dtype=torch.bool).scatter(1, torch.rand(n, f, generator=draws).topk(active).indices, True)
    return z * kept, torch.arange(n) % k


def linear_world(seed: int = 0, d: int = 12):
    z, y = sparse_latents(seed)
    draws = torch.Generator().manual_seed(seed + 1)
    weights = torch.randn(z.shape[1], d, generator=draws, dtype=torch.float64)
    bias = torch.randn(d, generator=draws, dtype=torch.float64)
    target = z @ weights + bias + 0.3 * torch.randn(len(z), d, generator=draws, dtype=torch.float64)
    return z, y, (lambda latents: latents @ weights + bias), target


seeds = st.integers(0, 10_000)


# ---- the edit ------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_alpha_zero_changes_nothing_at_all(seed):
    z, y = sparse_latents(seed)
    for preserve in (False, True):
        assert torch.equal(scale_separation(z, y, 0.0, preserve), z)


@given(seeds, st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_distances_between_poles_are_multiplied(seed, alpha):
    z, y = sparse_latents(seed)
    before = geometry.poles(z, y)
    after = geometry.poles(scale_separation(z, y, alpha), y)
    assert torch.allclose(torch.pdist(after), abs(1 + alpha) * torch.pdist(before), atol=1e-9)
    assert torch.allclose(after.mean(0), before.mean(0), atol=1e-12)


def test_minus_one_puts_all_poles_on_their_centre_and_keeps_clusters_rigid():
    z, y = sparse_latents()
    edited = scale_separation(z, y, -1.0)
    poles = cluster_means(edited, y, 4)
    assert torch.allclose(poles, poles.mean(0).expand_as(poles))
    own = y == 2
    assert torch.allclose(edited[own] - edited[own].mean(0), z[own] - z[own].mean(0))


def test_tokens_without_label_stay_and_do_not_count():
    z, y = sparse_latents()
    y[:5] = -1
    edited = scale_separation(z, y, 0.7)
    assert torch.equal(edited[:5], z[:5])
    assert torch.allclose(edited[5:], scale_separation(z[5:], y[5:], 0.7))


def test_names_of_labels_do_not_matter():
    z, y = sparse_latents()
    renamed = torch.tensor([70, 3, 41, 8])[y]
    assert torch.allclose(scale_separation(z, y, 0.4), scale_separation(z, renamed, 0.4))


@given(seeds, st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_support_and_sign_are_kept_when_asked(seed, alpha):
    z, y = sparse_latents(seed)
    edited = scale_separation(z, y, alpha, preserve_sparsity=True)
    assert torch.equal(edited != 0, z != 0)
    assert (edited >= 0).all()


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("arm", ["random_direction", "permuted_labels"])
def test_controls_move_every_token_as_far_as_the_poles_arm(arm, preserve):
    z, y = sparse_latents()
    y[3] = -1
    ours, theirs = (edit_direction(z, y, a, seed=5, preserve_sparsity=preserve) for a in ("poles", arm))
    assert torch.allclose(ours.norm(dim=1), theirs.norm(dim=1))
    assert not torch.allclose(ours, theirs)
    assert (theirs[3] == 0).all()
    if preserve:
        assert ((theirs == 0) | (z != 0)).all()


@pytest.mark.parametrize("arm", ["random_direction", "permuted_labels"])
def test_doses_with_the_support_kept_are_of_equal_size_too(arm):
    """Read off the table: with the identity as decoder and target, the error is the size of the edit."""
    z, y = sparse_latents()
    sizes = [
        dose_response(z, y, lambda v: v, z, alphas=[0.0, 0.01], arms=[a], preserve_sparsity=True)["mse"].iloc[1]
        for a in ("poles", arm)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-6)
    curvatures = [optimum(z, y, lambda v: v, z, arm=a, preserve_sparsity=True).curvature for a in ("poles", arm)]
    assert curvatures[1] == pytest.approx(curvatures[0], rel=1e-6)


def test_random_direction_stays_on_the_support_of_the_pole_direction():
    z, y = sparse_latents()
    ours, theirs = edit_direction(z, y, "poles"), edit_direction(z, y, "random_direction", seed=1)
    assert torch.equal(ours != 0, theirs != 0)


@given(seeds, st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_permuted_labels_never_give_a_cluster_its_own_pole(seed, draw):
    z, y = sparse_latents(seed)
    ours, theirs = edit_direction(z, y, "poles"), edit_direction(z, y, "permuted_labels", seed=draw)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    assert (cosine < 1 - 1e-6).all()


def test_one_seed_gives_one_direction():
    z, y = sparse_latents()
    same = [edit_direction(z, y, "random_direction", seed=s) for s in (4, 4, 5)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


# ---- measures of separation -----------------------------------------------------------------------


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_scale_free_separation_ignores_scale_shift_and_rotation(seed, scale):
    z, y = sparse_latents(seed)
    q = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], generator=torch.Generator().manual_seed(seed)).double())[0]
    assert separation_scale_free(scale * (z @ q) + 3.0, y) == pytest.approx(float(separation_scale_free(z, y)))
    assert mean_pole_distance(cluster_means(scale * z, y, 4)) == pytest.approx(
        scale * float(mean_pole_distance(cluster_means(z, y, 4)))
    )


def test_the_gradient_of_separation_is_the_same_every_time():
    """Two threads share the sums of a gradient; their order must not show, though rounding is large far from zero."""
    labels = torch.arange(512) % 3
    latents = 100 + torch.randn(512, 4608, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        leaf = latents.clone().requires_grad_()
        separation_scale_free(leaf, labels).backward()
        return leaf.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(50))
    finally:
        torch.set_num_threads(threads)


def test_scale_free_separation_is_one_without_scatter_and_zero_without_poles():
    y = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[0.0, 1], [0, 1], [2, 0], [2, 0]])
    assert separation_scale_free(apart, y) == pytest.approx(1)
    assert separation_scale_free(torch.tensor([[1.0], [-1], [1], [-1]]), y) == pytest.approx(0)
    assert torch.isnan(separation_scale_free(torch.ones(4, 2), y))


def test_global_scaling_moves_the_distance_and_not_the_scale_free_measure():
    z, y, decode, target = linear_world()
    table = dose_response(z, y, decode, target, alphas=[-0.5, 0, 0.5, 2], arms=["global_scaling"])
    assert np.ptp(table["aedp"]) > 0.5 * table["aedp"].mean()
    assert np.ptp(table["separation_scale_free"]) < 1e-12


def test_differentiable_measures_agree_with_chapter_four():
    z, y = sparse_latents()
    poles = cluster_means(z, y, 4)
    assert torch.allclose(poles, geometry.poles(z, y))
    assert float(mean_pole_distance(poles)) == pytest.approx(geometry.aedp(poles))


# ---- dose and response ----------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_error_is_the_parabola_of_three_numbers(arm):
    z, y, decode, target = linear_world()
    alphas = np.linspace(-1, 2, 13)
    measured = dose_response(z, y, decode, target, alphas=alphas, arms=[arm], seed=2)["mse"]
    a, b, c = error_statistics(z, edit_direction(z, y, arm, seed=2), decode, target).mean(0).tolist()
    assert np.allclose(measured, a + 2 * b * alphas + c * alphas**2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("arm", ARMS)
def test_best_dose_is_the_lowest_point_of_a_dense_grid(arm):
    z, y, decode, target = linear_world(3)
    best = optimum(z, y, decode, target, arm=arm)
    grid = best.alpha + np.linspace(-0.5, 0.5, 1001)
    curve = dose_response(z, y, decode, target, alphas=grid, arms=[arm])["mse"]
    assert grid[curve.argmin()] == pytest.approx(best.alpha, abs=1e-3)
    assert curve.min() == pytest.approx(best.mse_at_optimum, rel=1e-9)
    assert best.gain == pytest.approx(1 - best.mse_at_optimum / best.mse_at_zero)


@pytest.mark.parametrize("shift", [-0.4, 0.25])
def test_a_target_made_by_a_known_dose_is_found_again(shift):
    """The activations are those that the edited latents decode to: the best dose is that edit's."""
    z, y, decode, _ = linear_world()
    target = decode(scale_separation(z, y, shift))
    best = optimum(z, y, decode, target)
    assert best.alpha == pytest.approx(shift, abs=1e-9)
    assert best.mse_at_optimum == pytest.approx(0, abs=1e-15)
    assert best.gain == pytest.approx(1)
    assert np.sign(best.slope) == -np.sign(shift)


def test_nothing_can_be_gained_from_a_perfect_reconstruction():
    z, y, decode, _ = linear_world()
    best = optimum(z, y, decode, decode(z))
    assert (best.alpha, best.gain) == (pytest.approx(0, abs=1e-12), 0)
    assert best.curvature > 0


def test_an_orthogonal_projection_has_its_best_dose_at_zero():
    """What a projection leaves out is orthogonal to all that any edit can add (as with PCA)."""
    draws = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 5, generator=draws).double())[0].T
    x = torch.randn(30, 12, generator=draws).double()
    for arm in ("poles", "global_scaling", "random_direction"):
        best = optimum(x @ basis.T, torch.arange(30) % 3, lambda z: z @ basis, x, arm=arm)
        assert best.alpha == pytest.approx(0, abs=1e-10)


def test_dose_table_has_the_contract_columns_and_keeps_l0_when_asked():
    z, y, decode, target = linear_world()
    dense, kept = (
        dose_response(z, y, decode, target, alphas=[0, 0.5], preserve_sparsity=p, cross_entropy=lambda x: 1.5)
        for p in (False, True)
    )
    wanted = {"alpha", "arm", "aedp", "separation_scale_free", "mse", "fvu", "l0", "ce_loss"}
    assert set(dense) == wanted
    assert set(dense["arm"]) == set(ARMS)
    assert (kept["l0"] == 6).all()
    assert dense.query("arm == 'poles' and alpha == 0.5")["l0"].item() > 6
    assert (dense["ce_loss"] == 1.5).all()
    assert dose_response(z, y, decode, target, alphas=[0])["ce_loss"].isna().all()


def test_wide_latents_are_edited_in_blocks_and_give_the_same_numbers_in_less_memory():
    draws = torch.Generator().manual_seed(0)
    z = torch.rand(1000, 65_536, generator=draws)
    y, weights = torch.arange(1000) % 5 - 1, torch.randn(65_536, 2, generator=draws)
    found = []

    def call():
        arms = {"alphas": [0.5], "arms": ["permuted_labels"], "preserve_sparsity": True}
        found.append(dose_response(z, y, lambda latents: latents @ weights, torch.zeros(1000, 2), **arms))

    memory = peak_bytes(call)
    assert memory is None or memory < 5 * z.nbytes
    row = found[0].iloc[0]
    moved = apply_edit(z, edit_direction(z, y, "permuted_labels", preserve_sparsity=True), 0.5, True)
    means = torch.stack([moved[y == k].mean(0) for k in range(4)])
    scatter = torch.stack([(moved[y == k] - means[k]).square().sum(1).mean() for k in range(4)]).mean()
    spread = (means - means.mean(0)).square().sum(1).mean()
    assert row["mse"] == pytest.approx(float((moved @ weights).double().square().mean()), rel=1e-4)
    assert row["aedp"] == pytest.approx(float(torch.pdist(means).mean()), rel=1e-4)
    assert row["separation_scale_free"] == pytest.approx(float(spread / (spread + scatter)), rel=1e-4)
    assert row["l0"] == pytest.approx(float((moved != 0).sum() / 1000))


def test_mere_shrinkage_is_not_taken_for_missing_separation():
    """All latents a tenth too small: moving poles apart helps, but nothing is left once scaling is allowed for."""
    z, y, decode, _ = linear_world()
    target = decode(1.1 * z)
    assert optimum(z, y, decode, target).alpha > 0.01
    joint = dose_beyond_scaling(z, y, decode, target)
    assert joint.alpha == pytest.approx(0, abs=1e-9)
    assert joint.scaling == pytest.approx(0.1, abs=1e-9)
    assert (joint.gain_scaling, joint.gain) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_missing_separation_is_still_found_beside_shrinkage():
    z, y, decode, _ = linear_world()
    target = decode(z + 0.3 * edit_direction(z, y) + 0.1 * z)
    joint = dose_beyond_scaling(z, y, decode, target)
    assert (joint.alpha, joint.scaling) == (pytest.approx(0.3, abs=1e-9), pytest.approx(0.1, abs=1e-9))
    assert joint.low == pytest.approx(0.3, abs=1e-6)
    assert joint.gain + joint.gain_scaling == pytest.approx(1)
    with pytest.raises(InterventionError, match="global_scaling"):
        dose_beyond_scaling(z, y, decode, target, arm="global_scaling")


def test_bootstrap_interval_of_the_best_dose_covers():
    """Prompts drawn from one population whose best dose is known: about 95 % of intervals hold it."""
    poles = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]], dtype=torch.float64)
    y = torch.arange(60) % 3
    draws = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(60):
        z = poles[y]
        true = 0.2
        target = scale_separation(z, y, true) + 0.5 * torch.randn(60, 3, generator=draws, dtype=torch.float64)
        best = optimum(z, y, lambda v: v, target, n_resamples=400, seed=trial)
        hits += best.low <= true <= best.high
    assert 51 <= hits <= 60


def test_tokens_of_one_prompt_are_resampled_together():
    """Copies of a token within its prompt add no information: the interval must not shrink."""
    z, y, decode, target = linear_world()
    once = optimum(z, y, decode, target, prompts=torch.arange(len(z)), n_resamples=2000)
    copies = [t.repeat_interleave(4, 0) for t in (z, y, target, torch.arange(len(z)))]
    four = optimum(copies[0], copies[1], decode, copies[2], prompts=copies[3], n_resamples=2000)
    assert four.n_prompts == once.n_prompts
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_the_closed_form_says_when_a_kept_support_ends_it():
    z, y, decode, _ = linear_world()
    near = optimum(z, y, decode, decode(scale_separation(z, y, 0.01, True)), preserve_sparsity=True)
    assert near.exact
    assert near.alpha == pytest.approx(0.01, abs=1e-6)
    far = optimum(z, y, decode, decode(z + 30 * edit_direction(z, y)), preserve_sparsity=True)
    assert not far.exact


def test_correlation_takes_the_sign_of_the_side_that_is_sampled():
    """A parabola with its vertex at no edit correlates -1-ish below it and +1-ish above, cause or not."""
    alphas = np.linspace(-1, 1, 21)
    for arm in ("poles", "global_scaling"):
        free = 0.3 * np.ones(21) if arm == "global_scaling" else 0.3 + 0.1 * alphas
        table = pd.DataFrame(
            {"arm": arm, "alpha": alphas, "aedp": 1 + alphas, "separation_scale_free": free, "mse": 1 + alphas**2}
        )
        found = separation_error_correlation(table).set_index("range")
        assert found.loc["moving together (alpha <= 0)", "r"] < -0.95
        assert found.loc["moving apart (alpha >= 0)", "r"] > 0.95
        assert abs(found.loc["all doses", "r"]) < 1e-9
        assert np.isnan(found.loc["all doses", "r_scale_free"]) == (arm == "global_scaling")


def saes_of_every_kind():
    """Untrained autoencoders of each family and run-time normalisation, with uneven weights."""
    import sae_lens

    for normalisation in ("none", "layer_norm", "constant_norm_rescale"):
        for name, options in (("Standard", {}), ("TopK", {"k": 6}), ("JumpReLU", {}), ("Gated", {})):
            config = getattr(sae_lens, f"{name}SAEConfig")(
                d_in=12, d_sae=48, normalize_activations=normalisation, **options
            )
            torch.manual_seed(0)
            sae = getattr(sae_lens, f"{name}SAE")(config)
            for parameter in sae.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            yield pytest.param(sae, id=f"{name}-{normalisation}")


@pytest.mark.parametrize("sae", saes_of_every_kind())
def test_no_edit_decodes_as_the_sae_itself_and_any_edit_gives_a_parabola(sae):
    """Also for autoencoders that keep each token's mean and scale between encoding and decoding."""
    from saema_utils.saes.coders import SaeCoder

    draws = torch.Generator().manual_seed(4)
    x = 3 * torch.randn(30, 12, generator=draws) + 1
    y = torch.arange(30) % 5
    with torch.no_grad():
        untouched = sae(x)
        coder = SaeCoder(sae)
        z = coder.encode(x)
        coder.encode(torch.randn(7, 12, generator=draws))  # another batch comes between

        def decode(latents):
            return coder.decode(latents, like=x)

        for preserve in (False, True):
            edited = decode(scale_separation(z, y, 0.0, preserve))
            assert torch.allclose(edited, untouched, rtol=1e-6, atol=1e-6)
        alphas = np.linspace(-1, 2, 7)
        measured = dose_response(z, y, decode, x, alphas=alphas, arms=["poles"])["mse"]
        a, b, c = error_statistics(z, edit_direction(z, y), decode, x).mean(0).tolist()
    assert np.allclose(measured, a + 2 * b * alphas + c * alphas**2, rtol=1e-5)


# ---- search by gradient ---------------------------------------------------------------------------


def best_permutation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The discrepancy's lowest value over all one-to-one plans, from its definition as a sum over pairs."""
    k = len(a)
    orders = torch.tensor(list(itertools.permutations(range(k))))
    return float((a - b[orders[:, :, None], orders[:, None, :]]).square().sum((1, 2)).min() / k**2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [3, 5, 6])
def test_gromov_wasserstein_is_no_worse_than_the_best_permutation(k, seed):
    """One-to-one plans are among those allowed, so the best of all of them is an upper bound."""
    draws = torch.Generator().manual_seed(seed)
    a, b = (distance_matrix(torch.randn(k, 4, generator=draws, dtype=torch.float64)) for _ in range(2))
    found = float(gromov_wasserstein(a, b))
    assert 0 <= found <= best_permutation(a, b) + 1e-10


def test_gromov_wasserstein_is_zero_for_the_same_shape_in_another_order():
    draws = torch.Generator().manual_seed(0)
    a = distance_matrix(torch.randn(6, 4, generator=draws, dtype=torch.float64))
    order = torch.randperm(6, generator=draws)
    assert float(gromov_wasserstein(a, a[order][:, order], n_starts=8)) == pytest.approx(0, abs=1e-9)


def test_more_starts_never_end_higher():
    draws = torch.Generator().manual_seed(2)
    a, b = (distance_matrix(torch.randn(6, 4, generator=draws, dtype=torch.float64)) for _ in range(2))
    values = [float(gromov_wasserstein(a, b, n_starts=n)) for n in (1, 2, 3, 8)]
    assert values == sorted(values, reverse=True)


def test_gromov_wasserstein_gradient_equals_finite_differences():
    draws = torch.Generator().manual_seed(1)
    poles = torch.randn(5, 3, generator=draws, dtype=torch.float64)
    other = distance_matrix(torch.randn(5, 3, generator=draws, dtype=torch.float64))
    variable = poles.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(gromov_wasserstein(distance_matrix(variable), other), variable)
    for i, j in ((0, 0), (2, 1), (4, 2)):
        step = torch.zeros_like(poles)
        step[i, j] = 1e-5
        above, below = (gromov_wasserstein(distance_matrix(poles + s * step), other) for s in (1, -1))
        assert float(gradient[i, j]) == pytest.approx(float(above - below) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("objective", "direction"), [("aedp", "raise"), ("aedp", "lower"), ("gromov_wasserstein", "raise")]
)
def test_search_moves_its_objective_and_stays_within_the_radius(objective, direction):
    z, y, decode, target = linear_world()
    found = optimise_separability(
        z, y, decode, target, objective=objective, direction=direction, radius=0.4, steps=20, restarts=2
    )
    column = found.history[objective]
    first, last = column.iloc[0], found.history.query("step == 20")[objective]
    assert (last > first + 1e-6).all() if direction == "raise" else (last < first - 1e-6).all()
    assert (found.history["edit_norm"] <= 0.4 + 1e-9).all()
    moved = cluster_means(z + found.shifts[y], y, 4)
    assert torch.equal((found.shifts != 0) & ~(cluster_means((z != 0).double(), y, 4) > 0), torch.zeros(4, 40).bool())
    # The shifts given back are those of the best restart, and give the value that its history ends with.
    best = last.max() if direction == "raise" else last.min()
    if objective == "aedp":
        measured = mean_pole_distance(moved)
    else:
        before = distance_matrix(cluster_means(z, y, 4), relative=True)
        measured = gromov_wasserstein(distance_matrix(moved, relative=True), before)
    assert float(measured) == pytest.approx(best, rel=1e-6)


def test_the_random_control_walks_straight_to_the_sphere_of_the_same_radius():
    z, y, decode, target = linear_world()
    found = optimise_separability(z, y, decode, target, objective="random", radius=0.4, steps=20, restarts=2)
    np.testing.assert_allclose(found.history["edit_norm"], 0.4 * found.history["step"] / 20, atol=1e-9)
    support = cluster_means((z != 0).double(), y, 4) > 0
    assert torch.equal(found.shifts != 0, support), "the same latents as the search itself may move"
    ends = found.history.query("step == 20")["separation_scale_free"]
    assert ends.nunique() == 2, "each restart goes its own way"


def test_raising_the_distance_reaches_the_known_best_of_two_poles():
    """With two poles the farthest they can come within a root-mean-square shift r is 2 r (in pole units)."""
    z = torch.tensor([[3.0, 1, 1], [3, 1, 1], [1, 1, 3], [1, 1, 3]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    unit = float((z[0] - z[2]).norm() / 2)
    found = optimise_separability(z, y, lambda v: v, z, radius=0.5, steps=60, restarts=2)
    assert found.history["aedp"].max() <= 2 * unit * 1.5 + 1e-9
    assert found.history["aedp"].max() == pytest.approx(2 * unit * 1.5, rel=1e-3)


def test_steps_shrink_linearly_from_a_fifth_of_the_radius():
    """Two poles on one axis: each walks its whole step away from the other, so their distance grows by two."""
    z, y = torch.tensor([[7.0], [7], [1], [1]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])  # unit: 3
    found = optimise_separability(z, y, lambda v: v, z, radius=0.5, steps=5, restarts=1)
    grown = found.history.query("step >= 1")["aedp"].diff().dropna()
    np.testing.assert_allclose(grown, 2 * 3 * 0.5 / 5 * np.array([0.8, 0.6, 0.4, 0.2]), rtol=1e-9)


def test_lowering_towards_a_reference_shape_reaches_it():
    z, y, decode, target = linear_world()
    shape = distance_matrix(cluster_means(target, y, 4))
    found = optimise_separability(
        z, y, decode, target, objective="gromov_wasserstein", direction="lower", reference=shape, radius=1.0, steps=60
    )
    values = found.history["gromov_wasserstein"]
    assert values.iloc[-1] < 0.05 * values.iloc[0]


# ---- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(24, dtype=torch.long)}, "1 cluster"),
        ({"labels": torch.full((24,), -1)}, "0 cluster"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"\(3,\)"),
        ({"alpha": 1e9}, "1000000000"),
        ({"alpha": float("nan")}, "nan"),
        ({"latents": torch.full((24, 40), torch.nan)}, "NaN"),
    ],
)
def test_impossible_edits_are_refused_with_the_value(change, message):
    z, y = sparse_latents()
    arguments = {"latents": z, "labels": y, "alpha": 0.5, **change}
    with pytest.raises(InterventionError, match=message) as caught:
        scale_separation(**arguments)
    assert "\n" not in str(caught.value)
    assert "allowed" in str(caught.value)


def test_unknown_names_are_refused_with_the_allowed_ones():
    z, y, decode, target = linear_world()
    with pytest.raises(InterventionError, match="Did you mean 'poles'"):
        edit_direction(z, y, "pole")
    with pytest.raises(InterventionError, match="gromov_wasserstein"):
        optimise_separability(z, y, decode, target, objective="gw")
    with pytest.raises(InterventionError, match="radius"):
        optimise_separability(z, y, decode, target, radius=0)
    with pytest.raises(InterventionError, match="square"):
        gromov_wasserstein(torch.zeros(2, 3), torch.zeros(2, 2))


def test_an_edit_is_applied_to_the_direction_given():
    z = torch.tensor([[1.0, 0, 2]])
    d = torch.tensor([[1.0, 1, -8]])
    assert torch.equal(apply_edit(z, d, 0.5), torch.tensor([[1.5, 0.5, -2]]))
    kept = apply_edit(z, d, 0.5, preserve_sparsity=True)
    assert kept[0, :2].tolist() == [1.5, 0]
    assert 0 < kept[0, 2] < 1e-5


@pytest.mark.parametrize("arm", ARMS)
def test_the_slope_is_that_of_the_measured_curve_at_zero(arm):
    z, y, decode, target = linear_world(3)
    best = optimum(z, y, decode, target, arm=arm, n_resamples=20)
    table = dose_response(z, y, decode, target, alphas=[-1e-3, 0.0, 1e-3], arms=[arm])
    low, here, high = table.sort_values("alpha")["mse"]
    assert best.slope == pytest.approx((high - low) / 2e-3 / here, rel=1e-3, abs=1e-6)
