"""Capturing residual streams and masking what must not be measured."""

from __future__ import annotations

import dataclasses
import json
import math
import unicodedata
from pathlib import Path

import hub_layout
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.errors import ActivationError, HookNeverFiredError
from saema_utils.model import residual_stream as act
from saema_utils.model.loading import load_language_model
from saema_utils.model.residual_stream import capture_concept, capture_residual_stream, find_sinks, largest_part
from saema_utils.runtime import quietly
from saema_utils.text.concepts import ConceptPrompts, Prompt, read_prompts
from saema_utils.text.tokens import tokenize

BOS = hub_layout.ENDOFTEXT
HOOK = "blocks.1.hook_resid_post"
TEXTS = ["Monday", "they said that it was often called Tuesday", "the day of Wednesday.", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return hub_layout.write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def model(folder):
    return load_language_model(str(folder), "cpu")


def concept(*pairs: tuple[str, str]) -> ConceptPrompts:
    return ConceptPrompts("test", tuple(Prompt(text, word, "", "test", text.index(word)) for text, word in pairs))


# ---- tokens ------------------------------------------------------------------------------------


def test_bos_stands_in_front_exactly_once(model):
    batch = tokenize(model, [*TEXTS, f"{BOS}a text that brings its own"])
    bos = model.tokenizer.bos_token_id
    assert (batch.tokens[:, 0] == bos).all()
    assert ((batch.tokens == bos) & batch.real).sum() == len(TEXTS) + 1
    assert (batch.special & batch.real).sum() == len(TEXTS) + 1


def test_bos_stands_once_where_the_tokenizer_adds_its_own(tmp_path):
    gemma = load_language_model(str(hub_layout.write_model(tmp_path / "gemma", "gemma-2-2b")), "cpu")
    assert gemma.tokenizer("a word")["input_ids"][0] == gemma.tokenizer.bos_token_id
    batch = tokenize(gemma, ["a word"])
    assert (batch.tokens == gemma.tokenizer.bos_token_id).sum() == 1


def test_padding_stands_on_the_right(model):
    batch = tokenize(model, TEXTS)
    assert (batch.real.long().diff(dim=1) <= 0).all()
    assert batch.lengths.max() == batch.tokens.shape[1]
    for text, row, length in zip(TEXTS, batch.tokens, batch.lengths, strict=True):
        assert model.tokenizer.decode(row[1:length]) == text


def test_offsets_cut_the_text_into_its_tokens(model):
    batch = tokenize(model, TEXTS)
    for text, offsets, row, length in zip(TEXTS, batch.offsets, batch.tokens, batch.lengths, strict=True):
        for (start, end), token in zip(offsets[1:length].tolist(), row[1:length], strict=True):
            assert text[start:end].strip() == model.tokenizer.decode([token]).strip()


def test_special_tokens_inside_a_text_are_special(model):
    batch = tokenize(model, [f"red {BOS} blue"])
    assert batch.special.sum() == 2


def test_texts_that_cannot_be_tokenized_are_refused(model):
    with pytest.raises(ActivationError, match="no texts"):
        tokenize(model, [])
    with pytest.raises(ActivationError, match="has no tokens"):
        tokenize(model, ["red", BOS])
    with pytest.raises(ActivationError, match=r"tokens; the model takes at most 128"):
        tokenize(model, ["red " * 200])


# ---- capture -----------------------------------------------------------------------------------


def test_captured_is_what_transformers_computes(model, folder):
    from transformers import AutoModelForCausalLM

    batch = tokenize(model, TEXTS)
    with quietly(), torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        states = plain(batch.tokens, attention_mask=batch.real.long(), output_hidden_states=True).hidden_states
    for layer in (0, 1):  # after the last block transformers adds the final norm
        found = capture_residual_stream(model, batch.tokens, f"blocks.{layer}.hook_resid_post", lengths=batch.lengths)
        torch.testing.assert_close(found[batch.real], states[layer + 1][batch.real], atol=1e-5, rtol=1e-4)
        assert (found[~batch.real] == 0).all()


def test_neighbours_in_the_batch_change_nothing(model, monkeypatch):
    batch = tokenize(model, TEXTS)
    together = capture_residual_stream(model, batch.tokens, HOOK, lengths=batch.lengths)
    monkeypatch.setitem(act.TOKENS_PER_BATCH, "cpu", 1)
    one_by_one = capture_residual_stream(model, batch.tokens, HOOK, lengths=batch.lengths)
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)
    alone = tokenize(model, TEXTS[:1])
    length = int(alone.lengths[0])
    torch.testing.assert_close(
        capture_residual_stream(model, alone.tokens, HOOK)[0], together[0, :length], atol=1e-5, rtol=1e-4
    )


