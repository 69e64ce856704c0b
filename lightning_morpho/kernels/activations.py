"""Activation functions of seeds, and their derivatives for hand-written backward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


class Activation(NamedTuple):
    """An elementwise function and what its gradient needs.

    Attributes:
        forward: ``h -> g(h)``.
        backward: ``(gradient of g(h), h) -> gradient of h``.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _selu_backward(grad: Tensor, h: Tensor) -> Tensor:
    return torch.ops.aten.elu_backward(grad, _SELU_ALPHA, _SELU_SCALE, 1, False, h)


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(F.relu, lambda grad, h: torch.ops.aten.threshold_backward(grad, h, 0)),
    "gelu": Activation(F.gelu, torch.ops.aten.gelu_backward),
    "selu": Activation(F.selu, _selu_backward),
    "silu": Activation(F.silu, torch.ops.aten.silu_backward),
    "tanh": Activation(torch.tanh, lambda grad, h: torch.ops.aten.tanh_backward(grad, torch.tanh(h))),
}
