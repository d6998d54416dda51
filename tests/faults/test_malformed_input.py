"""A catalogue of malformed input, given to the command line where a person can, else to the package.

Every command ends with exit code 2 and one line on standard error, every call raises SaemaError with one line; the
line names the value, and nothing is written anywhere. ``SAEMA_RECORD`` names a folder for ``refused.csv``, the inputs
and their messages (``make records``).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import saema_utils as saema
from saema_utils.__main__ import main
from saema_utils.errors import SaemaError
from saema_utils.evidence.claims import load_claims
from saema_utils.notebook import open_run
from saema_utils.publishing.execution import check_parameters
from saema_utils.study import STUDIES
from saema_utils.text.corpus import read_documents

SMOKE = STUDIES["smoke"]
ROOT = Path(__file__).resolve().parents[2]
NAN, INF = float("nan"), float("inf")
POINTS = np.random.default_rng(0).normal(size=(30, 4))
LATENTS, LABELS = torch.rand(8, 5), torch.tensor([0, 0, 1, 1, 2, 2, -1, 0])
X, MASK = torch.randn(4, 3, 6), torch.ones(4, 3, dtype=torch.bool)
NOBODY = "~nosuchuser/there"
RUN = ("run", "--study", "smoke", "--run-dir", "run")


# ---- commands: a function makes the files in the working folder and returns the arguments ---------------


def command(*arguments, files=None):
    def prepare():
        for name, content in (files or {}).items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return list(arguments)

    return prepare


def run(*arguments, files=None):
    return command(*RUN, *arguments, files=files)


def prompts(content):
    """A prompts file that holds bytes, or something to turn into JSON."""
    return run("--prompts", "prompts.json", files={"prompts.json": content})


def study(**changes):
    return study_file({"base": "smoke", **changes})


def study_file(content):
    return command("run", "--study", "mine.json", "--run-dir", "run", files={"mine.json": content})


def sweep_file(text):
    return command("sweep", "mine.yaml", "--out", "runs", "--serial", files={"mine.yaml": text.encode()})


def linked(name, target, *arguments, files=None):
    """A symbolic link in the working folder, to nowhere or to itself."""

    def prepare():
        Path(name).symlink_to(target)
        return command(*arguments, files=files)()

    return prepare


COMMANDS = {
    # options
    "a study that does not exist": command("run", "--study", "smok", "--run-dir", "run"),
    "a study in look-alike letters": command("run", "--study", "ｓｍｏｋｅ", "--run-dir", "run"),
    "a study that steers the terminal": command("run", "--study", "a\x1b[2Jb\u202e", "--run-dir", "run"),
    "a study that is no text": command("run", "--study", "a\udcff\n", "--run-dir", "run"),
    "an unknown command": command("frobnicate"),
    "an unknown option": run("--flavour", "mint"),
    "an option without its value": run("--layer"),
    "a value too many": run("smoke"),
    "a chapter that is none": run("--chapters", "99"),
    "chapters backwards": run("--chapters", "3-1"),
    "chapters as words": run("--chapters", "one"),
    "no chapters": run("--chapters", ""),
    "a seed that is no number": run("--seed", "x"),
    "a seed below zero": run("--seed", "-1"),
    "a seed beyond 31 bits": run("--seed", "99999999999"),
    "a layer that is no number": run("--layer", "ten"),
    "a layer below zero": run("--layer", "-1"),
    "a layer the model has not": run("--layer", "99"),
    "a device that does not exist": run("--device", "nonsense"),
    "a device of another machine": run("--device", "mps" if torch.cuda.is_available() else "cuda"),
    "a GPU of a high number": run("--device", "cuda:99"),
    "a run inside a file": command("run", "--study", "smoke", "--run-dir", "file/run", files={"file": b"x"}),
    "a run in a link to itself": linked("loop", "loop", "run", "--study", "smoke", "--run-dir", "loop"),
    "a run of nobody": command("run", "--study", "smoke", "--run-dir", NOBODY),
    "a run whose manifest is noise": run(files={"run/manifest.json": bytes(range(256))}),
    "a run of another study": run(files={"run/manifest.json": {"format_version": 1, "study_digest": "0" * 16}}),
    "--force on a folder that is no run": command(
        "run", "--study", "smoke", "--run-dir", "home", "--force", files={"home/thesis.tex": b"x"}
    ),
    "a book of an unknown study": command("book", "--study", "smok"),
    # prompts
    "prompts: not JSON": prompts(b"{"),
    "prompts: not UTF-8": prompts(b'{"a": ["\xff\xfe"]}'),
    "prompts: a list": prompts([1, 2]),
    "prompts: nothing in it": prompts({}),
    "prompts: an empty concept": prompts({"months": []}),
    "prompts: a concept that is a string": prompts({"months": "May"}),
    "prompts: a number among the prompts": prompts({"months": ["May", 3]}),
    "prompts: a blank prompt": prompts({"months": ["May", "  "]}),
    "prompts: control characters": prompts({"months": ["May", "June\u0000"]}),
    "prompts: half of a character": prompts(b'{"months": ["May", "\\ud83d"]}'),
    "prompts: only one word": prompts({"months": ["May", "In May."]}),
    "prompts: a concept named like a path": prompts({"../../etc/passwd": ["May", "June"]}),
    "prompts: a concept named like an option": prompts({"--force": ["May", "June"]}),
    "prompts: a concept without a name": prompts({"": ["May", "June"]}),
    "prompts: the same concept twice": prompts(b'{"a": ["May", "June"], "a": ["x", "y"]}'),
    "prompts: sentences without a word": prompts({"a": ["Haste makes waste.", "Still waters run deep."]}),
    "prompts: a word that is not in its text": prompts({"a": ["May", {"text": "In June.", "word": "July"}]}),
    "prompts: a list of words that is empty": prompts({"a": {"words": [], "prompts": ["May", "June"]}}),
    "prompts: half a million": prompts({"a": [f"w{i}" for i in range(500_000)]}),
    "prompts: eleven megabytes": prompts(b'{"a": ["' + b"x" * 11_000_000 + b'"]}'),
    "prompts: deep nesting": prompts(b"[" * 100_000),
    "prompts: no such file": run("--prompts", "none.json"),
    "prompts: a folder": run("--prompts", "."),
    "prompts: a link to nowhere": linked("link.json", "none.json", *RUN, "--prompts", "link.json"),
    "prompts: a link to itself": linked("loop.json", "loop.json", *RUN, "--prompts", "loop.json"),
    "prompts: of nobody": run("--prompts", NOBODY),
    # studies
    "study: layer as text": study(layer="ten"),
    "study: unknown concept": study(concepts=["moths"]),
    "study: a concept twice": study(concepts=["days", "days"]),
    "study: noise of NaN": study(noise_levels=[0.0, NAN]),
    "study: infinite noise": study(noise_levels=[0.0, INF]),
    "study: noise that starts above zero": study(noise_levels=[0.5, 1.0]),
    "study: doses without zero": study(**{"intervention.alphas": [0.5, 1.0, 2.0]}),
    "study: a huge dose": study(**{"intervention.alphas": [-1.0, 0.0, 1e12]}),
    "study: unknown field": study(flavour="mint"),
    "study: a field of Python's": study(self=1),
    "study: name that climbs": study(name="../up"),
    "study: name with a newline": study(name="a\nb"),
    "study: unknown architecture": study(**{"sae.architecture": "dense"}),
    "study: more active latents than latents": study(**{"sae.k": 99999}),
    "study file: not JSON": study_file(b"layer: 3"),
    "study file: a list": study_file([]),
    "study file: unknown base": study_file({"base": "nope"}),
    "study file: binary": study_file(bytes(range(256))),
    "study file: a folder": command("run", "--study", "folder.json", files={"folder.json/x": b""}),
    "study file: a link to itself": linked("loop.json", "loop.json", "run", "--study", "loop.json"),
    "study file: of nobody": command("run", "--study", f"{NOBODY}.json"),
    # checkpoints, autoencoders, text
    "model: no such folder": run("--model", "./no-model"),
    "model: of nobody": run("--model", NOBODY),
    "model: an empty folder": run("--model", "empty", files={"empty/.x": b""}),
    "model: a config that is no JSON": run("--model", "model", files={"model/config.json": b"{"}),
    "sae: no such folder": run("--sae", "no-sae"),
    "sae: of nobody": run("--sae", NOBODY),
    "sae: an empty folder": run("--sae", "empty", files={"empty/.x": b""}),
    "sae: unknown release": run("--sae", "no-such-release:blocks.0"),
    "sae: a config that is noise": run(
        "--sae", "sae", files=dict.fromkeys(("sae/cfg.json", "sae/sae_weights.safetensors"), b"\x00" * 64)
    ),
    "corpus: no such file": run("--corpus", "nowhere.txt"),
    "corpus: a folder": run("--corpus", "."),
    "corpus: of nobody": run("--corpus", NOBODY),
    "corpus: an empty file": run("--corpus", "empty.txt", files={"empty.txt": b""}),
    "corpus: another kind of file": run("--corpus", "a.pdf", files={"a.pdf": b"%PDF"}),
    "corpus: lines that are no JSON": run("--corpus", "a.jsonl", files={"a.jsonl": b"{\"text\": 1"}),
    "corpus: a column that is not there": run("--corpus", "a.csv", "--column", "b", files={"a.csv": b"a\nx\n"}),
    "corpus: Parquet that is none": run("--corpus", "a.parquet", files={"a.parquet": b"PAR1"}),
    "corpus: an archive that is none": run("--corpus", "a.txt.gz", files={"a.txt.gz": b"text"}),
    "corpus: UTF-16 without its mark": run("--corpus", "a.txt", files={"a.txt": "text".encode("utf-16-le")}),
    # sweeps and comparisons
    "sweep: no such file": command("sweep", "nowhere.yaml", "--serial"),
    "sweep: file of nobody": command("sweep", NOBODY, "--serial"),
    "sweep: not YAML": sweep_file("base: smoke\n\tgrid: {}"),
    "sweep: an object of Python's": sweep_file("base: !!python/object/apply:os.system [true]"),
    "sweep: a misspelt part": sweep_file("base: smoke\ngird: {}"),
    "sweep: a field of Python's": sweep_file("base: smoke\ngrid: {self: [0]}"),
    "sweep: a value that is no list": sweep_file("base: smoke\ngrid: {seed: 0}"),
    "sweep: results inside a file": command(
        "sweep", "mine.yaml", "--serial", "--out", "file/x", files={"mine.yaml": b"base: smoke", "file": b"x"}
    ),
    "sweep: results of nobody": command(
        "sweep", "mine.yaml", "--serial", "--out", NOBODY, files={"mine.yaml": b"base: smoke"}
    ),
    "sweep: results in a link to itself": linked(
        "loop", "loop", "sweep", "mine.yaml", "--serial", "--out", "loop", files={"mine.yaml": b"base: smoke"}
    ),
    "compare: a link to itself": linked("loop", "loop", "compare", "loop"),
    "compare: no such folder": command("compare", "nowhere"),
    "compare: of nobody": command("compare", NOBODY),
    "compare: a folder without runs": command("compare", "."),
}  # fmt: skip
# As a person starts them: what arrives undecodable or steers the terminal, and one of each command.
AS_PROCESSES = (
    "a study that is no text", "a study that steers the terminal", "a seed that is no number", "a chapter that is none",
    "prompts: control characters", "sweep: results inside a file", "compare: no such folder",
)  # fmt: skip


# ---- calls ---------------------------------------------------------------------------------------------


def sweep(**changes):
    options = {"mask": MASK, "noise_levels": [0.0, 1.0], "seeds": [0], **changes}
    residual, encode = options.pop("residual", X), options.pop("encode", torch.relu)
    return lambda folder: saema.noise_rank_sweep(residual, encode, **options)


def notebook(**parameters):
    """Parameters that a chapter's notebook does not declare, as papermill would be given them."""
    path = ROOT / "notebooks/01_activations.ipynb"
    return lambda folder: check_parameters(path, parameters)


