"""Sparse latents (k of d_sae = 32 of 32,768) beside dense tensors: Gram matrix, decode, training's pass, a control."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from benchmarks.measure import QUICK, K, compare, devices, sides, topk_latents, topk_rows
from saema_utils.coders import RandomDictionary
from saema_utils.runtime import generator
from saema_utils.sparse_topk import SparseTopKTrainingSAE
from saema_utils.token_grams import gram_of_rows

D_IN, D_SAE, BATCH = (64, 4096, 128) if QUICK else (576, 32_768, 512)
SIZE = f"{K} of {D_SAE:,}"


@devices
@sides
def test_gram(benchmark, side, device):
    latents = topk_latents(D_SAE).flatten(0, 1).to(device)

    def dense() -> torch.Tensor:
        rows = (latents if device != "mps" else latents.cpu()).double()
        return rows @ rows.T

    call = {"ours": lambda: gram_of_rows(latents)[0], "plain": dense}[side]
    compare(
        benchmark, f"inner products of {len(latents)} tokens' latents, {SIZE}", side, call, device=device,
        numbers=lambda gram: gram.cpu(), aim=3,
    )  # fmt: skip


@devices
@sides
def test_decode(benchmark, side, device):
    """What the training step does with the pairs that TopK keeps; the plain side makes the dense latents."""
    values, where = (part.to(device) for part in topk_rows(D_SAE, BATCH))
    weights = torch.randn(D_SAE, D_IN, generator=generator(0, "bench-decode")).to(device)

    def dense() -> torch.Tensor:
        return values.new_zeros(BATCH, D_SAE).scatter_(1, where, values) @ weights

    def sparse() -> torch.Tensor:
        return F.embedding_bag(where, weights, mode="sum", per_sample_weights=values)

    compare(
        benchmark, f"decode {BATCH} tokens, {SIZE} (used in training)", side, {"ours": sparse, "plain": dense}[side],
        device=device, numbers=lambda x: x.cpu(), rtol=1e-4, aim=3,
    )  # fmt: skip


@sides
def test_training_pass(benchmark, side):
    """Encode, choose, decode, loss and all gradients of one batch, without the optimizer."""
    torch.manual_seed(0)
    kind = {"ours": SparseTopKTrainingSAE, "plain": TopKTrainingSAE}[side]
    sae = kind(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    x = torch.randn(BATCH, D_IN, generator=generator(0, "bench-pass"))

    def call() -> torch.Tensor:
        sae.zero_grad()
        output = sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
        output.loss.backward()
        return output.loss.detach()

    compare(
        benchmark, f"loss and gradients of {BATCH} tokens, {SIZE}", side, call, numbers=lambda loss: loss, aim=3,
        rounds=5, tokens=BATCH,
    )  # fmt: skip


@devices
@sides
def test_random_dictionary(benchmark, side, device):
    """The control's encoder gathers k directions; the plain side multiplies its dense latents with all."""
    coder = RandomDictionary(D_IN, D_SAE, K)
    x = torch.randn(BATCH, D_IN, generator=generator(1, "bench-control")).to(device)
    W = coder.dictionary().to(device)

    def dense() -> torch.Tensor:
        largest, where = (x @ W.T).topk(K, dim=-1)
        latents = x.new_zeros(len(x), D_SAE).scatter_(1, where, largest.clamp_min(0))
        raw = latents @ W
        return latents * ((x * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True))

    call = {"ours": lambda: coder.encode(x), "plain": dense}[side]
    compare(
        benchmark, f"random dictionary encodes {BATCH} tokens, {SIZE}", side, call, device=device,
        numbers=lambda z: z.sum(0).cpu(), rtol=1e-4,
    )  # fmt: skip
