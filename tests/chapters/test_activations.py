"""Chapter 1 as a step of a run, the maps it draws, and the formulas it shows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import hub_layout
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.chapters.activations import tables as stage
from saema_utils.errors import ActivationError, ConceptError, ModelError
from saema_utils.geometry.circles import (
    cyclic_order,
    places_around,
    principal_plane,
    same_sentences,
    similarity,
    variance_shares,
    word_means,
)
from saema_utils.model.residual_stream import find_sinks
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES
from saema_utils.text.concepts import build_prompts

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_activations.ipynb"


@pytest.fixture(scope="module")
def shown() -> dict:
    """The functions that the chapter shows, as the reader sees them."""
    names: dict = {"torch": torch, "np": np}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if "definition" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


# ---- what the chapter shows is what the package does -------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_sink_rule_shown_is_the_packages(shown, seed):
    random = torch.Generator().manual_seed(seed)
    norms = torch.randn(60, generator=random).exp() * 3
    ordinary = torch.rand(60, generator=random) < 0.8
    assert shown["sinks_by_hand"](norms, ordinary).equal(find_sinks(norms, ordinary)[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_plane_shown_is_the_packages(shown, seed):
    points = torch.randn(9, 30, generator=torch.Generator().manual_seed(seed))
    plane, share = shown["plane_by_hand"](points)
    ours, our_share = principal_plane(points)
    signs = torch.sign((plane * ours).sum(0))
    torch.testing.assert_close(plane * signs, ours, atol=1e-4, rtol=1e-4)
    assert share == pytest.approx(our_share, rel=1e-5)


# ---- maps --------------------------------------------------------------------------------------


def ring(n: int) -> torch.Tensor:
    angles = 2 * torch.pi * torch.arange(n) / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_flat_ring_fills_its_plane():
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
    plane, share = principal_plane(3 + ring(12) @ rotation[:2])
    assert share == pytest.approx(1)
    torch.testing.assert_close(plane.norm(dim=1), torch.ones(12), atol=1e-5, rtol=0)
    assert cyclic_order(places_around(plane)) == 1


def test_shares_of_independent_directions_are_their_squares():
    points = torch.zeros(6, 5)
    for i, size in enumerate((3.0, 2.0, 1.0)):
        points[2 * i, i], points[2 * i + 1, i] = size, -size
    torch.testing.assert_close(variance_shares(points, 3), torch.tensor([9, 13, 14]).double() / 14)
    assert principal_plane(points)[1] == pytest.approx(13 / 14)


@settings(deadline=None)
@given(st.permutations(range(8)), st.integers(0, 7), st.booleans())
def test_cyclic_order_has_no_start_and_no_direction(places, start, mirrored):
    changed = [(place + start) % 8 for place in (places[::-1] if mirrored else places)]
    assert cyclic_order(np.array(changed)) == pytest.approx(cyclic_order(np.array(places)))


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_shuffled_words_reach_two_over_w_minus_one_on_average(n):
    scores = [cyclic_order(np.array(places)) for places in itertools.permutations(range(n))]
    assert np.mean(scores) == pytest.approx(2 / (n - 1))
    assert max(scores) == 1
    assert sum(score == 1 for score in scores) == 2 * n  # as many as a ring has turns and mirrors


@settings(deadline=None)
@given(st.floats(0, 6.28), st.floats(0.1, 100), st.floats(-50, 50))
def test_places_do_not_depend_on_turn_size_or_position(turn, size, shift):
    rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]], dtype=torch.float64)
    moved = size * ring(7).double() @ rotation.T + shift
    assert cyclic_order(places_around(moved)) == 1


def test_similarity_of_opposite_words_is_minus_one():
    matrix = similarity(torch.tensor([[5.0, 1.0], [5.0, -1.0], [7.0, 0.0], [3.0, 0.0]]))
    torch.testing.assert_close(matrix.diagonal(), torch.ones(4))
    assert matrix[0, 1] == pytest.approx(-1)
    assert matrix[0, 2] == pytest.approx(0, abs=1e-6)


def test_only_words_in_the_same_sentences_cancel_them(tmp_path):
    assert all(same_sentences(found) for found in build_prompts(STUDIES["smoke"]).values())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({
        "same": ["cat", "dog", "The cat sleeps.", "The dog sleeps."],
        "free": ["cat", "dog", "The cat sleeps.", "Our dog barked."],
    }))  # fmt: skip
    own = build_prompts(STUDIES["smoke"].changed(prompts_file=str(file)))
    assert {name: same_sentences(found) for name, found in own.items()} == {"same": True, "free": False}


def test_maps_of_too_few_or_equal_points_are_refused():
    with pytest.raises(ActivationError, match="at least 4"):
        cyclic_order(np.arange(3))
    assert similarity(torch.tensor([[1.0, 0], [float("nan"), 0], [-1.0, 0]]))[0, 2] == pytest.approx(-1)
    with pytest.raises(ActivationError, match="do not span"):
        principal_plane(torch.randn(2, 5))
    for nothing in (torch.ones(5, 3), torch.full((5, 3), float("nan"))):
        with pytest.raises((ActivationError, RuntimeError)):
            principal_plane(nothing)


# ---- the stage, on a small model ---------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return hub_layout.write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def study(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stage, "TOKENS_PER_SHARD", 320)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"they said it was day number {i} of the year" for i in range(400)))
    return STUDIES["smoke"].changed(
        **{
            "model": str(checkpoint), "layer": 1, "templates": 3, "corpus.source": str(text), "corpus.tokens": 2000,
            "corpus.heldout_tokens": 500, "corpus.context": 32,
        }
    )  # fmt: skip


@pytest.fixture
def run(study, tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run", study, device="cpu")


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """How many rows each capture of the corpus took."""
    rows: list[int] = []
    original = stage.capture_residual_stream

    def counting(model, tokens, *rest, **options):
        rows.append(len(tokens))
        return original(model, tokens, *rest, **options)

    monkeypatch.setattr(stage, "capture_residual_stream", counting)
    return rows


def refuse(*args, **kwargs):
    raise AssertionError("this should not have been needed again")


def test_the_table_counts_every_position_once(run):
    found = stage.concept_activations(run)
    counts = run.table("01_concepts").set_index("concept")
    assert list(counts.index) == list(run.study.concepts) == list(found)
    assert (counts["positions"] == counts[["tokens", "special", "sinks", "padding"]].sum(axis=1)).all()
    for concept, activations in found.items():
        assert counts.loc[concept, "tokens"] == len(activations.points())
        assert counts.loc[concept, "rms"] == pytest.approx(activations.rms, rel=1e-6)


def test_concepts_are_captured_once(run, monkeypatch):
    first = stage.concept_activations(run)
    monkeypatch.setattr(stage, "language_model", refuse)
    again = stage.concept_activations(run)
    assert all(again[name].residual.equal(first[name].residual) for name in first)
    (run.path / "tensors" / "01_concepts.safetensors").write_bytes(b"damaged")
    with pytest.raises(AssertionError):
        stage.concept_activations(run)


def test_the_corpus_is_captured_once_for_all_runs(run, study, tmp_path, captured):
    corpus = stage.corpus_activations(run)
    n_shards = len(captured)
    assert n_shards > 3
    other = RunDirectory(tmp_path / "other", study.changed(name="other", n_seeds=1), device="cpu")
    assert stage.corpus_activations(other).train.equal(corpus.train)
    assert len(captured) == n_shards
    another_seed = RunDirectory(tmp_path / "seed", study.changed(seed=1), device="cpu")
    assert not stage.corpus_activations(another_seed).heldout_tokens.equal(corpus.heldout_tokens)


def test_the_corpus_holds_the_unmasked_tokens_in_order(run):
    corpus = stage.corpus_activations(run)
    model = stage.language_model(run)
    tokens = corpus.heldout_tokens
    residual = stage.capture_residual_stream(model, tokens, run.study.hook_name)
    keep = ~stage.special_tokens(model, tokens) & (residual.norm(dim=-1) <= corpus.counts["sink_threshold"])
    torch.testing.assert_close(corpus.heldout.float(), residual[keep], atol=1e-2, rtol=2e-3)
    for split, rows in (("train", corpus.train), ("heldout", corpus.heldout)):
        assert len(rows) == corpus.counts[split]["tokens"]
    assert corpus.train.dtype == torch.float16
    assert corpus.counts["heldout"]["special"] == len(tokens)
    assert len(corpus.train) + corpus.counts["train"]["sinks"] >= 2000


def test_an_interrupted_capture_resumes(run, monkeypatch, captured):
    write, written = stage._write, []

    def killed_after_three(path, tensors, **facts):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, tensors, **facts)

    monkeypatch.setattr(stage, "_write", killed_after_three)
    with pytest.raises(KeyboardInterrupt):
        stage.corpus_activations(run)
    monkeypatch.setattr(stage, "_write", write)
    written[1].write_bytes(written[1].read_bytes()[:-8])  # and one shard was damaged meanwhile
    before = len(captured)
    corpus = stage.corpus_activations(run)
    n_shards = -(-(len(corpus.heldout_tokens) + corpus.counts["train"]["special"]) // 10)
    assert len(captured) - before == n_shards - 2
    assert not corpus.path.with_suffix("").exists()
    again = RunDirectory(run.path.parent / "again", run.study, device="cpu")
    corpus.path.unlink()
    assert stage.corpus_activations(again).train.equal(corpus.train)


def test_damaged_corpus_activations_are_made_anew(run, captured):
    corpus = stage.corpus_activations(run)
    before, n_shards = corpus.heldout.clone(), len(captured)
    path = corpus.path
    del corpus
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.unlink()  # a new file, so that mapped memory stays as it was
    path.write_bytes(changed)
    assert stage.corpus_activations(run).heldout.equal(before)
    assert len(captured) == 2 * n_shards


def test_maps_are_drawn_at_every_layer(run):
    maps = stage.word_maps(run)
    assert maps.groupby("concept")["layer"].nunique().to_dict() == {"days": 3, "months": 3}
    assert maps[maps["concept"] == "days"].groupby("layer").size().eq(7).all()
    assert maps["cyclic_order"].between(0, 1).all()
    here = maps[(maps["concept"] == "days") & (maps["layer"] == 1)]
    plane, share = principal_plane(word_means(stage.concept_activations(run)["days"]))
    assert here["plane_share"].iloc[0] == pytest.approx(share, rel=1e-4)
    np.testing.assert_allclose(here[["x", "y"]].to_numpy(), plane, atol=1e-3)


def test_a_concept_whose_words_are_all_sinks_has_no_map(run, monkeypatch):
    monkeypatch.setattr(stage, "word_means", lambda found: torch.full((len(found.prompts.words), 32), float("nan")))
    maps = stage.word_maps(run)
    assert len(maps) == 0
    assert {"concept", "layer", "cyclic_order"} <= set(maps.columns)


def test_norms_name_every_token_and_its_kind(run):
    norms = stage.norm_table(run)
    concepts = run.table("01_concepts")
    sentences = norms[norms["context"] == "sentence"]
    assert len(sentences) == (concepts["positions"] - concepts["padding"]).sum()
    assert (sentences["kind"] == "first").sum() == concepts["prompts"].sum()
    assert (sentences["kind"] == "sink").sum() == concepts["sinks"].sum()


def test_one_sink_swallows_the_variance(run):
    shares = stage.variance_table(run, k=5)
    assert shares.groupby(["concept", "tokens"])["share"].is_monotonic_increasing.all()
    assert shares["share"].between(0, 1 + 1e-9).all()


def test_a_readers_own_concept_goes_all_the_way(study, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"fruit": ["red fruit", "blue fruit", "green fruit"]}))
    run = RunDirectory(tmp_path / "mine", study.changed(prompts_file=str(path)), device="cpu")
    assert list(stage.concept_activations(run)) == ["fruit"]
    assert stage.mapped_concepts(run) == []
    assert len(stage.word_maps(run)) == 0
    assert set(stage.norm_table(run)["concept"]) == {"fruit"}


def test_what_cannot_run_is_refused_before_the_model_is_loaded(study, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_language_model", refuse)
    run = RunDirectory(tmp_path / "a", study.changed(prompts_file=str(tmp_path / "nowhere.json")), device="cpu")
    with pytest.raises(ConceptError):
        stage.concept_activations(run)
    monkeypatch.undo()
    stage._MODELS.clear()
    with pytest.raises(ModelError, match="allowed: 0 to 2"):
        stage.language_model(RunDirectory(tmp_path / "b", study.changed(layer=9), device="cpu"))


# ---- the embedded model ------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_model_has_sinks_and_a_calendar(tmp_path):
    study = STUDIES["smoke"].changed(concepts=["months", "constellations"], templates=6)
    run = RunDirectory(tmp_path / "run", study, device="cpu")
    found = stage.concept_activations(run)
    norms = stage.norm_table(run)
    assert norms[norms["kind"] == "first"]["ratio"].min() > 50
    assert norms[norms["kind"] == "ordinary"]["ratio"].max() < 4
    assert set(norms[norms["kind"] == "sink"]["token"]) == {"Vir", "Cap"}
    plane, _ = principal_plane(word_means(found["months"]))
    assert cyclic_order(places_around(plane)) > 0.8
    first = stage.variance_table(run).query("components == 1").set_index(["concept", "tokens"])["share"]
    assert first["months", "one sink let in"] > 0.95
    assert first["months", "masked"] < 0.3