def opened(**parameters):
    """Parameters of the wrong kind, as the setup cell of a chapter passes them on."""
    return lambda folder: open_run(**{"study": "smoke", "run_dir": str(folder / "run"), **parameters})


def folder_with(make, load):
    def act(folder):
        make(folder)
        return load(folder)

    return act


def with_nan(tensor):
    spoiled = tensor.clone()
    spoiled.view(-1)[0] = NAN
    return spoiled


CALLS = {
    # parameters of notebooks
    "notebook: an unknown parameter": notebook(sed=3),
    "notebook: a study that is a number": opened(study=3),
    "notebook: a seed that is text": opened(seed="three"),
    "notebook: a seed that is a fraction": opened(seed=1.5),
    "notebook: a folder that is a number": opened(run_dir=7),
    "notebook: a device that is a number": opened(device=0),
    # activations and measures
    "sweep: NaN activations": sweep(residual=with_nan(X)),
    "sweep: complex activations": sweep(residual=X + 1j),
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
    "edit: truth values": lambda folder: saema.scale_separation(LATENTS > 0.5, LABELS, 0.5),
    "edit: NaN dose": lambda folder: saema.scale_separation(LATENTS, LABELS, NAN),
    "edit: a huge dose": lambda folder: saema.scale_separation(LATENTS, LABELS, 1e9),
    "edit: labels of another length": lambda folder: saema.scale_separation(LATENTS, LABELS[:3], 0.5),
    # files that only a later chapter reads
    "sae: weights that are noise": folder_with(
        lambda folder: [(folder / n).write_bytes(b"\x00" * 64) for n in ("cfg.json", "sae_weights.safetensors")],
        lambda folder: saema.load_sae(str(folder), "cpu"),
    ),
    "corpus: not UTF-8": folder_with(
        lambda folder: (folder / "binary.txt").write_bytes(bytes(range(128, 256)) * 50),
        lambda folder: list(read_documents(str(folder / "binary.txt"), 0)),
    ),
    **{
        f"claims: {mistake}": folder_with(
            lambda folder, text=text: (folder / "c.yaml").write_text(text),
            lambda folder: load_claims(folder / "c.yaml"),
        )
        for mistake, text in {
            "a list without a version": "- {id: x}",
            "of other rules": "version: 1\nclaims: []",
            "an incomplete claim": "version: 2\nclaims: [{id: x}]",
        }.items()
    },
}  # fmt: skip


