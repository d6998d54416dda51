"""Model and tokenizer belong together, and vectors of a text do not depend on what follows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hub_layout
import pytest
import torch

from saema_utils.checks import check_study
from saema_utils.errors import ModelError
from saema_utils.model.fit import check_bos, check_causal, embedding_rows, has_rms_norm
from saema_utils.model.loading import load_language_model, quietly
from saema_utils.model.residual_stream import capture_residual_stream
from saema_utils.study import STUDIES
from saema_utils.text.tokens import tokenize

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return hub_layout.write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


def with_tokenizer(folder: Path, to: Path, change) -> Path:
    """A copy of a checkpoint whose tokenizer was changed and saved, as its owner would have done it."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, to)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(to)
    return to


def study_of(folder: Path):
    return STUDIES["smoke"].changed(model=str(folder), layer=1)


# ---- more tokens than vectors ------------------------------------------------------------------


def test_an_added_word_without_a_vector_is_refused_before_and_when_it_is_used(folder, tmp_path):
    own = with_tokenizer(folder, tmp_path / "own", lambda tokenizer: tokenizer.add_tokens(["moved"]))
    with pytest.raises(ModelError, match=r"gives token \d+ \('moved'\), but the model has vectors for tokens 0 to"):
        check_study(study_of(own))
    model = load_language_model(str(own), "cpu")
    capture_residual_stream(model, tokenize(model, ["Monday is a day."]).tokens, HOOK)
    with pytest.raises(ModelError, match="resize_token_embeddings") as refusal:
        capture_residual_stream(model, tokenize(model, ["It moved on Monday."]).tokens, HOOK)
    assert "\n" not in str(refusal.value)


def test_a_padding_token_without_a_vector_is_not_used(folder, tmp_path):
    own = with_tokenizer(
        folder, tmp_path / "own", lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    )
    check_study(study_of(own))
    model, plain = load_language_model(str(own), "cpu"), load_language_model(str(folder), "cpu")
    assert model.tokenizer.pad_token_id >= embedding_rows(model)
    batch, expected = (tokenize(m, ["Monday", "they said that it was Tuesday"]) for m in (model, plain))
    found = capture_residual_stream(model, batch.tokens, HOOK, lengths=batch.lengths)
    torch.testing.assert_close(found, capture_residual_stream(plain, expected.tokens, HOOK, lengths=expected.lengths))


def test_a_beginning_without_a_vector_is_refused(folder, tmp_path):
    own = with_tokenizer(folder, tmp_path / "own", lambda tokenizer: tokenizer.add_special_tokens({"bos_token": "<s>"}))
    for refused in (lambda: check_study(study_of(own)), lambda: load_language_model(str(own), "cpu")):
        with pytest.raises(ModelError, match=r"gives token \d+ \('<s>'\)"):
            refused()


def test_one_beginning_is_kept_of_two(folder):
    model = load_language_model(str(folder), "cpu")
    texts = ["Monday", f"{hub_layout.ENDOFTEXT}Monday"]
    rows = {tuple(tokenize(model, [text]).tokens[0].tolist()) for text in texts}
    assert len(rows) == 1
    assert rows.pop().count(model.tokenizer.bos_token_id) == 1


def test_a_beginning_that_the_tokenizer_does_not_know_is_refused():
    """Tokenizers in Python give such a token the id of the unknown one; those in Rust add it."""

    class Tokenizer:
        bos_token, bos_token_id, unk_token, unk_token_id = "<s>", 3, "<unk>", 3

    with pytest.raises(ModelError, match="says that texts begin with '<s>', which it does not know"):
        check_bos(Tokenizer(), 10, "m")


# ---- left to right -----------------------------------------------------------------------------


def gemma3(folder: Path, **options) -> Path:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = hub_layout.sentencepiece_like_tokenizer()
    torch.manual_seed(0)
    config = Gemma3TextConfig(**hub_layout.small_gemma(32, len(tokenizer)), num_hidden_layers=3, **options)
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_reads_both_ways_is_refused(tmp_path):
    load_language_model(str(gemma3(tmp_path / "causal")), "cpu")
    both = gemma3(tmp_path / "both", use_bidirectional_attention=True)
    with pytest.raises(ModelError, match=r"does not read from left to right: vectors of a text change by \d+ %"):
        load_language_model(str(both), "cpu")


@pytest.mark.parametrize("kind", ["llama", "gpt2-small", "pythia-70m", "gemma-2-2b"])
def test_models_of_the_studies_read_from_left_to_right_in_every_precision(kind, tmp_path):
    made = hub_layout.write_model(tmp_path / kind, kind)
    for dtype in (torch.float32, torch.bfloat16):
        check_causal(load_language_model(str(made), "cpu", dtype), kind)
    assert has_rms_norm(load_language_model(str(made), "cpu")) is (kind in ("llama", "gemma-2-2b"))


def test_a_tokenizer_that_cannot_be_read_is_one_line(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ModelError, match=r"tokenizer of model .* cannot be read") as refusal, quietly():
        check_study(study_of(own))
    assert "\n" not in str(refusal.value)
