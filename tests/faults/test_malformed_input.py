"""A catalogue of malformed input: each gets one line that names the value, and nothing is written.

``SAEMA_RECORD`` names a folder for ``refused.csv``, the inputs and their messages (``make records``).
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import saema_utils as saema
from saema_utils.chapter import resolve_study
from saema_utils.claims import load_claims
from saema_utils.corpus import read_documents
from saema_utils.errors import SaemaError
from saema_utils.study import STUDIES

SMOKE = STUDIES["smoke"]
NAN, INF = float("nan"), float("inf")
POINTS = np.random.default_rng(0).normal(size=(30, 4))
LATENTS, LABELS = torch.rand(8, 5), torch.tensor([0, 0, 1, 1, 2, 2, -1, 0])
X, MASK = torch.randn(4, 3, 6), torch.ones(4, 3, dtype=torch.bool)


def prompts(text):
    """Read a prompts file that holds ``text`` (bytes, or something to turn into JSON)."""

    def act(folder):
        path = folder / "prompts.json"
        path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
        return saema.build_prompts(SMOKE.changed(prompts_file=str(path)))

    return act


def study(**changes):
    return lambda folder: SMOKE.changed(**changes)


def study_file(text):
    def act(folder):
        (folder / "s.json").write_bytes(text)
        return resolve_study(str(folder / "s.json"))

    return act


def sweep(**changes):
    options = {"mask": MASK, "noise_levels": [0.0, 1.0], "seeds": [0], **changes}
    residual, encode = options.pop("residual", X), options.pop("encode", torch.relu)
    return lambda folder: saema.noise_rank_sweep(residual, encode, **options)


def corpus(name, content=None):
    def act(folder):
        path = folder / name
        if content is not None:
            path.write_bytes(content)
        return list(read_documents(str(path), 0))

    return act


def folder_with(make, load):
    def act(folder):
        make(folder)
        return load(folder)

    return act


def with_nan(tensor):
    spoiled = tensor.clone()
    spoiled.view(-1)[0] = NAN
    return spoiled


CATALOGUE = {
    # prompts files
    "prompts: not JSON": prompts(b"{"),
    "prompts: not UTF-8": prompts(b'{"a": ["\xff\xfe"]}'),
    "prompts: a list": prompts([1, 2]),
    "prompts: nothing in it": prompts({}),
    "prompts: an empty concept": prompts({"months": []}),
    "prompts: a concept that is a string": prompts({"months": "May"}),
    "prompts: a number among the prompts": prompts({"months": ["May", 3]}),
    "prompts: a blank prompt": prompts({"months": ["May", "  "]}),
    "prompts: control characters": prompts({"months": ["May", "June\u0000"]}),
    "prompts: only one word": prompts({"months": ["May", "In May."]}),
    "prompts: a concept named like a path": prompts({"../../etc/passwd": ["May", "June"]}),
    "prompts: a concept without a name": prompts({"": ["May", "June"]}),
    "prompts: the same concept twice": prompts(b'{"a": ["May", "June"], "a": ["x", "y"]}'),
    "prompts: half a million": prompts({"a": [f"w{i}" for i in range(500_000)]}),
    "prompts: eleven megabytes": prompts(b'{"a": ["' + b"x" * 11_000_000 + b'"]}'),
    "prompts: deep nesting": prompts(b"[" * 100_000),
    "prompts: no such file": lambda folder: saema.build_prompts(SMOKE.changed(prompts_file=str(folder / "none.json"))),
    "prompts: a folder": lambda folder: saema.build_prompts(SMOKE.changed(prompts_file=str(folder))),
    # studies
    "study: unknown": lambda folder: saema.get_study("smok"),
    "study: layer below zero": study(layer=-1),
    "study: layer as text": study(layer="ten"),
    "study: unknown concept": study(concepts=["moths"]),
    "study: noise of NaN": study(noise_levels=[0.0, NAN]),
    "study: noise that starts above zero": study(noise_levels=[0.5, 1.0]),
    "study: doses without zero": study(**{"intervention.alphas": [1.0]}),
    "study: a huge dose": study(**{"intervention.alphas": [0.0, 1e12]}),
    "study: unknown field": study(flavour="mint"),
    "study: name that climbs": study(name="../up"),
    "study: name with a newline": study(name="a\nb"),
    "study: unknown architecture": study(**{"sae.architecture": "dense"}),
    "study: more active latents than latents": study(**{"sae.k": 99999}),
    "study file: not JSON": study_file(b"layer: 3"),
    "study file: a list": study_file(b"[]"),
    "study file: unknown base": study_file(b'{"base": "nope"}'),
    "study file: binary": study_file(bytes(range(256))),
    # activations and measures
    "sweep: NaN activations": sweep(residual=with_nan(X)),
    "sweep: infinite activations": sweep(residual=X * INF),
    "sweep: a mask with nothing left": sweep(mask=torch.zeros_like(MASK)),
    "sweep: a mask of another shape": sweep(mask=MASK[:2]),
    "sweep: a matrix instead of a tensor": sweep(residual=X[0]),
    "sweep: negative noise": sweep(noise_levels=[0.0, -1.0]),
    "sweep: no seeds": sweep(seeds=[]),
    "sweep: mode 3": sweep(modes=(3,)),
    "sweep: an encoder that loses tokens": sweep(encode=lambda x: x[:1]),
    "sweep: an encoder that breaks": sweep(encode=lambda x: x * NAN),
    "spectrum: NaN": lambda folder: saema.covariance_spectrum(with_nan(X), 0),
    "spectrum: mode out of range": lambda folder: saema.covariance_spectrum(X, 7),
    "spectrum: one column": lambda folder: saema.covariance_spectrum(torch.ones(3, 1, 1), 0),
    "spectrum: complex numbers": lambda folder: saema.covariance_spectrum(X.to(torch.complex64), 0),
    "effective rank of zeros": lambda folder: saema.effective_rank(torch.zeros(3)),
    "participation ratio of nothing": lambda folder: saema.participation_ratio(torch.zeros(0)),
    "rank: tolerance of two": lambda folder: saema.numerical_rank(torch.ones(3), rtol=2),
    "clusters: NaN": lambda folder: saema.find_local_representations(
        np.full((30, 4), NAN), method="direct", min_cluster_size=3, seed=0
    ),
    "clusters: unknown method": lambda folder: saema.find_local_representations(
        POINTS, method="guess", min_cluster_size=3, seed=0
    ),
    "poles: labels of another length": lambda folder: saema.poles(POINTS, np.zeros(3, dtype=int)),
    "dimension: NaN": lambda folder: saema.intrinsic_dimension(np.full((30, 4), NAN)),
    "betti: a flat list": lambda folder: saema.betti_numbers(np.arange(5.0), 1),
    "procrustes: different numbers of rows": lambda folder: saema.procrustes_disparity(POINTS, POINTS[:4]),
    # interventions
    "edit: one label": lambda folder: saema.scale_separation(LATENTS, torch.zeros(8, dtype=torch.long), 0.5),
    "edit: NaN latents": lambda folder: saema.scale_separation(with_nan(LATENTS), LABELS, 0.5),
    "edit: NaN dose": lambda folder: saema.scale_separation(LATENTS, LABELS, NAN),
    "edit: a huge dose": lambda folder: saema.scale_separation(LATENTS, LABELS, 1e9),
    "edit: labels of another length": lambda folder: saema.scale_separation(LATENTS, LABELS[:3], 0.5),
    # checkpoints, autoencoders, text
    "model: no such folder": lambda folder: saema.load_language_model(str(folder / "no-model"), "cpu"),
    "model: an empty folder": lambda folder: saema.load_language_model(str(folder), "cpu"),
    "model: a config that is no JSON": folder_with(
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: saema.load_language_model(str(folder), "cpu"),
    ),
    "sae: no such folder": lambda folder: saema.load_sae(str(folder / "no-sae"), "cpu"),
    "sae: an empty folder": lambda folder: saema.load_sae(str(folder), "cpu"),
    "sae: unknown release": lambda folder: saema.load_sae("no-such-release:blocks.0", "cpu"),
    "sae: weights that are noise": folder_with(
        lambda folder: [(folder / n).write_bytes(b"\x00" * 64) for n in ("cfg.json", "sae_weights.safetensors")],
        lambda folder: saema.load_sae(str(folder), "cpu"),
    ),
    "corpus: no such file": corpus("nowhere.txt"),
    "corpus: an empty file": corpus("empty.txt", b""),
    "corpus: not UTF-8": corpus("binary.txt", bytes(range(128, 256)) * 50),
    "claims: not a list of claims": folder_with(
        lambda folder: (folder / "c.yaml").write_text("- {id: x}"), lambda folder: load_claims(folder / "c.yaml")
    ),
    "run: a path through a file": folder_with(
        lambda folder: (folder / "file").write_text("x"),
        lambda folder: saema.RunDirectory(folder / "file" / "run", SMOKE),
    ),
}  # fmt: skip


def tree(folder):
    return {os.path.join(root, name) for root, _, names in os.walk(folder) for name in names}


@pytest.fixture(scope="module")
def refused():
    """Messages by input; kept for the book when the whole catalogue was tried."""
    messages = {}
    yield messages
    if (folder := os.environ.get("SAEMA_RECORD")) and messages.keys() == CATALOGUE.keys():
        rows = [{"Input": name, "What the user reads": messages[name]} for name in CATALOGUE]
        pd.DataFrame(rows).to_csv(Path(folder) / "refused.csv", index=False)


def test_the_catalogue_is_long_enough():
    assert len(CATALOGUE) >= 50


@pytest.mark.parametrize("name", CATALOGUE)
def test_malformed_input_is_one_clear_line(name, tmp_path, capfd, refused):
    with pytest.raises(SaemaError) as caught:
        CATALOGUE[name](tmp_path)
    message = str(caught.value)
    refused[name] = message.replace(str(tmp_path), "...")
    assert "\n" not in message
    assert 15 < len(message) < 600
    assert message.rstrip().endswith((".", ")", "'", "?")) or "llowed" in message
    assert not {
        path for path in tree(tmp_path) if path.endswith((".csv", ".safetensors")) and "sae_weights" not in path
    }
    assert "Traceback" not in capfd.readouterr().err
