"""Files of text: every format, plain or compressed, in what encoding, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import hub_layout
import pytest

from saema_utils.errors import CorpusError
from saema_utils.study import CorpusRecipe
from saema_utils.text.corpus import corpus_tokens, read_documents
from saema_utils.text.documents import file_documents, kind_of

TEXTS = [f'Row {i}, it\'s "quoted"; {{braces}} and a tab\there\nSecond line of {i}: é, 日, 😀' for i in range(30)]


def put(folder: Path, name: str, data: bytes | str) -> Path:
    data = data.encode() if isinstance(data, str) else data
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def separated(rows: list[dict], delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def parquet(columns: dict) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(arrow.table(columns), file)
    return file.getvalue()


ROWS = [{"id": i, "text": text, "other": "no"} for i, text in enumerate(TEXTS)]
FILES = {
    "rows.jsonl": lambda: "\n".join(json.dumps(row) for row in ROWS),
    "escaped.ndjson": lambda: "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n",
    "strings.jsonl": lambda: "\n".join(json.dumps(text) for text in TEXTS),
    "list.json": lambda: json.dumps(ROWS, indent=1),
    "strings.json": lambda: json.dumps(TEXTS),
    "lines.json": lambda: "\n".join(json.dumps(row) for row in ROWS),
    "sheet.csv": lambda: separated(ROWS, ","),
    "europe.csv": lambda: separated(ROWS, ";"),
    "sheet.tsv": lambda: separated(ROWS, "\t"),
    "table.parquet": lambda: parquet({"id": list(range(30)), "text": TEXTS}),
    "plain.txt": lambda: "\n\n".join(TEXTS),
    "notes.md": lambda: "\n\n".join(TEXTS),
    "noname": lambda: "\n\n".join(TEXTS),
}


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_its_texts_and_nothing_else(tmp_path, name, compressed):
    path = put(tmp_path, name + compressed, FILES[name]())
    assert file_documents(path) == TEXTS
    assert sorted(read_documents(str(path), 0)) == sorted(TEXTS)


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "sheet.csv", "europe.csv", "sheet.tsv"])
def test_the_column_is_the_readers_choice(tmp_path, name):
    rows = [{"text": "no", "body": text} for text in TEXTS]
    contents = {
        "rows.jsonl": "\n".join(map(json.dumps, rows)),
        "list.json": json.dumps(rows),
        "sheet.csv": separated(rows, ","),
        "europe.csv": separated(rows, ";"),
        "sheet.tsv": separated(rows, "\t"),
    }
    assert file_documents(put(tmp_path, name, contents[name]), "body") == TEXTS


def test_a_column_of_a_parquet_file(tmp_path):
    path = put(tmp_path, "a.parquet", parquet({"text": ["no"] * 30, "body": TEXTS}))
    assert file_documents(path, "body") == TEXTS


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "sheet.csv", "sheet.tsv", "table.parquet"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path, name):
    path = put(tmp_path, name, FILES[name]())
    with pytest.raises(CorpusError, match=r"no column of corpus .* named 'txt'. Did you mean 'text'\? Allowed: id,"):
        file_documents(path, "txt")


def test_words_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    texts = ["NA", "null", "1.0", "007", "True", "2024-01-01"] + [f"text {i}" for i in range(30)]
    for name, content in {
        "a.csv": separated([{"text": text} for text in texts], ","),
        "a.jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
    }.items():
        assert file_documents(put(tmp_path, name, content)) == texts


def test_rows_without_text_are_left_out(tmp_path):
    rows = [*ROWS, {"id": 99}, {"text": None}, {"text": "  "}]
    assert file_documents(put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))) == TEXTS
    path = put(tmp_path, "a.parquet", parquet({"text": [*TEXTS, None, ""]}))
    assert file_documents(path) == TEXTS


def test_half_a_character_is_replaced(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "broken \\ud83d here"}\n{"text": "whole \\ud83d\\ude00"}')
    assert file_documents(path) == ["broken \ufffd here", "whole 😀"]


# ---- encodings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["plain.txt", "rows.jsonl", "sheet.csv", "strings.json"])
def test_encodings_with_a_mark_are_read(tmp_path, name, encoding):
    assert file_documents(put(tmp_path, name, FILES[name]().encode(encoding))) == TEXTS


def test_big_endian_with_a_mark_is_read(tmp_path):
    data = b"\xfe\xff" + "\n\n".join(TEXTS).encode("utf-16-be")
    assert file_documents(put(tmp_path, "a.txt", data)) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_refused_with_the_byte_and_the_way_out(tmp_path, name, mark):
    path = put(tmp_path, name, mark + '{"text": "Ein Stück"}\n'.encode("cp1252"))
    said = rf"not UTF-8 text: byte {16 + len(mark)} is 0xFC.*iconv -f WINDOWS-1252 -t UTF-8 a\."
    with pytest.raises(CorpusError, match=said):
        file_documents(path)


def test_utf16_without_its_mark_and_what_is_no_text_are_refused(tmp_path):
    path = put(tmp_path, "a b.txt", "Hello".encode("utf-16-le"))
    with pytest.raises(CorpusError, match=r"byte 1 is 0x00.*iconv -f UTF-16LE -t UTF-8 'a b.txt'"):
        file_documents(path)
    with pytest.raises(CorpusError, match="not what its mark says, UTF-16: byte 4 is 0x62"):
        file_documents(put(tmp_path, "b.txt", b"\xff\xfea\x00b"))


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", "x", r"is a \.pdf file; allowed: .*\.parquet"),
        ("a.docx.gz", "x", r"is a \.docx file"),
        ("a.jsonl", '{"text": "x"}\nplain', r"not JSON in line 2 .*name it \.txt"),
        ("a.json", '[{"text": "x"},]', r"is not JSON \(.*Give a list of objects or strings"),
        ("a.json", '{"text": ["x", "y"]}', r"holds \['x', 'y'\] \(type list\) in row 1; allowed: text"),
        ("a.jsonl", '{"text": "x"}\n{"text": 5}', r"holds 5 \(type int\) in row 2; .*Choose another column: text"),
        ("a.jsonl", "[1]\n[2]", r"has no columns; allowed: objects"),
        ("a.json", "[]", "holds no text"),
        ("a.jsonl", "", "not JSON in line 1|holds no text"),
        ("a.csv", "", r"has no columns|no column"),
        ("a.csv", "text\n", "holds no text"),
        ("a.csv", 'text\n"open', "cannot be read"),
        ("a.parquet", "no parquet", "is not Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, content, says):
    with pytest.raises(CorpusError, match=says) as caught:
        file_documents(put(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_and_numbers_in_parquet_are_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"no archive")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text " * 999)[:-20])
    for name in ("a.txt.gz", "b.txt.gz"):
        with pytest.raises(CorpusError, match="cannot read corpus"):
            file_documents(tmp_path / name)
    with pytest.raises(CorpusError, match=r"holds 1 \(type int\).*Choose another column: text"):
        file_documents(put(tmp_path, "a.parquet", parquet({"text": [1, 2]})))


def test_plain_text_and_the_dictionary_have_no_columns(tmp_path):
    with pytest.raises(CorpusError, match="plain text and has no column 'body'"):
        file_documents(put(tmp_path, "a.txt", "text"), "body")
    with pytest.raises(CorpusError, match="has no column 'body'"):
        read_documents("embedded:gcide", 0, "body")


def test_what_a_file_is_its_name_tells():
    kinds = {"a.TXT": ".txt", "a.b.csv.GZ": ".csv", "a.gz": "", "a": ""}
    assert {name: kind_of(Path(name)) for name in kinds} == kinds


# ---- one long paragraph ------------------------------------------------------------------------

SENTENCES = [f"Sentence {i} says {' '.join(hub_layout.WORDS[i % 40 : i % 40 + 9])}." for i in range(600)]


@pytest.fixture(scope="module")
def model():
    return SimpleNamespace(tokenizer=hub_layout.byte_level_tokenizer(), cfg=SimpleNamespace(n_ctx=128))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(SENTENCES),
        " ".join(SENTENCES).replace(".", ""),
        "".join(f"第{i}句话说的是天气很好。" for i in range(900)),
        "".join(chr(0x4E00 + 7 * i % 5000) for i in range(9000)),
    ],
    ids=["sentences", "no full stops", "no spaces", "neither"],
)
def test_one_long_paragraph_is_cut_so_that_no_piece_is_in_both_splits(tmp_path, model, text):
    path = put(tmp_path, "long.txt", text)
    pieces = file_documents(path)
    assert len(pieces) >= 20
    assert max(map(len, pieces)) <= 1000
    assert "".join("".join(pieces).split()) == "".join(text.split())
    recipe = CorpusRecipe(source=str(path), tokens=3000, heldout_tokens=800, context=32)
    tokens = corpus_tokens(model, recipe, 0)
    assert len(tokens.train)
    assert len(tokens.heldout)


def test_only_what_holds_too_much_of_the_text_is_cut(tmp_path):
    short = [f"A paragraph of its own, number {i}." for i in range(40)]
    long = " ".join(SENTENCES)
    found = file_documents(put(tmp_path, "a.txt", "\n\n".join([*short, long])))
    assert found[:40] == short
    assert len(found) > 60
    rows = "\n".join(json.dumps({"text": text}) for text in (long, long[:-1]))
    assert len(file_documents(put(tmp_path, "a.jsonl", rows))) > 40
