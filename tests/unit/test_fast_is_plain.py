"""Fast paths that no other file holds against their plain definition, and the tables made from benchmarks.

Elsewhere: spectra and the sweep in ``test_stratification``, the training step in ``test_sparse_topk``, the
separation term in ``test_separability``, distances of poles in ``test_geometry``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.coders import RandomDictionary
from saema_utils.token_grams import _sparse_gram, gram_of_rows

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


# ---- what benchmarks become --------------------------------------------------------------------


def entry(work, side, times, **facts):
    return {"stats": {"data": times}, "extra_info": {"work": work, "side": side, "device": "cpu", **facts}}


def test_turns_are_joined_scaled_and_compared():
    measured = {"benchmarks": [
        entry("w", "ours", [1.0, 3.0]), entry("w", "plain", [5.0], scale=4), entry("w", "ours", [2.0]),
        entry("grown", "ours", [1.0], axis="tokens", fixed="f", size=10, input_bytes=1, memory=1),
    ]}  # fmt: skip
    (row,) = table.benchmark_table(measured).to_dict("records")
    assert (row["Package (s)"], row["Plain (s)"], row["Times faster"], row["Rounds"]) == (
        "2.00",
        "20.0",
        "10.0",
        "3, 1",
    )


def test_the_page_shows_both_sides_in_one_cell_and_notes_below_the_work():
    measured = {"benchmarks": [
        entry("w", "ours", [2.0], memory=2**20, note="of one"), entry("w", "plain", [5.0], memory=2**22),
        entry("alone", "ours", [1.0], aim=3.0),
    ]}  # fmt: skip
    both, alone = table.page_table(table.benchmark_table(measured)).to_dict("records")
    assert both == {"Work": "w; *of one*", "Package / plain (s)": "2.00 / 5.00", "Times faster": "2.50", "Aim": "",
                    "Peak (MiB)": "1.00 / 4.00"}  # fmt: skip
    assert (alone["Package / plain (s)"], alone["Aim"], alone["Peak (MiB)"]) == ("1.00 / -", "3.00", "")


def test_a_plain_side_that_was_not_tried_follows_the_fitted_power():
    rows = [entry(f"{n}", side, [seconds * n**3], family="three modes", size=n)
            for n in (1, 2, 4) for side, seconds in (("ours", 0.5), ("plain", 1.0))]  # fmt: skip
    rows.append(entry("32", "ours", [1.0], family="three modes", size=32))
    found = table.benchmark_table({"benchmarks": rows}).set_index("Work").loc["32"]
    assert found["Plain (s)"] == "32,800"
    assert "latents^3.00" in found["Note"]


@pytest.mark.parametrize(("law", "is_square"), [(lambda n: 5 + 3 * n, False), (lambda n: 5 + n + 2 * n**2, True)])
def test_the_largest_problem_solves_the_law_of_memory(law, is_square):
    sizes = [10, 20, 50, 100]
    assert table.largest(sizes, [law(n) for n in sizes], is_square=is_square, fits=law(4000)) == pytest.approx(4000)
    assert table.largest(sizes, [7.0] * 4, is_square=is_square, fits=100) > 1e9
