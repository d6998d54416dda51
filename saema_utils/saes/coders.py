"""Dictionaries with one interface: the SAE, and two that it has to beat.

Every coder turns a vector into coefficients and back, ``x_hat = z @ dictionary + bias``, so that each
chapter can ask its question of the SAE, of random directions, and of principal components alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from saema_utils.errors import SaeError
from saema_utils.runtime import batch_size, float64, generator
from saema_utils.saes.centring import MEAN, is_centred
from saema_utils.saes.topk_latents import TopKLatents, dense, rows_at_once

if TYPE_CHECKING:
    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor

# What sae_lens's run-time normalisations leave on the SAE between encode and decode.
_STATE = ("ln_mu", "ln_std", "x_norm_coeff", MEAN)


@runtime_checkable
class Coder(Protocol):
    """Encodes vectors of width ``d_in`` to ``n_latents`` coefficients, and decodes them linearly."""

    name: str
    d_in: int
    n_latents: int

    def encode(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... F"]: ...

    def decode(self, z: Float[Tensor, "... F"], like: Tensor | None = None) -> Float[Tensor, "... D"]: ...

    def reconstruct(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]: ...


@runtime_checkable
class AffineCoder(Protocol):
    """A coder whose latents follow from numbers that are affine in the vector.

    Then noise costs one product, whatever its level: ``p(x + s e) = p(x) + s p(e)``, the second ``p`` without its
    constant. ``is_affine`` says whether this one, as it is configured, may be used so.
    """

    is_affine: bool

    def preactivations(self, x: Float[Tensor, "n D"], constant: bool = True) -> Float[Tensor, "n F"]: ...

    def from_preactivations(self, p: Float[Tensor, "n F"]) -> Float[Tensor, "n F"] | TopKLatents: ...


class SaeCoder:
    """A sae_lens autoencoder whose edited latents decode as faithfully as untouched ones.

    Some releases normalise each token at run time (``layer_norm``) and keep the token's mean and scale
    on the module until the next decode uses them up. An edited or repeated decode would then fail, or
    use another batch's numbers. Here they are kept with the coder and put back before every decode.

    Gradients flow through ``encode`` and ``decode``; the SAE's own weights are frozen.

    Parameters
    ----------
    sae
        Any sae_lens inference or training class that reads plain vectors.
    name
        What the representation is called in tables.
    """

    def __init__(self, sae: SAE, name: str = "sae"):
        if sae.cfg.reshape_activations != "none":
            raise SaeError(
                f"the SAE reads attention heads (reshape_activations={sae.cfg.reshape_activations!r}); "
                "allowed: an SAE of the residual stream."
            )
        self.sae = sae.eval().requires_grad_(False)
        self.name, self.d_in, self.n_latents = name, sae.cfg.d_in, sae.cfg.d_sae
        self._state: dict[str, Tensor] = {}
        self._leading: tuple[int, ...] = ()

    def encode(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... F"]:
        """Latents of vectors, in slices sized to free memory."""
        if self.is_affine:
            return dense(self.encode_pairs(x)).reshape(*x.shape[:-1], self.n_latents)
        flat = self._rows(x)
        parts, states = [], []
        for rows in flat.split(self._slice()):
            parts.append(self.sae.encode(rows))
            states.append(self._take_state())
        self._state = {key: torch.cat([state[key] for state in states]) for key in states[0]} if states else {}
        self._leading = tuple(x.shape[:-1])
        latents = torch.cat(parts) if parts else x.new_zeros(0, self.n_latents)
        return latents.reshape(*x.shape[:-1], self.n_latents)

    def encode_pairs(self, x: Float[Tensor, "... D"]) -> TopKLatents | Float[Tensor, "... F"]:
        """Latents of all vectors in one row each, as pairs; what :meth:`encode` gives where the family has no k.

        Memory holds a block of pre-activations and the pairs, however many latents there are.
        """
        if not self.is_affine:
            return self.encode(x)
        return pairs_in_blocks(self, self._rows(x))

    def reconstruct(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """``decode(encode(x))`` without the dense latents in between, where the family has a k."""
        return self.decode(self.encode_pairs(x)).reshape(x.shape)

    @property
    def is_affine(self) -> bool:
        """Whether this is a TopK SAE that reads its input as it is, and nobody listens at its hooks."""
        from sae_lens import TopKSAE

        return (
            type(self.sae) is TopKSAE
            and self.sae.cfg.normalize_activations in ("none", "expected_average_only_in")
            and not is_centred(self.sae)
            and self.sae.dtype in (torch.float32, torch.float64)
            and not any(hook._forward_hooks or hook._backward_hooks for hook in self.sae.hook_dict.values())
        )

    def preactivations(
        self, x: Float[Tensor, "n D"], constant: bool = True, out: Tensor | None = None
    ) -> Float[Tensor, "n F"]:
        """What TopK chooses from; without the ``constant``, of a difference of two vectors."""
        sae, x = self.sae, x.to(self.sae.dtype)
        if constant:
            p = torch.addmm(sae.b_enc, x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x, sae.W_enc, out=out)
        else:
            p = torch.mm(x, sae.W_enc, out=out)
        return torch.mul(p, sae.W_dec.norm(dim=-1), out=out) if sae.cfg.rescale_acts_by_decoder_norm else p

    def from_preactivations(self, p: Float[Tensor, "n F"]) -> TopKLatents:
        return TopKLatents.of(p, self.sae.cfg.k)

    def decode(
        self, z: Float[Tensor, "... F"] | TopKLatents, like: Float[Tensor, "... D"] | None = None
    ) -> Float[Tensor, "... D"]:
        """Vectors of latents, or of pairs.

        Parameters
        ----------
        like
            The vectors these latents belong to. Only SAEs that normalise at run time need it, and only
            when another batch was encoded in between.
        """
        if z.shape[-1] != self.n_latents:
            raise SaeError(f"latents have width {z.shape[-1]}; the SAE has {self.n_latents}.")
        if isinstance(z, TopKLatents):
            if self.is_affine:
                return self._decode_pairs(z)
            z = z.dense()
        state = self._state if like is None else self._state_of(like)
        leading = self._leading if like is None else tuple(like.shape[:-1])
        if self._is_stateful and leading != tuple(z.shape[:-1]):
            raise SaeError(
                f"latents of shape {tuple(z.shape[:-1])} do not belong to the vectors encoded last {leading}, whose "
                "normalisation this SAE needs. Pass like=x with the vectors they came from."
            )
        size, flat = self._slice(), z.reshape(-1, self.n_latents)
        parts = []
        for start in range(0, len(flat), size):
            self._put_state({key: value[start : start + size] for key, value in state.items()})
            parts.append(self.sae.decode(flat[start : start + size].to(self.sae.dtype)))
        self._take_state()
        out = torch.cat(parts) if parts else z.new_zeros(0, self.d_in)
        return out.reshape(*z.shape[:-1], self.d_in)

    def _decode_pairs(self, z: TopKLatents) -> Float[Tensor, "n D"]:
        values = z.values.to(self.sae.dtype)
        if self.sae.cfg.rescale_acts_by_decoder_norm:
            values = values / self.sae.W_dec.norm(dim=-1)[z.where]
        return TopKLatents(values, z.where, z.width) @ self.sae.W_dec + self.sae.b_dec

    def dictionary(self) -> Float[Tensor, "F D"]:
        """Decoder rows."""
        return self.sae.W_dec.detach()

    @property
    def _is_stateful(self) -> bool:
        return is_centred(self.sae) or self.sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")

    def _rows(self, x: Tensor) -> Tensor:
        _check_width(x, self.d_in, "the SAE")
        return x.reshape(-1, self.d_in).to(self.sae.dtype)

    def _slice(self) -> int:
        return batch_size(12 * (self.n_latents + self.d_in), torch.device(self.sae.device))

    def _state_of(self, x: Tensor) -> dict[str, Tensor]:
        if not self._is_stateful:
            return {}
        self.sae.run_time_activation_norm_fn_in(self._rows(x))
        return self._take_state()

    def _take_state(self) -> dict[str, Tensor]:
        left = vars(self.sae)
        return {key: left.pop(key) for key in _STATE if key in left}

    def _put_state(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            setattr(self.sae, key, value)


class RandomDictionary:
    r"""Random directions used sparsely: what an SAE gives before anything is learned.

    ``d_sae`` unit vectors :math:`w_i`, uniform on the sphere. With :math:`u_i = \max(w_i \cdot (x - b), 0)`
    and A the k largest,

    .. math:: z_i = c(x)\, u_i \;\text{for}\; i \in A, \qquad
              c(x) = \frac{\langle x - b, r \rangle}{\lVert r \rVert^2}, \quad r = \sum_{i \in A} u_i w_i .

    The k nearest of many random directions overlap, so their plain sum overshoots; c is the least-squares
    length of that sum, in closed form, token by token. It is positive, keeps the support, and leaves the
    error orthogonal to the reconstruction. Decoding stays linear.

    Parameters
    ----------
    bias
        Subtracted before encoding and added after decoding (the mean of the data); default zero.
    """

    def __init__(
        self, d_in: int, d_sae: int, k: int, seed: int = 0, bias: Tensor | None = None, name: str = "random_dictionary"
    ):
        if not 1 <= k <= d_sae:
            raise SaeError(f"k is {k}; allowed: 1 to d_sae = {d_sae}.")
        directions = torch.randn(d_sae, d_in, generator=generator(seed, "random-dictionary"))
        self._directions = directions / directions.norm(dim=-1, keepdim=True)
        self._bias = torch.zeros(d_in) if bias is None else bias.detach().float().cpu()
        self.name, self.d_in, self.n_latents, self.k, self.seed = name, d_in, d_sae, k, seed
        self.is_affine = True

    def encode(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... F"]:
        return dense(self.encode_pairs(x)).reshape(*x.shape[:-1], self.n_latents)

    def encode_pairs(self, x: Float[Tensor, "... D"]) -> TopKLatents:
        """Latents of all vectors in one row each, as pairs; memory holds a block of pre-activations beside them."""
        _check_width(x, self.d_in, "the random dictionary")
        return pairs_in_blocks(self, x.reshape(-1, self.d_in).float())

    def reconstruct(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """``decode(encode(x))`` without the dense latents in between."""
        return self.decode(self.encode_pairs(x)).reshape(x.shape)

    def preactivations(
        self, x: Float[Tensor, "n D"], constant: bool = True, out: Tensor | None = None
    ) -> Float[Tensor, "n F"]:
        """Inner products with all directions; without the ``constant``, of a difference of two vectors."""
        x = x.float()
        return torch.mm(x - self._bias.to(x.device) if constant else x, self._directions.to(x.device).T, out=out)

    def from_preactivations(self, p: Float[Tensor, "n F"]) -> TopKLatents:
        kept = TopKLatents.of(p, self.k)
        # Only k rows count: gathering them is far cheaper than a product with all. <x - b, r> is the sum of u_i^2.
        raw = kept @ self._directions.to(p.device)
        scale = kept.values.square().sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return TopKLatents(kept.values * scale, kept.where, kept.width)

    def decode(self, z: Float[Tensor, "... F"] | TopKLatents, like: Any = None) -> Float[Tensor, "... D"]:
        values = z.values if isinstance(z, TopKLatents) else z
        return z @ self._directions.to(values) + self._bias.to(values)

    def dictionary(self) -> Float[Tensor, "F D"]:
        return self._directions


class PcaCoder:
    """Principal components: the best linear code of a given width, dense and with no notion of a feature.

    Attributes
    ----------
    mean, components, eigenvalues
        ``[D]``, orthonormal rows ``[K, D]``, and the variances of all D directions, descending.
    """

    def __init__(self, mean: Tensor, components: Tensor, eigenvalues: Tensor, name: str = "pca"):
        self.mean, self.components, self.eigenvalues = mean, components, eigenvalues
        self.name, self.d_in, self.n_latents = name, components.shape[1], components.shape[0]
        self.is_affine = True

    @classmethod
    def fit(cls, x: Float[Tensor, "N D"], n_components: int | None = None) -> PcaCoder:
        """Fit on tokens (read in slices, so a memory-mapped tensor will do).

        Raises
        ------
        SaeError
            If more components are asked for than min(N - 1, D).
        """
        n, d = x.shape
        most = min(n - 1, d)
        wanted = most if n_components is None else n_components
        if not 1 <= wanted <= most:
            raise SaeError(f"n_components is {wanted}; allowed: 1 to {most} for {n} tokens of width {d}.")
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean = sum(float64(part).sum(0) for part in x.split(16_384)) / n
        gram = torch.zeros(d, d, dtype=torch.float64, device=mean.device)
        for part in x.split(16_384):
            centred = part.to(work) - mean.to(work).to(x.device)
            gram += float64(centred.T @ centred)
        values, vectors = torch.linalg.eigh(gram / (n - 1))
        components = vectors.flip(-1).T[:wanted].to(work).to(x.device).contiguous()
        return cls(mean.to(work).to(x.device), components, values.flip(0).clamp_min(0))

    @classmethod
    def fit_to_fvu(cls, x: Float[Tensor, "N D"], fvu: float, heldout: Float[Tensor, "M D"] | None = None) -> PcaCoder:
        """Fit with the fewest components whose FVU, on ``heldout`` (default: ``x``), is at most ``fvu``.

        Comparing codes at equal reconstruction keeps "keeps more" apart from "arranges differently".
        """
        full = cls.fit(x)
        seen = (x if heldout is None else heldout).to(full.mean.dtype)
        energy = float64((seen - full.mean) @ full.components.T).square().sum(0)
        total = float64(seen - seen.mean(0)).square().sum()
        beyond = float64(seen - full.mean).square().sum()
        left = (beyond - energy.cumsum(0)) / total
        good = (left <= fvu).nonzero()
        count = int(good[0]) + 1 if len(good) else full.n_latents
        return cls(full.mean, full.components[:count].contiguous(), full.eigenvalues)

    def encode(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... K"]:
        _check_width(x, self.d_in, "the PCA")
        return self.preactivations(x)

    def preactivations(self, x: Float[Tensor, "... D"], constant: bool = True) -> Float[Tensor, "... K"]:
        """The coefficients themselves; without the ``constant``, of a difference of two vectors."""
        work = torch.promote_types(x.dtype, self.mean.dtype)
        x = x.to(work) - self.mean.to(x.device, work) if constant else x.to(work)
        return x @ self.components.to(x.device, work).T

    def from_preactivations(self, p: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        return p

    def reconstruct(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.decode(self.encode(x))

    def decode(self, z: Float[Tensor, "... K"] | TopKLatents, like: Any = None) -> Float[Tensor, "... D"]:
        z = dense(z)
        return z @ self.components.to(z) + self.mean.to(z)

    def dictionary(self) -> Float[Tensor, "K D"]:
        return self.components


def pairs_in_blocks(coder: SaeCoder | RandomDictionary, x: Float[Tensor, "n D"]) -> TopKLatents:
    """Latents of vectors, their pre-activations a block at a time, in one buffer unless a gradient needs them all."""
    if torch.is_grad_enabled() and x.requires_grad:
        return coder.from_preactivations(coder.preactivations(x))
    size = rows_at_once(x.device, coder.n_latents)
    buffer, parts = x.new_empty(min(size, len(x)), coder.n_latents), []
    with torch.no_grad():
        for rows in x.split(size):
            parts.append(coder.from_preactivations(coder.preactivations(rows, out=buffer[: len(rows)])))
    return TopKLatents.joined(parts)


def _check_width(x: Tensor, d_in: int, what: str) -> None:
    if x.shape[-1] != d_in:
        raise SaeError(
            f"{what} reads {d_in} dimensions but the vectors have {x.shape[-1]}. "
            "Use one made for this model, or activations of the model it was made for."
        )
