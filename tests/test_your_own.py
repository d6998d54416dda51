"""A reader's own model, layer, autoencoder, prompts and text: refused early, or run and run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_layout
import nbformat
import pytest

from saema_utils.__main__ import customised
from saema_utils.checks import check_study, remarks_on
from saema_utils.errors import ConceptError, CorpusError, ModelError, SaeError, StudyError
from saema_utils.notebook import resolve_study
from saema_utils.publishing.build import build_book
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES

ROOT = Path(__file__).resolve().parents[1]

PROMPTS = {
    "pets": ["cat", "dog", "The cat sat on the mat.", "A dog called the cat.", "We said that the dog is in the year."],
    "months": ["January is a month.", "He was called in May.", "They said it is June.", "It was in March."],
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with a tiny Llama checkpoint, an autoencoder for its layer 1, prompts and text."""
    import sae_lens

    folder = tmp_path_factory.mktemp("own")
    hub_layout.write_model(folder / "model", "llama")
    sae, sound = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=32, d_sae=64, k=16)), hub_layout.sound_sae(32)
    sae.W_enc.data, sae.W_dec.data = sound.W_enc.data, sound.W_dec.data
    sae.cfg.metadata["hook_name"] = "blocks.1.hook_resid_post"
    sae.save_model(folder / "sae")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    sentences = [f"{a} {b} {c} is it." for a in hub_layout.WORDS for b in ("the", "red") for c in hub_layout.WORDS[:20]]
    (folder / "text.txt").write_text("\n\n".join(sentences))
    (folder / "short.txt").write_text("too short")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"id": i, "text": s}) for i, s in enumerate(sentences)))
    (folder / "latin.txt").write_bytes(" ".join(sentences).encode() + " Schlu\xdf".encode("latin-1"))
    (folder / "one.txt").write_text(" ".join(sentences))
    (folder / "proverbs.json").write_text(json.dumps({"proverbs": ["Haste makes waste.", "Still waters run deep."]}))
    (folder / "broken").mkdir()
    return folder


def own(parts: Path, **given):
    options = {"prompts": "", "model": "", "layer": None, "sae": "", "corpus": "", "column": ""} | given
    study = customised(STUDIES["smoke"], **options)
    check_study(study)
    return study


def test_all_parts_together_make_a_study_that_names_what_it_uses(parts):
    study = own(
        parts,
        model=str(parts / "model"),
        layer=1,
        sae=str(parts / "sae"),
        prompts=str(parts / "prompts.json"),
        corpus=str(parts / "text.txt"),
    )
    assert study.name.startswith("smoke-")
    assert set(study.concepts) == set(PROMPTS)
    assert (study.model, study.layer) == (str((parts / "model").resolve()), 1)
    assert study.sae.source == str((parts / "sae").resolve())
    other = own(parts, model=str(parts / "model"), layer=0)
    assert other.name != study.name


def test_paths_are_made_whole_so_that_the_study_runs_from_anywhere(parts, monkeypatch):
    monkeypatch.chdir(parts)
    study = own(parts, model="model", layer=1, sae="sae", prompts="prompts.json", corpus="text.txt")
    for path in (study.model, study.sae.source, study.prompts_file, study.corpus.source):
        assert Path(path).is_absolute()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"model": "MODEL", "layer": 3}, ModelError, ["layer 3", "0 to 2"]),
        ({"layer": 30}, ModelError, ["layer 30", "0 to 29"]),
        ({"model": "MODEL/config.json"}, ModelError, ["is a file", "allowed: a folder with config.json"]),
        ({"model": "./nowhere"}, ModelError, ["./nowhere"]),
        ({"model": "BROKEN"}, ModelError, ["config.json"]),
        ({"model": "MODEL", "layer": 0, "sae": "SAE"}, SaeError, ["blocks.1.hook_resid_post", "--layer"]),
        ({"layer": 1, "sae": "SAE"}, SaeError, ["32", "576", "--sae train"]),
        ({"sae": "BROKEN"}, SaeError, ["cfg.json", "sae_weights.safetensors"]),
        ({"sae": "nowhere"}, SaeError, ["nowhere", "RELEASE:ID"]),
        ({"sae": "gpt2-small-res-jp:blocks.8.hook_resid_pre"}, SaeError, ["Did you mean 'gpt2-small-res-jb'"]),
        ({"corpus": "SHORT"}, CorpusError, ["9 bytes", "20,000 tokens"]),
        ({"corpus": "ROWS", "column": "txt"}, CorpusError, ["Did you mean 'text'?", "Allowed: id, text", "--column"]),
        ({"corpus": "ROWS", "column": "id"}, CorpusError, ["holds 0 (type int)", "Choose another column: id, text"]),
        ({"corpus": "LATIN"}, CorpusError, ["not UTF-8", "is 0xDF", "iconv -f WINDOWS-1252"]),
        ({"corpus": "SHORT", "column": "body"}, CorpusError, ["plain text", "'body'"]),
        ({"column": "body"}, CorpusError, ["embedded:gcide", "'body'"]),
        ({"corpus": "MODEL/model.safetensors"}, CorpusError, ["a .safetensors file", ".jsonl"]),
        ({"prompts": "PROVERBS"}, ConceptError, ["2 of 2 prompts", "Haste makes waste.", '"words"']),
        ({"corpus": "nowhere.txt"}, StudyError, ["nowhere.txt"]),
        ({"prompts": "SHORT"}, ConceptError, ["not JSON"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_heavy(parts, given, error, says):
    places = {"MODEL": parts / "model", "SAE": parts / "sae", "BROKEN": parts / "broken", "SHORT": parts / "short.txt"}
    places |= {"ROWS": parts / "rows.jsonl", "LATIN": parts / "latin.txt", "PROVERBS": parts / "proverbs.json"}
    for name, value in given.items():
        for key, path in places.items():
            if isinstance(value, str) and value.startswith(key):
                given = given | {name: value.replace(key, str(path), 1)}
    with pytest.raises(error) as caught:
        own(parts, **given)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize("name", ["rows.jsonl", "one.txt"])
def test_rows_and_one_long_paragraph_are_text(parts, name):
    study = own(parts, corpus=str(parts / name))
    assert study.corpus.column == "text"
    assert study.digest != own(parts, corpus=str(parts / "text.txt")).digest


def test_a_study_file_from_before_columns_still_opens(tmp_path):
    plain = STUDIES["smoke"].as_dict()
    del plain["corpus"]["column"]
    (tmp_path / "study.json").write_text(json.dumps(plain))
    assert resolve_study(str(tmp_path / "study.json")) == STUDIES["smoke"]


def test_what_is_left_out_of_a_study_is_said_before_it_runs(parts, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"pets": ["cat", "dog", "The cats slept.", "It rained."]}))
    study = own(parts, prompts=str(tmp_path / "mine.json"))
    (remark,) = remarks_on(study)
    assert "left out 1 of 4 prompts without a known word: 'It rained.'" in remark
    assert not remarks_on(own(parts, prompts=str(parts / "prompts.json")))
    assert not remarks_on(STUDIES["smollm2-135m"])


