"""Fast paths that no other file holds against their plain definition, and the tables made from benchmarks.

Elsewhere: spectra and the sweep in ``test_stratification``, the training step in ``test_sparse_topk``, the
separation term in ``test_separability``, distances of poles in ``test_geometry``.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import TopKSAE, TopKSAEConfig

from saema_utils.evidence.rank import TOLERANCES
from saema_utils.saes.coders import PcaCoder, RandomDictionary, SaeCoder
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.stratification.anatomy import only_distinct, shuffle_latents
from saema_utils.stratification.grams import _sparse_gram, cloud_grams, gram_of_rows
from saema_utils.stratification.noise import affine_coder, sweep_clouds
from saema_utils.stratification.spectra import ranks_at
from saema_utils.stratification.token_cloud import TokenCloud

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import table


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 40),
    common=st.booleans(),
    center=st.sampled_from([{}, {"center_rows": True}, {"center_columns": True}]),
)
def test_the_sparse_gram_is_the_dense_product(seed, rows, common, center):
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.zeros(rows, 400)
    where = torch.randint(400, (rows, 6), generator=draw)
    where[0] = where[-1]  # two rows on one support
    if common:
        where[:, 0] = 7  # one latent that fires everywhere
    matrix.scatter_(1, where, 1e3 * torch.randn(rows, 6, generator=draw))
    matrix[-1] = 0 if seed % 2 else matrix[-1]  # a token without latents
    assert _sparse_gram(matrix) is not None, "the sparse path is what is tested"
    plain = matrix.double()
    plain = plain - plain.mean(1, keepdim=True) if "center_rows" in center else plain
    plain = plain - plain.mean(0) if "center_columns" in center else plain
    expected = plain @ plain.T
    found = gram_of_rows(matrix, **center)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * float(matrix.double().square().sum()) + 1e-30)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 20))
def test_the_gathered_random_dictionary_is_the_dense_product(seed, k):
    coder = RandomDictionary(8, 60, k, seed)
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(seed))
    W = coder.dictionary()
    largest, where = (x @ W.T).topk(k, dim=-1)
    latents = torch.zeros(12, 60).scatter(-1, where, largest.clamp_min(0))
    raw = latents @ W
    expected = latents * (x * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True)
    torch.testing.assert_close(coder.encode(x), expected, rtol=1e-4, atol=1e-5)


# ---- pairs instead of dense latents ------------------------------------------------------------


def topk_sae(seed=0, d_in=16, d_sae=400, k=6, dtype="float32", **options) -> TopKSAE:
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, dtype=dtype, **options))
    draw = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype)
    return sae


def tokens(n, seed=0, d_in=16, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed + 1), dtype=dtype)


OPTIONS = [
    {},
    {"rescale_acts_by_decoder_norm": True},
    {"apply_b_dec_to_input": True},
    {"normalize_activations": "layer_norm"},
    {"k": 100},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "plain"))
def test_reconstruction_without_dense_latents_is_decode_of_encode(options, monkeypatch):
    monkeypatch.setattr("saema_utils.saes.topk_latents._BLOCK_BYTES", 4 * 400 * 5)  # five tokens a block
    sae, x = topk_sae(**options), tokens(23).view(23, 1, 16)
    expected = sae.decode(sae.encode(x))
    torch.testing.assert_close(SaeCoder(sae).reconstruct(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(SaeCoder(sae).encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["nothing fires", "one token", "no token"])
def test_pairs_of_silent_and_of_missing_tokens(change):
    sae, x = topk_sae(), tokens({"one token": 1, "no token": 0}.get(change, 9))
    if change == "nothing fires":
        sae.b_enc.data.fill_(-1e6)
    coder = SaeCoder(sae)
    torch.testing.assert_close(coder.reconstruct(x), sae.decode(sae.encode(x)), rtol=1e-5, atol=1e-5)
    assert coder.reconstruct(x).shape == x.shape
    assert not coder.encode(x).any() or change != "nothing fires"


def test_hooks_of_the_sae_are_honoured_when_it_encodes():
    sae, seen = topk_sae(), []
    sae.hook_sae_acts_post.add_hook(lambda value, hook: seen.append(value.shape))
    SaeCoder(sae).reconstruct(tokens(4))
    assert seen == [(4, 400)]


@pytest.mark.parametrize("make", [lambda: SaeCoder(topk_sae()), lambda: RandomDictionary(16, 400, 6)])
def test_fidelity_from_pairs_is_fidelity_from_dense_latents(make):
    coder, x = make(), tokens(50)
    found = measure_fidelity(coder, x, size=16)
    latents = coder.encode(x)
    torch.testing.assert_close(found.firing_rate, (latents != 0).double().mean(0))
    assert found.mse == pytest.approx(float((x - coder.decode(latents)).square().mean()), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30), width=st.sampled_from([100, 300, 2000]))
def test_grams_of_pairs_are_those_of_the_dense_tensor(seed, k, width):
    draw = torch.Generator().manual_seed(seed)
    latents = TopKLatents.of(torch.randn(40, width, generator=draw) - 1.5, k)  # some of the k do not fire
    cloud = TokenCloud.of(torch.ones(8, 6, 3), torch.rand(8, 6, generator=draw).argsort().view(8, 6) < 6, "c")
    cloud = TokenCloud("c", torch.ones(40, 3), cloud.prompt[:40], cloud.position[:40], cloud.shape)
    found, expected = (cloud_grams(z, cloud, (0, 1, 2)) for z in (latents, latents.dense()))
    for mode in range(3):
        torch.testing.assert_close(found[mode][0], expected[mode][0], rtol=1e-10, atol=1e-12)
        assert found[mode][1:] == pytest.approx(expected[mode][1:])
    for change in (shuffle_latents, lambda z, c: (z[torch.tensor([3, 1])], c)):
        assert torch.equal(change(latents, cloud)[0].dense(), change(latents.dense(), cloud)[0])


# ---- one product a seed instead of one a level -------------------------------------------------

LEVELS = (0.0, 0.02, 0.5, 3.0, 1e6)  # at the last nothing of the tokens is left


def check_same_sweep(coder, points, seeds=(0, 1, 2)):
    """The same table from ``coder.encode``, which is recognised, and from a function that hides the coder."""
    mask = torch.ones(points.shape[:2], dtype=torch.bool)
    mask[1, 2] = False
    cloud = TokenCloud.of(points, mask, "c")
    assert affine_coder(coder.encode) is coder
    derived = {"shuffled": ("z", shuffle_latents), "distinct": ("z", only_distinct)}
    measure = ranks_at(TOLERANCES)
    found, expected = (
        sweep_clouds([cloud], {"z": encode}, noise_levels=LEVELS, seeds=seeds, derived=derived, measure=measure)
        for encode in (coder.encode, lambda x: coder.encode(x))
    )
    exact = [c for c in expected if c.startswith("rank")] + ["concept", "representation", "mode", "noise", "seed", "l0"]
    assert found[exact].equals(expected[exact])
    for name in ("effective_rank", "participation_ratio", "noise_rms"):
        torch.testing.assert_close(
            *(torch.tensor(t[name].to_numpy()) for t in (found, expected)), rtol=1e-5, atol=0, equal_nan=True
        )
    return found


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), by_norm=st.booleans(), subtract=st.booleans())
def test_a_sweep_from_few_products_is_the_plain_sweep(seed, by_norm, subtract):
    # In float64, where two pre-activations are never so near that rounding decides which of them is kept.
    sae = topk_sae(seed, dtype="float64", rescale_acts_by_decoder_norm=by_norm, apply_b_dec_to_input=subtract)
    check_same_sweep(SaeCoder(sae), tokens(40, seed, dtype=torch.float64).view(8, 5, 16))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SaeCoder(topk_sae()),
        lambda: RandomDictionary(16, 400, 6, bias=torch.ones(16)),
        lambda: PcaCoder.fit(tokens(200), 10),
    ],
)
def test_every_affine_coder_sweeps_the_same_in_single_precision(make):
    check_same_sweep(make(), tokens(40).view(8, 5, 16))


def test_ties_at_the_last_place_are_broken_alike():
    """Every column twice: the k-th and the next are equal at every token and level."""
    sae = topk_sae(k=5)
    sae.W_enc.data[:, 200:], sae.b_enc.data[200:] = sae.W_enc.data[:, :200], sae.b_enc.data[:200]
    latents = sae.encode(tokens(40))
    assert ((latents[:, :200] != 0) != (latents[:, 200:] != 0)).any(), "some token keeps one of two equals"
    check_same_sweep(SaeCoder(sae), tokens(40).view(8, 5, 16))


def test_tokens_that_repeat_and_latents_that_are_silent():
    points = tokens(5)[None].repeat(8, 1, 1)
    check_same_sweep(SaeCoder(topk_sae()), points)
    sae = topk_sae()
    sae.b_enc.data.fill_(-1e3)  # fires only where noise is large
    assert (check_same_sweep(SaeCoder(sae), points).query("noise < 1")["rank"] == 0).all()


def test_wide_latents_are_swept_in_blocks(monkeypatch):
    coder, points = SaeCoder(topk_sae()), tokens(40).view(8, 5, 16)
    whole = check_same_sweep(coder, points)
    monkeypatch.setattr("saema_utils.stratification.noise._ENCODED_BYTES", 12 * 400 * 7)  # seven tokens
    in_blocks = check_same_sweep(coder, points)
    assert in_blocks["rank"].equals(whole["rank"])


def test_coders_that_are_not_affine_are_left_to_encode():
    class Other(SaeCoder):
        def encode(self, x):
            return 2 * super().encode(x)

    normalised = SaeCoder(topk_sae(normalize_activations="layer_norm"))
    for encode in (Other(topk_sae()).encode, normalised.encode, torch.relu, functools.partial(torch.relu)):
        assert affine_coder(encode) is None


def test_a_sweep_multiplies_once_a_seed():
    coder, products = SaeCoder(topk_sae()), []
    plain = coder.preactivations
    coder.preactivations = lambda x, constant=True: products.append(len(x)) or plain(x, constant)
    cloud = TokenCloud.of(tokens(40).view(8, 5, 16), torch.ones(8, 5, dtype=torch.bool), "c")
    sweep_clouds([cloud], {"z": coder.encode}, noise_levels=[0.0, *(0.1 * i for i in range(1, 10))], seeds=range(5))
    assert products.count(40) <= 6


# ---- what benchmarks become --------------------------------------------------------------------


def entry(work, side, times, **facts):
    return {"stats": {"data": times}, "extra_info": {"work": work, "side": side, "device": "cpu", **facts}}


def test_turns_are_joined_scaled_and_compared():
    measured = {
        "benchmarks": [
            entry("w", "ours", [1.0, 3.0]),
            entry("w", "plain", [5.0], scale=4),
            entry("w", "ours", [2.0]),
            entry("grown", "ours", [1.0], axis="tokens", fixed="f", size=10, input_bytes=1, memory=1),
        ]
    }
    (row,) = table.benchmark_table(measured).to_dict("records")
    assert (row["Package (s)"], row["Plain (s)"], row["Times faster"], row["Rounds"]) == (
        "2.00",
        "20.0",
        "10.0",
        "3, 1",
    )


def test_the_page_shows_both_sides_in_one_cell_and_notes_below_the_work():
    measured = {
        "benchmarks": [
            entry("w", "ours", 5 * [2.0], memory=2**20, note="of one"),
            entry("w", "plain", 5 * [5.0], memory=2**22),
            entry("alone", "ours", 5 * [1.0], aim=3.0),
        ]
    }
    both, alone = table.page_table(table.benchmark_table(measured)).to_dict("records")
    assert both == {
        "Work": "w; *of one*",
        "Package / plain (s)": "2.00 / 5.00",
        "Times faster": "2.50",
        "Aim": "",
        "Peak (MiB)": "1.00 / 4.00",
        "Times less": "4.00",
        "Aim ": "",
    }
    assert (alone["Package / plain (s)"], alone["Aim"], alone["Peak (MiB)"]) == ("1.00 / -", "3.00", "")


def test_a_side_that_was_measured_less_than_five_times_says_so():
    measured = {"benchmarks": [entry("w", "ours", 5 * [2.0]), entry("w", "plain", [5.0], note="of one")]}
    assert table.benchmark_table(measured)["Note"].item() == "of one; plain measured once"


def test_a_plain_side_that_was_not_tried_follows_the_fitted_power():
    rows = [
        entry(f"{n}", side, [seconds * n**3], family="three modes", size=n)
        for n in (1, 2, 4)
        for side, seconds in (("ours", 0.5), ("plain", 1.0))
    ]
    rows.append(entry("32", "ours", [1.0], family="three modes", size=32))
    found = table.benchmark_table({"benchmarks": rows}).set_index("Work").loc["32"]
    assert found["Plain (s)"] == "32,800"
    assert "latents^3.00" in found["Note"]


@pytest.mark.parametrize(("law", "is_square"), [(lambda n: 5 + 3 * n, False), (lambda n: 5 + n + 2 * n**2, True)])
def test_the_largest_problem_solves_the_law_of_memory(law, is_square):
    sizes = [10, 20, 50, 100]
    assert table.largest(sizes, [law(n) for n in sizes], is_square=is_square, fits=law(4000)) == pytest.approx(4000)
    assert table.largest(sizes, [7.0] * 4, is_square=is_square, fits=100) > 1e9


def test_what_a_run_recorded_stands_beside_its_aims():
    rows = [entry("study", "ours", [1e-6], recorded=700.0, seconds_aim=900, bytes_aim=6 * 2**30, memory=2**30)]
    (row,) = table.page_table(table.benchmark_table({"benchmarks": rows})).to_dict("records")
    assert (row["Package / plain (s)"], row["Aim"], row["Aim "]) == ("700 / -", "under 900 s", "under 6,144 MiB")


def test_growth_within_the_scatter_is_called_level():
    def growth(used):
        rows = [
            entry(f"g{n}", "ours", [float(n)], axis="levels", fixed="f", size=n, input_bytes=0, memory=m)
            for n, m in zip((1, 2, 5, 10), used, strict=True)
        ]
        return table.growth_table(table.growth_points({"benchmarks": rows})).iloc[0]

    for lost in ([9.3, 22.0, 3.4, 5.1], [10, 9, 11, 12]):  # the largest did not use most, or hardly more
        assert growth(lost)["Memory grows as size to the"] == "level"
        assert growth(lost)["Largest that fits 24 GiB"] == "any"
    assert float(growth([10, 9, 30, 60])["Memory grows as size to the"]) > 0.5, "a dip hides no growth"
    assert growth([10, 20, 50, 100])["Memory grows as size to the"] == "1.00"
