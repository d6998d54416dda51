"""Sparse latents (k of d_sae = 32 of 32,768) beside dense tensors: every function of the package that keeps pairs.

An encoder product is needed in full on both sides, for every pre-activation takes part in the choice of the k
largest: where a row encodes, that product is the floor, and only memory can fall far.
"""

from __future__ import annotations

import functools

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from benchmarks.bench_capture import package_model
from benchmarks.measure import QUICK, K, compare, devices, sides, topk_latents, topk_rows, turns
from saema_utils.model.splice import spliced_losses
from saema_utils.runtime import generator
from saema_utils.saes.coders import RandomDictionary, SaeCoder
from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.stratification.grams import gram_of_rows

D_IN, D_SAE, BATCH = (64, 4096, 128) if QUICK else (576, 32_768, 512)
SLICE = BATCH if QUICK else 2048  # as many tokens as fidelity is measured on at a time
SPLICED = (2, 16) if QUICK else (1, 128)  # sequences, and tokens of each
MODEL_WIDTH = 576
SIZE = f"{K} of {D_SAE:,}"
AIMS = {"aim": 3, "memory_aim": 10}


@functools.cache
def sae(device: str, d_in: int = D_IN) -> TopKSAE:
    made = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=D_SAE, k=K, device=device))
    draw = generator(0, "bench-sae")
    made.W_enc.data = torch.randn(d_in, D_SAE, generator=draw).to(device)
    made.W_dec.data = made.W_enc.data.T.contiguous() / d_in
    return made.requires_grad_(False)


def vectors(n: int, device: str, d_in: int = D_IN) -> torch.Tensor:
    return torch.randn(n, d_in, generator=generator(1, "bench-vectors")).to(device)


@sides
@turns
@devices
def test_gram(benchmark, side, turn, device):
    latents = topk_latents(D_SAE).flatten(0, 1).to(device)

    def dense() -> torch.Tensor:
        rows = (latents if device != "mps" else latents.cpu()).double()
        return rows @ rows.T

    call = {"ours": lambda: gram_of_rows(latents)[0], "plain": dense}[side]
    compare(
        benchmark,
        f"inner products of {len(latents)} tokens' latents, {SIZE}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=lambda gram: gram.cpu(),
        **AIMS,
    )


@sides
@turns
@devices
def test_encode(benchmark, side, turn, device):
    """Dense latents on both sides, as chapters that edit any latent need them."""
    coder, x = SaeCoder(sae(device)), vectors(SLICE, device)
    call = {"ours": lambda: coder.encode(x), "plain": lambda: coder.sae.encode(x)}[side]
    compare(
        benchmark,
        f"encode {SLICE:,} tokens to dense latents, {SIZE}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=lambda z: z.sum(0).cpu(),
        rtol=1e-4,
        tokens=SLICE,
        note="nearly all of it the encoder product and its dense result, on both sides",
    )


@sides
@turns
@devices
def test_decode(benchmark, side, turn, device):
    values, where = topk_rows(D_SAE, BATCH)
    pairs, coder = TopKLatents(values.to(device), where.to(device), D_SAE), SaeCoder(sae(device))
    call = {"ours": lambda: coder.decode(pairs), "plain": lambda: coder.sae.decode(pairs.dense())}[side]
    compare(
        benchmark,
        f"decode {BATCH} tokens from pairs, {SIZE}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=lambda x: x.cpu(),
        rtol=1e-4,
        **AIMS,
    )


@sides
@turns
@devices
def test_reconstruct(benchmark, side, turn, device):
    coder, x = SaeCoder(sae(device)), vectors(SLICE, device)
    call = {"ours": lambda: coder.reconstruct(x), "plain": lambda: coder.sae.decode(coder.sae.encode(x))}[side]
    compare(
        benchmark,
        f"reconstruct {SLICE:,} tokens, {SIZE}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=lambda x: x.cpu(),
        rtol=1e-4,
        tokens=SLICE,
        note="the encoder product is the floor of time",
        **AIMS,
    )


@sides
@turns
@devices
def test_splice(benchmark, side, turn, device):
    """Losses of the language model with its residual stream replaced by the reconstruction."""
    model, coder = package_model(device), SaeCoder(sae(device, MODEL_WIDTH))
    tokens = torch.randint(10, 40_000, SPLICED, generator=generator(0, "bench-splice"))
    edit = {"ours": coder.reconstruct, "plain": lambda x: coder.sae.decode(coder.sae.encode(x))}[side]

    def call() -> torch.Tensor:
        return spliced_losses(model, tokens, "blocks.15.hook_resid_post", {"sae": edit})["sae"].cross_entropy[:, :-1]

    compare(
        benchmark,
        f"splice reconstructions of {tokens.numel()} tokens into SmolLM2-135M, {SIZE}",
        side,
        call,
        turn=turn,
        device=device,
        numbers=lambda losses: losses,
        rtol=1e-3,
        tokens=tokens.numel(),
        note="nearly all of it two passes through the language model, on both sides",
    )


@sides
@turns
def test_training_pass(benchmark, side, turn):
    """Encode, choose, decode, loss and all gradients of one batch, without the optimizer."""
    torch.manual_seed(0)
    kind = {"ours": SparseTopKTrainingSAE, "plain": TopKTrainingSAE}[side]
    made = kind(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    x = torch.randn(BATCH, D_IN, generator=generator(0, "bench-pass"))

    def call() -> torch.Tensor:
        made.zero_grad()
        output = made.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
        output.loss.backward()
        return torch.stack(
            [output.loss.detach(), made.W_enc.grad.norm(), made.W_dec.grad.norm(), made.b_dec.grad.norm()]
        )

    compare(
        benchmark,
        f"loss and gradients of {BATCH} tokens, {SIZE}",
        side,
        call,
        turn=turn,
        numbers=lambda found: found.tolist(),
        rtol=1e-4,
        tokens=BATCH,
        note="the package's peak is the gradients of both weights, which no optimizer spares",
        **AIMS,
    )


@sides
@turns
@devices
@pytest.mark.parametrize("latents", ["dense latents", "pairs"])
def test_random_dictionary(benchmark, latents, side, turn, device):
    """The control's encoder gathers k directions; the plain side multiplies its dense latents with all."""
    coder, x = RandomDictionary(D_IN, D_SAE, K), vectors(SLICE, device)
    W = coder.dictionary().to(device)

    def dense() -> torch.Tensor:
        largest, where = (x @ W.T).topk(K, dim=-1)
        latents = x.new_zeros(len(x), D_SAE).scatter_(1, where, largest.clamp_min(0))
        raw = latents @ W
        return latents * ((x * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True))

    ours = coder.encode if latents == "dense latents" else coder.encode_pairs
    compare(
        benchmark,
        f"random dictionary encodes {SLICE:,} tokens to {latents}, {SIZE}",
        side,
        {"ours": lambda: ours(x), "plain": dense}[side],
        turn=turn,
        device=device,
        rtol=1e-4,
        numbers=lambda z: (z.dense() if isinstance(z, TopKLatents) else z).sum(0).cpu(),
        **(AIMS if latents == "pairs" else {}),
    )
