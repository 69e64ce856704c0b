"""Small nets with live spans, for the tests of the sizing rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_morpho import BlueprintConfig, MorphoConfig, confirm_pairs_, hybrid_layers, morph_


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (9, 5)),
    "conv": (conv, (9, 2, 6, 6)),
    "swiglu": (SwiGLU, (9, 5)),
}


def grown(name: str, hidden: int = 8, *, live: bool = True) -> tuple[nn.Module, Tensor]:
    """A net with a live bed in each pair, all of whose weights are random."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    morph_(model, MorphoConfig(blueprint=BlueprintConfig(hidden=hidden)))
    assert confirm_pairs_(model, (x,)) == {}
    for layer in hybrid_layers(model).values():
        if live and len(layer.morpho.beds):
            layer.request_germination()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    model.eval()
    return model, x
