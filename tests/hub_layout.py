"""Tiny stand-ins for the paper's models and releases, laid out in a hub cache exactly as the real ones are.

Weights are random and widths tiny; file names, folders, configuration keys and tensor names are those of the real
repositories, as the libraries that read them expect (the reading function is named beside each).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

# What makes a study so small that a chapter of it takes seconds; a test changes what it is about.
TINY = {
    "concepts": ["months", "days"],
    "templates": 2,
    "n_seeds": 2,
    "noise_levels": [0, 0.1, 1],
    "corpus.tokens": 1500,
    "corpus.heldout_tokens": 500,
    "corpus.context": 32,
    "sae.d_sae": 64,
    "sae.k": 8,
    "sae.epochs": 2,
    "sae.batch": 128,
    "geometry.min_cluster_size": 3,
    "geometry.n_neighbors": 3,
    "geometry.bootstrap": 20,
    "intervention.alphas": [-1, -0.5, 0, 0.5, 1],
    "intervention.coefficients": [-0.1, 0, 0.1],
    "intervention.finetune_steps": 3,
    "intervention.fresh_steps": 12,
    "intervention.optimise_steps": 3,
}
ENDOFTEXT = "<|endoftext|>"
# What prompts are made of, so that some words are one token and others several.
TEXT = (
    "January February March April May June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday red green blue yellow the of and a in is was it they said that he she we on as "
    "word month day year colour often called before after between everyone knows letter number"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class Release:
    """One of the paper's three studies, shrunk: repository of its model, of its SAE, and sizes."""

    study: str
    model_repo: str
    sae_repo: str
    sae_folder: str
    d_model: int = 32
    d_sae: int = 96
    k: int = 8


# Repositories and folders as sae_lens/pretrained_saes.yaml lists them under the release's name.
RELEASES = {
    release.study: release
    for release in (
        Release("gpt2-small", "gpt2", "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "v5_32k_layer_11.pt"),
        Release(
            "pythia-70m", "EleutherAI/pythia-70m-deduped", "ctigges/pythia-70m-deduped__res-sm_processed", "5-res-sm"
        ),
        Release(
            "gemma-2-2b",
            "google/gemma-2-2b",
            "canrager/saebench_gemma-2-2b_width-2pow16_date-1109",
            "gemma-2-2b_topk_width-2pow16_date-1109/resid_post_layer_19/trainer_0",
        ),
    )
}
LAYERS = {"gpt2-small": 11, "pythia-70m": 5, "gemma-2-2b": 19}


def snapshot(hub: Path, repo: str) -> Path:
    """The folder of a repository's only revision: ``models--ORG--REPO/{refs/main,snapshots/<40 hex>}``.

    Read by ``huggingface_hub.snapshot_download`` and ``hf_hub_download`` with ``HF_HUB_OFFLINE=1``.
    """
    root = hub / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(repo.encode()).hexdigest()
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lay_out(hub: Path, release: Release, sound: bool = False) -> None:
    """Model and SAE of a release, in a hub cache; a ``sound`` SAE reconstructs better than the mean of its tokens."""
    write_model(snapshot(hub, release.model_repo), release.study, release.d_model)
    write_sae(snapshot(hub, release.sae_repo) / release.sae_folder, release, sound)


# ---- models ------------------------------------------------------------------------------------


def write_model(folder: Path, kind: str, d_model: int = 32) -> Path:
    """A random checkpoint of an architecture (a study's name, or ``llama``) with its tokenizer, as safetensors."""
    from transformers import AutoModelForCausalLM

    tokenizer = sentencepiece_like_tokenizer() if kind == "gemma-2-2b" else byte_level_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(kind, d_model, len(tokenizer)))
    with torch.no_grad():  # residual streams of ordinary size, so that nothing rounds away in float16
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    if kind == "pythia-70m":
        model = model.half()  # the hub's checkpoint is stored in float16
    # gemma-2-2b comes in several shards with an index.
    model.save_pretrained(folder, max_shard_size="40KB" if kind == "gemma-2-2b" else "5GB")
    tokenizer.save_pretrained(folder)
    return folder


def small_gemma(d_model: int, vocabulary: int) -> dict[str, int]:
    """What configurations of Gemma 2 and 3 have in common, but for the number of layers."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": d_model,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 2 * d_model,
        "max_position_embeddings": 128,
        "sliding_window": 32,
        "query_pre_attn_scalar": 16,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def model_config(kind: str, d_model: int, vocabulary: int):
    """As many layers as the real model has, so that the study's own layer exists."""
    from transformers import Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

    match kind:
        case "gpt2-small":
            return GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=d_model, n_layer=12, n_head=2)
        case "pythia-70m":
            return GPTNeoXConfig(
                vocab_size=vocabulary + 50,
                hidden_size=d_model,
                num_hidden_layers=6,
                num_attention_heads=2,
                intermediate_size=2 * d_model,
                max_position_embeddings=128,
                rotary_pct=0.25,
                use_parallel_residual=True,
                tie_word_embeddings=False,
            )
        case "gemma-2-2b":
            return Gemma2Config(**small_gemma(d_model, vocabulary), num_hidden_layers=26)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * d_model,
        max_position_embeddings=128,
    )


def byte_level_tokenizer():
    """GPT-2's and Pythia's kind: byte-level BPE, one special token, no BOS added by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[ENDOFTEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS for _ in range(3)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=ENDOFTEXT, eos_token=ENDOFTEXT, unk_token=ENDOFTEXT, model_max_length=128
    )


def sentencepiece_like_tokenizer():
    """Gemma's kind: spaces become a letter, unknown characters become bytes, BOS is put in front of every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS for _ in range(3)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


