"""What chapter 5 does to a representation, drawn before it is measured: no run is read."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from saema_utils.figures import CLASS_COLORS, COLORS, GREY, NAMES, panels

PLACES = np.array([(-0.5, 0.35), (0.55, 0.4), (0.05, -0.55)])
SAID = {
    "poles": "each pole away from the others",
    "random_direction": "as far, to anywhere",
    "permuted_labels": "as far, by another's label",
    "global_scaling": "every token from the middle",
}


def four_arms() -> Figure:
    """How the tokens of three clusters move in each arm: pushed apart with their poles, and three controls."""
    figure, axes = panels(2, 2, width=7.0, height=2.1, sharex=True, sharey=True)
    random = np.random.default_rng(3)
    tokens = PLACES[:, None] + 0.09 * random.normal(size=(3, 6, 2))
    apart = np.broadcast_to(0.5 * PLACES[:, None], tokens.shape)
    angles = random.uniform(0, 2 * np.pi, 3)
    anywhere = np.linalg.norm(apart, axis=2)[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]
    order = random.permutation(tokens[..., 0].size)
    steps = {
        "poles": apart,
        "random_direction": anywhere,
        "permuted_labels": apart.reshape(-1, 2)[order].reshape(tokens.shape),
        "global_scaling": 0.5 * tokens,
    }
    for axis, (arm, said) in zip(axes.flat, SAID.items(), strict=True):
        axis.set_axis_off()
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.35, 0.95))
        axis.quiver(
            *tokens.reshape(-1, 2).T, *steps[arm].reshape(-1, 2).T,
            angles="xy", scale_units="xy", scale=1, color=COLORS[arm], width=0.006, alpha=0.8,
        )  # fmt: skip
        for cluster, color in zip(tokens, CLASS_COLORS, strict=False):
            axis.scatter(*cluster.T, s=16, color=color, linewidth=0, zorder=3)
        axis.set_title(NAMES[arm], color=COLORS[arm])
        axis.text(0, -1.3, said, ha="center", color=GREY, fontsize=10)
    return figure
