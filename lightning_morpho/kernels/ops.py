"""Adding seeds to a layer's output: in place under autograd, or as a registered operator.

Both run the same code. Eager training goes through :class:`torch.autograd.Function`, which may write into
the base layer's output; what is compiled or exported sees the operator ``lightning_morpho::chunk_mlps``,
which writes nothing that it did not make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.kernels import batched
from lightning_morpho.kernels.active import ActiveSet
from lightning_morpho.kernels.dispatch import Backend
from lightning_morpho.kernels.geometry import ChunkMLPs, layout_of

IN_PLACE_BELOW = 0.6
"""Share of live chunks below which writing into the layer's output beats one pass over all of it."""

WEIGHTS = ("w_in", "b_in", "w_out")
"""Parameters of a bed, in the order in which they are passed here."""


def add_chunk_mlps(
    y: Tensor,
    networks: ChunkMLPs,
    weights: Sequence[Tensor],
    active: Sequence[ActiveSet],
    backend: Backend,
    *,
    disjoint: bool = True,
) -> Tensor:
    r"""Add the networks of several beds to a layer's output; each of them reads ``y`` as it came.

    .. math:: y_c + \sum_b \alpha_{b,c}\, f_{b,c}(y_c)

    Args:
        y: The base layer's output, features last for linear layers, second for convolutions. It may be
            written into: the caller must own it.
        networks: Shapes.
        weights: ``w_in (N, hidden, width)``, ``b_in (N, hidden)``, ``w_out (N, width, hidden)`` of each bed,
            one bed after another; any floating dtype.
        active: Live chunks of each bed, on ``y``'s device.
        backend: What computes it, as :func:`choose_backend` says.
        disjoint: Whether no chunk is live in two of the beds.

    Returns:
        Same shape and dtype as ``y``.
    """
    if y.numel() == 0:
        # Keeps the graph: an empty batch still gives every parameter a gradient of zero.
        return y + torch.stack([w.sum() for w in weights]).sum().to(y.dtype) * 0
    if torch.compiler.is_compiling():
        alphas = [entry.alpha for entry in active]
        sizes = [networks.spatial, networks.chunks.num_chunks, networks.hidden]
        return chunk_mlps(y, list(weights), alphas, sizes, networks.activation, backend.value)
    keep = torch.is_grad_enabled() and (y.requires_grad or any([w.requires_grad for w in weights]))
    work = _plan_work(y, networks, active, backend, disjoint, keep)
    if keep:
        return _AddChunkMLPs.apply(y, work, *weights)
    return work.forward(y, weights, keep=False)[0]


@dataclass(frozen=True)
class _Work:
    """One way of going about it.

    Attributes:
        networks: Shapes.
        active: Live chunks of each bed.
        kernels: The backend's module.
        in_place: Whether to write into the layer's output.
        sparse: Whether to compute live chunks alone.
    """

    networks: ChunkMLPs
    active: tuple[ActiveSet, ...]
    kernels: ModuleType
    in_place: bool
    sparse: bool

    def _start(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What a first bed adds to, and where the result goes."""
        if self.kernels.WRITES_ALL and not self.sparse:
            return like, torch.empty_like(like)
        copy = like.clone()
        return copy, copy

    def forward(self, y: Tensor, weights: Sequence[Tensor], *, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """The result, and what the backward pass needs besides the weights."""
        if not y.is_contiguous() and layout_of(self.networks.columns(y)) is None:
            y = y.contiguous()
        base, out = (y, y) if self.in_place else self._start(y)
        kept: list[Tensor] = []
        for index, active in enumerate(self.active):
            kept += self.kernels.forward_(
                self.networks, list(weights[3 * index : 3 * index + 3]), active, y, base, out,
                sparse=self.sparse, keep=keep and self.in_place,
            )  # fmt: skip
            base = out
        return out, kept if self.in_place else [y] if keep else []

    def backward(
        self, grad: Tensor, kept: Sequence[Tensor], weights: Sequence[Tensor], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of ``y`` and of all weights, None where ``needs`` has no use for them."""
        out: Tensor | None = None
        base = grad
        if needs[0] and self.in_place and self.sparse:
            # Each bed reads and writes its own chunks alone: one copy will do.
            grad = base = out = grad.clone()
        elif needs[0]:
            base, out = self._start(grad)
        grads: list[Tensor | None] = [out]
        groups = len(kept) // len(self.active)
        for index, active in enumerate(self.active):
            span = slice(3 * index, 3 * index + 3)
            source = list(kept[groups * index : groups * (index + 1)]) if self.in_place else kept[0]
            found = self.kernels.backward_(
                self.networks, list(weights[span]), active, source, grad, base, out,
                sparse=self.sparse, needs_weights=any(needs[1:][span]),
            )  # fmt: skip
            grads += found if found is not None else [None] * 3
            base = grad if out is None else out
        return grads


def _kernels_of(backend: Backend) -> ModuleType:
    if backend is Backend.FUSED:
        from lightning_morpho.kernels import triton

        return triton
    return batched


def _plan_work(
    y: Tensor, networks: ChunkMLPs, active: Sequence[ActiveSet], backend: Backend, disjoint: bool, keep: bool
) -> _Work:
    """Choose between in place and out of place, live chunks alone and all of them."""
    kernels = _kernels_of(backend)
    capturing = y.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing:
        for entry in active:
            entry.pinned = True
    share = sum(entry.share for entry in active)
    # A view's gradient is its base's business. Where beds meet in a chunk, the first must not overwrite
    # what the next one reads.
    owned = disjoint and not y._is_view()
    # Where nothing is kept for a backward pass, one pass in place is the cheapest whatever is live.
    in_place = owned and (share < IN_PLACE_BELOW or not keep)
    return _Work(networks, tuple(active), kernels, in_place, share < kernels.SPARSE_BELOW and not capturing)


class _AddChunkMLPs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, work: _Work, *weights: Tensor) -> Tensor:
        out, kept = work.forward(y, weights, keep=True)
        if out is y:
            ctx.mark_dirty(y)
        ctx.work, ctx.count, ctx.strides = work, len(weights), out.stride()
        ctx.save_for_backward(*weights, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if grad.stride() != ctx.strides:
            grad = _in_order(grad, ctx.work.networks, None if ctx.work.in_place else ctx.strides)
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        first, *rest = ctx.work.backward(grad, saved[ctx.count :], saved[: ctx.count], needs)
        return first, None, *rest


def _in_order(grad: Tensor, networks: ChunkMLPs, strides: tuple[int, ...] | None) -> Tensor:
    """A gradient that came expanded or in another order, as kernels can take it.

    Args:
        grad: The gradient.
        networks: Shapes.
        strides: Of the layer's output, which the kernels read beside it; None if they don't: then any order will do
            whose positions need no more than two strides.
    """
    if strides is None:
        fits = torch.ops.aten.is_non_overlapping_and_dense(grad) and layout_of(networks.columns(grad)) is not None
        return grad if fits else grad.clone(memory_format=torch.contiguous_format)
    return torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)