def test_several_layers_in_one_pass_are_the_layers_one_by_one(model):
    batch = tokenize(model, TEXTS)
    names = [f"blocks.{layer}.hook_resid_post" for layer in (2, 0, 1)]
    together = capture_residual_stream(model, batch.tokens, names, lengths=batch.lengths)
    assert list(together) == names
    for name in names:
        assert together[name].equal(capture_residual_stream(model, batch.tokens, name, lengths=batch.lengths))


def test_both_names_of_a_hook_give_the_same(model):
    tokens = tokenize(model, TEXTS).tokens
    assert capture_residual_stream(model, tokens, HOOK).equal(
        capture_residual_stream(model, tokens, "blocks.1.hook_out")
    )


def test_the_forward_pass_stops_at_the_layer(model):
    reached = []
    with model.hooks(fwd_hooks=[("blocks.2.hook_in", lambda x, hook: reached.append(1))]):
        capture_residual_stream(model, tokenize(model, TEXTS).tokens, HOOK)
    assert reached == []


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pots", "blocks.3.hook_resid_post", "1", ""])
def test_a_hook_that_does_not_exist_is_refused_and_leaves_the_model_as_it_was(model, name):
    tokens = tokenize(model, TEXTS).tokens
    before = capture_residual_stream(model, tokens, HOOK)
    with pytest.raises(HookNeverFiredError, match=r"blocks\.0\.hook_resid_post to blocks\.2\.hook_resid_post"):
        capture_residual_stream(model, tokens, [HOOK, name])
    assert capture_residual_stream(model, tokens, HOOK).equal(before)


@pytest.fixture
def fused_calls(monkeypatch) -> list[int]:
    calls, fused = [], torch.nn.functional.scaled_dot_product_attention

    def counting(*args, **options):
        calls.append(1)
        return fused(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    return calls


def left_over(model) -> list[str]:
    return [name for name, part in model.named_modules() if name.endswith("attn") and "forward" in part.__dict__]


def test_attention_is_fused_for_the_residual_stream_and_gives_the_same(model, fused_calls):
    batch = tokenize(model, TEXTS)
    before = model.original_model.config._attn_implementation
    fused = capture_residual_stream(model, batch.tokens, HOOK, lengths=batch.lengths)
    assert len(fused_calls) == 2, "once in each block up to the hook"
    # A second hook inside a block keeps attention as transformer_lens computes it.
    stepwise = capture_residual_stream(model, batch.tokens, [HOOK, "blocks.0.mlp.hook_out"], lengths=batch.lengths)
    assert len(fused_calls) == 2
    assert torch.allclose(fused, stepwise[HOOK], rtol=1e-4, atol=1e-5)
    with pytest.raises(HookNeverFiredError):
        capture_residual_stream(model, batch.tokens, "blocks.99.hook_resid_post")
    assert left_over(model) == []
    assert model.original_model.config._attn_implementation == before


@pytest.mark.parametrize("release", ["gemma-2-2b", "gpt2-small", "pythia-70m"])
def test_attention_that_is_more_than_softmax_is_left_alone(tmp_path, fused_calls, release):
    other = load_language_model(str(hub_layout.write_model(tmp_path / release, release)), "cpu")
    expected = {}
    with quietly():
        from transformers import AutoModelForCausalLM

        bare = AutoModelForCausalLM.from_pretrained(
            tmp_path / release, attn_implementation="eager", dtype=torch.float32
        )
    batch = tokenize(other, TEXTS)
    with torch.no_grad():
        expected = bare(batch.tokens, attention_mask=batch.real.long(), output_hidden_states=True).hidden_states[1]
    found = capture_residual_stream(other, batch.tokens, "blocks.0.hook_resid_post", lengths=batch.lengths)
    assert torch.allclose(found[batch.real], expected.float()[batch.real], rtol=1e-3, atol=1e-4)
    assert fused_calls == [] or release == "pythia-70m"
    assert left_over(other) == []


def test_activations_that_are_not_finite_are_refused(folder):
    broken = load_language_model(str(folder), "cpu")
    next(p for n, p in broken.named_parameters() if "layers.1" in n or "blocks.1" in n).data.fill_(float("nan"))
    with pytest.raises(ActivationError, match="NaN or infinite"):
        capture_residual_stream(broken, tokenize(broken, TEXTS).tokens, HOOK)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (1, 2, 3)])
