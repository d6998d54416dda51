"""What programs of the benchmarks count and refuse; what they time is judged by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_choices, bench_roofline
from saema_utils.geometry.choices import geometry_under_choices

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("make", "d_in", "d_sae"), [("encode", 576, 4608), ("training", 576, 4608)])
def test_an_exact_topk_code_needs_one_product_and_torch_counts_no_more(make, d_in, d_sae):
    work = bench_roofline.WORKS[make]()
    with FlopCounterMode(display=False) as counter:
        work.call()
    tokens = sum(n for n, _ in work.products)
    assert counter.get_total_flops() == work.flops == 2 * tokens * d_in * d_sae


@pytest.mark.model
@pytest.mark.parametrize("make", ["rows", "prompts"])
def test_capture_needs_seven_products_a_block(make):
    work = bench_roofline.WORKS[make]()
    width, of_keys, of_mlp, blocks = 576, 192, 1536, 16  # of SmolLM2-135M up to layer 15
    a_token = 2 * blocks * (2 * width**2 + 2 * width * of_keys + 3 * width * of_mlp)
    done = sum(bench_roofline.product_flops(n, w) for n, w in work.products)
    assert len({w.data_ptr() for _, w in work.products}) == 7 * blocks
    assert work.flops % a_token == done % a_token == 0
    assert (done == work.flops) is (make == "rows"), "padding is multiplied, and needed by nobody"
    assert done >= work.flops


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::add_", "sums and products of entries"),
        ("aten::embedding", "copies"),
        ("aten::_embedding_bag_dense_backward", "sums of chosen rows"),
        ("Optimizer.step", "other"),
    ],
)
def test_an_operation_is_of_the_kind_whose_name_it_begins_with_longest(operation, kind):
    assert bench_roofline.kind_of(operation) == kind


@pytest.mark.parametrize(("step", "bound", "code"), [("dose", "0.01", 1), ("splice", "16", 0)])
def test_a_step_beyond_its_bound_of_memory_fails_and_is_written_all_the_same(step, bound, code, tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench_width", step, "--bound", bound]
    environment = {**os.environ, "SAEMA_BENCH_QUICK": "1"}
    ended = subprocess.run([*command, "--output", f"{tmp_path}/width.csv"], cwd=ROOT, env=environment, check=False)
    assert ended.returncode == code
    (found,) = pd.read_csv(tmp_path / "width.csv").to_dict("records")
    assert found["Step"] == step
    assert (found["Peak (GiB)"] > found["Bound (GiB)"]) == bool(code)


@pytest.fixture(scope="module")
def one_concept():
    clouds = bench_choices.concept_clouds()
    return clouds, geometry_under_choices(clouds)


@pytest.mark.parametrize("family", sorted(bench_choices.ALONE))
def test_an_analysis_made_by_itself_finds_the_value_that_the_shared_pass_found(family, one_concept):
    clouds, values = one_concept
    rows = list(bench_choices.sampled(values, family, 2).itertuples())
    assert rows
    for row in rows:
        assert bench_choices.alone(clouds, row) == pytest.approx(row.value, rel=1e-6)
