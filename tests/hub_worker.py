"""Runs in a process of its own, started with HF_HOME set: what the paper's studies do with their hub files.

``python hub_worker.py facts|chapters FOLDER STUDY...`` prints one JSON object by study, for the test to judge.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import hub_layout
import torch


def tiny(name: str):
    """The registered study with everything but its model, layer and SAE made small."""
    from saema_utils.study import STUDIES

    kept = {"sae.d_sae", "sae.k", "sae.epochs", "sae.batch"}
    small = {key: value for key, value in hub_layout.TINY.items() if key not in kept}
    return STUDIES[name].changed(**small)


def plain_residual(folder: str, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    """The output of a block as transformers itself computes it, without transformer_lens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    stack = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    kept: list[torch.Tensor] = []
    stack[layer].register_forward_hook(
        lambda module, given, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(tokens)
    return kept[0]


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    from saema_utils.chapters.activations import concept_activations, corpus_activations, language_model
    from saema_utils.chapters.families.recipes import comparable_recipe
    from saema_utils.chapters.sae import sae_evaluation, study_sae
    from saema_utils.chapters.sae.facts import sae_facts
    from saema_utils.model.loading import model_folder
    from saema_utils.runs.directory import RunDirectory
    from saema_utils.saes.coders import SaeCoder

    study = tiny(name)
    run = RunDirectory(folder / name, study, device="cpu")
    concepts = concept_activations(run)
    corpus = corpus_activations(run)
    model = language_model(run)
    months = concepts["months"]
    whole = months.tokens[:1, : len(months.token_strings[0])]
    plain = plain_residual(str(model_folder(study.model)), study.layer, whole)[0, 1:]
    captured = months.residual[0, 1 : whole.shape[1]]
    sae = study_sae(run)
    coder = SaeCoder(sae)
    x = corpus.heldout.float()
    z = coder.encode(x)
    once, twice = coder.decode(z), coder.decode(z)
    again = coder.decode(z, like=x)
    evaluation = sae_evaluation(run).set_index("representation")
    weights = {key: value.tolist() for key, value in sae.state_dict().items()}
    return {
        "bos_per_row": (months.tokens == model.tokenizer.bos_token_id)[:, :1].sum().item() / len(months.tokens),
        "second_is_bos": bool((months.tokens[:, 1] == model.tokenizer.bos_token_id).any()),
        "residual_error": float((plain - captured).abs().max() / plain.abs().max()),
        "model_dtype": str(next(model.parameters()).dtype),
        "sae_dtype": str(sae.dtype),
        "corpus": len(corpus.train),
        "architecture": sae.cfg.architecture(),
        "normalisation": sae.cfg.normalize_activations,
        "hook": sae.cfg.metadata.hook_name,
        "weights": weights,
        "x": x.tolist(),
        "z": z.tolist(),
        "x_hat": once.tolist(),
        "decode_repeats": float((once - twice).abs().max() + (once - again).abs().max()),
        "finite": bool(evaluation.select_dtypes("number").notna().all().all()),
        "l0": evaluation["l0"]["sae"],
        "comparable": dataclasses.asdict(comparable_recipe(run)),
        "facts": dataclasses.asdict(sae_facts(run)),
        "recorded": run.entry("sae/cfg.json")["sae_facts"],
        "files": sorted(path.name for path in (run.path / "sae").iterdir()),
    }


def refusals(folder: Path) -> dict[str, str]:
    """Messages for what does not fit: width, hook, release, layer."""
    from saema_utils.errors import SaemaError
    from saema_utils.model import loading as models
    from saema_utils.saes import loading as saes
    from saema_utils.study import STUDIES

    gpt2, pythia = STUDIES["gpt2-small"], STUDIES["pythia-70m"]
    attempts = {
        "width": lambda: saes.load_sae(gpt2.sae.source, "cpu", 768, gpt2.hook_name),
        "hook": lambda: saes.load_sae(pythia.sae.source, "cpu", 32, "blocks.3.hook_resid_post"),
        "absent": lambda: saes.load_sae(gpt2.sae.source.replace(".11.", ".10."), "cpu"),
        "id": lambda: saes.load_sae("gpt2-small-resid-post-v5-32k:blocks.12.hook_resid_post", "cpu"),
        "release": lambda: saes.load_sae("gpt2-small-resid-post-v5-33k:blocks.11.hook_resid_post", "cpu"),
        "layer": lambda: models.load_language_model(gpt2.changed(layer=12), "cpu"),
        "model": lambda: models.load_language_model("gpt2-medium", "cpu"),
    }
    messages = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            messages[name] = "no error"
        except SaemaError as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def chapters(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of chapters 3 to 5, made by the chapters' own steps: rows, and representations or arms in them."""
    from saema_utils.chapters import declared_results
    from saema_utils.chapters.geometry import tables as stage4_geometry
    from saema_utils.chapters.stratification import tables as stage3_stratification
    from saema_utils.runs.directory import RunDirectory

    run = RunDirectory(folder / name, tiny(name), device="cpu")
    tables = {
        "03_noise_rank": stage3_stratification.noise_rank_table(run),
        "03_stratification": stage3_stratification.rank_test_table(run),
        "04_geometry": stage4_geometry.geometry_table(run),
        "04_merging": stage4_geometry.merging_table(run),
        **{made.name: made(run) for place, made in declared_results().items() if place.startswith("tables/05_")},
    }
    kinds = {
        key: next((c for c in ("representation", "arm", "start") if c in table), None) for key, table in tables.items()
    }
    return {
        key: {"rows": len(table), "kinds": sorted(table[kinds[key]].astype(str).unique()) if kinds[key] else []}
        for key, table in tables.items()
    }


if __name__ == "__main__":
    what, folder, *studies = sys.argv[1:]
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for name in studies:
            report[name] = facts_of(name, Path(folder)) if what == "facts" else chapters(name, Path(folder))
        if what == "facts":
            report["refusals"] = refusals(Path(folder))
    print(json.dumps({**report, "printed": printed.getvalue()}))
