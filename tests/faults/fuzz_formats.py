"""Every loader of a user's file behind one signature, and an atheris harness that feeds them bytes.

``make fuzz`` runs this file. It needs the package atheris, whose wheels exist for CPython 3.11 to 3.13 on Linux
(x86-64) only; elsewhere it says so and leaves the fuzzing to hypothesis (``test_fuzz_loaders.py``), which imports
the loaders from here. Arguments are libFuzzer's, such as ``-max_total_time=60``; inputs that break something are
kept in ``_build/fuzz``.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from saema_utils.errors import SaemaError
from saema_utils.evidence.claims import ADDED_FILE, CLAIMS_FILE, load_claims, with_added
from saema_utils.notebook import parse_chapters, resolve_study
from saema_utils.publishing.execution import parameter_names
from saema_utils.runs.directory import RunDirectory
from saema_utils.saes.loading import SAE_FILES, load_sae
from saema_utils.study import STUDIES
from saema_utils.sweeps.plan import expand, read_sweep_file
from saema_utils.text.concepts import read_prompts
from saema_utils.text.corpus import read_documents

SMOKE = STUDIES["smoke"]
TABLE, TENSORS = "tables/01_x.csv", "tensors/01_x.safetensors"
PARAMETERS = 'study = "auto"\nrun_dir = ""\ndevice = "auto"\nseed = None\n'
SWEEP = b"base: smoke\ngrid: {sae.k: [16, 32], seed: [0, 1]}\ncases: [{layer: 3}, {layer: 4}]\nchapters: 1-5\n"


def written(name: str, load: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
    """A loader of one file called ``name``."""

    def act(folder: Path, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        load(path)

    return act


def a_run(folder: Path) -> RunDirectory:
    """A whole run with a table, tensors and numbers."""
    run = RunDirectory(folder, SMOKE)
    run.save_table("01_x", pd.DataFrame({"word": ["May", "June"], "value": [0.5, 2.0]}), "key")
    run.save_tensors("01_x", {"x": torch.arange(6.0)}, "key")
    run.save_numbers(share=0.5)
    return run


def in_a_run(relative: str, load: Callable[[RunDirectory], object]) -> Callable[[Path, bytes], None]:
    """A loader of one file of a run whose other files are whole."""

    def act(folder: Path, data: bytes) -> None:
        if not (folder / "whole").exists():
            a_run(folder / "whole")
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "run")
        (folder / "run" / relative).write_bytes(data)
        load(RunDirectory(folder / "run", SMOKE))

    return act


def read_run(run: RunDirectory) -> None:
    run.is_fresh(TABLE, "key")
    run.table("01_x")
    run.tensors("01_x")
    run.record_chapter("01", seconds=1)


def an_sae(folder: Path) -> None:
    """A small sparse autoencoder in sae_lens's format."""
    from sae_lens import TopKSAE, TopKSAEConfig

    TopKSAE(TopKSAEConfig(k=2, d_in=3, d_sae=8)).save_model(folder)


def in_an_sae(name: str) -> Callable[[Path, bytes], None]:
    def act(folder: Path, data: bytes) -> None:
        if not (folder / "whole").exists():
            an_sae(folder / "whole")
        shutil.copytree(folder / "whole", folder / "sae", dirs_exist_ok=True)
        (folder / "sae" / name).write_bytes(data)
        sae = load_sae(folder / "sae", hook_name="blocks.0.hook_resid_post")
        with torch.inference_mode():
            sae.decode(sae.encode(torch.ones(2, sae.cfg.d_in)))

    return act


def parameters(path: Path) -> None:
    parameter_names(path)


def as_parameters(folder: Path, data: bytes) -> None:
    """``data`` as the source of a notebook's parameters cell."""
    written("notebook.ipynb", parameters)(folder, notebook(data.decode("utf-8", "replace")))


def notebook(source: str) -> bytes:
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source}
    cell.update(execution_count=None, outputs=[])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]}).encode()


