"""What a layer with seeds must compute: one seed at a time, in float64, with nothing but autograd."""

import torch
from torch import Tensor

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.kernels.activations import ACTIVATIONS


def per_seed(
    y: Tensor, chunks: ChunkManager, beds: list[list[Tensor]], alphas: list[Tensor], activation: str
) -> Tensor:
    """``y (*, D)`` plus each bed's seeds; weights as the beds hold them, all of it in float64."""
    out = [y[..., slice(*chunks.bounds(c))] for c in range(chunks.num_chunks)]
    for (w_in, b_in, w_out), alpha in zip(beds, alphas, strict=True):
        for c in range(chunks.num_chunks):
            if alpha[c] == 0:
                continue
            x = y[..., slice(*chunks.bounds(c))]
            width = x.shape[-1]
            h = x @ w_in[c, :, :width].T + b_in[c]
            a = ACTIVATIONS[activation].forward(h)
            out[c] = out[c] + alpha[c] * (a @ w_out[c, :width].T)
    return torch.cat(out, dim=-1)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; the plain norm where nothing is wanted."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    scale = want.norm()
    return float((got - want).norm() / (scale if scale > 0 else 1))
