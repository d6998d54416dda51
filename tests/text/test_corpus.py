"""Running text: shuffled, split by document, packed with one BOS a sequence."""

from __future__ import annotations

import itertools
import re
import sys
from types import SimpleNamespace

import hub_layout
import pytest

from saema_utils.errors import CorpusError
from saema_utils.study import EMBEDDED_CORPUS, CorpusRecipe
from saema_utils.text.corpus import corpus_tokens, pack_sequences, read_documents


@pytest.fixture(scope="module")
def model():
    """All that packing needs of a model: a tokenizer, and how long a text may be."""
    tokenizer = hub_layout.byte_level_tokenizer()
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=128))


@pytest.fixture
def numbered(tmp_path) -> str:
    """Two hundred paragraphs that say their number, over and over."""
    path = tmp_path / "numbered.txt"
    path.write_text("\n\n".join(" ".join([f"n{i}n"] * 30) for i in range(200)), encoding="utf-8")
    return str(path)


def recipe(source: str, **changes) -> CorpusRecipe:
    return CorpusRecipe(**{"source": source, "tokens": 4000, "heldout_tokens": 1000, "context": 32, **changes})


def test_sequences_hold_what_was_asked_for_and_one_bos_each(model, numbered):
    text = corpus_tokens(model, recipe(numbered), seed=0)
    for rows, asked in ((text.train, 4000), (text.heldout, 1000)):
        assert rows.shape[1] == 32
        assert asked <= rows.shape[0] * 31 < asked + 31
        assert (rows[:, 0] == model.tokenizer.bos_token_id).all()
        assert not (rows[:, 1:] == model.tokenizer.bos_token_id).any()


def test_no_document_is_in_both_splits(model, numbered):
    text = corpus_tokens(model, recipe(numbered), seed=0)
    train, heldout = (
        set(re.findall(r"n(\d+)n", model.tokenizer.decode(rows[:, 1:].flatten())))
        for rows in (text.train, text.heldout)
    )
    assert train
    assert heldout
    assert not train & heldout


def test_one_seed_gives_one_corpus_and_another_seed_another(model, numbered):
    first, again, other = (corpus_tokens(model, recipe(numbered), seed) for seed in (0, 0, 1))
    assert first.train.equal(again.train)
    assert first.heldout.equal(again.heldout)
    assert not first.heldout.equal(other.heldout)


def test_sequences_are_the_documents_in_order_joined_by_newlines(model):
    rows, used = pack_sequences(model, iter(["of and", "a in", "the year"] * 100), 62, 32)
    text = model.tokenizer.decode(rows[:, 1:].flatten())
    assert ("of and\na in\nthe year\n" * 100).startswith(text)
    assert used < 300


def test_special_tokens_inside_the_text_are_left_out(model):
    rows, _ = pack_sequences(model, iter([f"of {hub_layout.ENDOFTEXT} and"] * 50), 31, 32)
    assert (rows == model.tokenizer.bos_token_id).sum() == len(rows)


def test_repeated_documents_count_once(tmp_path):
    path = tmp_path / "twice.txt"
    path.write_text("\n\n".join([f"paragraph {i % 30}" for i in range(60)]))
    assert sorted(read_documents(str(path), 0)) == sorted(f"paragraph {i}" for i in range(30))


def test_a_text_without_blank_lines_is_cut_into_lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeff".encode() + "\r\n".join(f"line {i}" for i in range(50)).encode())
    assert sorted(read_documents(str(path), 0)) == sorted(f"line {i}" for i in range(50))


def test_the_dictionary_is_read_without_running_its_code():
    before = set(sys.modules)
    entries = list(read_documents(EMBEDDED_CORPUS, 0))
    assert len(entries) > 80_000
    assert len(set(entries)) == len(entries)
    assert all(": " in entry for entry in entries)
    assert "dictionary" not in set(sys.modules) - before
    # Spelling variants do not smuggle a definition into both splits.
    definitions = [entry.partition(": ")[2] for entry in entries]
    assert len(set(definitions)) == len(definitions)
    # Shuffled: neighbours no longer begin with the same letter most of the time.
    same = sum(a[0] == b[0] for a, b in itertools.pairwise(entries))
    assert same < 0.3 * len(entries)


# ---- refusals ----------------------------------------------------------------------------------


def test_too_little_text_is_refused_with_both_numbers(model, numbered):
    with pytest.raises(CorpusError, match=r"holds too little text: [\d,]+ tokens left where 100,006 are needed"):
        corpus_tokens(model, recipe(numbered, tokens=100_000), seed=0)


def test_an_empty_file_is_refused(model, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n \n")
    with pytest.raises(CorpusError, match="holds no text"):
        corpus_tokens(model, recipe(str(empty)), seed=0)


def test_missing_and_unreadable_sources_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="No such file"):
        list(read_documents(str(tmp_path / "nowhere.txt"), 0))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        list(read_documents(str(latin), 0))
    with pytest.raises(CorpusError, match="Did you mean 'embedded:gcide'"):
        list(read_documents("embedded:gcid", 0))


def test_a_sequence_longer_than_the_model_takes_is_refused(model, numbered):
    with pytest.raises(CorpusError, match=r"corpus.context is 256; the model takes at most 128"):
        corpus_tokens(model, recipe(numbered, context=256), seed=0)


def test_an_unreachable_hub_says_how_to_go_on_offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(CorpusError, match=r"hub:org/text.*no route to host.*Offline, use 'embedded:gcide'"):
        list(read_documents("hub:org/text", 0))


def test_a_hub_dataset_gives_its_text_column(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"id": list(range(40)), "text": [f"row {i}" for i in range(40)]})
    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(read_documents("hub:org/text:small", 3))
    assert sorted(found) == sorted(f"row {i}" for i in range(40))
    assert found != [f"row {i}" for i in range(40)]
    assert asked == [("org/text", "small", {"split": "train", "streaming": True})]
    with pytest.raises(CorpusError, match=r"named 'txt'. Did you mean 'text'\? Allowed: id, text"):
        list(read_documents("hub:org/text", 0, "txt"))
    with pytest.raises(CorpusError, match=r"holds a int; allowed: text. Choose another column: id, text"):
        list(read_documents("hub:org/text", 0, "id"))
