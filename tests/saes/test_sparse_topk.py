"""The sparse TopK step gives what the dense one gives, with far fewer multiplications."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE, TopKSAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch.utils.flop_counter import FlopCounterMode

from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE
from saema_utils.saes.topk_latents import SMALLEST_RATIO


def pair(d_in=12, d_sae=160, k=4, seed=0, dtype="float64", **options):
    """The same random weights in sae_lens's class and in ours."""

    def config():
        return TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, dtype=dtype, **options)

    dense, sparse = TopKTrainingSAE(config()), SparseTopKTrainingSAE(config())
    random = torch.Generator().manual_seed(seed)
    for parameter in dense.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64).to(parameter.dtype)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


def step(sae, x, dead=None):
    output = sae.training_forward_pass(TrainStepInput(x, {}, dead, 0, False))
    sae.zero_grad()
    output.loss.backward()
    return output, {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}


def assert_equal_steps(dense, sparse, x, dead=None, tolerance=1e-9):
    (expected, gradients), (found, ours) = step(dense, x, dead), step(sparse, x, dead)
    assert found.losses.keys() == expected.losses.keys()
    compared = {
        "loss": (found.loss, expected.loss),
        "sae_out": (found.sae_out, expected.sae_out),
        "feature_acts": (found.feature_acts.to_dense(), expected.feature_acts),
        **{name: (found.losses[name], expected.losses[name]) for name in expected.losses},
        **{name: (ours[name], gradient) for name, gradient in gradients.items()},
    }
    for name, (one, other) in compared.items():
        scale = other.detach().abs().max().clamp_min(1e-12)  # rounding is relative to the largest entry
        assert float((one - other).detach().abs().max() / scale) < tolerance, name


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 40),
    k=st.integers(1, 10),
    dead=st.sampled_from([0, 1, 5, 6, 7, 60, 160]),
    by_norm=st.booleans(),
    subtract=st.booleans(),
)
def test_losses_and_all_gradients_equal_the_dense_step(seed, tokens, k, dead, by_norm, subtract):
    dense, sparse = pair(k=k, seed=seed, rescale_acts_by_decoder_norm=by_norm, apply_b_dec_to_input=subtract)
    random = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(tokens, 12, generator=random, dtype=torch.float64)
    mask = torch.zeros(160, dtype=torch.bool)
    mask[torch.randperm(160, generator=random)[:dead]] = True
    assert sparse.takes_sparse_step(x)
    assert_equal_steps(dense, sparse, x, mask)


def test_float32_agrees_to_rounding():
    dense, sparse = pair(d_in=64, d_sae=2048, k=16, dtype="float32")
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    assert_equal_steps(dense, sparse, x, tolerance=2e-5)


def test_tokens_on_which_nothing_fires():
    dense, sparse = pair()
    for sae in (dense, sparse):
        sae.b_enc.data.fill_(-1e6)
    x = torch.randn(9, 12, dtype=torch.float64)
    assert_equal_steps(dense, sparse, x)
    output, gradients = step(sparse, x)
    assert output.feature_acts.to_dense().count_nonzero() == 0
    assert gradients["W_enc"].count_nonzero() == 0


def test_one_latent_chosen_by_every_token():
    dense, sparse = pair(k=1)
    for sae in (dense, sparse):
        sae.b_enc.data[7] = 1e3
    x = torch.randn(50, 12, dtype=torch.float64)
    assert_equal_steps(dense, sparse, x)
    assert step(sparse, x)[1]["W_dec"].norm(dim=-1).nonzero().flatten().tolist() == [7]


def trained(sae, batches, fused=False):
    config = SAETrainerConfig(
        total_training_samples=10_000,
        train_batch_size_samples=len(batches[0]),
        lr=3e-3,
        lr_end=3e-4,
        dead_feature_window=3,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter([]))
    for group in trainer.optimizer.param_groups if fused else ():
        group.update(fused=True, foreach=False)
    for batch in batches:
        trainer.step(batch)
        trainer.n_training_steps += 1
    return trainer


@pytest.mark.parametrize("fused", [False, True], ids=["adam", "fused adam, as train_sae sets it"])
def test_a_run_of_the_trainer_ends_at_the_same_weights(fused):
    dense, sparse = pair()
    random = torch.Generator().manual_seed(4)
    batches = [torch.randn(32, 12, generator=random, dtype=torch.float64) for _ in range(25)]
    ours, theirs = trained(sparse, batches, fused), trained(dense, batches)
    assert ours.dead_neurons.any(), "the test should cross the loss of dead latents"
    for (name, expected), found in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=name)
    torch.testing.assert_close(ours.act_freq_scores, theirs.act_freq_scores)
    torch.testing.assert_close(ours.n_forward_passes_since_fired, theirs.n_forward_passes_since_fired)


def test_it_multiplies_less_than_a_fifth_of_the_matrices():
    dense, sparse = pair(d_in=64, d_sae=1024, k=8, dtype="float32")
    x = torch.randn(256, 64)
    counts = []
    for sae in (dense, sparse):
        with FlopCounterMode(display=False) as counter:
            step(sae, x)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 4.9
    assert counts[1] >= 2 * 256 * 64 * 1024, "the encoder product is needed in full"


class _OtherLoss(SparseTopKTrainingSAE):
    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        return {"size": feature_acts.sum()}


def test_a_subclass_with_its_own_loss_gets_the_dense_step():
    sae = _OtherLoss(TopKTrainingSAEConfig(d_in=12, d_sae=160, k=4, dtype="float64"))
    x = torch.randn(5, 12, dtype=torch.float64)
    assert not sae.takes_sparse_step(x)
    output, gradients = step(sae, x)
    assert "size" in output.losses
    assert gradients["W_enc"].count_nonzero() > 0


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({"k": 160 // SMALLEST_RATIO + 1}, {}),
        ({"normalize_activations": "layer_norm"}, {}),
        ({"dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
        ({}, {"requires_grad": True}),
    ],
)
def test_where_it_does_not_apply_the_step_is_sae_lens_own(options, inputs):
    dense, sparse = pair(**options)
    x = torch.randn(8, 12, **{"dtype": torch.float64, **inputs})
    assert not sparse.takes_sparse_step(x)
    (expected, gradients), (found, ours) = step(dense, x), step(sparse, x)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(ours[name], gradients[name]) for name in gradients)


def test_hooks_on_the_sae_are_honoured():
    _, sparse = pair()
    seen = []
    sparse.hook_sae_acts_post.add_hook(lambda value, hook: seen.append(value.shape))
    step(sparse, torch.randn(6, 12, dtype=torch.float64))
    assert seen == [(6, 160)]


def test_it_is_saved_as_a_plain_topk(tmp_path):
    dense, sparse = pair(dtype="float32")
    sparse.save_inference_model(tmp_path / "ours")
    dense.save_inference_model(tmp_path / "theirs")
    ours, theirs = SAE.load_from_disk(tmp_path / "ours"), SAE.load_from_disk(tmp_path / "theirs")
    assert type(ours) is TopKSAE
    x = torch.randn(20, 12)
    assert torch.equal(ours(x), theirs(x))
    assert (tmp_path / "ours" / "cfg.json").read_text() == (tmp_path / "theirs" / "cfg.json").read_text()


def test_weights_are_left_alone_by_a_forward_pass():
    _, sparse = pair()
    before = copy.deepcopy(sparse.state_dict())
    step(sparse, torch.randn(6, 12, dtype=torch.float64))
    assert all(torch.equal(before[name], value) for name, value in sparse.state_dict().items())
