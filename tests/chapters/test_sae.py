"""Chapter 2: what the page defines is what the package computes, and its stage runs on a real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig

from saema_utils.chapters.sae import figures as plots_sae
from saema_utils.errors import SaeError
from saema_utils.exercises import EXERCISES, Wrong, check
from saema_utils.notebook import say
from saema_utils.runs.directory import RunDirectory
from saema_utils.runtime import generator
from saema_utils.saes.coders import PcaCoder
from saema_utils.saes.fidelity import explained_variance
from saema_utils.study import get_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_sae_training.ipynb"


def cells(tag):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return {cell["id"]: cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])}


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


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_solutions_are_accepted_and_the_tempting_answer_is_not(number, page):
    names = {**page, "check": check, "say": say, "generator": generator, "seed": 0}
    exec(cells("exercise")[f"exercise-{number}-answer"], names)
    exec(cells("solution")[f"exercise-{number}-solution"], names)
    exercise = EXERCISES[f"2.{number}"]
    exercise.judge(names["answer"])
    with pytest.raises(Wrong):
        exercise.judge(exercise.wrong)


def test_one_sink_hides_a_poor_reconstruction(page):
    names = {**page, "check": check, "say": say, "generator": generator, "seed": 0}
    exec(cells("exercise")["exercise-2-answer"], names)
    exec(cells("solution")["exercise-2-solution"], names)
    assert page["explained_variance_by_hand"](names["x"], names["x_hat"]) > 0.99
    assert names["answer"](names["x"], names["x_hat"]) < 0.7


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
        plots_sae.training_curve(history, evaluation()),
        plots_sae.training_curve(pd.DataFrame(), evaluation()),
        plots_sae.recovery(found, found / 2),
        plots_sae.density_histogram(density),
        plots_sae.sparsity_frontier(curve),
        plots_sae.cross_entropy(evaluation()),
        plots_sae.concept_heatmap(telling, "any"),
    ):
        figure.savefig(tmp_path / "figure.png")
        assert all(axes.get_xlabel() or axes.images for axes in figure.axes)


def test_curves_stop_where_keeping_more_changes_nothing():
    curve = pd.DataFrame({"representation": "sae", "kept": [1, 2, 4, 8], "explained_variance": [0.1, 0.3, 0.5, 0.5]})
    line = plots_sae.sparsity_frontier(curve).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 4]


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
    from saema_utils.chapters.activations.corpus import corpus_activations
    from saema_utils.chapters.activations.tables import concept_activations

    opened = RunDirectory(tmp_path_factory.mktemp("runs") / "tiny", tiny_study(), device="cpu")
    concept_activations(opened)
    corpus_activations(opened)
    return opened


@pytest.mark.model
def test_the_sae_is_kept_hashed_and_not_trained_twice(run):
    from saema_utils.chapters.sae.coders import study_sae, training_history

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
    from saema_utils.chapters.activations.corpus import corpus_activations
    from saema_utils.chapters.sae.tables import sae_evaluation, study_coders

    coders = study_coders(run)
    assert list(coders) == ["sae", "pca", "random_dictionary"]
    assert coders["random_dictionary"].n_latents == coders["sae"].n_latents
    rows = sae_evaluation(run).set_index("representation")
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
    from saema_utils.chapters.activations.corpus import corpus_activations, language_model
    from saema_utils.chapters.sae.tables import spliced_means

    corpus = corpus_activations(run)
    identity = PcaCoder.fit(corpus.train)
    assert identity.n_latents == 576
    losses = spliced_means(run, {"identity": identity}, corpus)
    assert losses["identity"][0] == pytest.approx(losses["clean"][0], abs=1e-3)
    assert losses["identity"][1] == pytest.approx(0, abs=1e-3)
    assert losses["zero"][0] > losses["clean"][0] + 1
    hooks = [name for name, point in language_model(run).hook_dict.items() if point.fwd_hooks]
    assert hooks == []


@pytest.mark.model
def test_latents_of_a_concept_beat_text_and_the_other_concepts(run):
    from saema_utils.chapters.sae.tables import concept_latents, latent_density, sparsity_curve

    telling = concept_latents(run, top=3)
    assert set(telling["concept"]) == {"months", "days"}
    assert set(telling.loc[telling["concept"] == "days", "word"]) >= {"Monday", "Sunday"}
    first = telling.drop_duplicates(["concept", "rank"])
    assert (first["score"] <= first["concept_rate"] - first["text_rate"] + 1e-9).all()
    for _, rows in first.groupby("concept"):
        assert rows["score"].is_monotonic_decreasing
    assert latent_density(run)["firing_rate"].between(0, 1).all()
    for _, rows in sparsity_curve(run).groupby("representation"):
        assert rows["explained_variance"].is_monotonic_increasing


@pytest.mark.model
def test_the_text_shown_beside_a_latent_took_no_part_in_choosing_it(run, monkeypatch):
    from saema_utils.chapters.activations.corpus import corpus_activations
    from saema_utils.chapters.sae import tables as stage2_sae

    corpus = corpus_activations(run)
    (rated, rated_tokens), (shown, shown_tokens) = stage2_sae.halves(corpus)
    assert torch.equal(torch.cat([rated, shown]), corpus.heldout)
    assert torch.equal(torch.cat([rated_tokens, shown_tokens]), corpus.heldout_tokens[corpus.heldout_mask])
    assert 0 <= len(rated) - len(shown) <= 1
    telling = stage2_sae._telling(run, 3)
    # Other text in the shown half, here the rated half's: the same latents win, beside other examples.
    other = dataclasses.replace(corpus, heldout=torch.cat([rated, rated[: len(shown)]]))
    monkeypatch.setattr(stage2_sae, "corpus_activations", lambda run: other)
    again = stage2_sae._telling(run, 3)
    chosen = [c for c in telling if c != "tokens"]
    pd.testing.assert_frame_equal(again[chosen], telling[chosen])
    assert (again["tokens"] != telling["tokens"]).any()


@pytest.mark.model
def test_a_given_sae_of_another_width_is_refused(run, tmp_path):
    from saema_utils.chapters.sae.coders import study_sae

    TopKSAE(TopKSAEConfig(d_in=10, d_sae=64, k=4)).save_model(tmp_path / "narrow")
    other = RunDirectory(tmp_path / "run", tiny_study(**{"sae.source": str(tmp_path / "narrow")}), device="cpu")
    with pytest.raises(SaeError, match="reads 10 dimensions but the residual stream has 576"):
        study_sae(other)
    study_sae(run).save_model(tmp_path / "fitting")
    given = RunDirectory(tmp_path / "given", tiny_study(**{"sae.source": str(tmp_path / "fitting")}), device="cpu")
    assert torch.equal(study_sae(given).W_dec, study_sae(run).W_dec)
    assert not (given.path / "tables" / "02_sae_training.csv").exists()
