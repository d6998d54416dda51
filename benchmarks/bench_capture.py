"""Activations at one layer, beside a bare transformers forward pass that has no later layers."""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.measure import QUICK, compare, devices, sides, turns
from saema_utils.model.residual_stream import TOKENS_PER_BATCH, capture_residual_stream
from saema_utils.runtime import generator
from saema_utils.study import EMBEDDED_MODEL, STUDIES

STUDY = STUDIES["smollm2-135m"]
LAYER, CONTEXT = (0, 32) if QUICK else (STUDY.layer, STUDY.corpus.context)
TOKENS = 128 if QUICK else 3072


@functools.cache
def tokens_and_lengths(ragged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids: rows of one length, as the corpus has, or of 4 to 32, as prompts have, in no order."""
    draw = generator(0, "bench-capture")
    longest = 32 if ragged else CONTEXT
    rows = TOKENS // (18 if ragged else longest)
    tokens = torch.randint(10, 40_000, (rows, longest), generator=draw)
    lengths = torch.randint(4, longest + 1, (rows,), generator=draw) if ragged else torch.full((rows,), longest)
    return tokens, lengths


@functools.cache
def package_model(device: str):
    from saema_utils.model.loading import load_language_model

    return load_language_model(EMBEDDED_MODEL, device)


@functools.cache
def bare_model(device: str):
    """The same checkpoint in transformers alone, cut off behind the layer."""
    from transformers import AutoModelForCausalLM

    from saema_utils.model.loading import model_folder
    from saema_utils.runtime import quietly

    with quietly():
        model = AutoModelForCausalLM.from_pretrained(model_folder(EMBEDDED_MODEL), dtype=torch.float32).model
    model.layers, model.norm = model.layers[: LAYER + 1], torch.nn.Identity()
    return model.to(device).eval()


def bare_forward(tokens: torch.Tensor, lengths: torch.Tensor, device: str) -> torch.Tensor:
    """Batches in the order given, padded to the longest of all; what is past a row's end counts as zero."""
    model = bare_model(device)
    size = max(1, TOKENS_PER_BATCH[torch.device(device).type] // tokens.shape[1])
    with torch.inference_mode():
        parts = [
            model(input_ids=part.to(device), use_cache=False).last_hidden_state.cpu() for part in tokens.split(size)
        ]
    return torch.cat(parts) * (torch.arange(tokens.shape[1]) < lengths[:, None])[..., None]


def shapes_and_sizes(x: torch.Tensor) -> torch.Tensor:
    """Every vector at unit length, and its length beside it: sinks are so long that they would hide all else."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.cat([x / length.clamp_min(1e-6), length.clamp_min(1).log() / 10], dim=-1)


@sides
@turns
@devices
@pytest.mark.parametrize("ragged", [False, True], ids=["corpus", "prompts"])
def test_capture(benchmark, ragged, side, turn, device):
    tokens, lengths = tokens_and_lengths(ragged)
    model = package_model(device) if side == "ours" else bare_model(device)
    assert model is not None
    name = f"blocks.{LAYER}.hook_resid_post"

    def ours() -> torch.Tensor:
        return capture_residual_stream(package_model(device), tokens, name, lengths=lengths)

    call = ours if side == "ours" else lambda: bare_forward(tokens, lengths, device)
    kind = "prompts of 4 to 32 tokens" if ragged else f"rows of {CONTEXT} tokens"
    compare(
        benchmark,
        f"capture at layer {LAYER} of SmolLM2-135M, {kind}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=shapes_and_sizes,
        rtol=1e-3,
        tokens=int(lengths.sum()),
        **({} if ragged else {"aim": 0.95}),
    )
