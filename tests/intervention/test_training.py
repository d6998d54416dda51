"""Training for separability: stock at zero, starts of their own, a plain TopK on disk, a term that does as it says."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from saema_utils.chapters.intervention import measures
from saema_utils.chapters.intervention.measures import Split, measure_trained
from saema_utils.chapters.intervention.training import BATCH, FRESH_BATCH, WARM_RATE, Bench, seeds_of
from saema_utils.errors import InterventionError
from saema_utils.intervention.separation import separation_scale_free
from saema_utils.intervention.training import (
    LabelledTokens,
    SeparableTopKConfig,
    SeparableTopKTrainingSAE,
    activation_scale,
    as_plain,
    continued,
    fresh,
    labelled_batches,
    train_separable,
)
from saema_utils.study import STUDIES

D, F, K = 12, 96, 4


@pytest.fixture(scope="module")
def corpus():
    draws = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(30, D, generator=draws), dim=1)
    return (
        5 * (torch.rand(3000, 30, generator=draws) * (torch.rand(3000, 30, generator=draws) < 0.1)) @ directions + 0.5
    )


@pytest.fixture(scope="module")
def tokens(corpus):
    draws = torch.Generator().manual_seed(1)
    centres = corpus[:8].repeat_interleave(10, 0)
    return LabelledTokens(
        centres + torch.randn(80, D, generator=draws),
        torch.arange(8).repeat_interleave(10),
        torch.arange(2).repeat_interleave(40),
    )


@pytest.fixture(scope="module")
def start(corpus):
    """A plain run from fresh weights, as it is in training."""
    sae = fresh(D, F, K, seed=0)
    train_separable(sae, corpus, None, scale=activation_scale(corpus), steps=80, batch=128, learning_rate=3e-3)
    return sae


@pytest.fixture
def bench(corpus, tokens):
    """A chapter's bench on this corpus: 2 steps of fine-tuning, 8 of a plain run."""

    def made(warm: bool = True) -> Bench:
        scale = activation_scale(corpus)
        return Bench(F, K, corpus, corpus[:64], Split(tokens, tokens, tokens), {}, scale, 2, 8, 1e-3, warm)

    return made


def step_input(x, dead=None):
    return TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)


def of_concept(tokens, concept):
    here = tokens.concepts == concept
    return LabelledTokens(tokens.vectors[here], tokens.clusters[here], tokens.concepts[here])


def mean_separation(sae, tokens):
    with torch.no_grad():
        parts = [of_concept(tokens, concept) for concept in (0, 1)]
        values = [separation_scale_free(sae.encode(part.vectors), part.clusters) for part in parts]
    return float(sum(values) / 2)


@pytest.mark.parametrize("rescale", [True, False])
def test_what_is_continued_reconstructs_what_its_start_does(corpus, rescale):
    start = fresh(D, F, K, seed=0, rescale_acts_by_decoder_norm=rescale)
    with torch.no_grad():
        start.W_dec *= 0.5 + torch.rand(F, 1)
        start.b_enc += torch.randn(F) / 10
    new = continued(start, separation_coefficient=0.3, k=K)
    with torch.no_grad():
        assert torch.equal(new.decode(new.encode(corpus)), start.decode(start.encode(corpus)))
    assert (new.cfg.separation_coefficient, start.cfg.separation_coefficient) == (0.3, 0.0)


def test_another_k_keeps_as_many_latents_of_the_same_weights(start, corpus):
    with torch.no_grad():
        few, many = (as_plain(continued(start, k=k)).encode(corpus) for k in (K // 2, 2 * K))
    assert int((few != 0).sum(1).max()) == K // 2
    assert int((many != 0).sum(1).max()) == 2 * K
    assert torch.equal(few[few != 0], many[few != 0])


def test_training_a_copy_leaves_the_start_alone(start, corpus, tokens):
    before = {name: value.clone() for name, value in start.state_dict().items()}
    train_separable(continued(start, separation_coefficient=0.3), corpus, tokens, scale=1.0, steps=3, batch=64)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_coefficient_zero_takes_the_stock_step(corpus, tokens):
    """Same weights, same batch: loss and every gradient equal those of sae_lens's own class."""
    ours = fresh(D, F, K, seed=3)
    stock = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=D, d_sae=F, k=K, normalize_activations="expected_average_only_in")
    )
    stock.load_state_dict(ours.state_dict())
    ours.concept_labels, ours.concept_groups = tokens.clusters, tokens.concepts
    x = torch.cat([corpus[:64], tokens.vectors])
    dead = torch.arange(F) < 10
    outputs = [sae.training_forward_pass(step_input(x, dead)) for sae in (ours, stock)]
    assert torch.allclose(outputs[0].loss, outputs[1].loss, rtol=1e-5)
    for output in outputs:
        output.loss.backward()
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert "separation_loss" not in outputs[0].losses


