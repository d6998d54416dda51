"""The paper's three releases, read from a hub cache without a network.

Everything runs in one process of its own, because HF_HOME is read when the hub's library is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import hub_layout
import pytest
import torch
from live_bytes import LiveBytes

ROOT = Path(__file__).resolve().parents[2]

from saema_utils.checks import check_study  # noqa: E402
from saema_utils.errors import ModelError  # noqa: E402
from saema_utils.model.loading import load_language_model  # noqa: E402
from saema_utils.study import STUDIES  # noqa: E402
from saema_utils.text.concepts import build_prompts  # noqa: E402

RELEASES = tuple(hub_layout.RELEASES)


def environment(home: Path, cache: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "SAEMA_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "HF_TOKEN": "",
        "PYTHONPATH": str(ROOT),
        **more,
    }


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
        env=environment(home, work / "cache"),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(home, work) -> dict:
    return ask_worker("facts", home, work, *RELEASES)


@pytest.mark.parametrize("study", RELEASES)
def test_captures_what_plain_transformers_computes(report, study):
    assert report[study]["residual_error"] < 1e-5
    assert report[study]["model_dtype"] == "torch.float32"


@pytest.mark.parametrize("study", RELEASES)
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


@pytest.mark.parametrize("study", RELEASES)
def test_latents_and_reconstructions_follow_the_formula(report, study):
    found = report[study]
    weights = {name: torch.tensor(value) for name, value in found["weights"].items()}
    z, x_hat = latents_by_hand(study, torch.tensor(found["x"]), weights)
    torch.testing.assert_close(torch.tensor(found["z"]), z, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(found["x_hat"]), x_hat, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("study", RELEASES)
def test_decoding_again_gives_the_same(report, study):
    assert report[study]["decode_repeats"] == 0


@pytest.mark.parametrize("study", RELEASES)
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


# ---- exactly the hub's files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "layer", "size"),
    [
        ("gpt2-small", 0, 565),  # v5_32k_layer_0.pt/cfg.json as the hub lists it
        ("gpt2-small", 9, 565),
        ("pythia-70m", 1, 541),  # 1-res-sm/cfg.json
        ("pythia-70m", 4, 541),
    ],
)
def test_a_configuration_has_as_many_bytes_as_the_hubs(study, layer, size):
    assert len(json.dumps(hub_layout.published(study, layer))) == size


@pytest.mark.parametrize("study", RELEASES)
def test_the_study_says_what_its_release_says(study):
    """Real width, real k, real layer: what ``saema studies`` shows before anything is downloaded."""
    config, recipe = hub_layout.published(study, STUDIES[study].layer), STUDIES[study].sae
    config = {**config, **config.get("trainer", {})}
    assert recipe.d_sae == config.get("dict_size", config.get("d_sae"))
    k = config.get("k", config.get("activation_fn_kwargs", {}).get("k"))
    assert recipe.architecture == ("standard" if k is None else "topk")
    assert k is None or recipe.k == k
    place = config.get("submodule_name", config.get("hook_name"))
    assert place in (STUDIES[study].hook_name, f"resid_post_layer_{STUDIES[study].layer}")


@pytest.mark.parametrize(("study", "bos"), [("gpt2-small", True), ("pythia-70m", False), ("gemma-2-2b", True)])
def test_whether_a_release_was_trained_with_bos_is_read(report, study, bos):
    assert report[study]["facts"]["prepend_bos"] is bos
    assert report[study]["recorded"] == report[study]["facts"], "the manifest says it as well"
    told = [line for line in report["printed"].splitlines() if STUDIES[study].sae.source in line]
    assert len(told) == (not bos), "one note, and only where it matters"
    assert all("without a BOS token" in line for line in told)


@pytest.mark.parametrize("study", RELEASES)
def test_families_and_layers_are_as_sparse_as_the_published_autoencoder_was_measured(report, study):
    recipe = report[study]["comparable"]
    assert (recipe["d_sae"], recipe["k"]) == (96, round(report[study]["l0"]))


@pytest.mark.parametrize(("study", "k"), [("gpt2-small", 8), ("pythia-70m", None), ("gemma-2-2b", 8)])
def test_a_published_autoencoder_is_what_its_own_file_says(report, study, k):
    """The stand-ins have 96 latents where the studies' recipes say tens of thousands."""
    facts = report[study]["facts"]
    assert (facts["d_sae"], facts["k"]) == (96, k)
    assert facts["architecture"] == report[study]["architecture"]


