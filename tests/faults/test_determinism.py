"""One seed, two processes: the same tables to 1e-6, UMAP's clusters among them; two trainings: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

HERE = Path(__file__).resolve()


def make_tables(folder: Path) -> None:
    """Activations of a tiny language model, an SAE trained on them, and tables of chapters 2 to 5."""
    import hub_layout

    import saema_utils as saema
    from saema_utils.model.loading import load_language_model
    from saema_utils.model.residual_stream import capture_concept
    from saema_utils.saes.coders import SaeCoder
    from saema_utils.saes.training import train_sae
    from saema_utils.study import SaeRecipe
    from saema_utils.text.concepts import TEMPLATES, WORDS, ConceptPrompts, Prompt

    model = load_language_model(str(hub_layout.write_model(folder / "llama", "llama")), "cpu")
    sentences = [(word, t) for word in WORDS["days"] for t in TEMPLATES["days"][:4]]
    found = capture_concept(
        model,
        ConceptPrompts("days", tuple(Prompt(t.replace("{}", w), w, t, "days", t.index("{}")) for w, t in sentences)),
        "blocks.1.hook_resid_post",
    )
    points, words = found.points(), found.prompt_words[found.point_prompts]
    trained = train_sae(points, points, SaeRecipe(d_sae=64, k=8, epochs=2, batch=64), 3, "cpu")
    coder = SaeCoder(trained.sae)
    latents = coder.encode(points)
    tables = {
        "training": trained.history,
        "ranks": saema.noise_rank_sweep(
            found.residual, coder.encode, mask=found.mask, noise_levels=[0.0, 0.5, 2.0], seeds=[3, 4], concept="days"
        ),
        "doses": saema.dose_response(latents, words, coder.decode, points, alphas=[-0.5, 0.0, 1.0], seed=3),
        "latents": pd.DataFrame(latents.numpy()).add_prefix("z"),
    }
    for name, space in (("residual", points), ("sae", latents)):
        local = saema.find_local_representations(space.numpy(), method="paper", min_cluster_size=4, seed=3)
        tables[f"embedding_{name}"] = pd.DataFrame(local.embedding).add_prefix("u")
        poles = saema.poles(space, torch.as_tensor(local.labels)) if local.n_local else torch.zeros(1, 1)
        tables[f"clusters_{name}"] = pd.DataFrame({"label": local.labels})
        tables[f"geometry_{name}"] = pd.DataFrame(
            {
                "n_local": [local.n_local],
                "noise_fraction": [local.noise_fraction],
                "mst": [saema.mst_weight(poles)] if local.n_local > 1 else [np.nan],
                "dimension": [float(saema.intrinsic_dimension(space.numpy()).estimate)],
            }
        )
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)


@pytest.mark.slow
def test_two_processes_make_the_same_tables(tmp_path):
    made = []
    for hash_seed in ("1", "2"):  # the order of sets of text must not matter either
        folder = tmp_path / hash_seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, str(HERE), str(folder)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parents[1])},
        )
        made.append({path.name: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))})
    assert len(made[0]) >= 10
    assert made[0].keys() == made[1].keys()
    for name, first in made[0].items():
        columns = [column for column in first if "seconds" not in column]
        pd.testing.assert_frame_equal(first[columns], made[1][name][columns], rtol=1e-6, atol=1e-9, obj=name)
    assert made[0]["embedding_sae.csv"].to_numpy().std() > 0


def test_two_trainings_for_separability_give_the_same_bits_on_two_threads():
    """At this width gradients are shared between threads; one that adds in whatever order they come shows here."""
    from saema_utils.intervention.training import LabelledTokens, activation_scale, fresh, train_separable

    draws = torch.Generator().manual_seed(0)
    corpus = torch.randn(4000, 48, generator=draws) + 0.5
    tokens = LabelledTokens(
        corpus[:6].repeat_interleave(64, 0) + torch.randn(384, 48, generator=draws),
        torch.arange(6).repeat_interleave(64),
        torch.arange(2).repeat_interleave(192),
    )

    def weights() -> dict[str, torch.Tensor]:
        sae = fresh(48, 4608, 32, seed=3, separation_coefficient=0.3)
        return train_separable(sae, corpus, tokens, scale=activation_scale(corpus), steps=20, seed=3).state_dict()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, others = weights(), [weights() for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for other in others:
        for name, value in first.items():
            assert torch.equal(value, other[name]), name


if __name__ == "__main__":
    make_tables(Path(sys.argv[1]))