def test_the_term_is_the_share_of_variance_it_says(corpus, tokens):
    ours = fresh(D, F, K, seed=3, separation_coefficient=0.2)
    ours.concept_labels, ours.concept_groups = tokens.clusters, tokens.concepts
    x = torch.cat([corpus[:64], tokens.vectors])
    output = ours.training_forward_pass(step_input(x))
    variance = x.var(0, correction=0).sum()
    expected = -0.2 * float(variance) * mean_separation(ours, tokens)
    assert float(output.losses["separation_loss"].detach()) == pytest.approx(expected, rel=1e-4)
    total = sum(output.losses.values())
    assert torch.allclose(output.loss, total, rtol=1e-5)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("measure", ["scale_free", "aedp"])
def test_the_sparse_step_has_the_gradients_of_the_dense_one(corpus, tokens, measure, rescale, monkeypatch):
    options = {"separation_coefficient": 0.2, "separation_measure": measure, "rescale_acts_by_decoder_norm": rescale}
    sparse, dense = (fresh(D, F, K, seed=3, **options) for _ in range(2))
    monkeypatch.setattr(dense, "takes_sparse_step", lambda x: False)
    x = torch.cat([corpus[:64], tokens.vectors])
    assert sparse.takes_sparse_step(x)
    outputs = []
    for sae in (sparse, dense):
        with torch.no_grad():
            sae.W_dec *= 1 + torch.arange(F)[:, None] / F
        sae.concept_labels, sae.concept_groups = tokens.clusters, tokens.concepts
        outputs.append(sae.training_forward_pass(step_input(x, torch.arange(F) < 10)))
        outputs[-1].loss.backward()
    assert outputs[0].losses["separation_loss"] != 0
    assert torch.allclose(outputs[0].loss, outputs[1].loss, rtol=1e-5)
    for mine, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_the_sign_of_the_coefficient_decides_where_separation_goes(start, corpus, tokens):
    scale, found = activation_scale(corpus), {}
    for coefficient in (-0.3, 0.0, 0.3):
        sae = continued(start, separation_coefficient=coefficient)
        plain = train_separable(sae, corpus, tokens, scale=scale, steps=40, batch=128, learning_rate=1e-3)
        found[coefficient] = mean_separation(plain, tokens)
        with torch.no_grad():
            assert ((plain.encode(corpus[:200]) != 0).sum(1) <= K).all()
    assert found[-0.3] < found[0.0] - 0.02
    assert found[0.3] > found[0.0] + 0.02


def test_what_is_saved_is_a_plain_topk_that_anybody_can_load(start, corpus, tokens, tmp_path):
    scale = activation_scale(corpus)
    sae = continued(start, separation_coefficient=0.1)
    plain = train_separable(sae, corpus, tokens, scale=scale, steps=5, batch=64)
    plain.save_model(tmp_path / "ours")
    loaded = SAE.load_from_disk(tmp_path / "ours")
    assert type(loaded).__name__ == "TopKSAE"
    assert loaded.cfg.architecture() == "topk"
    with torch.no_grad():
        assert torch.equal(loaded.encode(corpus), plain.encode(corpus))
        assert torch.equal(loaded.decode(loaded.encode(corpus)), plain.decode(plain.encode(corpus)))
    # sae_lens's own saving of the training class gives the same autoencoder, in the training scale.
    sae.save_inference_model(tmp_path / "stock")
    stock = SAE.load_from_disk(tmp_path / "stock")
    assert type(stock).__name__ == "TopKSAE"
    with torch.no_grad():
        theirs = stock.decode(stock.encode(corpus * scale)) / scale
        assert torch.allclose(theirs, plain.decode(plain.encode(corpus)), atol=1e-4)


