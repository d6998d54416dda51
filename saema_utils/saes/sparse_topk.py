r"""A TopK training step that computes only what TopK leaves non-zero.

Of ``d_sae`` latents a TopK autoencoder keeps ``k`` per token (32 of 4,608, say), yet the plain step
multiplies full matrices six times: encode, decode, and two gradients of each. Only the encoder product
is needed in full, because every pre-activation takes part in the choice of the k largest. With
:math:`A_b` the indices kept for token :math:`b` and :math:`p_{bf} = (x_b - b_{dec}) \cdot W^{enc}_f + b^{enc}_f`,

.. math:: \hat x_b = b_{dec} + \sum_{f \in A_b} \max(p_{bf}, 0)\, W^{dec}_f

is a weighted sum of k decoder rows, and its gradients are sums over the same pairs (b, f).
Scaling pre-activations by decoder norms, as sae_lens does before it chooses, cancels in this sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor

from saema_utils.saes.topk_latents import SMALLEST_RATIO


class _ChosenPreactivations(torch.autograd.Function):
    """Pre-activations at the chosen latents, whose gradient touches only the chosen pairs.

    The forward value is already known from the dense encoder product; this node gives it a gradient.
    """

    @staticmethod
    def forward(ctx, chosen, indices, centred, W_enc, b_enc, b_dec):
        ctx.save_for_backward(indices, centred, W_enc, b_dec)
        return chosen.clone()

    @staticmethod
    def backward(ctx, gradient):
        indices, centred, W_enc, b_dec = ctx.saved_tensors
        n_latents, k = W_enc.shape[1], indices.shape[1]
        flat, weights = indices.reshape(-1), gradient.reshape(-1)
        # Group the (token, latent) pairs by latent: each latent's gradient is one weighted sum of tokens.
        order = flat.argsort(stable=True)
        offsets = F.pad(torch.bincount(flat, minlength=n_latents).cumsum(0), (1, 0))
        grad_W = F.embedding_bag(
            order // k, centred, offsets, mode="sum", per_sample_weights=weights[order], include_last_offset=True
        ).T
        grad_b = torch.zeros(n_latents, dtype=gradient.dtype, device=gradient.device).index_add_(0, flat, weights)
        # Summed over tokens, the gradient that reaches b_dec through the centring is one matrix-vector product.
        grad_b_dec = -(W_enc @ grad_b) if b_dec is not None else None
        return None, None, None, grad_W, grad_b, grad_b_dec


class SparseTopKTrainingSAE(TopKTrainingSAE):
    """sae_lens's ``TopKTrainingSAE`` with the sparse step; it trains, saves and loads as a plain TopK.

    Losses and all gradients equal the dense step's up to rounding. The dense step is used, unchanged,
    whenever the sparse one does not apply or is not faster: another device than the CPU, fewer than
    ``SMALLEST_RATIO`` latents per active one, reduced precision, run-time normalisation, hooks on the
    SAE, or a subclass that changes encode, decode or the losses.
    """

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self.takes_sparse_step(step_input.sae_in):
            return super().training_forward_pass(step_input)
        x = step_input.sae_in.to(self.dtype)
        subtracted = self.b_dec if self.cfg.apply_b_dec_to_input else None
        with torch.no_grad():
            centred = x if subtracted is None else x - subtracted
            norms = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
            # Scaling the weights instead of the products spares a pass over [tokens, d_sae].
            W, b = (self.W_enc, self.b_enc) if norms is None else (self.W_enc * norms, self.b_enc * norms)
            hidden = torch.addmm(b, centred, W)
            largest, indices = hidden.topk(self.cfg.k, dim=-1, sorted=False)
            chosen = largest if norms is None else largest / norms[indices]
        chosen = _ChosenPreactivations.apply(chosen, indices, centred, self.W_enc, self.b_enc, subtracted)
        x_hat = F.embedding_bag(indices, self.W_dec, mode="sum", per_sample_weights=chosen.relu()) + self.b_dec
        more = self.more_losses(x, chosen, indices)
        mse = self.mse_loss_fn(x_hat, step_input.sae_in).sum(dim=-1).mean()
        auxiliary = self._loss_of_dead_latents(centred, x, x_hat, hidden, norms, step_input.dead_neuron_mask)
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=x_hat,
            feature_acts=_as_sparse_rows(largest.relu(), indices, self.cfg.d_sae),
            hidden_pre=hidden,
            loss=mse + auxiliary + sum(more.values()),
            losses={"mse_loss": mse, "auxiliary_reconstruction_loss": auxiliary, **more},
        )

    def more_losses(self, x: Tensor, chosen: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """A subclass's own terms, from the pre-activations kept [tokens, k] and their latents; none here."""
        return {}

    def dense_latents(self, chosen: Tensor, indices: Tensor) -> Tensor:
        """Latents [tokens, d_sae] as ``encode`` gives them; gradients flow to the pairs kept only."""
        values = chosen.relu()
        if self.cfg.rescale_acts_by_decoder_norm:
            # Not norm[indices]: its gradient adds in an order that several threads do not fix.
            values = values * self.W_dec.norm(dim=-1).index_select(0, indices.reshape(-1)).view_as(indices)
        return values.new_zeros(len(values), self.cfg.d_sae).scatter(-1, indices, values)

    def takes_sparse_step(self, x: Tensor) -> bool:
        """Whether the sparse step gives the same result for this input, faster."""
        plain, cfg = TopKTrainingSAE, self.cfg
        return (
            x.device.type == "cpu"
            and x.ndim == 2
            and not x.requires_grad
            and cfg.d_sae >= SMALLEST_RATIO * cfg.k
            and self.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled(x.device.type)
            and cfg.normalize_activations in ("none", "expected_average_only_in")
            and cfg.reshape_activations == "none"
            and not any(hook._forward_hooks or hook._backward_hooks for hook in self.hook_dict.values())
            and all(
                getattr(type(self), name) is getattr(plain, name)
                for name in ("encode_with_hidden_pre", "decode", "calculate_aux_loss", "calculate_topk_aux_loss")
            )
        )

    def _loss_of_dead_latents(self, centred, x, x_hat, hidden, norms, dead_mask) -> Tensor:
        """``calculate_topk_aux_loss`` on the columns of dead latents only (Gao et al. 2024, appendix A.2)."""
        dead = dead_mask.nonzero().squeeze(-1) if dead_mask is not None else x.new_empty(0)
        if len(dead) == 0:
            return x_hat.new_tensor(0.0)
        residual = (x - x_hat).detach()
        most = x.shape[-1] // 2
        W_enc, bias = self.W_enc[:, dead], self.b_enc[dead]
        if self.cfg.apply_b_dec_to_input:
            # Adds zero, and carries the gradient to b_dec without the [tokens, d_in] product.
            bias = bias - (self.b_dec - self.b_dec.detach()) @ W_enc
        acts = centred @ W_enc + bias
        if len(dead) > most:
            kept = torch.zeros_like(acts, dtype=torch.bool)
            kept.scatter_(-1, hidden[:, dead].topk(most, dim=-1, sorted=False).indices, True)
            acts = acts * kept
        loss = (acts @ self.W_dec[dead] - residual).pow(2).sum(dim=-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0) * loss


def _as_sparse_rows(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """The activations as a COO tensor [tokens, n_latents], which sae_lens's trainer counts firings from."""
    tokens, k = indices.shape
    rows = torch.arange(tokens, device=indices.device).repeat_interleave(k)
    where = torch.stack([rows, indices.reshape(-1)])
    return torch.sparse_coo_tensor(where, values.reshape(-1), (tokens, n_latents), check_invariants=False)