# ---- the test ------------------------------------------------------------------------------------------


def everything(folder):
    """All that is below a folder, with sizes and times: what was written is what differs."""
    found = {}
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            stat = path.lstat()
            found[path] = (stat.st_size, stat.st_mtime_ns) if not path.is_dir() else None
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, whose neighbours are home, caches and temporary files: nothing may appear in any."""
    homes = {"HOME": "home", "SAEMA_CACHE": "cache", "XDG_CACHE_HOME": "cache", "HF_HOME": "hub", "TMPDIR": "tmp"}
    for variable, name in homes.items():
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def refused():
    """Messages by input; kept for the book when the whole catalogue was tried."""
    messages = {}
    yield messages
    if (folder := os.environ.get("SAEMA_RECORD")) and messages.keys() == {**COMMANDS, **CALLS}.keys():
        rows = [
            {"Input": name, "Given to": "the command" if name in COMMANDS else "a function", "Answer": messages[name]}
            for name in (*COMMANDS, *CALLS)
        ]
        pd.DataFrame(rows).to_csv(Path(folder) / "refused.csv", index=False)


def check_message(message):
    assert 15 < len(message) < 1600
    assert message.isprintable(), "it would steer the terminal, or be more than one line"
    assert message.endswith((".", ")", "'", "?")) or "llowed" in message or "Run: saema " in message
    assert "Traceback" not in message


def check_command(code, out, err, before, after):
    assert code == 2, err
    assert out == ""
    assert err.startswith("saema: ")
    assert err.endswith("\n")
    check_message(err[:-1])
    assert after == before


def test_the_catalogue_is_long_enough():
    assert len(COMMANDS) >= 50
    assert not COMMANDS.keys() & CALLS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_malformed_command_is_one_clear_line_and_exit_code_two(name, place, capfd, monkeypatch, refused):
    monkeypatch.setattr(sys, "argv", ["saema", *COMMANDS[name]()])
    before = everything(place.parent)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    check_command(ended.value.code, out, err, before, everything(place.parent))
    refused[name] = err[len("saema: ") : -1].replace(str(place), "...")


@pytest.mark.parametrize("name", AS_PROCESSES)
def test_it_is_the_same_in_a_process_of_its_own(name, place):
    arguments = [sys.executable, "-m", "saema_utils", *COMMANDS[name]()]
    before = everything(place.parent)
    done = subprocess.run(arguments, capture_output=True, text=True)
    check_command(done.returncode, done.stdout, done.stderr, before, everything(place.parent))


@pytest.mark.parametrize("name", CALLS)
def test_a_malformed_argument_is_one_clear_line(name, place, capfd, refused):
    before = {path for path in everything(place.parent) if path.suffix in (".csv", ".safetensors", ".json")}
    with pytest.raises(SaemaError) as caught:
        CALLS[name](place)
    check_message(str(caught.value))
    refused[name] = str(caught.value).replace(str(place), "...")
    after = {path for path in everything(place.parent) if path.suffix in (".csv", ".safetensors", ".json")}
    made_by_the_test = {place / "cfg.json", place / "sae_weights.safetensors"}
    assert after - made_by_the_test == before
    assert "Traceback" not in capfd.readouterr().err
