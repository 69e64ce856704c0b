"""Starting Triton kernels with little work on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MOST_KINDS = 4096
"""Launches to remember; batches of ever new lengths must not fill the memory."""


def power_of_two(n: int) -> int:
    """The least power of two from ``n`` on; Triton's own function takes several microseconds.

    Example:
        >>> [power_of_two(n) for n in (0, 1, 2, 3, 64, 65)]
        [1, 1, 2, 4, 64, 128]
    """
    return 1 << (n - 1).bit_length() if n > 1 else 1


class Launcher:
    """Starts one kernel; looks at its arguments in full only when one of a new kind comes.

    Triton specialises a kernel on each argument's dtype, on the alignment of pointers and on the values of
    integers, and finds that out anew at each launch, which takes longer than a small kernel runs. Here the
    specialised kernel is remembered by all of these at once.

    Args:
        kernel: A ``triton.jit`` function whose tensors come first and whose numbers follow.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._built: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, grid: tuple[int, int], tensors: tuple[Tensor, ...], numbers: tuple[Any, ...], warps: int, stages: int = 3
    ) -> None:
        """Start the kernel on the current stream.

        Args:
            grid: Programs along two axes.
            tensors: Pointer arguments.
            numbers: All other arguments in order, compile-time ones included.
            warps: Warps of a program.
            stages: Depth of the software pipeline.
        """
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton starts on the current one, wherever the tensors lie
                self(grid, tensors, numbers, warps, stages)
            return
        kinds = tuple([(t.dtype, t.data_ptr() % 16 == 0) for t in tensors])
        key = (numbers, kinds, device.index, warps, stages)
        built = self._built.get(key)
        if built is None:
            if len(self._built) >= _MOST_KINDS:
                self._built.clear()
            # The interpreter, which runs without a GPU, gives None here.
            self._built[key] = self._kernel[grid](*tensors, *numbers, num_warps=warps, num_stages=stages)
        else:
            stream = torch._C._cuda_getCurrentRawStream(device.index)  # Triton would look for it in Python
            built[(grid[0], grid[1], 1)](*tensors, *numbers, stream=stream)