def test_tokens_of_another_shape_are_refused(model, shape):
    with pytest.raises(ActivationError, match="allowed: "):
        capture_residual_stream(model, torch.zeros(shape, dtype=torch.long), HOOK)


# ---- sinks -------------------------------------------------------------------------------------

norms_and_kinds = st.lists(st.tuples(st.floats(0.1, 1e4), st.booleans()), min_size=1, max_size=40).filter(
    lambda pairs: any(ordinary for _, ordinary in pairs)
)


def test_planted_sinks_are_found():
    norms = torch.ones(50)
    norms[[7, 30]] = 100
    sinks, median = find_sinks(norms, torch.ones(50, dtype=torch.bool))
    assert sinks.nonzero().flatten().tolist() == [7, 30]
    assert median == 1


def test_what_is_not_ordinary_neither_counts_nor_is_a_sink():
    norms = torch.tensor([1000.0, 1.0, 1.0, 4.9, 5.1, 1000.0])
    ordinary = torch.tensor([False, True, True, True, True, False])
    sinks, median = find_sinks(norms, ordinary)
    assert sinks.tolist() == [False, False, False, False, True, False]
    assert median == 1


def test_sinks_may_be_told_by_the_norms_of_other_tokens():
    norms = torch.tensor([1.0, 1.0, 10.0, 10.0, 51.0])
    ordinary = torch.tensor([False, False, True, True, True])
    assert not find_sinks(norms, ordinary & (norms < 51))[0].any()
    sinks, median = find_sinks(norms, ordinary, typical=~ordinary)
    assert (sinks.tolist(), median) == ([False, False, True, True, True], 1)
    with pytest.raises(ActivationError, match="nothing is left"):
        find_sinks(norms, ordinary, typical=norms < 0)


@settings(deadline=None)
@given(norms_and_kinds, st.floats(1e-3, 1e3))
def test_sinks_do_not_depend_on_the_unit(pairs, scale):
    norms = torch.tensor([norm for norm, _ in pairs], dtype=torch.float64)
    ordinary = torch.tensor([kind for _, kind in pairs])
    # Away from the threshold itself, where rounding may decide.
    median = norms[ordinary].median()
    norms[(norms / median - 5).abs() < 1e-6] = median
    found, _ = find_sinks(norms, ordinary)
    scaled, _ = find_sinks(norms * scale, ordinary)
    assert found.equal(scaled)
    assert not (found & ~ordinary).any()
    assert found.sum() <= ordinary.sum() / 2


def test_nothing_ordinary_is_refused():
    with pytest.raises(ActivationError, match="nothing is left"):
        find_sinks(torch.ones(3), torch.zeros(3, dtype=torch.bool))


# ---- concepts ----------------------------------------------------------------------------------


def test_every_position_is_counted_once(model):
    found = capture_concept(model, concept(*((text, text.split()[-1]) for text in TEXTS)), HOOK)
    assert int(found.mask.sum()) + found.n_special + found.n_sinks + found.n_padding == found.mask.numel()
    assert found.n_special == len(TEXTS)
    assert found.points().shape == (int(found.mask.sum()), 32)
    assert len(found.point_prompts) == len(found.point_positions) == len(found.points())
    assert (found.residual[found.point_prompts, found.point_positions] == found.points()).all()


@pytest.mark.parametrize("word", ["Wednesday", "beryllium", "ɪ", "ɡæɪ", "two words"])
def test_the_tokens_of_a_word_spell_it(model, word):
    prompts = concept((word, word), (f"the day of {word}, they said", word), (f"«{word}» it was", word))
    found = capture_concept(model, prompts, HOOK)
    for p in range(len(prompts)):
        tokens = found.tokens[p][found.word_mask[p]]
        assert model.tokenizer.decode(tokens).strip(" «»,") == word
    assert (found.word_mask <= found.mask).all()


