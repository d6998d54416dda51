"""Nothing in the package is tied to one kind of device, and hot loops do not wait for it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_layout
import numpy as np
import pytest
import torch
from accelerator import KINDS, accelerator

from saema_utils.chapters.intervention.measures import Split, measure_trained
from saema_utils.intervention.doses import dose_beyond_scaling, dose_response, optimum
from saema_utils.intervention.edits import apply_edit
from saema_utils.intervention.search import optimise_separability
from saema_utils.intervention.separation import distance_matrix
from saema_utils.intervention.training import LabelledTokens, activation_scale, fresh, train_separable
from saema_utils.runtime import float64
from saema_utils.saes.coders import PcaCoder, RandomDictionary, SaeCoder
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.stratification.grams import center_both
from saema_utils.stratification.spectra import unfold
from saema_utils.study import STUDIES

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = ROOT / "saema_utils"
HOT = (
    "distances",
    "grams",
    "spectra",
    "noise",
    "topk_latents",
    "sparse_topk",
    "coders",
    "splice",
    "residual_stream",
    "separation",
    "edits",
)
SYNCS = {"item", "cpu", "tolist", "numpy"}
ALLOWED = {
    # function: why each turn of its loop may wait for the device
    "residual_stream.capture_residual_stream": "captured batches belong on the CPU, where memory is large",
    "residual_stream.capture_concept": "token ids, once a prompt, for the tokenizer",
    "residual_stream.unpack": "reads JSON; runs once a study",
    "grams.gram_of_rows": "energy of one large block, which decides the rounding floor",
    "separation.gromov_wasserstein": "POT solves on the CPU; a handful of poles",
}


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda: unfold(meta(4, 3, 7), 1), (3, 28)),
        (lambda: center_both(meta(5, 5)), (5, 5)),
        (lambda: RandomDictionary(8, 60, 3).encode(meta(4, 2, 8)), (4, 2, 60)),
        (lambda: RandomDictionary(8, 60, 3).decode(meta(4, 60)), (4, 8)),
        (lambda: PcaCoder(meta(8), meta(3, 8), meta(8)).encode(meta(4, 8)), (4, 3)),
        (lambda: PcaCoder(meta(8), meta(3, 8), meta(8)).decode(meta(4, 3)), (4, 8)),
        (lambda: apply_edit(meta(4, 60), meta(4, 60), 0.5, preserve_sparsity=True), (4, 60)),
        (lambda: distance_matrix(meta(5, 60)), (5, 5)),
    ],
)
def test_results_stay_on_the_device_of_the_input(call, shape):
    """On ``meta`` a tensor made on the CPU by mistake, or a value read back, is an error."""
    found = call()
    assert found.device.type == "meta"
    assert tuple(found.shape) == shape


def trees(names=None):
    for path in sorted(PACKAGE.rglob("*.py")):
        if names is None or path.stem in names:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_nobody_moves_anything_to_an_accelerator_by_name():
    named = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            by_name = any(isinstance(a, ast.Constant) and str(a.value).split(":")[0] in ("cuda", "mps") for a in given)
            if function in ("cuda", "mps") or by_name:
                named.append(f"{path.name}:{node.lineno}")
    assert not named


def waits(function: ast.FunctionDef) -> list[int]:
    """Lines in loops of a function that read a tensor back to the host."""
    loops = [
        n
        for n in ast.walk(function)
        if isinstance(n, ast.For | ast.While | ast.ListComp | ast.DictComp | ast.GeneratorExp)
    ]
    found = set()
    for loop in loops:
        for node in ast.walk(loop):
            if not isinstance(node, ast.Call):
                continue
            reads = isinstance(node.func, ast.Attribute) and node.func.attr in SYNCS
            turns = isinstance(node.func, ast.Name) and node.func.id in ("float", "int", "bool") and node.args
            if reads or (turns and not isinstance(node.args[0], ast.Constant | ast.Name)):
                found.add(node.lineno)
    return sorted(found)


def test_loops_of_hot_modules_do_not_wait_for_the_device():
    found = {}
    for path, tree in trees(HOT):
        outer = [
            n for top in tree.body for n in ([top] if isinstance(top, ast.FunctionDef) else getattr(top, "body", []))
        ]
        for node in outer:
            if isinstance(node, ast.FunctionDef) and (lines := waits(node)):
                found[f"{path.stem}.{node.name}"] = lines
    new = {name: lines for name, lines in found.items() if name not in ALLOWED}
    assert not new, f"these loops read a tensor back each turn; hoist it, or say why not in ALLOWED: {new}"
    assert set(ALLOWED) <= set(found), f"no longer needed in ALLOWED: {set(ALLOWED) - set(found)}"


def test_a_wait_in_a_loop_would_be_seen():
    loop = ast.parse("def f(x):\n    for row in x:\n        total += row.sum().item()\n    return float(x.max())").body[
        0
    ]
    assert waits(loop) == [3]


# ---- on a pretended accelerator (tests/accelerator.py), with float64 and without ---------------------


@pytest.fixture(params=KINDS)
def device(request):
    with accelerator(request.param) as found:
        yield found


def test_the_pretended_device_refuses_what_a_real_one_refuses(device):
    x = torch.ones(3).to(device)
    assert (x.device, x.cpu().device.type, float(x.sum())) == (device, "cpu", 3.0)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3)[torch.zeros(2, dtype=torch.long, device=device)]
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)
    if KINDS[device.type]:
        assert x.double().dtype == torch.float64
    else:
        with pytest.raises(TypeError, match="float64"):
            x.double()


def test_float64_stays_on_the_device_unless_it_has_none(device):
    found = float64(torch.ones(3).to(device))
    assert found.dtype == torch.float64
    assert found.device.type == (device.type if KINDS[device.type] else "cpu")
    assert float64(torch.ones(3)).device.type == "cpu"


def world(seed: int = 0):
    draws = torch.Generator().manual_seed(seed)
    z = torch.rand(24, 40, generator=draws) * (torch.rand(24, 40, generator=draws) < 0.3)
    decoder = torch.randn(40, 12, generator=draws)
    return z, torch.arange(24) % 4, decoder, z @ decoder + 0.3 * torch.randn(24, 12, generator=draws)


@pytest.mark.parametrize("preserve", [False, True])
def test_doses_on_the_device_are_those_of_the_cpu(device, preserve):
    found = []
    for place in ("cpu", device):
        z, y, decoder, target = (part.to(place) for part in world())
        decode = decoder.__rmatmul__
        table = dose_response(z, y, decode, target, alphas=[-0.5, 0.0, 0.5], preserve_sparsity=preserve)
        best = optimum(z, y, decode, target, arm="permuted_labels", preserve_sparsity=preserve, n_resamples=50)
        joint = dose_beyond_scaling(z, y, decode, target, n_resamples=50)
        found.append([*table["mse"], *table["separation_scale_free"], best.alpha, best.low, joint.alpha, joint.gain])
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", ["aedp", "gromov_wasserstein"])
def test_searches_on_the_device_are_those_of_the_cpu(device, objective):
    ends = []
    for place in ("cpu", device):
        z, y, decoder, target = (part.to(place) for part in world())
        found = optimise_separability(z, y, decoder.__rmatmul__, target, objective=objective, steps=3, restarts=2)
        assert found.shifts.device.type == torch.device(place).type
        ends.append([*found.history["aedp"], *found.history["mse"], *found.history["gromov_wasserstein"]])
    assert ends[1] == pytest.approx(ends[0], rel=1e-3, abs=1e-5)


def test_training_and_judging_on_the_device_give_the_numbers_of_the_cpu(device):
    """The corpus is mapped from disk and stays on the CPU; weights and concept tokens are on the device."""
    draws = torch.Generator().manual_seed(0)
    corpus = torch.randn(400, 12, generator=draws)
    vectors = torch.randn(48, 12, generator=draws) + 2 * torch.randn(8, 12, generator=draws).repeat_interleave(6, 0)
    clusters, concepts = torch.arange(8).repeat_interleave(6), torch.arange(2).repeat_interleave(24)
    rows = []
    for place in ("cpu", device):
        tokens = LabelledTokens(vectors.to(place), clusters.to(place), concepts.to(place))
        sae = fresh(12, 96, 4, seed=1, device=str(place), separation_coefficient=0.1)
        plain = train_separable(sae, corpus, tokens, scale=activation_scale(corpus), steps=3, batch=64)
        assert plain.W_dec.device.type == torch.device(place).type
        rows.append(measure_trained(plain, corpus[:100].to(place), Split(tokens, tokens, tokens)))
        fidelity = measure_fidelity(SaeCoder(plain), corpus[:100].to(place))
        rows[-1] |= {"fvu": fidelity.fvu, "dead": fidelity.dead_fraction}
    assert rows[1] == pytest.approx(rows[0], rel=1e-3, abs=1e-5, nan_ok=True)


def test_principal_components_on_the_device_are_those_of_the_cpu(device):
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    here, there = PcaCoder.fit_to_fvu(x, 0.2), PcaCoder.fit_to_fvu(x.to(device), 0.2)
    assert here.n_latents == there.n_latents
    assert there.encode(x.to(device)).device == device
    assert torch.allclose(here.decode(here.encode(x)), there.decode(there.encode(x.to(device))).cpu(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_notebook_that_computes_runs_on_an_accelerator(kind, tmp_path, rulers_into):
    """All but the rulers, which say nothing of the model and never see its device."""
    rulers_into(tmp_path)
    model = hub_layout.write_model(tmp_path / "llama", "llama")
    tiny = STUDIES["smoke"].changed(**hub_layout.TINY, name="tiny", model=str(model), layer=1)
    study = tmp_path / "study.json"
    study.write_text(json.dumps(tiny.as_dict()))
    environment = {
        **os.environ,
        "SAEMA_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "accelerator_worker.py"), str(study), "01,02,03,04,05,06,07,09", kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
