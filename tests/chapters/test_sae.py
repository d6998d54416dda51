"""Chapter 2: what the page defines is what the package computes, and its stage runs on a real model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from reading import numbers
from sae_lens import SAE, TopKSAE, TopKSAEConfig

from saema_utils.chapters.activations.concepts import concept_activations
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.found import NOTHING
from saema_utils.chapters.sae import figures, tables
from saema_utils.chapters.sae.coders import study_coders, study_sae, training_history
from saema_utils.chapters.sae.contexts import latent_contexts, meaning_of_latents
from saema_utils.chapters.sae.findings import (
    cost_to_the_model,
    frontier,
    known_features,
    reconstruction,
    telling_latents,
    workload,
)
from saema_utils.errors import SaeError
from saema_utils.runs.directory import RunDirectory
from saema_utils.saes.coders import PcaCoder
from saema_utils.saes.fidelity import explained_variance, recovered_features
from saema_utils.saes.training import TrainedSae, train_sae
from saema_utils.study import get_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_sae_training.ipynb"


def cells(tag):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return {cell["id"]: cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])}


def cell(name):
    return next(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c["id"] == name)


@pytest.fixture(scope="module")
def page():
    """The names that the page's definition cells define."""
    names = {}
    for source in cells("definition").values():
        exec(source, names)
    return names


def test_the_autoencoder_of_the_page_is_sae_lens_own(page):
    random = torch.Generator().manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=9, d_sae=50, k=4))
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    x = torch.randn(30, 9, generator=random)
    z, x_hat = page["sae_by_hand"](x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, 4)
    torch.testing.assert_close(z, sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat, sae(x), rtol=1e-5, atol=1e-5)


def test_explained_variance_of_the_page_is_the_package_own(page):
    x, noise = torch.randn(40, 7), torch.randn(40, 7)
    assert page["explained_variance_by_hand"](x, x + noise) == pytest.approx(explained_variance(x, x + noise), rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loop_of_the_page_finds_what_the_package_finds(page, seed):
    names = {"torch": torch, "seed": seed}
    exec(cell("toy-world"), names)
    truth, (x, unseen) = names["truth"], names["x"].split((11_000, 1_000))
    weights = page["train_by_hand"](x, n_latents=96, k=3, seed=seed)
    again = page["train_by_hand"](x, n_latents=96, k=3, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    recipe = dataclasses.replace(get_study("smoke").sae, d_sae=96, k=3, epochs=8, batch=256, learning_rate=5e-3)
    packaged = train_sae(x, unseen, recipe, seed).sae
    found = [int((recovered_features(truth, rows) > 0.9).sum()) for rows in (weights[2], packaged.W_dec.detach())]
    assert min(found) >= 45
    _, rebuilt = page["sae_by_hand"](unseen, *weights, k=3)
    with torch.no_grad():
        assert explained_variance(unseen, rebuilt) > explained_variance(unseen, packaged(unseen)) - 0.05


def test_one_sink_hides_a_poor_reconstruction(page):
    """As exercise 2.2 says, whose sink is rebuilt to within a quarter of a per cent."""
    names = {**page, "check": lambda *_, **__: True}
    exec(cells("solution")["exercise-2-2-solution"], names)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=random)
    x_hat = x + 0.8 * torch.randn(60, 8, generator=random)
    x[11], x_hat[11] = 4000.0, 3990.0
    assert page["explained_variance_by_hand"](x, x_hat) > 0.99
    assert names["solution"](x, x_hat) < 0.7


# ---- plots -------------------------------------------------------------------------------------


def evaluation(**changes):
    row = {"explained_variance": 0.8, "ce_clean": 3.0, "ce_spliced": 3.4, "ce_zero_ablated": 11.0, **changes}
    return pd.DataFrame([{"representation": name, **row} for name in ("sae", "pca", "random_dictionary")])


def test_every_plot_draws_and_an_untrained_sae_has_one_too(tmp_path):
    history = pd.DataFrame({"tokens": [100, 200], "explained_variance": [0.1, 0.6], "dead": [0, 3]})
    curve = pd.DataFrame(
        [
            {"representation": name, "kept": kept, "explained_variance": level * min(kept, 4) / 4}
            for name, level in (("sae", 0.8), ("pca", 0.7), ("random_dictionary", 0.2))
            for kept in (1, 2, 4, 8)
        ]
    )
    density = pd.DataFrame({"latent": range(50), "firing_rate": [0.0, *[0.01] * 49], "tokens": 1000})
    words = [f"word {i}" for i in range(40)]
    telling = pd.DataFrame(
        [
            {"concept": "any", "rank": rank, "latent": 10 * rank, "word": word, "activation": 1.0, "tokens": tokens}
            for rank, tokens in enumerate(["$ · a", "", None])
            for word in words
        ]
    )
    found = torch.linspace(0, 1, 20).numpy()
    for figure in (
        figures.training_curve(history, evaluation()),
        figures.training_curve(history[:0], evaluation()),
        figures.features_found(found, found / 2),
        figures.density_histogram(density),
        figures.sparsity_frontier(curve),
        figures.cross_entropy(evaluation()),
        figures.concept_heatmap(telling, "any"),
    ):
        figure.savefig(tmp_path / "figure.png")
        assert all(axes.get_xlabel() or axes.collections for axes in figure.axes)


def test_curves_stop_where_keeping_more_changes_nothing():
    curve = pd.DataFrame({"representation": "sae", "kept": [1, 2, 4, 8], "explained_variance": [0.1, 0.3, 0.5, 0.5]})
    line = figures.sparsity_frontier(curve).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 4]