def test_one_seed_gives_one_result_and_coefficients_see_the_same_batches(start, corpus, tokens):
    scale = activation_scale(corpus)
    weights = [
        train_separable(continued(start), corpus, tokens, scale=scale, steps=4, batch=64, seed=s).W_dec
        for s in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    streams = [
        labelled_batches(continued(start, separation_coefficient=c), corpus, tokens, batch=32, seed=5)
        for c in (0.0, 0.5)
    ]
    assert all(torch.equal(next(streams[0]), next(streams[1])) for _ in range(3))


def test_labels_describe_the_last_rows_of_the_batch(start, corpus, tokens):
    sae = continued(start)
    batch = next(labelled_batches(sae, corpus, tokens, batch=32, seed=0, concepts_per_step=1, most=15))
    assert batch.shape == (32 + 15, D)
    assert len(sae.concept_groups.unique()) == 1
    for row, cluster in zip(batch[32:], sae.concept_labels, strict=True):
        members = tokens.vectors[tokens.clusters == cluster]
        assert (members == row).all(1).any()


def test_rewarding_the_plain_distance_inflates_latents_and_the_scale_free_reward_does_not(start, corpus, tokens):
    scale, sizes = activation_scale(corpus), {}
    for measure in ("aedp", "scale_free"):
        sae = continued(start, separation_coefficient=0.5, separation_measure=measure)
        plain = train_separable(sae, corpus, tokens, scale=scale, steps=60, batch=128, learning_rate=3e-3)
        with torch.no_grad():
            sizes[measure] = float(plain.encode(tokens.vectors).norm(dim=1).mean())
    with torch.no_grad():
        before = float(as_plain(start, scale).encode(tokens.vectors).norm(dim=1).mean())
    assert sizes["aedp"] > 1.3 * before
    assert sizes["aedp"] > sizes["scale_free"]


def test_checkpoints_are_plain_copies_that_leave_training_alone(start, corpus, tokens):
    scale, seen = activation_scale(corpus), []
    options = {"scale": scale, "steps": 6, "batch": 64, "seed": 2}
    watched = train_separable(
        continued(start), corpus, tokens, checkpoints=(2, 6), watch=lambda *what: seen.append(what), **options
    )
    unwatched = train_separable(continued(start), corpus, tokens, **options)
    assert [step for step, _ in seen] == [2, 6]
    assert torch.equal(watched.W_enc, unwatched.W_enc)
    assert torch.equal(seen[1][1].W_enc, watched.W_enc)
    assert not torch.equal(seen[0][1].W_enc, watched.W_enc)


@pytest.mark.parametrize("warm", [True, False])
def test_runs_with_tokens_begin_where_the_study_says_and_take_its_steps(bench, start, corpus, tokens, warm):
    shared = bench(warm)
    begun = continued(start, separation_coefficient=0.1) if warm else fresh(D, F, K, seed=7, separation_coefficient=0.1)
    how = (
        {"steps": 2, "batch": BATCH, "learning_rate": WARM_RATE * 1e-3} if warm else {"steps": 8, "batch": FRESH_BATCH}
    )
    expected = train_separable(begun, corpus, tokens, scale=shared.scale, seed=7, **{"learning_rate": 1e-3} | how)
    found = shared.train(start, 7, separation_coefficient=0.1)
    assert torch.equal(found.W_enc, expected.W_enc)
    assert (shared.start, shared.steps) == ("warm" if warm else "fresh", how["steps"])


@pytest.mark.parametrize("warm", [True, False])
def test_plain_runs_are_whole_runs_watched_to_their_end_and_their_own_by_seed(bench, warm):
    shared, seen = bench(warm), []
    one = shared.train_plain(3, lambda step, plain: seen.append((step, plain)))
    assert [step for step, _ in seen] == [2, 4, 6, 8]
    assert torch.equal(seen[-1][1].W_enc, shared.plain(one).W_enc)
    assert torch.equal(one.W_enc, shared.train_plain(3).W_enc)
    assert not torch.equal(one.W_enc, shared.train_plain(4).W_enc)
    assert shared.train_plain(3, d_sae=F // 2).W_enc.shape == (D, F // 2)


def test_six_autoencoders_stand_for_a_study_of_five_seeds_and_each_seed_for_one_of_fewer():
    study = STUDIES["smoke"]
    assert seeds_of(study.changed(seed=7, n_seeds=5)) == (7, 8, 9, 10, 11, 12)
    assert len(seeds_of(study.changed(n_seeds=50))) == 6
    assert seeds_of(study.changed(seed=7, n_seeds=4)) == (7, 8, 9, 10)


def test_judging_on_the_latents_in_use_is_judging_on_all(start, corpus, tokens, monkeypatch):
    """Latents that are off on every row of a concept change no distance, and so no measure."""
    split = Split(tokens, tokens, tokens)
    plain = as_plain(start, activation_scale(corpus))
    few = measure_trained(plain, corpus[:256], split)
    monkeypatch.setattr(measures, "_in_use", lambda latents: latents)
    assert few == pytest.approx(measure_trained(plain, corpus[:256], split), rel=1e-5, nan_ok=True)


def test_impossible_choices_are_refused():
    with pytest.raises(InterventionError, match="Did you mean 'aedp'"):
        SeparableTopKConfig(d_in=D, d_sae=F, k=K, separation_measure="aed")
    with pytest.raises(InterventionError, match="-100 to 100"):
        SeparableTopKConfig(d_in=D, d_sae=F, k=K, separation_coefficient=1e6)
    with pytest.raises(InterventionError, match="nan"):
        SeparableTopKConfig(d_in=D, d_sae=F, k=K, separation_coefficient=float("nan"))


def test_a_concept_of_one_word_adds_nothing_and_breaks_nothing(corpus, tokens):
    sae = SeparableTopKTrainingSAE(SeparableTopKConfig(d_in=D, d_sae=F, k=K, separation_coefficient=0.5))
    lonely = of_concept(tokens, 0)
    sae.concept_labels, sae.concept_groups = torch.zeros(40, dtype=torch.long), lonely.concepts
    output = sae.training_forward_pass(step_input(torch.cat([corpus[:32], lonely.vectors])))
    assert float(output.losses["separation_loss"]) == 0
    output.loss.backward()