def saema(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SAEMA_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "saema_utils", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def test_a_refused_study_leaves_nothing_behind(parts, tmp_path):
    target = tmp_path / "run"
    done = saema(tmp_path, "run", "--model", str(parts / "model"), "--layer", "9", "--run-dir", str(target))
    assert done.returncode == 2
    assert done.stderr.startswith("saema: layer 9")
    assert not target.exists()


@pytest.mark.slow
def test_a_study_of_own_parts_runs_through_all_chapters_and_again_from_its_file(parts, tmp_path, rulers_into):
    rulers_into(tmp_path)
    small = STUDIES["smoke"].changed(**hub_layout.TINY, name="own")
    (tmp_path / "small.json").write_text(json.dumps(small.as_dict()))
    own_parts = ["--model", str(parts / "model"), "--layer", "1", "--sae", str(parts / "sae")]
    own_parts += ["--prompts", str(parts / "prompts.json"), "--corpus", str(parts / "text.txt")]
    first, second = tmp_path / "first", tmp_path / "second"
    done = saema(tmp_path, "run", "--study", str(tmp_path / "small.json"), *own_parts, "--run-dir", str(first))
    assert done.returncode == 0, done.stderr[-1500:]
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["study"]["model"] == str((parts / "model").resolve())
    assert {name[:2] for name in manifest["chapters"]} == {"01", "02", "03", "04", "05", "06", "07"}
    assert resolve_study(str(first / "study.json")).digest == manifest["study_digest"]

    done = saema(tmp_path, "run", "--study", str(first / "study.json"), "--chapters", "1-2", "--run-dir", str(second))
    assert done.returncode == 0, done.stderr[-1500:]
    again = json.loads((second / "manifest.json").read_text())["artifacts"]
    tables = [name for name in again if name.startswith("tables/")]
    assert len(tables) > 5
    assert all(again[name]["sha256"] == manifest["artifacts"][name]["sha256"] for name in tables)


def documented_prompts() -> dict[str, list[str]]:
    """The example on the page about one's own prompts: one concept of two words, each in one sentence."""
    page = (ROOT / "book" / "your_own.md").read_text()
    return json.loads(re.search(r'`(\{"pets": [^`]*\})`', page)[1])


def texts_on(notebook: Path) -> Iterator[str]:
    """What a page shows of its cells: text, tables, and what was printed or warned of."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.text
            for kind in ("text/plain", "text/html", "text/markdown"):
                yield output.get("data", {}).get(kind, "")


@pytest.mark.slow
def test_the_documented_example_runs_through_all_chapters_and_becomes_a_book_without_a_missing_number(
    parts, tmp_path, rulers_into
):
    """One concept, one sentence a word, one seed: no mean over concepts has an interval."""
    rulers_into(tmp_path)
    small = STUDIES["smoke"].changed(**{**hub_layout.TINY, "n_seeds": 1}, name="documented")
    (tmp_path / "small.json").write_text(json.dumps(small.as_dict()))
    prompts = documented_prompts()
    assert len(prompts) == 1
    (tmp_path / "mine.json").write_text(json.dumps(prompts))
    own_parts = ["--model", str(parts / "model"), "--layer", "1", "--corpus", str(parts / "text.txt")]
    own_parts += ["--prompts", str(tmp_path / "mine.json"), "--chapters", "1-9", "--run-dir", str(tmp_path / "run")]
    own_parts += ["--jobs", "1"]  # each notebook makes what it shows
    done = saema(tmp_path, "run", "--study", str(tmp_path / "small.json"), *own_parts)
    assert done.returncode == 0, done.stderr[-1500:]
    pages = sorted((tmp_path / "run" / "notebooks").glob("*.ipynb"))
    assert len(pages) == 9
    for page in pages:
        for text in texts_on(page):
            assert not re.search(r"\bnan\b", text, re.IGNORECASE), (page.name, text[:500])
            assert "Warning" not in text, (page.name, text[:500])
    numbers = (tmp_path / "run" / "numbers.json").read_text()
    assert "nan" not in numbers.lower()

    first_page = build_book(RunDirectory.at(tmp_path / "run"), build_dir=tmp_path / "built")
    shown = [page.read_text() for page in (first_page.parent / "notebooks").glob("*.html")]
    assert len(shown) == 9
    assert not [page for page in shown if str(parts) in page or str(tmp_path) in page], "names are shown, not paths"