# ---- findings ----------------------------------------------------------------------------------


def toy_of(dictionary: torch.Tensor, explained: float) -> TrainedSae:
    sae = TopKSAE(TopKSAEConfig(d_in=dictionary.shape[1], d_sae=len(dictionary), k=1))
    sae.W_dec.data = dictionary
    return TrainedSae(sae, pd.DataFrame({"explained_variance": [0.0, explained]}))


def test_a_perfect_encoder_of_k_features_explains_all_but_the_weaker_ones():
    truth, strengths = torch.eye(4), torch.tensor([[3.0, 1, 0, 0], [0, 0, 3, 1]])
    found, by_chance, two = known_features(truth, strengths, 2, toy_of(5 * truth, 0.5), torch.ones(1, 4))
    assert found.tolist() == [1, 1, 1, 1]
    assert by_chance.tolist() == pytest.approx([0.5] * 4)
    assert numbers(two.shows) == [4, 4, 0, 50, 100, 0]
    assert two.holds is False  # all are found, but what is missing is the encoder's own fault
    *_, one = known_features(truth, strengths, 1, toy_of(truth, 0.5), torch.ones(1, 4))
    possible = 1 - 2 / 10  # two strengths of 1 are lost, of squared distances to the mean
    assert numbers(one.shows)[-2:] == pytest.approx([100 * possible, 100 * (1 - possible) / 0.5])
    for toy, random, holds in (
        (truth, torch.ones(1, 4), True),
        (truth[:3], torch.ones(1, 4), False),
        (truth, truth, False),
    ):
        assert known_features(truth, strengths, 1, toy_of(toy, possible), random)[-1].holds is holds


def test_a_reconstruction_is_sparse_beside_principal_components_and_costs_what_it_adds_to_the_loss():
    rows = evaluation(tokens=100, l0=10.0, n_latents=50, ce_recovered=0.9).assign(n_latents=[50, 30, 50])
    history = pd.DataFrame({"train_mse": [9.0, 2.0], "mse": [9.0, 3.0]})
    found, cost = reconstruction(rows, history), cost_to_the_model(rows)
    assert found.holds
    assert numbers(found.shows)[-1] == 50
    assert found.shows.startswith(reconstruction(rows, history[:0]).shows)
    assert len(numbers(reconstruction(rows, history[:0]).shows)) == len(numbers(found.shows)) - 1
    assert reconstruction(rows.assign(n_latents=20), history).holds is False
    assert cost.holds
    assert numbers(cost.shows) == [0.4, 0.4, 90, 90]
    assert cost_to_the_model(rows.assign(ce_recovered=0.3)).holds is False
    assert cost_to_the_model(rows.assign(ce_spliced=2.9)).holds is False


def test_a_frontier_ends_where_the_sae_has_no_more_coefficients():
    curve = pd.DataFrame(
        {"representation": name, "kept": kept, "explained_variance": level * kept}
        for name, level in (("sae", 0.05), ("pca", 0.04), ("random_dictionary", 0.01))
        for kept in (1, 2, 4, 8, 16)
    )
    found = frontier(curve, evaluation(l0=9.0))
    assert found.holds
    assert numbers(found.shows) == [8, 0.4, 0.32, 0.08, 4, 4]
    at_eight = (curve["representation"] == "pca") & (curve["kept"] == 8)
    beaten = frontier(
        curve.assign(explained_variance=curve["explained_variance"].mask(at_eight, 1)), evaluation(l0=9.0)
    )
    assert beaten.holds is False
    assert numbers(beaten.shows)[-2:] == [3, 4]


def test_work_is_uneven_when_the_busiest_hundredth_does_twice_its_part():
    rate = np.full(200, 0.01)
    even = workload(pd.DataFrame({"firing_rate": rate, "tokens": 1000}))
    assert numbers(even.shows) == [0, 1000, 1, 1]
    assert even.holds is False
    rate[:2] = 0.5
    uneven = workload(pd.DataFrame({"firing_rate": rate, "tokens": 1000}))
    assert numbers(uneven.shows)[-1] == pytest.approx(100 / (1 + 1.98), abs=0.5)
    assert uneven.holds
    rate[-20:] = 0
    assert workload(pd.DataFrame({"firing_rate": rate, "tokens": 1000})).holds is False  # a tenth is silent


