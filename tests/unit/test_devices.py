"""Nothing in the package is tied to one kind of device, and hot loops do not wait for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from saema_utils import separation
from saema_utils.coders import PcaCoder, RandomDictionary
from saema_utils.edits import apply_edit
from saema_utils.stratification import unfold
from saema_utils.token_grams import center_both

PACKAGE = Path(__file__).resolve().parents[2] / "saema_utils"
HOT = ("token_grams", "stratification", "noise_engine", "topk_latents", "sparse_topk", "coders", "splice",
       "activations", "separation", "edits")  # fmt: skip
SYNCS = {"item", "cpu", "tolist", "numpy"}
ALLOWED = {
    # function: why each turn of its loop may wait for the device
    "activations.capture_residual_stream": "captured batches belong on the CPU, where memory is large",
    "activations.capture_concept": "token ids, once a prompt, for the tokenizer",
    "activations.unpack": "reads JSON; runs once a study",
    "token_grams.gram_of_rows": "energy of one large block, which decides the rounding floor",
    "noise_engine._solved": "l0 is a number of the table, one a spectrum",
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
        (lambda: separation.distance_matrix(meta(5, 60)), (5, 5)),
    ],
)
def test_results_stay_on_the_device_of_the_input(call, shape):
    """On ``meta`` a tensor made on the CPU by mistake, or a value read back, is an error."""
    found = call()
    assert found.device.type == "meta"
    assert tuple(found.shape) == shape


def trees(names=None):
    for path in sorted(PACKAGE.glob("*.py")):
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
