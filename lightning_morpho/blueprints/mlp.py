"""A two-layer network on each chunk of the layer's output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_morpho.blueprints.base import ACTIVATION_MODULES, Blueprint, register_blueprint, reset_silent_
from lightning_morpho.blueprints.plain import pointwise_layer


@register_blueprint("mlp", probe=False)
class ChunkMLP(Blueprint):
    r"""A two-layer network on each chunk, batched over chunks (pointwise for convolutions).

    .. math:: f_c(y_c) = W_{out,c}\, g(W_{in,c}\, y_c + b_c)

    :math:`W_{out}` starts at zero. The default hidden width, twice the chunk's, is that of the original
    design. Narrow chunks are padded by one feature that stays zero.
    """

    source = "chunk"

    @property
    def hidden(self) -> int:
        """Hidden units of a chunk."""
        hidden = self.config.hidden
        return 2 * self.site.chunks.max_width if isinstance(hidden, str) else hidden

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``w_in (N, hidden, width)``, ``b_in (N, hidden)``, ``w_out (N, width, hidden)``."""
        n, width = self.site.chunks.num_chunks, self.site.chunks.max_width
        return {"w_in": (n, self.hidden, width), "b_in": (n, self.hidden), "w_out": (n, width, self.hidden)}

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Torch's default for the incoming weights, zero for the outgoing ones."""
        reset_silent_(parameters, self.site.chunks.max_width, generator)

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """``(N, M, width)`` to ``(N, M, width)``."""
        h = torch.baddbmm(parameters["b_in"].unsqueeze(1), source, parameters["w_in"].transpose(1, 2))
        return torch.bmm(self.activation(h), parameters["w_out"].transpose(1, 2))

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """Two pointwise layers whose weights have one block a chunk, and zeros elsewhere."""
        chunks = self.site.chunks
        widths = [stop - start for start, stop in (chunks.bounds(c) for c in range(chunks.num_chunks))]
        w_in = torch.block_diag(*(w[:, :n] for w, n in zip(parameters["w_in"], widths, strict=True)))
        w_out = torch.block_diag(*(w[:n] for w, n in zip(parameters["w_out"], widths, strict=True)))
        return nn.Sequential(
            pointwise_layer(w_in, parameters["b_in"].flatten(), self.site),
            ACTIVATION_MODULES[self.config.activation](),
            pointwise_layer(w_out, None, self.site),
        )
