"""One measure at several depths: the headline measures of chapters 3 and 4 at some layers of the study's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .activations import SINK_FACTOR, capture_concept, capture_residual_stream, find_sinks
from .artifacts import RunDirectory
from .coders import SaeCoder
from .concepts import build_prompts
from .corpus import corpus_tokens
from .families import small_recipe
from .family_measures import concept_measures
from .fidelity import measure_fidelity
from .files import digest, source_digest
from .runtime import progress
from .saes import SAE_FILES, load_sae, train_sae
from .stage1_activations import concepts_key, corpus_key, language_model
from .stage8_families import comparable_recipe, is_small, keep_sae, training_tokens
from .tokens import special_tokens

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

LAYERS = 4
LAYERS_SMALL = 2  # in a study with too little text for a trend to be read
LAYER_TOKENS = 24_000
HELDOUT_TOKENS = 4_000


def sweep_layers(n_layers: int, studied: int, count: int = LAYERS) -> tuple[int, ...]:
    """``count`` layers spread over the middle two thirds of a model, the studied one among them.

    >>> sweep_layers(30, 15)
    (5, 12, 15, 25)
    """
    spread = np.linspace(n_layers // 6, max(studied, 5 * n_layers // 6), min(count, n_layers)).round().astype(int)
    layers = sorted({min(int(layer), n_layers - 1) for layer in spread})
    if studied not in layers:
        layers[max(range(len(layers)), key=lambda i: (-abs(layers[i] - studied), i))] = studied
    return tuple(sorted(layers))


def layer_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``08_layers``: headline measures per layer, concept and representation (``residual``, ``sae``).

    At every layer a TopK autoencoder is trained on the same text with the families' small recipe and kept in
    ``layers/``. Columns of :func:`saema_utils.family_measures.concept_measures`, and layer, depth (0 first to 1 last),
    and the autoencoder's held-out explained_variance.
    """
    import pandas as pd

    cluster_size, recipe = run.study.geometry.min_cluster_size, str(small_recipe(comparable_recipe(run), "topk"))
    sources = source_digest("layer_sweep")
    count = LAYERS_SMALL if is_small(run) else LAYERS
    tokens = training_tokens(run, LAYER_TOKENS)
    key = digest([concepts_key(run), corpus_key(run), recipe, cluster_size, tokens, count, sources])

    def compute() -> pd.DataFrame:
        model = language_model(run)
        layers = sweep_layers(model.cfg.n_layers, run.study.layer, count)
        explained = _train_all(run, layers, key)
        hooks = {f"blocks.{layer}.hook_resid_post": layer for layer in layers}
        parts = []
        for concept, prompts in progress(build_prompts(run.study).items(), "measuring layers"):
            part = f"parts/08_layers_{concept}"
            if not run.is_fresh(f"tables/{part}.csv", key):
                captured = capture_concept(model, prompts, list(hooks))
                frames = []
                for hook, layer in hooks.items():
                    coder = SaeCoder(load_sae(run.path / "layers" / str(layer), run.device))
                    measured = concept_measures(
                        captured[hook], {"sae": coder}, min_cluster_size=cluster_size, seed=run.study.seed,
                        device=run.device,
                    )  # fmt: skip
                    frames.append(measured.assign(layer=layer, depth=layer / (model.cfg.n_layers - 1)))
                run.save_table(part, pd.concat(frames), key)
            parts.append(run.table(part))
        table = pd.concat(parts, ignore_index=True)
        return table.assign(explained_variance=table["layer"].map(explained))

    return run.cached_table("08_layers", key, compute)


def _train_all(run: RunDirectory, layers: tuple[int, ...], key: str) -> dict[int, float]:
    """A TopK autoencoder for every layer; explained variance of held-out tokens by layer."""
    import pandas as pd

    recipe, done = small_recipe(comparable_recipe(run), "topk"), "parts/08_layers_training"
    files = [f"layers/{layer}/{name}" for layer in layers for name in SAE_FILES]
    if not all(run.is_fresh(name, key) for name in (*files, f"tables/{done}.csv")):
        rows = []
        for layer, (train, heldout) in progress(_corpus_at(run, layers).items(), "training layers"):
            metadata = {"model_name": run.study.model, "hook_name": f"blocks.{layer}.hook_resid_post"}
            sae = train_sae(train, heldout, recipe, run.study.seed, run.device, metadata=metadata, description="").sae
            keep_sae(run, sae, f"layers/{layer}", key)
            found = measure_fidelity(SaeCoder(sae), heldout.to(run.device))
            rows.append({"layer": layer, "explained_variance": found.explained_variance})
        run.save_table(done, pd.DataFrame(rows), key)
    return run.table(done).set_index("layer")["explained_variance"].to_dict()


def _corpus_at(
    run: RunDirectory, layers: tuple[int, ...]
) -> dict[int, tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]]:
    """Unmasked activations of the study's text at several layers from one pass: training and held-out tokens."""
    import dataclasses

    recipe = dataclasses.replace(
        run.study.corpus, tokens=min(training_tokens(run, LAYER_TOKENS), run.study.corpus.tokens),
        heldout_tokens=min(HELDOUT_TOKENS, run.study.corpus.heldout_tokens),
    )  # fmt: skip
    model = language_model(run)
    text = corpus_tokens(model, recipe, run.study.seed)
    rows = torch.cat([text.heldout, text.train])
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    captured = capture_residual_stream(model, rows, hooks, description="corpus at several layers")
    ordinary, is_train = ~special_tokens(model, rows), torch.arange(len(rows))[:, None] >= len(text.heldout)
    found = {}
    for layer, hook in zip(layers, hooks, strict=True):
        residual = captured.pop(hook)
        norms = residual.norm(dim=-1)
        _, median = find_sinks(norms, ordinary & is_train)
        keep = ordinary & (norms <= SINK_FACTOR * median)
        found[layer] = tuple(residual[keep & part].half() for part in (is_train, ~is_train))
    return found