# ---------------------------------------------------------------- the registered operator
def _dense_work(y: Tensor, alphas: Sequence[Tensor], sizes: Sequence[int], activation: str, backend: str) -> _Work:
    spatial, num_chunks, hidden = sizes
    chunks = ChunkManager(y.shape[-1 - spatial], num_chunks)
    active = tuple(ActiveSet.dense(alpha, len(chunks.groups)) for alpha in alphas)
    networks = ChunkMLPs(chunks, spatial, hidden, activation)
    return _Work(networks, active, _kernels_of(Backend(backend)), in_place=False, sparse=False)


@torch.library.custom_op("lightning_morpho::chunk_mlps", mutates_args=())
def chunk_mlps(
    y: Tensor, weights: list[Tensor], alphas: list[Tensor], sizes: list[int], activation: str, backend: str
) -> Tensor:
    """Operator form of :func:`add_chunk_mlps`: all chunks, each by its alpha, out of place.

    Args:
        y: The base layer's output.
        weights: Parameters of the beds, three each.
        alphas: Blend weights of each bed, float32 ``(N,)``.
        sizes: Spatial axes, chunks, hidden units.
        activation: Name of the activation function.
        backend: Value of a :class:`Backend`.

    Returns:
        Same shape, dtype and strides as ``y``.
    """
    return _dense_work(y, alphas, sizes, activation, backend).forward(y, weights, keep=False)[0]


@torch.library.custom_op("lightning_morpho::chunk_mlps_backward", mutates_args=())
def chunk_mlps_backward(
    grad: Tensor,
    y: Tensor,
    weights: list[Tensor],
    alphas: list[Tensor],
    sizes: list[int],
    activation: str,
    backend: str,
) -> list[Tensor]:
    """Gradients of :func:`chunk_mlps` with respect to ``y`` and each of the weights."""
    work = _dense_work(y, alphas, sizes, activation, backend)
    matched = torch.empty_like(y).copy_(grad) if grad.stride() != y.stride() else grad
    found = work.backward(matched, [y], weights, [True] * (1 + len(weights)))
    return [g for g in found if g is not None]


@chunk_mlps.register_fake
def _(y: Tensor, *_: object) -> Tensor:
    return torch.empty_like(y)


@chunk_mlps_backward.register_fake
def _(grad: Tensor, y: Tensor, weights: list[Tensor], *_: object) -> list[Tensor]:
    return [torch.empty_like(y), *(torch.empty_like(w) for w in weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, weights, alphas, *ctx.rest = inputs
    ctx.counts = len(weights), len(alphas)
    ctx.save_for_backward(y, *weights, *alphas)


def _operator_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    y, *saved = ctx.saved_tensors
    weights, alphas = saved[: ctx.counts[0]], saved[ctx.counts[0] :]
    first, *rest = chunk_mlps_backward(grad, y, weights, alphas, *ctx.rest)
    return first, rest, [None] * ctx.counts[1], None, None, None


chunk_mlps.register_autograd(_operator_backward, setup_context=_setup_context)
