"""The paper's three releases, read from a hub cache without a network.

Everything runs in one process of its own, because HF_HOME is read when the hub's library is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import hub_layout  # noqa: E402

STUDIES = tuple(hub_layout.RELEASES)


def environment(home: Path, cache: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "SAEMA_CACHE": str(cache), "OMP_NUM_THREADS": "1",
        "HF_TOKEN": "", "PYTHONPATH": str(ROOT), **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub-home")
    for release in hub_layout.RELEASES.values():
        hub_layout.lay_out(folder / "hub", release)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub-runs")


def ask_worker(what: str, home: Path, work: Path, *studies: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hub_worker.py"), what, str(work), *studies],
        env=environment(home, work / "cache"), capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(home, work) -> dict:
    return ask_worker("facts", home, work, *STUDIES)


@pytest.mark.parametrize("study", STUDIES)
def test_captures_what_plain_transformers_computes(report, study):
    assert report[study]["residual_error"] < 1e-5
    assert report[study]["model_dtype"] == "torch.float32"


@pytest.mark.parametrize("study", STUDIES)
def test_bos_stands_in_front_once(report, study):
    assert report[study]["bos_per_row"] == 1
    assert not report[study]["second_is_bos"]


@pytest.mark.parametrize(
    ("study", "architecture", "normalisation", "hook"),
    [
        ("gpt2-small", "topk", "layer_norm", "blocks.11.hook_resid_post"),
        ("pythia-70m", "standard", "none", "blocks.5.hook_resid_post"),
        ("gemma-2-2b", "topk", "none", "blocks.19.hook_resid_post"),
    ],
)
def test_the_release_keeps_its_kind_and_normalisation(report, study, architecture, normalisation, hook):
    found = report[study]
    assert (found["architecture"], found["normalisation"], found["hook"]) == (architecture, normalisation, hook)
    assert found["sae_dtype"] == "torch.float32"
    assert found["files"] == ["cfg.json", "sae_weights.safetensors"]


def latents_by_hand(study: str, x: torch.Tensor, w: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each family's formula, written out; also what its decoder's output is multiplied by and shifted with."""
    mean, deviation = torch.zeros(1), torch.ones(1)
    if study == "gpt2-small":  # OpenAI: every token to mean 0 and deviation 1, and back after decoding
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        x = (x - mean) / (deviation + 1e-5)
    z = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    if study != "pythia-70m":
        kept = z.topk(hub_layout.RELEASES[study].k, dim=-1).indices
        z = torch.zeros_like(z).scatter(-1, kept, z.gather(-1, kept))
    return z, (z @ w["W_dec"] + w["b_dec"]) * deviation + mean


@pytest.mark.parametrize("study", STUDIES)
def test_latents_and_reconstructions_follow_the_formula(report, study):
    found = report[study]
    weights = {name: torch.tensor(value) for name, value in found["weights"].items()}
    z, x_hat = latents_by_hand(study, torch.tensor(found["x"]), weights)
    torch.testing.assert_close(torch.tensor(found["z"]), z, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(found["x_hat"]), x_hat, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("study", STUDIES)
def test_decoding_again_gives_the_same(report, study):
    assert report[study]["decode_repeats"] == 0


@pytest.mark.parametrize("study", STUDIES)
def test_evaluation_is_complete(report, study):
    assert report[study]["finite"]
    weights = {name: torch.tensor(value) for name, value in report[study]["weights"].items()}
    z, _ = latents_by_hand(study, torch.tensor(report[study]["x"]), weights)
    assert report[study]["l0"] == pytest.approx(float((z > 0).float().sum(1).mean()), rel=1e-3)
    if study != "pythia-70m":
        assert report[study]["l0"] == pytest.approx(hub_layout.RELEASES[study].k)


@pytest.mark.parametrize(
    ("case", "kind", "says"),
    [
        ("width", "SaeError", ["32", "768", "--sae train"]),
        ("hook", "SaeError", ["blocks.5.hook_resid_post", "blocks.3.hook_resid_post", "--layer"]),
        ("absent", "HubUnreachableError", ["HF_HUB_OFFLINE=1", "--sae train"]),
        ("id", "SaeError", ["blocks.12.hook_resid_post", "blocks.11.hook_resid_post"]),
        ("release", "SaeError", ["gpt2-small-resid-post-v5-33k", "gpt2-small-resid-post-v5-32k"]),
        ("layer", "ModelError", ["12", "0 to 11"]),
        ("model", "HubUnreachableError", ["gpt2-medium", "HF_HOME"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(report, case, kind, says):
    message = report["refusals"][case]
    assert message.startswith(f"{kind}: ")
    assert "\n" not in message
    for part in says:
        assert part in message


# ---- through the chapters --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_chapters_3_to_5_run_on_the_release(home, work, study):
    tables = ask_worker("chapters", home, work, study)[study]
    assert all(table["rows"] for table in tables.values()), tables
    assert {"residual", "sae", "pca", "random_dictionary"} <= set(tables["03_noise_rank"]["kinds"])
    assert {"residual", "sae"} <= set(tables["04_geometry"]["kinds"])
    assert set(tables["05_dose_response"]["kinds"]) == {
        "poles", "random_direction", "permuted_labels", "global_scaling",
    }  # fmt: skip
    # Only a TopK SAE without run-time normalisation can be trained further; the table says which it was.
    assert tables["05_separability_training"]["kinds"] == ["warm" if study == "gemma-2-2b" else "fresh"]


@pytest.mark.slow
def test_every_notebook_runs_on_a_release_from_the_command_line(home, tmp_path):
    import hub_worker

    study = hub_worker.tiny("gpt2-small")
    (tmp_path / "study.json").write_text(json.dumps(study.as_dict()))
    command = [sys.executable, "-m", "saema_utils", "run", "--study", str(tmp_path / "study.json"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, env=environment(home, tmp_path / "cache"),
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {name[:2] for name in manifest["chapters"]} == {"01", "02", "03", "04", "05", "06"}
    assert manifest["study"]["sae"]["source"].startswith("gpt2-small-resid-post-v5-32k:")


# ---- a hub that answers, and refuses ---------------------------------------------------------------


class _GatedHub(BaseHTTPRequestHandler):
    """What huggingface.co answers without a token: metadata is public, the files of a gated repository are not."""

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        is_metadata = self.path.startswith("/api/models/")
        files = ("config.json", "model.safetensors")
        facts = {"id": "google/gemma-2-2b", "sha": "a" * 40, "gated": "manual"}
        facts["siblings"] = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": name, "size": 9, "oid": "b" * 40} for name in files]
        content = json.dumps(tree if "/tree/" in self.path else facts)
        content = content if is_metadata else "Access to model google/gemma-2-2b is restricted."
        self.send_response(200 if is_metadata else 401)
        if not is_metadata:
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", content)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


def test_a_gated_model_without_a_token_says_where_to_get_one(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _GatedHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        more = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", GATED], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env=environment(tmp_path / "home", tmp_path / "cache", **more), check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    message = done.stdout.strip()
    assert message.startswith("ModelError"), done.stderr[-2000:]
    for part in ("gated", "https://huggingface.co/google/gemma-2-2b", "huggingface.co/settings/tokens", "HF_TOKEN"):
        assert part in message


GATED = """
from saema_utils.errors import SaemaError
from saema_utils.models import model_folder
try:
    print(model_folder("google/gemma-2-2b"))
except SaemaError as error:
    print(f"{type(error).__name__}: {error}")
"""
