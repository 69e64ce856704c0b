"""Ten small models of the kinds that people train, each as a LightningModule with data of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Task(L.LightningModule):
    """A network and a loss between its output and a target."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.loss_function = loss

    def step_loss(self, batch: Any) -> Tensor:
        return self.loss_function(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step_loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step_loss(batch)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ToTokens(nn.Module):
    """``(B, C, H, W)`` to ``(B, H * W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToMap(nn.Module):
    """``(B, H * W, C)`` to ``(B, C, H, W)``, for square maps."""

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return x.transpose(1, 2).unflatten(2, (side, side))


class Attention(nn.Module):
    """Self-attention from plain linear layers, causal or not."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(width, 3 * width), nn.Linear(width, width), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mean(nn.Module):
    """Mean over positions, ``(B, T, C)`` to ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        deep = F.relu(self.middle(F.max_pool2d(skip, 2)))
        return self.head(torch.cat([skip, self.up(deep)], dim=1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


class GAN(Task):
    """Two networks, two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64)), F.mse_loss)
        self.critic = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        real = batch[0].flatten(1)
        for index, optimizer in enumerate(self.optimizers()):  # type: ignore[arg-type]
            fake = self.net(real[:, :4])
            score = F.softplus(-self.critic(fake)).mean()
            loss = F.softplus(-self.critic(real)).mean() - score if index else score
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def step_loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self.net(batch[0].flatten(1)[:, :4]), batch[0].flatten(1))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (self.net, self.critic)]


def _conv(i: int, o: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **options)


def _classifier(*layers: nn.Module) -> Task:
    return Task(nn.Sequential(*layers), F.cross_entropy)


def _block(width: int, causal: bool) -> list[nn.Module]:
    mlp = (nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
    return [Residual(nn.LayerNorm(width), Attention(width, causal)), Residual(*mlp)]


def mlp() -> Task:
    return _classifier(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def vgg() -> Task:
    stem = (_conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), _conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())
    return _classifier(*stem, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))


def resnet() -> Task:
    block = Residual(_conv(8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 8), nn.BatchNorm2d(8))
    return _classifier(_conv(1, 8), block, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def convnext() -> Task:
    block = Residual(
        _conv(8, 8, groups=8), ToTokens(), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), ToMap()
    )
    return _classifier(_conv(1, 8), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def unet() -> Task:
    return Task(UNet(), lambda y, target: F.mse_loss(y.mean((1, 2, 3)), target.float()))


def gpt() -> Task:
    return _classifier(ToTokens(), nn.Linear(1, 8), *_block(8, causal=True), Mean(), nn.Linear(8, 3))


def vit() -> Task:
    patches = nn.Conv2d(1, 8, 2, stride=2)
    return _classifier(patches, ToTokens(), *_block(8, causal=False), Mean(), nn.Linear(8, 3))


def lstm() -> Task:
    return Task(Recurrent(), F.cross_entropy)


def gan() -> Task:
    return GAN()


def autoencoder() -> Task:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 64))
    return Task(net, lambda y, target: F.mse_loss(y.mean(1), target.float()))


ARCHITECTURES: dict[str, Callable[[], Task]] = {
    f.__name__: f for f in (mlp, vgg, resnet, convnext, unet, gpt, vit, lstm, gan, autoencoder)
}


def images(count: int, seed: int) -> TensorDataset:
    """Images ``(count, 1, 8, 8)`` with labels that depend on their brightest quadrant and overall brightness."""
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    score = torch.stack([x[..., :4, :].mean((1, 2, 3)), x[..., 4:, :4].mean((1, 2, 3)), x[..., 4:, 4:].mean((1, 2, 3))])
    return TensorDataset(x, score.argmax(0))


def data() -> dict[str, Any]:
    """Loaders for training and validation, in a fixed order."""
    return {
        "train_dataloaders": DataLoader(images(64, 0), batch_size=16),
        "val_dataloaders": DataLoader(images(48, 1), batch_size=16),
    }
