"""Small models of every common kind, with the pairs that a person would name in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        build: Makes the model.
        example: Makes a batch for it.
        pairs: True pairs, producers to consumer.
        missed: Pairs that the static proposal misses, with the reason.
        forward: How to run it; None: the usual way.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    pairs: tuple[str, ...] = ()
    missed: dict[str, str] | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None


def _seq(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules)


def _flat(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


class FunctionalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x)), 0.1, self.training)
        return self.fc3(torch.tanh(self.fc2(x)))


class VGG(nn.Module):
    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.b2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc, self.view = nn.Linear(6 * 4, 5), view

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b1(self.c1(x)), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.b2(self.c2(x))), 2)
        return self.fc(x.view(x.size(0), -1) if self.view else torch.flatten(x, 1))


class ResBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Conv2d(1, 4, 3), nn.Sequential(ResBlock(), ResBlock()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.pw1, self.pw2 = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pw2(F.gelu(self.pw1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        return x + h.permute(0, 3, 1, 2)


class GPTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.ln2(x))


class SwiGLU(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 8, bias), nn.Linear(6, 8, bias)
        self.down = nn.Linear(8, 6, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.mid, self.dec = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enc(x))
        h = F.relu(self.mid(F.relu(self.down(F.max_pool2d(skip, 2)))))
        return self.dec(torch.cat([skip, F.interpolate(h, scale_factor=2)], 1))


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(h) + h


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], -1))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.trunk(x))
        return self.left(h), self.right(h)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.dec.weight = self.enc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(torch.relu(self.enc(x)))


class Regroup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).view(-1, 4))


class DictForward(nn.Module):
    """As in Hugging Face's library: optional arguments, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.ln = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        h = self.embed(input_ids)
        h = h + self.fc2(F.gelu(self.fc1(self.ln(h))))
        out = {"logits": self.head(h)}
        if labels is not None and labels.max() < 10:
            out["loss"] = F.cross_entropy(out["logits"].flatten(0, 1), labels.flatten())
        return out


class NoForward(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.b(torch.relu(self.a(batch))).square().mean()


class ControlFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h * 2 if h.sum() > 0 else h)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 5))
        self.channels = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].register_forward_hook(lambda module, args, out: out.flip(-1))
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def _ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 10, (2, 5)), "labels": torch.randint(0, 10, (2, 5))}


def _two_branches() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


R = nn.ReLU
NEEDS_RUN = "torch.fx can't trace it"
FAMILIES: dict[str, Family] = {
    "mlp": Family(_seq(nn.Linear(6, 8), R(), nn.Linear(8, 8), R(), nn.Linear(8, 2)), _flat(4, 6), ("0>2", "2>4")),
    "functional mlp": Family(FunctionalMLP, _flat(4, 6), ("fc1>fc2", "fc2>fc3")),
    "mlp with batch norm": Family(
        _seq(nn.Linear(6, 8), nn.BatchNorm1d(8), R(), nn.Dropout(0.2), nn.Linear(8, 2)), _flat(4, 6), ("0>4",)
    ),
    "mlp on sequences": Family(_seq(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 2)), _flat(2, 5, 6), ("0>2",)),
    "linear bottleneck": Family(_seq(nn.Linear(6, 3), nn.Linear(3, 6)), _flat(4, 6), ("0>1",)),
    "vgg": Family(VGG, _flat(2, 1, 8, 8), ("c1>c2", "c2>fc")),
    "vgg with view": Family(lambda: VGG(view=True), _flat(2, 1, 8, 8), ("c1>c2", "c2>fc")),
    "conv1d": Family(
        _seq(nn.Conv1d(1, 4, 5, 2), R(), nn.Conv1d(4, 4, 3), R(), nn.Flatten(), nn.Linear(20, 3)),
        _flat(2, 1, 18),
        ("0>2", "2>5"),
    ),
    "conv3d": Family(
        _seq(nn.Conv3d(1, 2, 3), R(), nn.Conv3d(2, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)),
        _flat(2, 1, 6, 6, 6),
        ("0>2", "2>5"),
    ),
    "resnet": Family(ResNet, _flat(2, 1, 8, 8), ("blocks.0.conv1>blocks.0.conv2", "blocks.1.conv1>blocks.1.conv2")),
    "convnext": Family(ConvNeXtBlock, _flat(2, 4, 5, 5), ("pw1>pw2",)),
    "gpt": Family(GPTBlock, _flat(2, 5, 8), ("mlp.0>mlp.2",)),
    "swiglu": Family(SwiGLU, _flat(4, 6), ("gate+up>down",)),
    "u-net": Family(UNet, _flat(2, 1, 8, 8), ("down>mid",)),
    "mixer": Family(Mixer, _flat(2, 5, 6), ("tokens.0>tokens.2", "channels.0>channels.2")),
    "autoencoder": Family(
        _seq(nn.Conv2d(1, 4, 3, 2, 1), nn.ELU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, 1, 1)),
        _flat(2, 1, 8, 8),
        ("0>3",),
    ),
    "transformer encoder layer": Family(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        _flat(2, 5, 8),
        ("linear1>linear2",),
        {"linear2": NEEDS_RUN},
    ),
    "dict forward": Family(DictForward, _ids, ("fc1>fc2",), {"fc2": NEEDS_RUN}),
    "module without forward": Family(
        NoForward, _flat(4, 6), ("a>b",), {"b": NEEDS_RUN}, lambda model, batch: model.training_step(batch, 0)
    ),
    "skip": Family(Skip, _flat(4, 6)),
    "concat": Family(Concat, _flat(4, 6)),
    "two heads": Family(TwoHeads, _flat(4, 6)),
    "layer norm": Family(_two_branches, _flat(4, 6)),
    "group norm": Family(_seq(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), R(), nn.Conv2d(4, 2, 3)), _flat(2, 1, 8, 8)),
    "softmax": Family(_seq(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 2)), _flat(4, 6)),
    "layer called twice": Family(CalledTwice, _flat(4, 6)),
    "tied weights": Family(Tied, _flat(4, 6)),
    "depthwise": Family(
        _seq(nn.Conv2d(1, 4, 3), R(), nn.Conv2d(4, 4, 3, groups=4), R(), nn.Conv2d(4, 2, 1)), _flat(2, 1, 8, 8)
    ),
    "view that regroups": Family(Regroup, _flat(4, 6)),
    "user's hook": Family(hooked, _flat(4, 6)),
    "parametrized weight": Family(weight_normed, _flat(4, 6)),
    "pruned weight": Family(pruned, _flat(4, 6)),
    "values steer control flow": Family(ControlFlow, _flat(4, 6)),
    "transposed convolution": Family(
        _seq(nn.Conv2d(1, 4, 3), R(), nn.ConvTranspose2d(4, 4, 3), R(), nn.Conv2d(4, 2, 3)), _flat(2, 1, 8, 8)
    ),
    "flatten of linear features": Family(_seq(nn.Linear(6, 4), R(), nn.Flatten(), nn.Linear(12, 2)), _flat(2, 3, 6)),
}