# ---- SAEs --------------------------------------------------------------------------------------


def write_sae(folder: Path, release: Release, sound: bool = False) -> None:
    """A random SAE in the format of the release, or one with a latent for each sign of each coordinate."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    decoder = torch.randn(release.d_sae, release.d_model, generator=generator)
    decoder /= decoder.norm(dim=-1, keepdim=True)
    bias, start = torch.randn(release.d_model, generator=generator) / 10, torch.zeros(release.d_sae)
    if sound:
        width = release.d_model
        decoder[: 2 * width] = torch.cat([torch.eye(width), -torch.eye(width)])
        start[2 * width :] = -100  # the others would only add to what is whole without them
    config = shrunk(release)
    if release.study == "gemma-2-2b":
        # sae_lens.loading.pretrained_sae_loaders.dictionary_learning_sae_huggingface_loader_1 reads config.json and
        # ae.pt, the state of dictionary_learning's AutoEncoderTopK: linear layers (transposed to sae_lens's) and
        # b_dec. Its k was a plain number then and not part of the state, and there was no threshold.
        (folder / "config.json").write_text(json.dumps(config, indent=4))
        state = {
            "encoder.weight": decoder.clone(),
            "encoder.bias": start,
            "decoder.weight": decoder.T.contiguous(),
            "b_dec": bias,
        }
        torch.save(state, folder / "ae.pt")
        return
    from safetensors.torch import save_file

    # sae_lens.loading.pretrained_sae_loaders.sae_lens_huggingface_loader reads all three files.
    weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": start, "b_dec": bias}
    save_file(weights, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.full((release.d_sae,), -2.0)}, folder / "sparsity.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def sound_sae(d_in: int, threshold: float = 0.0):
    """An SAE that gives back every coordinate beyond a threshold: one latent for each sign of each."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=2 * d_in))
    signed = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    sae.W_dec.data, sae.W_enc.data = signed, signed.T.contiguous()
    sae.threshold.data = torch.full((2 * d_in,), threshold)
    return sae


def published(study: str, layer: int) -> dict:
    """The configuration file of a release, with every key and value that the hub's own has.

    Sources, besides sae_lens's registry. *GPT-2*: ``v5_32k_layer_9/cfg.json`` of the sister repository
    ``jbloom/GPT2-Small-OAI-v5-32k-resid-mid-SAEs`` is public text; SAELens's ``docs/sae_table.md`` names another
    dataset for ``resid-post``, and only ``prepend_bos: true`` then gives the 565 bytes that the hub lists.
    *Pythia*: the same keys of sae_lens 3; only ``prepend_bos: false`` gives the 541 bytes of ``4-res-sm/cfg.json``.
    *Gemma*: ``resid_post_layer_12/trainer_0/config.json`` in the diff of commit d8e911b of
    ``canrager/saebench_gemma-2-2b_width-2pow16_date-1109``. A test compares the sizes.
    """
    if study == "gemma-2-2b":
        trainer = {
            "trainer_class": "TrainerTopK",
            "dict_class": "AutoEncoderTopK",
            "lr": 0.0001,
            "steps": 97656,
            "seed": 0,
            "activation_dim": 2304,
            "dict_size": 65536,
            "k": 20,
            "device": "cuda:1",
            "layer": layer,
            "lm_name": "google/gemma-2-2b",
            "wandb_name": f"TopKTrainer-google/gemma-2-2b-resid_post_layer_{layer}",
            "submodule_name": f"resid_post_layer_{layer}",
        }
        buffer = {
            "d_submodule": 2304,
            "io": "out",
            "n_ctxs": 2048,
            "ctx_len": 128,
            "refresh_batch_size": 24,
            "out_batch_size": 4096,
            "device": "cuda:1",
        }
        return {"trainer": trainer, "buffer": buffer}
    gpt2 = study == "gpt2-small"
    # Older than sae_lens 6: renamed and filled in by handle_pre_6_0_config, where activation_fn topk makes the
    # architecture topk. OpenAI's autoencoders normalise every token.
    return {
        "architecture": "standard",
        "d_in": 768 if gpt2 else 512,
        "d_sae": 32768,
        "dtype": "torch.float32",
        "device": "cuda",
        "model_name": "gpt2-small" if gpt2 else "pythia-70m-deduped",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hook_layer": layer,
        "hook_head_index": None,
        "activation_fn_str": "topk" if gpt2 else "relu",
        "activation_fn_kwargs": {"k": 32} if gpt2 else {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": gpt2,
        "dataset_path": "apollo-research/Skylion007-openwebtext-tokenizer-gpt2"
        if gpt2
        else "EleutherAI/the_pile_deduplicated",
        "dataset_trust_remote_code": True,
        "context_size": 64 if gpt2 else 128,
        "normalize_activations": "layer_norm" if gpt2 else "none",
    }


def shrunk(release: Release) -> dict:
    """The published configuration with the stand-in's width, latents and k."""
    config = published(release.study, LAYERS[release.study])
    if release.study == "gemma-2-2b":
        config["trainer"] |= {"activation_dim": release.d_model, "dict_size": release.d_sae, "k": release.k}
        config["buffer"]["d_submodule"] = release.d_model
        return config
    config |= {"d_in": release.d_model, "d_sae": release.d_sae}
    if config["activation_fn_kwargs"]:
        config["activation_fn_kwargs"] = {"k": release.k}
    return config
