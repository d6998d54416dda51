r"""The mean over coordinates, for autoencoders of models whose writing weights were centred.

A model with layer norms computes the same when every weight that writes into its residual stream is centred; what
changes is the stream, :math:`x - \bar x \mathbf 1`. An autoencoder trained on that stream reads ours after the mean
is taken off, and its reconstruction is ours after the mean is put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

MEAN = "centring_mean"


def centre(sae: SAE) -> None:
    """Let an SAE take the mean over coordinates off its input and put it back on its output, in place.

    Like sae_lens's own run-time normalisations, each token's number waits on the module (as ``centring_mean``) from
    encode to decode, which uses it up.
    """
    if is_centred(sae):
        return
    norm_in, norm_out = sae.run_time_activation_norm_fn_in, sae.run_time_activation_norm_fn_out

    def without_mean(x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        setattr(sae, MEAN, mean)
        return norm_in(x - mean)

    def with_mean(x: Tensor) -> Tensor:
        x = norm_out(x) + getattr(sae, MEAN)
        delattr(sae, MEAN)
        return x

    sae.run_time_activation_norm_fn_in, sae.run_time_activation_norm_fn_out = without_mean, with_mean
    sae.centres_its_input = True


def is_centred(sae: SAE) -> bool:
    """Whether :func:`centre` has been here."""
    return vars(sae).get("centres_its_input", False)