# ---- through the chapters --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("study", RELEASES)
def test_chapters_3_to_5_run_on_the_release(home, work, study):
    tables = ask_worker("chapters", home, work, study)[study]
    assert all(table["rows"] for table in tables.values()), tables
    assert {"residual", "sae", "pca", "random_dictionary"} <= set(tables["03_noise_rank"]["kinds"])
    assert {"residual", "sae"} <= set(tables["04_geometry"]["kinds"])
    assert set(tables["05_dose_response"]["kinds"]) == {
        "poles",
        "random_direction",
        "permuted_labels",
        "global_scaling",
    }
    assert tables["05_separability_training"]["kinds"] == ["warm"]


@pytest.mark.slow
def test_every_notebook_runs_on_a_release_from_the_command_line(tmp_path, rulers_into):
    import hub_worker

    rulers_into(tmp_path)
    home = tmp_path / "home"
    hub_layout.lay_out(home / "hub", hub_layout.RELEASES["gpt2-small"], sound=True)
    study = hub_worker.tiny("gpt2-small")
    (tmp_path / "study.json").write_text(json.dumps(study.as_dict()))
    command = [sys.executable, "-m", "saema_utils", "run", "--study", str(tmp_path / "study.json"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment(home, tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {name[:2] for name in manifest["chapters"]} == {"01", "02", "03", "04", "05", "06", "07"}
    assert manifest["study"]["sae"]["source"].startswith("gpt2-small-resid-post-v5-32k:")


# ---- a hub that answers, and refuses ---------------------------------------------------------------


class _RefusingHub(BaseHTTPRequestHandler):
    """What huggingface.co answers to one who may not read; the repository's name says why.

    The metadata of a gated repository is public, its files are not. Codes and headers are those that
    ``huggingface_hub.utils.hf_raise_for_status`` tells its errors by.
    """

    REFUSALS: ClassVar = {
        "unknown/model": (404, "RepoNotFound", "Repository not found"),
        "wrong/token": (401, "", "Invalid credentials in Authorization header"),
        "narrow/token": (403, "", "Forbidden: this token may not read gated repositories"),
        "ill/hub": (503, "", "Service unavailable"),
    }

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        status, code, said = next(
            (answer for name, answer in self.REFUSALS.items() if name in self.path), (200, "", "")
        )
        files = ("config.json", "model.safetensors")
        facts = {"id": "google/gemma-2-2b", "sha": "a" * 40, "gated": "manual"}
        facts["siblings"] = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": name, "size": 9, "oid": "b" * 40} for name in files]
        content = json.dumps(tree if "/tree/" in self.path else facts)
        if status == 200 and not self.path.startswith("/api/models/"):
            status, code, said = 401, "GatedRepo", "Access to model google/gemma-2-2b is restricted."
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", said)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


ASK = """
import json, sys
from saema_utils.errors import SaemaError
from saema_utils.model.loading import model_folder
for name in sys.argv[1:]:
    try:
        print(json.dumps([name, "no error", str(model_folder(name))]))
    except SaemaError as error:
        causes = [type(each).__name__ for each in (error.__cause__, error.__cause__.__cause__)]
        print(json.dumps([name, type(error).__name__, str(error), *causes]))
"""


def ask_hub(folder: Path, token: str, *names: str, offline: bool = False) -> dict[str, list[str]]:
    """By name: our error, its message, the hub's error that caused it, and what caused that."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _RefusingHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        more = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": str(int(offline))}
        done = subprocess.run(
            [sys.executable, "-c", ASK, *names],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(folder / "home", folder / "cache", HF_TOKEN=token, **more),
            check=False,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: answer for name, *answer in answers}


GEMMA = "google/gemma-2-2b"


@pytest.fixture(scope="module", params=["", "hf_of_somebody"], ids=["no token", "a token"])
def refused(request, tmp_path_factory) -> tuple[str, dict[str, list[str]]]:
    names = (GEMMA, *_RefusingHub.REFUSALS)
    return request.param, ask_hub(tmp_path_factory.mktemp("refusing"), request.param, *names)


@pytest.mark.parametrize(
    ("name", "raised", "says"),
    [
        (GEMMA, "GatedRepoError", ["gated", f"Accept its licence at https://huggingface.co/{GEMMA},"]),
        ("unknown/model", "RepositoryNotFoundError", ["no model 'unknown/model' that you may read", "Check the name"]),
        ("wrong/token", "HfHubHTTPError", ["refuses model 'wrong/token'", "401"]),
        ("narrow/token", "LocalEntryNotFoundError", ["refuses model 'narrow/token'", "403"]),
    ],
)
def test_who_may_not_read_learns_which_token_and_where_to_put_it(refused, name, raised, says):
    token, answers = refused
    kind, message, cause, _ = answers[name]
    assert cause == raised, "the error that the installed hub really raises"
    assert kind == "ModelError"
    assert "\n" not in message
    for part in (*says, "https://huggingface.co/settings/tokens", "set HF_TOKEN", "Colab: Secrets"):
        assert part in message
    assert ("token that was sent" in message) == bool(token)


def test_a_hub_that_is_ill_is_told_from_one_that_refuses(refused):
    kind, message, cause, behind = refused[1]["ill/hub"]
    assert (kind, cause, behind) == ("HubUnreachableError", "LocalEntryNotFoundError", "HfHubHTTPError")
    assert "status 503" in message
    assert "settings/tokens" not in message


def test_without_a_network_the_message_is_about_the_cache(tmp_path):
    kind, message, cause, behind = ask_hub(tmp_path, "", GEMMA, offline=True)[GEMMA]
    assert (kind, cause, behind) == ("HubUnreachableError", "LocalEntryNotFoundError", "OfflineModeIsEnabled")
    assert "HF_HOME" in message


# ---- a cache that holds only what a tokenizer needs --------------------------------------------------


@pytest.fixture
def light_cache(tmp_path, monkeypatch) -> Path:
    """A hub cache as ``AutoTokenizer.from_pretrained`` leaves it: configuration and tokenizer, no weights."""
    folder = hub_layout.snapshot(tmp_path / "hub", "gpt2")
    hub_layout.write_model(folder, "gpt2-small")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def test_weights_that_are_still_on_the_hub_do_not_stop_a_study(light_cache):
    study = STUDIES["gpt2-small"]
    check_study(study)
    with pytest.raises(ModelError, match="layer 12 does not exist"):  # what the cached files do tell is used
        check_study(study.changed(layer=12))


def test_a_folder_of_ones_own_needs_its_weights(light_cache, tmp_path):
    own = shutil.copytree(light_cache, tmp_path / "own")
    with pytest.raises(ModelError, match=r"pickled weights are not read.*Convert it first"):
        check_study(STUDIES["gpt2-small"].changed(model=str(own)))


def test_offline_the_missing_weights_are_named_when_the_model_is_loaded(light_cache):
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors.*run once with a network"):
        load_language_model("gpt2", "cpu")


# ---- Gemma on a GPU of 16 GB -------------------------------------------------------------------------

# Sizes of google/gemma-2-2b (2,614,341,888 parameters, two bytes each in bfloat16) and of its autoencoder, in bytes.
GEMMA_WEIGHTS = 2 * 2_614_341_888
GEMMA_SAE = 4 * (2 * 65_536 * 2_304 + 65_536 + 2_304)
GEMMA_LATENTS = 4 * 65_536  # of one token, dense
CARD = 15_360 * 2**20  # what a T4 reports
DRIVER = 600_000_000  # CUDA's own context, and what the allocator cannot use


def test_the_model_is_held_once_in_half_precision(tmp_path):
    folder = hub_layout.write_model(tmp_path / "gemma", "gemma-2-2b", 64)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))  # in float32, as on the hub
    with LiveBytes() as bytes_of:
        model = load_language_model(str(folder), "cpu", torch.bfloat16)
    alive = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(alive.values()) < 0.51 * stored
    assert bytes_of.peak < 0.56 * stored


@pytest.fixture(scope="module")
def copies() -> dict[str, float]:
    """Most bytes alive at once, in units of an autoencoder's weights, or of the dense latents of the tokens."""
    from saema_utils.chapters.intervention.measures import Split, measure_trained
    from saema_utils.intervention.training import LabelledTokens, as_plain, continued, fresh, train_separable
    from saema_utils.saes.coders import RandomDictionary, SaeCoder
    from saema_utils.saes.fidelity import measure_fidelity

    d, f, n = 64, 8192, 300
    start = fresh(d, f, 8, seed=0)
    plain = as_plain(start)
    weights, latents = 4 * 2 * d * f, 4 * n * f
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    found, watched = {}, []
    with LiveBytes() as live:
        sae = continued(start)
        train_separable(
            sae, x, None, scale=1.0, steps=3, batch=8, checkpoints=(2,), watch=lambda *_: watched.append(live.now)
        )
    found["training"], found["watching"] = live.peak / weights, max(watched) / weights
    with torch.no_grad():
        coders = {"sae": SaeCoder(plain), "random dictionary": RandomDictionary(d, f, 8)}
        for name, coder in coders.items():
            with LiveBytes() as live:
                measure_fidelity(coder, x)
            found[name] = live.peak / latents
        tokens = LabelledTokens(x, torch.arange(n) % 30, torch.arange(n) % 3)
        parts = [LabelledTokens(x[i::3], tokens.clusters[i::3], tokens.concepts[i::3]) for i in range(3)]
        with LiveBytes() as live:
            measure_trained(plain, x[:50], Split(*parts))
        found["judging"] = live.peak / latents
    return found


def test_every_step_of_a_chapter_on_gemma_fits_a_16_gb_card(copies):
    """The model stays loaded throughout; what comes on top of it is measured in small and scaled up."""
    prompts = sum(len(found) for found in build_prompts(STUDIES["gemma-2-2b"]).values())
    word_tokens = 2 * prompts  # a month or a planet is one token or two
    on_top = {
        # Chapter 2: the SAE, a second copy while it is saved, and slices of 2048 tokens.
        "fidelity of the SAE": 2 * GEMMA_SAE + copies["sae"] * 2048 * GEMMA_LATENTS,
        # Its directions are moved to the card for every slice, half as many numbers as an SAE has.
        "fidelity of the random dictionary": 1.5 * GEMMA_SAE + copies["random dictionary"] * 2048 * GEMMA_LATENTS,
        # Chapter 5: the start and one in training, with batches of 384 and 128 concept tokens.
        "training": (1 + copies["training"]) * GEMMA_SAE + 6 * 512 * GEMMA_LATENTS,
        "judging a checkpoint": (1 + copies["watching"]) * GEMMA_SAE
        + copies["judging"] * max(word_tokens, 2048) * GEMMA_LATENTS,
    }
    for step, more in on_top.items():
        assert GEMMA_WEIGHTS + more + DRIVER < CARD, f"{step}: {(GEMMA_WEIGHTS + more + DRIVER) / 1e9:.1f} GB"