@pytest.mark.parametrize(("of_words", "of_text", "marked"), [(0.6, 0.01, True), (0.4, 0.01, False), (0.6, 0.2, False)])
def test_a_latent_marks_a_concept_by_its_words_alone(of_words, of_text, marked):
    rows = [("months", 0, 7, 0.9, 0.9, 0.0), ("days", 0, 8, 0.5, of_words, of_text), ("days", 1, 9, 0.1, 0.1, 0.9)]
    names = ["concept", "rank", "latent", "score", "concept_rate", "text_rate"]
    table = pd.DataFrame(rows * 2, columns=names)
    for concept, latent in (("months", 7), ("days", 8)):
        found = telling_latents(table, concept)
        assert numbers(found.shows)[:3] == [1 + marked, 2, latent]
        assert found.holds is marked


@pytest.mark.parametrize(("clear", "unclear", "holds"), [(0.6, 0.0, True), (0.2, 0.0, False), (0.6, 0.2, False)])
def test_a_latent_means_its_concept_by_text_that_did_not_choose_it(clear, unclear, holds):
    rows = [("months", 1, 0.1, unclear), ("days", 2, 0.7, clear), ("days", 2, 0.7, clear), ("color", 3, 0.6, 1.0)]
    table = pd.DataFrame(rows, columns=["concept", "latent", "share_rated", "share"])
    found = meaning_of_latents(table, "months")
    assert found.holds is holds
    assert numbers(found.shows) == [100 * clear, 100 * unclear]
    assert meaning_of_latents(table, "planets") == meaning_of_latents(table[:0], "months") == (None, NOTHING)


# ---- the stage, on the embedded model ----------------------------------------------------------


