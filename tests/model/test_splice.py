"""Splicing: nothing changes when nothing is replaced, everything is proved to have happened, hooks always go."""

from __future__ import annotations

import pytest
import torch

from saema_utils.errors import HookNeverFiredError, InterventionError
from saema_utils.model.splice import run_spliced, spliced_losses
from saema_utils.study import Study

pytestmark = pytest.mark.model
HOOK = "blocks.3.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    from saema_utils.model.loading import load_language_model

    return load_language_model(Study(name="splice"), torch.device("cpu"))


@pytest.fixture(scope="module")
def tokens(model):
    return model.to_tokens(["The sky is blue.", "January is cold in the far north."], padding_side="right")


def hooks_left(model) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def test_replacing_by_the_same_changes_nothing(model, tokens):
    from saema_utils.model.residual_stream import capture_residual_stream

    captured = capture_residual_stream(model, tokens, HOOK)
    found = spliced_losses(model, tokens, HOOK, {"function": lambda x: x.clone(), "tensor": captured})
    clean = found["clean"].cross_entropy[:, :-1]
    assert torch.isfinite(clean).all()
    for name in ("function", "tensor"):
        assert torch.allclose(found[name].cross_entropy[:, :-1], clean, atol=1e-4)
        assert float(found[name].kl[:, :-1].max()) < 1e-5
    assert hooks_left(model) == 0


def test_clean_losses_equal_the_models_own(model, tokens):
    found = spliced_losses(model, tokens[:1, :5], HOOK, {"same": lambda x: x})
    own = model(tokens[:1, :5], return_type="loss")
    assert found["clean"].mean()[0] == pytest.approx(float(own), abs=1e-4)
    assert found["same"].mean()[1] == pytest.approx(0, abs=1e-6)


def test_only_chosen_positions_are_replaced_and_earlier_predictions_stay(model, tokens):
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[:, 3] = True
    found = spliced_losses(model, tokens, HOOK, {"zero": torch.zeros_like}, where=where)
    clean, zero = found["clean"].cross_entropy, found["zero"].cross_entropy
    assert torch.allclose(zero[:, :3], clean[:, :3], atol=1e-4)
    assert (zero[:, 3] - clean[:, 3]).abs().min() > 1e-2
    assert (found["zero"].kl[:, 3] > 1e-3).all()


def test_padding_predicts_nothing(model, tokens):
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, 4:] = False
    found = spliced_losses(model, tokens, HOOK, {"same": lambda x: x}, predicted=real)["clean"].cross_entropy
    assert torch.isnan(found[0, 3:]).all()
    assert torch.isfinite(found[0, :3]).all()
    assert torch.isnan(found[:, -1]).all()


def test_batches_of_any_size_give_the_same_losses(model, tokens):
    parts = [
        spliced_losses(model, tokens, HOOK, {"half": lambda x: 0.5 * x}, rows_at_once=size)["half"].cross_entropy
        for size in (1, 2)
    ]
    assert torch.allclose(parts[0], parts[1], atol=1e-3, equal_nan=True)


def test_replacements_that_share_passes_lose_nothing_to_each_other(model, tokens):
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[:, 2:4] = True
    sizes = torch.linspace(0.2, 2, 40)
    scalings = {f"{size:.3f}": (lambda x, size=size: size * x) for size in sizes}
    passes = []
    count = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        together = spliced_losses(model, tokens, HOOK, scalings, where=where)
    finally:
        count.remove()
    assert 2 < len(passes) < len(scalings) / 2
    for name in list(scalings)[::13]:
        alone = spliced_losses(model, tokens, HOOK, {name: scalings[name]}, where=where)[name]
        assert torch.allclose(together[name].cross_entropy, alone.cross_entropy, atol=1e-3, equal_nan=True)
        assert torch.allclose(together[name].kl, alone.kl, atol=1e-4, equal_nan=True)
    assert hooks_left(model) == 0


@pytest.mark.parametrize(
    ("hook", "new", "error", "message"),
    [
        ("blocks.3.hook_resid_pots", lambda x: x, HookNeverFiredError, "hook_resid_pots"),
        ("blocks.999.hook_resid_post", lambda x: x, HookNeverFiredError, "blocks.999"),
        (HOOK, lambda x: x[:, 1:], InterventionError, "shape"),
        (HOOK, lambda x: x * float("nan"), InterventionError, "NaN"),
    ],
)
def test_what_cannot_be_spliced_is_refused_and_leaves_no_hook(model, tokens, hook, new, error, message):
    with pytest.raises(error, match=message):
        spliced_losses(model, tokens, hook, {"edit": new})
    assert hooks_left(model) == 0
    assert torch.isfinite(run_spliced(model, tokens, HOOK, {"same": lambda x: x})).all()


def test_a_replacement_of_other_prompts_is_refused(model, tokens):
    with pytest.raises(InterventionError, match="edit"):
        spliced_losses(model, tokens, HOOK, {"edit": torch.zeros(7, 2, 576)})
    with pytest.raises(InterventionError, match="clean"):
        spliced_losses(model, tokens, HOOK, {"clean": torch.zeros_like})


def test_losses_in_blocks_equal_the_definition(model):
    """More positions than one block, lengths that no block divides, one replacement far from the clean run."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 40_000, (3, 71), generator=random)
    found = spliced_losses(model, tokens, HOOK, {"half": lambda x: 0.5 * x}, rows_at_once=2)
    with torch.inference_mode():
        clean, half = (
            torch.log_softmax(run_spliced(model, tokens, HOOK, {"edit": edit})[:, :-1].double(), dim=-1)
            for edit in (lambda x: x, lambda x: 0.5 * x)
        )
    cross_entropy = -half.gather(-1, tokens[:, 1:, None])[..., 0]
    kl = (clean.exp() * (clean - half)).sum(-1)
    assert torch.allclose(found["half"].cross_entropy[:, :-1].double(), cross_entropy, atol=1e-3)
    assert torch.allclose(found["half"].kl[:, :-1].double(), kl, atol=1e-3)
    assert float(kl.mean()) > 0.1
