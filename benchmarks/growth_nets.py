"""Plain nets of any width for the growth experiments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CONTEXT, EMBEDDING, HEADS = 64, 64, 4


def stack(sizes: list[int]) -> nn.Sequential:
    """Linear layers with rectifiers in between."""
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def mlp(inputs: int, depth: int, outputs: int) -> Callable[[int], nn.Module]:
    """Hidden layers of one width."""
    return lambda width: stack([inputs, *[width] * depth, outputs])


def deep_with_narrow(inputs: int, outputs: int) -> Callable[[int], nn.Module]:
    """Six hidden layers of 48 units, but the third of any width."""
    return lambda width: stack([inputs, 48, 48, width, 48, 48, 48, outputs])


def conv_net(width: int) -> nn.Module:
    """Three 1-D convolutions with batch norms, for signals of 40 points."""
    layers: list[nn.Module] = []
    for inputs, kernel in ((1, 5), (width, 3), (width, 3)):
        layers += [nn.Conv1d(inputs, width, kernel, stride=2, padding=1), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * width, 10))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; ``inner`` channels between them.

    Shape:
        ``(B, channels, H, W)`` to the same.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.inside(x))


def resnet(width: int) -> nn.Module:
    """Two stages of one residual block each, ``width`` channels inside the blocks, for images of 28 x 28."""

    def enter(inputs: int, channels: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]

    return nn.Sequential(
        *enter(1, 16),
        ResidualBlock(16, width),
        *enter(16, 32),
        ResidualBlock(32, width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class TransformerBlock(nn.Module):
    """Causal attention and a feed-forward layer of ``hidden`` units, each before a shortcut.

    Shape:
        ``(B, CONTEXT, EMBEDDING)`` to the same.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(EMBEDDING) for _ in range(2))
        self.qkv, self.out = nn.Linear(EMBEDDING, 3 * EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.feed_forward = nn.Sequential(nn.Linear(EMBEDDING, hidden), nn.GELU(), nn.Linear(hidden, EMBEDDING))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[1](x))


class GPT(nn.Module):
    """A byte-level transformer of two blocks.

    Shape:
        Bytes ``(B, CONTEXT)``, int64, to logits ``(B, CONTEXT, 256)``.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, EMBEDDING), nn.Embedding(CONTEXT, EMBEDDING)
        self.blocks = nn.Sequential(*(TransformerBlock(hidden) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(EMBEDDING), nn.Linear(EMBEDDING, 256))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.place.weight))