def tiny_study(**changes):
    return get_study("smoke").changed(
        name="tiny-sae",
        concepts=["months", "days"],
        templates=2,
        **{
            "corpus.tokens": 1500,
            "corpus.heldout_tokens": 500,
            "corpus.context": 32,
            "sae.d_sae": 256,
            "sae.k": 16,
            "sae.epochs": 6,
            "sae.batch": 128,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    opened = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny", tiny_study(), device="cpu")
    concept_activations(opened)
    corpus_activations(opened)
    return opened


@pytest.mark.model
def test_the_sae_is_kept_hashed_and_not_trained_twice(run):
    sae = study_sae(run)
    weights = run.path / "sae" / "sae_weights.safetensors"
    before = weights.stat().st_mtime_ns
    history = training_history(run)
    assert weights.stat().st_mtime_ns == before
    assert len(history) > 5
    again = SAE.load_from_disk(run.path / "sae")
    assert torch.equal(again.W_dec, sae.W_dec)
    assert again.cfg.metadata.hook_name == run.study.hook_name
    for name in ("sae/sae_weights.safetensors", "sae/cfg.json", "tables/02_sae_training.csv"):
        assert run.check(name).exists()
    weights.write_bytes(weights.read_bytes()[:-4])  # damage is noticed and repaired
    assert torch.equal(study_sae(run).W_dec, sae.W_dec)


@pytest.mark.model
def test_the_table_holds_every_representation_on_held_out_tokens(run):
    coders = study_coders(run)
    assert list(coders) == ["sae", "pca", "random_dictionary"]
    assert coders["random_dictionary"].n_latents == coders["sae"].n_latents
    rows = tables.sae_evaluation(run).set_index("representation")
    heldout = corpus_activations(run).heldout.float()
    sae = coders["sae"].sae
    assert rows.loc["sae", "explained_variance"] == pytest.approx(explained_variance(heldout, sae(heldout)), abs=1e-3)
    assert rows.loc["sae", "l0"] == pytest.approx(16, abs=0.5)
    assert rows.loc["pca", "fvu"] <= rows.loc["sae", "fvu"] + 1e-3
    assert (rows["ce_clean"] < rows["ce_spliced"]).all()
    assert (rows["ce_spliced"] < rows["ce_zero_ablated"]).all()
    recovered = (rows["ce_zero_ablated"] - rows["ce_spliced"]) / (rows["ce_zero_ablated"] - rows["ce_clean"])
    assert rows["ce_recovered"].to_numpy() == pytest.approx(recovered.to_numpy())
    assert (rows["kl"] > 0).all()


@pytest.mark.model
def test_a_coder_that_loses_nothing_costs_nothing(run):
    corpus = corpus_activations(run)
    identity = PcaCoder.fit(corpus.train)
    assert identity.n_latents == 576
    losses = tables.spliced_means(run, {"identity": identity}, corpus)
    assert losses["identity"][0] == pytest.approx(losses["clean"][0], abs=1e-3)
    assert losses["identity"][1] == pytest.approx(0, abs=1e-3)
    assert losses["zero"][0] > losses["clean"][0] + 1
    hooks = [name for name, point in language_model(run).hook_dict.items() if point.fwd_hooks]
    assert hooks == []


@pytest.mark.model
def test_passages_show_where_a_latent_is_strongest_in_text_that_did_not_choose_it(run):
    contexts, corpus = latent_contexts(run), corpus_activations(run)
    best = tables.concept_latents(run).query("rank == 0").drop_duplicates("concept").set_index("concept")["latent"]
    (_, _), (shown, tokens) = tables.halves(corpus)
    sequence = corpus.heldout_mask.nonzero()[-len(tokens) :, 0]
    with torch.no_grad():
        latents = study_sae(run).encode(shown.float())
    assert len(contexts)
    for concept, rows in contexts.groupby("concept"):
        values = latents[:, best[concept]]
        by_sequence = sorted((float(values[sequence == s].max()) for s in sequence.unique()), reverse=True)
        strongest = [value for value in by_sequence if value > 0][:6]
        assert rows["activation"].tolist() == pytest.approx(strongest, rel=1e-4)
        marked = [re.search("«(.*)»", passage)[1] for passage in rows["passage"]]
        where = [int((values - value).abs().argmin()) for value in rows["activation"]]
        assert marked == [language_model(run).tokenizer.decode([int(tokens[i])]).strip() for i in where]
        found = concept_activations(run)[concept]
        own = {int(token) for token in found.tokens[found.word_mask]}
        at_own = sum(float(v) for v, token in zip(values, tokens.tolist(), strict=True) if token in own)
        assert rows["share"].iloc[0] == pytest.approx(at_own / float(values.sum()), abs=1e-5)


@pytest.mark.model
def test_latents_of_a_concept_beat_text_and_the_other_concepts(run):
    telling = tables.concept_latents(run, top=3)
    assert set(telling["concept"]) == {"months", "days"}
    assert set(telling.loc[telling["concept"] == "days", "word"]) >= {"Monday", "Sunday"}
    first = telling.drop_duplicates(["concept", "rank"])
    assert (first["score"] <= first["concept_rate"] - first["text_rate"] + 1e-9).all()
    for _, rows in first.groupby("concept"):
        assert rows["score"].is_monotonic_decreasing
    assert tables.latent_density(run)["firing_rate"].between(0, 1).all()
    for _, rows in tables.sparsity_curve(run).groupby("representation"):
        assert rows["explained_variance"].is_monotonic_increasing


@pytest.mark.model
def test_the_text_shown_beside_a_latent_took_no_part_in_choosing_it(run, monkeypatch):
    corpus = corpus_activations(run)
    (rated, rated_tokens), (shown, shown_tokens) = tables.halves(corpus)
    assert torch.equal(torch.cat([rated, shown]), corpus.heldout)
    assert torch.equal(torch.cat([rated_tokens, shown_tokens]), corpus.heldout_tokens[corpus.heldout_mask])
    assert 0 <= len(rated) - len(shown) <= 1
    telling = tables.concept_latents.__wrapped__(run, top=3)
    # Other text in the shown half, here the rated half's: the same latents win, beside other examples.
    other = dataclasses.replace(corpus, heldout=torch.cat([rated, rated[: len(shown)]]))
    monkeypatch.setattr(tables, "corpus_activations", lambda run: other)
    again = tables.concept_latents.__wrapped__(run, top=3)
    chosen = [c for c in telling if c != "tokens"]
    pd.testing.assert_frame_equal(again[chosen], telling[chosen])
    assert (again["tokens"] != telling["tokens"]).any()


@pytest.mark.model
def test_a_given_sae_of_another_width_is_refused(run, tmp_path):
    TopKSAE(TopKSAEConfig(d_in=10, d_sae=64, k=4)).save_model(tmp_path / "narrow")
    other = RunDirectory(tmp_path / "run", tiny_study(**{"sae.source": str(tmp_path / "narrow")}), device="cpu")
    with pytest.raises(SaeError, match="reads 10 dimensions but the residual stream has 576"):
        study_sae(other)
    study_sae(run).save_model(tmp_path / "fitting")
    given = RunDirectory(tmp_path / "given", tiny_study(**{"sae.source": str(tmp_path / "fitting")}), device="cpu")
    assert torch.equal(study_sae(given).W_dec, study_sae(run).W_dec)
    history = training_history(given)
    assert len(history) == 0
    assert list(history.columns) == list(training_history(run).columns)
