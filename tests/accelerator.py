"""A pretended accelerator: tensors with real numbers, held on the CPU, that behave as if they lay elsewhere.

No GPU is needed to find what would fail on one. Inside :func:`accelerator`, ``tensor.to(device)`` gives a tensor
that refuses to meet one of the CPU, to be read by NumPy, and (as Apple's) to hold float64. Unlike torch's
``meta`` and fake tensors it has values, so that code which looks at them runs to its end.

Below Python the tensors are of torch's unused ``lazy`` device, on which autograd needs no driver. In Python the
device goes by that name (a GPU with float64), or as ``mps`` (one without).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import optimizer
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

KINDS = {"lazy": True, "mps": False}  # whether it has float64
_aten = torch.ops.aten
_MAY_CROSS = {_aten.copy_.default, _aten._to_copy.default}
# An index on the CPU may address a tensor on the device (not the other way round), as on a GPU.
_MAY_INDEX = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_TAKES_NO_SCALARS = {_aten.cat.default, _aten.stack.default}
_WHOLE: set = set()  # operations known to be no composites
_kind = ["lazy"]


class There(torch.Tensor):
    """A tensor on the pretended device; ``held`` are its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        places = (
            {} if held.layout != torch.strided else {"strides": held.stride(), "storage_offset": held.storage_offset()}
        )
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, layout=held.layout, device="lazy", **places
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"There({self.held!r})"

    @property
    def device(self) -> torch.device:
        return torch.device(_kind[0], 0)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> list:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any):
        raise TypeError("can't convert a tensor of the accelerator to numpy. Use Tensor.cpu() first.")

    __array__ = numpy


def _arrive(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, There):
        return x
    if x.dtype == torch.float64 and not KINDS[_kind[0]]:
        raise TypeError("the accelerator has no float64")
    return There(x)


def _run(func, args: tuple, kwargs: dict):
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, There)]
    wanted = kwargs.get("device", next((x for x in flat if isinstance(x, torch.device)), None))
    wanted = None if wanted is None else torch.device(wanted)
    if not there and (wanted is None or wanted.type not in KINDS):
        return func(*args, **kwargs)
    if func is _aten._local_scalar_dense.default:  # .item(), float(), bool(): allowed, and a wait
        return func(args[0].held)
    if there and func not in _MAY_CROSS:
        _refuse_mixtures(func, args, flat)
    inner = [x.held if isinstance(x, There) else x for x in flat]
    inner = [torch.device("cpu") if isinstance(x, torch.device) and x.type in KINDS else x for x in inner]
    inner_args, inner_kwargs = tree_unflatten(inner, spec)
    out = func(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in func.tags:  # the outer shape has to follow what it holds
        with no_dispatch():
            args[0].data = There(args[0].held)
        return args[0]
    if func is _aten.copy_.default:
        return args[0]
    results, out_spec = tree_flatten(out)
    if wanted is not None and wanted.type not in KINDS:
        return out
    known = {id(x.held): x for x in there}  # an operation in place gives back the tensor it was given
    return tree_unflatten([known.get(id(x)) if id(x) in known else _arrive(x) for x in results], out_spec)


def _refuse_mixtures(func, args: tuple, flat: list) -> None:
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There)]
    if func not in _TAKES_NO_SCALARS:
        here = [x for x in here if x.ndim]
    if func in _MAY_INDEX and isinstance(args[0], There):
        indices = [id(x) for x in args[1]]
        here = [x for x in here if id(x) not in indices]
    if here:
        raise RuntimeError(f"expected all tensors to be on the same device, found the accelerator and cpu ({func})")


class _Everywhere(TorchDispatchMode):
    """Catches what makes tensors on the device; tensors that are there already look after themselves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _WHOLE:
            with self:  # under torch.inference_mode, composite operations arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            _WHOLE.add(func)
        return _run(func, args, kwargs)


@contextlib.contextmanager
def accelerator(kind: str = "lazy") -> Iterator[torch.device]:
    """Within it the pretended device exists."""
    before, fused = torch._C._only_lift_cpu_tensors(), optimizer._get_fused_kernels_supported_devices
    torch._C._set_only_lift_cpu_tensors(True)
    optimizer._get_fused_kernels_supported_devices = lambda: [*fused(), *KINDS]
    _kind[0] = kind
    try:
        with _Everywhere():
            yield torch.device(kind, 0)
    finally:
        _kind[0] = "lazy"
        torch._C._set_only_lift_cpu_tensors(before)
        optimizer._get_fused_kernels_supported_devices = fused
