"""Chapter 1 as a step of a run, the maps it draws, and the formulas it shows."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import hub_layout
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import numbers

from saema_utils.chapters.activations import concepts, corpus, figures, model, tables
from saema_utils.chapters.activations.concepts import concept_activations
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.findings import (
    first_components,
    neighbours_and_others,
    rings,
    shared_part,
    sink_gap,
)
from saema_utils.chapters.activations.model import language_model
from saema_utils.errors import ActivationError, ArtifactError, ConceptError, ModelError
from saema_utils.geometry.circles import (
    cyclic_order,
    places_around,
    principal_plane,
    same_sentences,
    similarity,
    variance_shares,
    word_means,
)
from saema_utils.model.residual_stream import capture_residual_stream, find_sinks
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES
from saema_utils.text.concepts import build_prompts
from saema_utils.text.tokens import special_tokens

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
    # Two singular values that nearly agree turn a plane by rounding alone: both sides count in double.
    points = torch.randn(9, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plane, share = shown["plane_by_hand"](points)
    ours, our_share = principal_plane(points)
    signs = torch.sign((plane * ours).sum(0))
    torch.testing.assert_close(plane * signs, ours, atol=1e-9, rtol=1e-9)
    assert share == pytest.approx(our_share, rel=1e-12)


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
    file.write_text(
        json.dumps(
            {
                "same": ["cat", "dog", "The cat sleeps.", "The dog sleeps."],
                "free": ["cat", "dog", "The cat sleeps.", "Our dog barked."],
            }
        )
    )
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


# ---- findings ----------------------------------------------------------------------------------


def norms(ordinary: float, sink: float) -> pd.DataFrame:
    rows = [("sentence", "first", 100.0), ("sentence", "ordinary", 1.0), ("sentence", "ordinary", ordinary)]
    rows += [("bare word", "first", 120.0), ("bare word", "sink", sink), ("bare word", "sink", 2 * sink)]
    return pd.DataFrame(rows, columns=["context", "kind", "ratio"])


def test_a_gap_is_wide_when_the_smallest_sink_is_twice_the_largest_ordinary_token():
    gap = sink_gap(norms(3.0, 7.0))
    assert gap.holds
    assert numbers(gap.shows) == [110, 7, 3, 0, 2]
    assert sink_gap(norms(4.0, 7.0)).holds is False
    table = norms(3.0, 7.0)
    assert "smallest sink 100," in sink_gap(table[table["kind"] != "sink"]).shows  # then the first positions


@pytest.mark.parametrize(("with_sink", "masked", "spoilt"), [(0.99, 0.1, True), (0.8, 0.1, False), (0.99, 0.7, False)])
def test_a_sink_spoils_a_variance_that_was_spread_before(with_sink, masked, spoilt):
    rows = [("masked", 1, masked + 0.05), ("masked", 1, masked - 0.05), ("one sink let in", 1, with_sink)]
    rows += [("masked", 2, 1.0), ("one sink let in", 2, 1.0)]
    found = first_components(pd.DataFrame(rows, columns=["tokens", "components", "share"]))
    assert numbers(found.shows) == pytest.approx([100 * with_sink, 100 * masked])
    assert found.holds is spoilt


@pytest.mark.parametrize(("shared", "varying", "holds"), [(0.6, 0.4, True), (0.4, 0.4, False), (0.6, 0.6, False)])
def test_the_shared_part_is_most_of_the_length_and_no_coordinate_most_of_what_varies(shared, varying, holds):
    rows = [("days", 0.9, 0.3, 0.1), ("months", shared, 0.3, varying)]
    parts = pd.DataFrame(rows, columns=["concept", "shared", "largest_coordinate", "largest_varying"])
    found = shared_part(parts)
    assert found.holds is holds
    assert numbers(found.shows) == pytest.approx([100 * shared, 90, 30, 10, 100 * varying])


def maps_with(p_value: float, concepts: tuple[str, ...] = ("months", "days")) -> pd.DataFrame:
    """Every concept in perfect order at layer 0, and at layer 1 as surely as told."""
    rows = [
        (concept, layer, word, order, 0.3, p)
        for concept in concepts
        for layer, order, p in ((0, 1.0, 0.001), (1, 0.5, p_value))
        for word in "abcd"
    ]
    return pd.DataFrame(rows, columns=["concept", "layer", "word", "cyclic_order", "chance", "p_value"])


def test_rings_need_order_that_neither_luck_nor_sentences_make(tmp_path):
    prompts = build_prompts(STUDIES["smoke"])
    calendar = {"months", "days"}
    found = rings(maps_with(0.005), 1, prompts, calendar)
    assert found.holds
    assert numbers(found.shows) == [50, 30, 0.005, 1, 2] * 2  # perfect at one of two layers
    assert rings(maps_with(0.02), 1, prompts, calendar).holds is False
    assert rings(maps_with(0.005, ("days",)), 1, prompts, calendar).holds is False
    assert rings(maps_with(0.005, ("color",)), 1, prompts, calendar).holds is None
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"days": ["cat", "dog", "The cat sleeps.", "Our dog barked."]}))
    own = build_prompts(STUDIES["smoke"].changed(prompts_file=str(file)))
    assert rings(maps_with(0.005, ("days",)), 1, own, {"days"}).holds is False


@pytest.mark.parametrize(
    ("perfect", "middle"),
    [({"months": (2, 3, 4), "days": (0, 1, 2, 3, 4)}, 3), ({"months": (1, 5, 6), "days": (1, 2, 5, 6)}, 5)],
)
def test_the_layer_studied_is_the_middle_of_the_longest_run_of_perfect_rings(perfect, middle):
    rows = [
        (concept, layer, word, float(layer in layers))
        for concept, layers in perfect.items()
        for layer in range(8)
        for word in "abcd"
    ]
    maps = pd.DataFrame(rows, columns=["concept", "layer", "word", "cyclic_order"])
    assert tables.middle_of_rings(maps) == middle
    with pytest.raises(ActivationError, match="no layer"):
        tables.middle_of_rings(maps[maps["layer"] == 7])


def test_every_layer_draws_its_own_places_and_says_its_own_order():
    """Distances in the picture are those of the table up to one scale: a plane may be turned, never bent."""
    maps = maps_with(0.005).assign(plane_share=lambda t: 0.25 + 0.5 * t["layer"])
    rng = np.random.default_rng(0)
    maps[["x", "y"]] = rng.normal(size=(len(maps), 2)) * 10.0 ** maps[["layer"]].to_numpy()
    maps = maps[(maps["concept"] != "days") | (maps["layer"] != 1)]
    figure = figures.word_circles_by_layer(maps, 1)
    (control,) = figure.layout.sliders
    assert [step.label for step in control.steps] == ["0", "1"]
    for layer, step in enumerate(control.steps):
        (frame,) = step.args
        for concept, x, y, name in zip(("months", "days"), frame["x"], frame["y"], frame["name"], strict=True):
            rows = maps[(maps["concept"] == concept) & (maps["layer"] == layer)]
            if rows.empty:
                assert (len(x), "too few words" in name) == (0, True)
                continue
            assert (x[0], y[0]) == (x[-1], y[-1]), "the ring is closed"
            drawn, given = (torch.pdist(torch.tensor(p)) for p in (np.c_[x, y][:-1], rows[["x", "y"]].to_numpy()))
            assert (drawn / drawn.max()).numpy() == pytest.approx((given / given.max()).numpy(), abs=0.02)
            assert max(np.abs([*x, *y])) == pytest.approx(1, abs=0.01), "as large as the panel at every layer"
            assert numbers(name) == [layer, 100 * rows["cyclic_order"].iloc[0], 100 * rows["plane_share"].iloc[0]]
    first = figure.data[0]
    assert control.active == 1
    assert list(first.x) == control.steps[1].args[0]["x"][0]
    assert [trace.visible for trace in figure.data] == [True, False]


@pytest.mark.parametrize("n", [4, 7, 12])
def test_on_a_ring_neighbours_are_more_alike_than_others(n):
    names = [f"word {i}" for i in range(n)]
    around = pd.DataFrame(similarity(ring(n)).numpy(), names, names)
    found = neighbours_and_others({"ring": around})
    near, far = numbers(found.shows)
    assert near == pytest.approx(np.cos(2 * np.pi / n), abs=0.005)
    assert 2 * near + (n - 3) * far == pytest.approx(-1, abs=0.005 * n)  # cosines around a circle sum to zero
    assert found.holds
    assert neighbours_and_others({"ring": around, "turned over": -around}).holds is False
    assert neighbours_and_others({}).holds is None


# ---- the stage, on a small model ---------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return hub_layout.write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def study(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "TOKENS_PER_SHARD", 320)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"they said it was day number {i} of the year" for i in range(400)))
    return STUDIES["smoke"].changed(
        **{
            "model": str(checkpoint),
            "layer": 1,
            "templates": 3,
            "corpus.source": str(text),
            "corpus.tokens": 2000,
            "corpus.heldout_tokens": 500,
            "corpus.context": 32,
        }
    )


@pytest.fixture
def run(study, tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run", study, device="cpu")


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """How many rows each capture of the corpus took."""
    rows: list[int] = []

    def counting(model, tokens, *rest, **options):
        rows.append(len(tokens))
        return capture_residual_stream(model, tokens, *rest, **options)

    monkeypatch.setattr(corpus, "capture_residual_stream", counting)
    return rows


def refuse(*args, **kwargs):
    raise AssertionError("this should not have been needed again")


def test_the_table_counts_every_position_once(run):
    found = concept_activations(run)
    counts = tables.concept_table(run).set_index("concept")
    assert list(counts.index) == list(run.study.concepts) == list(found)
    assert (counts["positions"] == counts[["tokens", "special", "sinks", "padding"]].sum(axis=1)).all()
    for concept, activations in found.items():
        assert counts.loc[concept, "tokens"] == len(activations.points())
        assert counts.loc[concept, "rms"] == pytest.approx(activations.rms, rel=1e-6)


def test_concepts_are_captured_once(run, monkeypatch):
    first = concept_activations(run)
    monkeypatch.setattr(concepts, "language_model", refuse)
    again = concept_activations(run)
    assert all(again[name].residual.equal(first[name].residual) for name in first)
    (run.path / "tensors" / "01_concepts.safetensors").write_bytes(b"damaged")
    with pytest.raises(AssertionError):
        concept_activations(run)


def test_the_corpus_is_captured_once_for_all_runs(run, study, tmp_path, captured):
    found = corpus_activations(run)
    n_shards = len(captured)
    assert n_shards > 3
    other = RunDirectory(tmp_path / "other", study.changed(name="other", n_seeds=1), device="cpu")
    assert corpus_activations(other).train.equal(found.train)
    assert len(captured) == n_shards
    another_seed = RunDirectory(tmp_path / "seed", study.changed(seed=1), device="cpu")
    assert not corpus_activations(another_seed).heldout_tokens.equal(found.heldout_tokens)


def test_the_corpus_holds_the_unmasked_tokens_in_order(run):
    found = corpus_activations(run)
    lm = language_model(run)
    tokens = found.heldout_tokens
    residual = capture_residual_stream(lm, tokens, run.study.hook_name)
    keep = ~special_tokens(lm, tokens) & (residual.norm(dim=-1) <= found.counts["sink_threshold"])
    torch.testing.assert_close(found.heldout.float(), residual[keep], atol=1e-2, rtol=2e-3)
    for split, rows in (("train", found.train), ("heldout", found.heldout)):
        assert len(rows) == found.counts[split]["tokens"]
    assert found.train.dtype == torch.float16
    assert found.counts["heldout"]["special"] == len(tokens)
    assert len(found.train) + found.counts["train"]["sinks"] >= 2000


def test_an_interrupted_capture_resumes(run, monkeypatch, captured, tmp_path):
    counting = corpus.capture_residual_stream

    def killed_at_the_fourth(*arguments, **options):
        if len(captured) == 3:
            raise KeyboardInterrupt
        return counting(*arguments, **options)

    monkeypatch.setattr(corpus, "capture_residual_stream", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        corpus_activations(run)
    monkeypatch.setattr(corpus, "capture_residual_stream", counting)
    written = sorted((tmp_path / "cache" / "activations").glob("*/*.safetensors"))
    assert len(written) == 3
    written[1].write_bytes(written[1].read_bytes()[:-8])  # and one shard was damaged meanwhile
    found = corpus_activations(run)
    n_shards = -(-(len(found.heldout_tokens) + found.counts["train"]["special"]) // 10)
    assert len(captured) - 3 == n_shards - 2
    assert not found.path.with_suffix("").exists()
    again = RunDirectory(run.path.parent / "again", run.study, device="cpu")
    found.path.unlink()
    assert corpus_activations(again).train.equal(found.train)


def test_slices_that_processes_read_side_by_side_make_the_whole(run, captured, monkeypatch, tmp_path):
    slices = corpus.corpus_slices
    names = slices.names(run)
    assert len(names) == corpus.SLICES
    for name in reversed(names):
        assert not slices.is_made(run)
        slices.make(run, [name])
    before = len(captured)
    found = corpus_activations(run)
    assert len(captured) == before, "a shard was read twice"
    slices.make(run)
    assert slices.is_made(run)
    assert len(captured) == before
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "elsewhere"))
    alone = corpus_activations(run)
    assert len(captured) == 2 * before
    assert alone.train.equal(found.train)
    assert alone.heldout.equal(found.heldout)


@pytest.mark.parametrize("taken_away", [True, False])
def test_a_slice_that_another_run_finished_meanwhile_is_no_error_and_leaves_nothing(run, monkeypatch, taken_away):
    slices, shards = corpus.corpus_slices, []

    def finished_by_another(path, tensors, **facts):
        if not shards:
            shards.append(path)
            monkeypatch.setattr(corpus, "_write", write)
            corpus_activations(run)
            if taken_away:
                raise ArtifactError(f"cannot write {path}")
        write(path, tensors, **facts)

    write = corpus._write
    monkeypatch.setattr(corpus, "_write", finished_by_another)
    slices.make(run, ["0"])
    assert shards
    assert slices.is_made(run)
    assert not shards[0].parent.exists()


def test_a_slice_that_cannot_be_kept_is_said(run, monkeypatch):
    def full(path, tensors, **facts):
        raise ArtifactError(f"cannot write {path}")

    monkeypatch.setattr(corpus, "_write", full)
    with pytest.raises(ArtifactError, match="cannot write"):
        corpus.corpus_slices.make(run, ["0"])


def test_several_layers_are_read_in_one_pass(run, captured, monkeypatch, tmp_path):
    layers = (0, 1)
    corpus.capture_at(run, layers)
    before = len(captured)
    together = [corpus.corpus_at(run, layer) for layer in layers]
    assert len(captured) == before
    assert not together[0].train.equal(together[1].train)
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "elsewhere"))
    for layer, found in zip(layers, together, strict=True):
        assert corpus.corpus_at(run, layer).train.equal(found.train)
    assert len(captured) == 3 * before
    corpus.capture_at(run, layers)
    assert len(captured) == 3 * before, "what is there was read again"


@pytest.mark.parametrize(
    ("size", "kept_in"),
    [(1.0, torch.float16), (255.0, torch.float16), (0.002, torch.float16), (1e6, torch.float32), (1e-8, torch.float32)],
)
def test_vectors_are_halved_where_that_holds_them(size, kept_in):
    vectors = size * torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    kept = corpus.compact(vectors)
    assert kept.dtype == kept_in
    assert kept.equal(vectors.half() if kept_in == torch.float16 else vectors)
    assert bool(((kept.float() - vectors).norm(dim=-1) <= 1e-3 * vectors.norm(dim=-1)).all())


def test_one_large_vector_and_one_that_is_not_finite_are_kept_as_they_are():
    vectors = torch.ones(3, 4)
    for odd in (1e6, float("inf"), float("nan")):
        vectors[1, 2] = odd
        torch.testing.assert_close(corpus.compact(vectors), vectors, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(("factor", "kept_in"), [(1.0, torch.float16), (3e5, torch.float32)])
def test_a_corpus_of_any_size_comes_back_as_it_was(study, checkpoint, tmp_path, factor, kept_in):
    """A checkpoint whose embeddings, and with them its stream, are larger than float16 can hold."""
    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(checkpoint, large)
    weights = load_file(large / "model.safetensors")
    weights["model.embed_tokens.weight"] *= factor
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    run = RunDirectory(tmp_path / "run", study.changed(model=str(large)), device="cpu")
    found = corpus_activations(run)
    expected = capture_residual_stream(language_model(run), found.heldout_tokens, run.study.hook_name)
    expected = expected[found.heldout_mask]
    assert found.train.dtype == found.heldout.dtype == kept_in
    assert (float(expected.abs().max()) > 65_504) == (kept_in == torch.float32)
    torch.testing.assert_close(found.heldout.float(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_damaged_corpus_activations_are_made_anew(run, captured):
    found = corpus_activations(run)
    before, n_shards = found.heldout.clone(), len(captured)
    path = found.path
    del found
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.unlink()  # a new file, so that mapped memory stays as it was
    path.write_bytes(changed)
    assert corpus_activations(run).heldout.equal(before)
    assert len(captured) == 2 * n_shards


def test_maps_are_drawn_at_every_layer(run):
    maps = tables.word_maps(run)
    assert maps.groupby("concept")["layer"].nunique().to_dict() == {"days": 3, "months": 3}
    assert maps[maps["concept"] == "days"].groupby("layer").size().eq(7).all()
    assert maps["cyclic_order"].between(0, 1).all()
    here = maps[(maps["concept"] == "days") & (maps["layer"] == 1)]
    plane, share = principal_plane(word_means(concept_activations(run)["days"]))
    assert here["plane_share"].iloc[0] == pytest.approx(share, rel=1e-4)
    np.testing.assert_allclose(here[["x", "y"]].to_numpy(), plane, atol=1e-3)
    alone = tables.word_map(concept_activations(run)["days"], 1, run.study.seed)
    pd.testing.assert_frame_equal(alone, here.reset_index(drop=True), check_dtype=False, rtol=1e-3, atol=1e-3)
    likeness = tables.word_similarities(run)["days"]
    assert list(likeness.index) == list(likeness.columns) == list(alone["word"])


def test_a_concept_whose_words_are_all_sinks_has_no_map(run, monkeypatch):
    monkeypatch.setattr(tables, "word_means", lambda found: torch.full((len(found.prompts.words), 32), float("nan")))
    maps = tables.word_maps(run)
    assert len(maps) == 0
    assert {"concept", "layer", "cyclic_order"} <= set(maps.columns)


def test_norms_name_every_token_and_its_kind(run):
    norms = tables.norm_table(run)
    counts = tables.concept_table(run)
    sentences = norms[norms["context"] == "sentence"]
    assert len(sentences) == (counts["positions"] - counts["padding"]).sum()
    assert (sentences["kind"] == "first").sum() == counts["prompts"].sum()
    assert (sentences["kind"] == "sink").sum() == counts["sinks"].sum()


def test_one_sink_swallows_the_variance(run):
    shares = tables.variance_table(run, k=5)
    assert shares.groupby(["concept", "tokens"])["share"].is_monotonic_increasing.all()
    assert shares["share"].between(0, 1 + 1e-9).all()


def test_a_readers_own_concept_goes_all_the_way(study, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"fruit": ["red fruit", "blue fruit", "green fruit"]}))
    run = RunDirectory(tmp_path / "mine", study.changed(prompts_file=str(path)), device="cpu")
    assert list(concept_activations(run)) == ["fruit"]
    assert tables.mapped_concepts(run) == []
    maps = tables.word_maps(run)
    assert len(maps) == 0
    assert rings(maps, run.study.layer, build_prompts(run.study), {"months", "days"}).holds is None
    assert neighbours_and_others(tables.word_similarities(run)).holds is None
    for nothing in (
        figures.word_circles(maps, 1),
        figures.order_by_layer(maps, 1),
        figures.similarity_matrices(tables.word_similarities(run)),
    ):
        assert nothing.axes[0].texts
    assert figures.word_circles_by_layer(maps, 1).layout.annotations
    assert set(tables.norm_table(run)["concept"]) == {"fruit"}


def test_prompts_without_a_word_are_named_in_the_table_and_in_a_remark(study, tmp_path, capsys):
    path = tmp_path / "mine.json"
    prompts = {"trees": ["oak", "elm", "Oaks fell.", "They said nothing."], "sky": ["sun", "moon", "The moon."]}
    path.write_text(json.dumps(prompts))
    run = RunDirectory(tmp_path / "mine", study.changed(prompts_file=str(path)), device="cpu")
    found = concept_activations(run)["trees"].prompts
    assert [prompt.written for prompt in found.prompts] == ["oak", "elm", "Oaks"]
    assert found.left_out == ("They said nothing.",)
    said = capsys.readouterr().out
    assert "concept 'trees': left out 1 of 4 prompts" in said
    assert "They said nothing." in said
    counts = tables.concept_table(run).set_index("concept")
    assert counts["prompts"].tolist() == [3, 3]
    assert "'They said nothing.'" in counts.loc["trees", "left_out"]
    assert pd.isna(counts.loc["sky", "left_out"])


def test_one_file_under_two_names_is_read_in_two_ways(study, tmp_path):
    rows = "\n\n".join(json.dumps({"text": f"they said it was day number {i} of the year"}) for i in range(400))
    found = {}
    for name in ("rows.jsonl", "rows.txt"):
        (tmp_path / name).write_text(rows)
        changed = study.changed(**{"corpus.source": str(tmp_path / name)})
        run = RunDirectory(tmp_path / f"run-{name}", changed, device="cpu")
        found[name] = language_model(run).tokenizer.decode(corpus_activations(run).heldout_tokens.flatten())
    assert "{" in found["rows.txt"]
    assert "{" not in found["rows.jsonl"]


def test_what_cannot_run_is_refused_before_the_model_is_loaded(study, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "load_language_model", refuse)
    run = RunDirectory(tmp_path / "a", study.changed(prompts_file=str(tmp_path / "nowhere.json")), device="cpu")
    with pytest.raises(ConceptError):
        concept_activations(run)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="allowed: 0 to 2"):
        language_model(RunDirectory(tmp_path / "b", study.changed(layer=9), device="cpu"))


# ---- the embedded model ------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_model_has_sinks_and_a_calendar(tmp_path):
    study = STUDIES["smoke"].changed(concepts=["months", "constellations"], templates=6)
    run = RunDirectory(tmp_path / "run", study, device="cpu")
    found = concept_activations(run)
    norms = tables.norm_table(run)
    assert norms[norms["kind"] == "first"]["ratio"].min() > 50
    assert norms[norms["kind"] == "ordinary"]["ratio"].max() < 4
    assert set(norms[norms["kind"] == "sink"]["token"]) == {"Vir", "Cap"}
    plane, _ = principal_plane(word_means(found["months"]))
    assert cyclic_order(places_around(plane)) > 0.8
    first = tables.variance_table(run).query("components == 1").set_index(["concept", "tokens"])["share"]
    assert first["months", "one sink let in"] > 0.95
    assert first["months", "masked"] < 0.3