LOADERS: dict[str, Callable[[Path, bytes], None]] = {
    "study": written("study.json", lambda path: resolve_study(str(path))),
    "prompts": written("prompts.json", read_prompts),
    "corpus": written("corpus.txt", lambda path: list(read_documents(str(path), 0))),
    "rows": written("corpus.json", lambda path: list(read_documents(str(path), 0))),
    "lines": written("corpus.jsonl", lambda path: list(read_documents(str(path), 0))),
    "sheet": written("corpus.csv", lambda path: list(read_documents(str(path), 0))),
    "parquet": written("corpus.parquet", lambda path: list(read_documents(str(path), 0))),
    "archive": written("corpus.txt.gz", lambda path: list(read_documents(str(path), 0))),
    "claims": written("claims.yaml", load_claims),
    "added": written("claims_added.yaml", lambda path: with_added(load_claims(CLAIMS_FILE), path)),
    "sweep": written("sweep.yaml", lambda path: expand(read_sweep_file(path), path)),
    "notebook": written("notebook.ipynb", parameters),
    "parameters": as_parameters,
    "chapters": lambda folder, data: parse_chapters(data.decode("utf-8", "replace")),
    "manifest": in_a_run("manifest.json", read_run),
    "table": in_a_run(TABLE, read_run),
    "tensors": in_a_run(TENSORS, read_run),
    **{name: in_an_sae(name) for name in SAE_FILES},
}


def sound_files(folder: Path) -> dict[str, bytes]:
    """For every loader, bytes that it accepts: what fuzzing starts from."""
    run = a_run(folder / "run")
    an_sae(folder / "sae")
    return {
        "study": json.dumps(SMOKE.as_dict()).encode(),
        "prompts": b'{"months": ["May", "June", "In May.", "By June it was over"]}',
        "corpus": "A first paragraph.\n\nA second one, of snow – ☃.\n".encode(),
        "rows": b'[{"id": 1, "text": "A first row."}, {"text": null}, {"text": "A second."}]',
        "lines": b'{"id": 1, "text": "A first row."}\n\n{"text": "A second."}\n',
        "sheet": b'id,text\n1,"A first ""row"",\nof two lines"\n2,A second\n',
        "parquet": pd.DataFrame({"text": ["A first row.", "A second."]}).to_parquet(),
        "archive": gzip.compress(b"A first paragraph.\n\nA second one.\n"),
        "claims": CLAIMS_FILE.read_bytes(),
        "added": ADDED_FILE.read_bytes(),
        "sweep": SWEEP,
        "notebook": notebook(PARAMETERS),
        "parameters": PARAMETERS.encode(),
        "chapters": b"1,3-5",
        "manifest": (run.path / "manifest.json").read_bytes(),
        "table": (run.path / TABLE).read_bytes(),
        "tensors": (run.path / TENSORS).read_bytes(),
        **{name: (folder / "sae" / name).read_bytes() for name in SAE_FILES},
    }


def fits_a_person(message: str) -> bool:
    """Nothing was refused, or it was in one line that says something and is no traceback."""
    return not message or (len(message.splitlines()) == 1 and 15 < len(message) < 1700 and "Traceback" not in message)


def load_or_refuse(name: str, data: bytes, folder: Path) -> str:
    """Load ``data``; returns the refusal, or nothing where it loads. Any other error passes."""
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        LOADERS[name](folder, data)
    except SaemaError as error:
        message = str(error)
        assert fits_a_person(message), message
        return message
    return ""


def main() -> None:
    try:
        import atheris
    except ImportError:
        print("atheris is not installed (wheels: Linux x86-64, Python 3.11 to 3.13); hypothesis has done the fuzzing.")
        return
    import contextlib
    import io

    import yaml

    ours = [module for name, module in sys.modules.items() if name.startswith("saema_utils.")]
    for module in (*ours, yaml.scanner, yaml.parser, json.decoder):
        for function in vars(module).values():
            if callable(function) and getattr(function, "__module__", "") == module.__name__:
                with contextlib.suppress(Exception):  # what cannot be instrumented is still run
                    atheris.instrument_func(function)
    names = sorted(LOADERS)
    folder = Path("_build/fuzz").resolve()  # not a temporary one: atheris ends the process before it could be removed
    shutil.rmtree(folder, ignore_errors=True)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for name, data in sound_files(folder / "sound").items():
        (corpus / name).write_bytes(bytes([names.index(name)]) + data)

    def one(data: bytes) -> None:
        if data:
            with contextlib.redirect_stdout(io.StringIO()):
                load_or_refuse(names[data[0] % len(names)], data[1:], folder / "work")

    atheris.Setup([*sys.argv, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