def test_a_word_in_another_form_has_the_tokens_of_that_form(model, tmp_path):
    path = tmp_path / "prompts.json"
    decomposed = unicodedata.normalize("NFD", "It was an élève.")
    said = {"text": "The daylight.", "word": "day"}
    texts = ["They rest on Mondays.", decomposed, "The dragon fruit is red.", "élève", "dragon fruit", "Monday", said]
    path.write_text(json.dumps({"mine": texts}))
    found = capture_concept(model, read_prompts(path)["mine"], HOOK)
    for p, form in enumerate(["Mondays", unicodedata.normalize("NFD", "élève"), "dragon fruit"]):
        assert model.tokenizer.decode(found.tokens[p][found.word_mask[p]]).strip() == form
    assert found.prompts.words == ("Monday", "élève", "dragon fruit", "day")
    assert found.prompt_words.tolist() == [0, 1, 2, 1, 2, 0, 3]
    assert found.word_vectors().isfinite().all()


def test_a_word_vector_is_the_mean_over_its_tokens(model):
    found = capture_concept(model, concept(("the beryllium year", "beryllium"), ("a red day", "red")), HOOK)
    for p, vector in enumerate(found.word_vectors()):
        torch.testing.assert_close(vector, found.residual[p][found.word_mask[p]].mean(0))


def test_a_word_that_is_all_sink_has_no_vector(model):
    found = capture_concept(model, concept(("red", "red"), ("the day", "day")), HOOK)
    masked = found.word_mask.clone()
    masked[0] = False
    vectors = dataclasses.replace(found, word_mask=masked).word_vectors()
    assert vectors[0].isnan().all()
    assert vectors[1].isfinite().all()


def test_rms_is_that_of_the_points(model):
    found = capture_concept(model, concept(("red", "red"), ("the day", "day")), HOOK)
    assert found.rms == pytest.approx(float(found.points().norm() / found.points().numel() ** 0.5), rel=1e-5)


def test_words_are_counted_by_their_prompts(model):
    found = capture_concept(model, concept(("a red day", "red"), ("blue", "blue"), ("red", "red")), HOOK)
    assert found.prompts.words == ("red", "blue")
    assert found.prompt_words.tolist() == [0, 1, 0]


def test_a_concept_with_nothing_to_measure_is_refused(model):
    with pytest.raises(ActivationError, match="nothing is left"):
        capture_concept(model, concept((BOS * 2, BOS), (BOS * 3, BOS)), HOOK)


def test_packing_keeps_everything(model, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "prompts.json"
    path.write_text(
        '{"z last": ["ɪ", "æ", "it was ɪ.", "No."], "a.first": ["red", "blue", "Reds"]}'.replace("a.first", "a-first")
    )
    found = {name: capture_concept(model, prompts, HOOK) for name, prompts in read_prompts(path).items()}
    save_file({k: v.contiguous() for k, v in act.pack(found).items()}, tmp_path / "packed.safetensors")
    back = act.unpack(load_file(tmp_path / "packed.safetensors"))
    assert list(back) == ["z last", "a-first"]
    for name, before in found.items():
        after = back[name]
        for field in dataclasses.fields(before):
            ours, theirs = getattr(before, field.name), getattr(after, field.name)
            assert ours.equal(theirs) if isinstance(ours, torch.Tensor) else ours == theirs


# ---- what all tokens share ---------------------------------------------------------------------


def test_the_parts_of_vectors_about_a_known_mean():
    """Mean (3, 1), differences (0, 2) and (0, -2): squared lengths 9 + 1 + 4 a token, of which 10 is the mean's."""
    part = largest_part(torch.tensor([[3.0, 3.0], [3.0, -1.0]]))
    assert dataclasses.astuple(part) == pytest.approx((10 / 14, 9 / 14, 1.0))


@given(st.integers(0, 2**16), st.floats(1e-3, 1e3))
def test_parts_do_not_see_scale_or_order_and_the_shared_one_no_turn(seed, scale):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 5, generator=random) + 2 * torch.randn(5, generator=random)
    part, order = largest_part(x), torch.randperm(20, generator=random)
    coordinates = torch.randperm(5, generator=random)
    other = largest_part(scale * x[order][:, coordinates])
    assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(part), rel=1e-5)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=random))[0]
    assert largest_part(x @ turn).shared == pytest.approx(part.shared, rel=1e-4)


def test_where_nothing_varies_no_coordinate_varies_most():
    part = largest_part(torch.ones(4, 3, dtype=torch.int64))
    assert part.shared == 1
    assert math.isnan(part.largest_varying)
