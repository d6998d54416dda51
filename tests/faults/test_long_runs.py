"""A hundred small studies in one process: memory stays flat, and the language model is left as it was found.

``SAEMA_RECORD`` names a folder for ``memory.csv`` and its figure (``make records``).
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hub_layout
import numpy as np
import psutil
import pytest
import torch

import saema_utils as saema
from saema_utils.errors import SaemaError
from saema_utils.figures import panels
from saema_utils.model.loading import load_language_model
from saema_utils.model.residual_stream import capture_concept
from saema_utils.model.splice import run_spliced, spliced_losses
from saema_utils.runs.directory import RunDirectory, forget
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.training import train_sae
from saema_utils.study import STUDIES, SaeRecipe
from saema_utils.text.concepts import ConceptPrompts, Prompt

REPEATS, WARM_UP = 100, 30
MEGABYTE = 2**20
HOOK = "blocks.1.hook_resid_post"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday")
TEMPLATES = ("{}", "they said it was {}", "the day of {}, he said")
PROMPTS = ConceptPrompts(
    "days", tuple(Prompt(t.format(day), day, t, "days", t.index("{}")) for day in DAYS for t in TEMPLATES)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_language_model(str(hub_layout.write_model(tmp_path_factory.mktemp("model") / "llama", "llama")), "cpu")


def small_study(model, path, seed):
    """One concept through every step of the book: activations, SAE, ranks, geometry, doses, splice, files, figure."""
    run = RunDirectory(path, STUDIES["smoke"].changed(seed=seed))
    found = capture_concept(model, PROMPTS, HOOK)
    points = found.points()
    recipe = SaeRecipe(d_sae=32, k=4, epochs=1, batch=16)
    coder = SaeCoder(train_sae(points, points, recipe, seed, "cpu").sae)
    latents = coder.encode(points)
    ranks = saema.noise_rank_sweep(
        found.residual, coder.encode, mask=found.mask, noise_levels=[0.0, 1.0], seeds=[seed], concept="days"
    )
    local = saema.find_local_representations(points.numpy(), method="direct", min_cluster_size=3, seed=seed)
    dimension = saema.intrinsic_dimension(points.numpy())
    words = found.prompt_words[found.point_prompts]
    doses = saema.dose_response(latents, words, coder.decode, points, alphas=[-0.5, 0.0, 0.5])
    losses = spliced_losses(
        model, found.tokens, HOOK, {"sae": lambda x: coder.decode(coder.encode(x.flatten(0, 1))).view_as(x)}
    )
    run.save_table("03_ranks", ranks)
    run.save_table("05_doses", doses)
    run.save_tensors("01_points", {"points": points})
    run.save_numbers(clusters=int(local.n_local), dimension=float(dimension.estimate), loss=losses["sae"].mean()[0])
    if seed % 3 == 0:  # half of a study's time
        figure, axes = panels()
        axes.plot(doses["alpha"], doses["mse"])
        run.save_figure("05_doses", figure)
    assert run.is_fresh("tables/03_ranks.csv", "")
    forget(path)


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss / MEGABYTE


def record(memory, folder):
    """The course of memory as the book shows it."""
    lines = [f"{study},{value:.2f}" for study, value in enumerate(memory, start=1)]
    (folder / "memory.csv").write_text("\n".join(["study,megabytes", *lines]) + "\n")
    figure, axes = panels(width=7, height=2.6)
    axes.plot(range(1, len(memory) + 1), memory)
    axes.set(xlabel="studies in one process", ylabel="resident memory (MB)", ylim=(0, 1.15 * max(memory)))
    for kind in ("svg", "png"):
        figure.savefig(folder / f"memory.{kind}", metadata={"Date": None} if kind == "svg" else None)


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_studies(model, tmp_path):
    memory = []
    small_study(model, tmp_path / "run", 0)
    gc.collect()
    gc.freeze()  # what stands until now need not be searched a hundred times; what leaks comes later
    try:
        for repeat in range(REPEATS):
            small_study(model, tmp_path / "run", repeat)
            memory.append(resident())
    finally:
        gc.unfreeze()
    if folder := os.environ.get("SAEMA_RECORD"):
        record(memory, Path(folder))
    # Allocators grow in steps at first; a leak goes on growing. The slope is that of a line through all the rest.
    rest = np.array(memory[WARM_UP:])
    slope = np.polyfit(np.arange(len(rest)), rest, 1)[0]
    assert slope * len(rest) < 20, f"{slope:.2f} MB a study"
    assert np.median(rest[-10:]) - np.median(rest[:10]) < 20


# ---- the language model is left as it was found -----------------------------------------------------


def state(model):
    """All that a study could leave behind on a model: weights, gradients, mode, hooks of both kinds."""
    return {
        "weights": {name: (id(p), p._version, float(p.double().sum())) for name, p in model.named_parameters()},
        "gradients": [name for name, p in model.named_parameters() if p.requires_grad or p.grad is not None],
        "training": [name for name, module in model.named_modules() if module.training],
        "points": {name: len(point.fwd_hooks) + len(point.bwd_hooks) for name, point in model.hook_dict.items()},
        "modules": {
            name: len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            for name, module in model.named_modules()
        },
    }


def test_a_study_leaves_the_model_as_it_was(model, tmp_path):
    small_study(model, tmp_path / "warm", 0)
    before = state(model)
    small_study(model, tmp_path / "run", 1)
    assert state(model) == before
    assert not any(before["points"].values())
    assert before["gradients"] == before["training"] == []


def out_of_memory(*_):
    raise torch.OutOfMemoryError("full")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("new", "error"),
    [
        (lambda x: x[:, 1:], SaemaError),
        (lambda x: x * float("nan"), SaemaError),
        (lambda x: x / torch.zeros(3), RuntimeError),
        (out_of_memory, (SaemaError, torch.OutOfMemoryError)),
        (interrupted, KeyboardInterrupt),
    ],
    ids=["shape", "not finite", "its own fault", "memory", "Ctrl-C"],
)
def test_no_hook_survives_an_error_in_a_splice(model, new, error):
    tokens = model.to_tokens(["red", "the day of Wednesday."], padding_side="right")
    before = state(model)
    with pytest.raises(error):
        run_spliced(model, tokens, HOOK, {"new": new})
    with pytest.raises(error):
        spliced_losses(model, tokens, HOOK, {"new": new})
    assert state(model) == before


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_no_hook_survives_an_error_in_a_capture(model, monkeypatch, kind):
    """A block before the captured one breaks, and the captured one itself."""
    before = state(model)
    for block in (model.blocks[0], model.blocks[1]):
        with monkeypatch.context() as patch:

            def broken(*_, **__):
                raise kind("broken")

            patch.setattr(block.original_component, "forward", broken)
            with pytest.raises((kind, SaemaError)):
                capture_concept(model, PROMPTS, HOOK)
        assert state(model) == before
    assert torch.isfinite(capture_concept(model, PROMPTS, HOOK).points()).all()
