"""A study killed at any moment resumes, redoes nothing that was finished, and ends with the same tables."""

import os
import random
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from saema_utils.artifacts import RunDirectory
from saema_utils.study import STUDIES
from saema_utils.sweep_tasks import STAGES, _call

KILLS = 20
TINY = STUDIES["smoke"].changed(
    **{
        "name": "tiny", "concepts": ["days", "color"], "templates": 3, "noise_levels": [0.0, 0.5, 2.0], "n_seeds": 2,
        "corpus.tokens": 1000, "corpus.heldout_tokens": 500, "corpus.context": 32,
        "sae.d_sae": 64, "sae.k": 8, "sae.epochs": 2, "sae.batch": 64, "geometry.bootstrap": 20,
        "intervention.alphas": [-0.5, 0.0, 0.5], "intervention.coefficients": [0.0, 0.1],
        "intervention.finetune_steps": 4, "intervention.optimise_steps": 3,
    }
)  # fmt: skip

pytestmark = [pytest.mark.model, pytest.mark.slow]


def run_study(path, seconds=None):
    """The whole study in a child process, killed without warning after ``seconds``; True when it finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            run = RunDirectory(path, TINY)
            with run.locked():
                for stages in STAGES.values():
                    for stage in stages:
                        _call(stage, run)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def finished_tables(path):
    """When each table that the manifest counts as made was written; a kill may fall before the manifest's line."""
    made = RunDirectory(path, TINY).manifest()["artifacts"]
    return {name: (path / name).stat().st_mtime_ns for name in made if name.startswith("tables/0")}


def test_twenty_kills_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEMA_CACHE", str(_shared_model_cache(tmp_path)))
    _warm_up(tmp_path)
    started = time.monotonic()
    assert run_study(tmp_path / "whole")
    whole = time.monotonic() - started

    draw = random.Random(0)
    kills, folders = 0, []
    while kills < KILLS:  # a study that finished before enough kills is followed by another
        folders.append(tmp_path / f"killed{len(folders)}")
        finished, before = False, {}
        while kills < KILLS and not finished:
            finished = run_study(folders[-1], draw.uniform(0.02, 0.12) * whole)
            kills += not finished
            after = finished_tables(folders[-1])
            assert {name: after.get(name) for name in before} == before, "a finished table was made again"
            before = after
        assert finished or run_study(folders[-1])

    expected = tmp_path / "whole/tables"
    names = {p.name for p in expected.glob("*.csv")}
    for folder in folders:
        assert [p.name for p in folder.rglob(".unfinished-*")] == []
        assert names == {p.name for p in folder.glob("tables/*.csv")}
        for name in names:
            _assert_equal_tables(pd.read_csv(expected / name), pd.read_csv(folder / "tables" / name), name)


def _assert_equal_tables(a, b, name):
    assert list(a) == list(b), name
    assert len(a) == len(b), name
    for column in a:
        if "seconds" in column:
            continue
        if a[column].dtype.kind == "f":
            assert np.allclose(a[column], b[column], rtol=1e-6, atol=1e-9, equal_nan=True), (name, column)
        else:
            assert a[column].astype(str).equals(b[column].astype(str)), (name, column)


def _shared_model_cache(tmp_path):
    """The converted model is shared with other tests; activations of this study are its own."""
    from saema_utils.files import cache_dir

    own = tmp_path / "cache"
    own.mkdir()
    (cache_dir() / "models").mkdir(parents=True, exist_ok=True)
    (own / "models").symlink_to(cache_dir() / "models")
    return own


def _warm_up(tmp_path):
    """Import and compile in the parent, so that children start at the study itself."""
    import saema_utils as saema
    from saema_utils.stage1_activations import language_model

    torch.set_num_threads(1)
    language_model(RunDirectory(tmp_path / "warm", TINY))
    points = np.random.default_rng(0).normal(size=(40, 6))
    for method in ("paper", "direct"):
        saema.find_local_representations(points, method=method, min_cluster_size=4, seed=0)
