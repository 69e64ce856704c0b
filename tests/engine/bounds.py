"""Triton's interpreter with a check of every address: what a GPU reports, if at all, as an illegal memory access."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor

tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")

_TAG = 48  # bits of an address; above them pointers carry the place of their tensor among a launch's
_ADDRESS = np.uint64((1 << _TAG) - 1)


class _Launch:
    """The tensors of the present launch: first byte of each, and the one behind its last."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.stop: list[int] = []

    def take(self, tensor: Tensor) -> int:
        """Note a tensor; gives its tagged address."""
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.first.append(tensor.data_ptr())
        self.stop.append(tensor.data_ptr() + (reach * tensor.element_size() if tensor.numel() else 0))
        return tensor.data_ptr() | (len(self.first) << _TAG)

    def plain(self, pointers: Any, mask: Any) -> Any:
        """Pointers without their tags, each that is not masked off inside the tensor that it was made from."""
        address = pointers.data & _ADDRESS
        owner = (pointers.data >> np.uint64(_TAG)).astype(np.int64)
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        known = owner % (1 + len(self.first))
        first, stop = (np.array([0, *ends], dtype=np.uint64)[known] for ends in (self.first, self.stop))
        outside = mask.data & ((owner != known) | (address < first) | (address + np.uint64(width) > stop))
        if outside.any():
            bytes_off = (address.astype(np.int64) - first.astype(np.int64))[outside].ravel()[0]
            size = (stop - first)[outside].ravel()[0]
            raise AssertionError(f"byte {bytes_off} of pointer argument {owner[outside].ravel()[0]}, which has {size}")
        return interpreter.TensorHandle(address, pointers.dtype)


def _check_promise(values: np.ndarray, name: str, runs: list[int]) -> None:
    """What a hint tells the compiler, along one axis: it decides how wide loads and stores are."""
    (run,) = runs
    rows = values.reshape(-1, min(run, values.size)).astype(np.int64)
    steps = {"tt.contiguity": np.arange(rows.shape[1]), "tt.constancy": 0}.get(name)
    kept = (rows[:, 0] % run == 0) if steps is None else (rows == rows[:, :1] + steps).all(1)
    assert kept.all(), f"{name} of {run} promised of {rows[~kept][0]}"


def _as_float(values: Any) -> Any:
    """The interpreter holds bfloat16 as bits, and would multiply these."""
    if values.dtype.scalar != tl.bfloat16:
        return values
    return interpreter.TensorHandle((values.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Kernels started inside raise where they touch what is not theirs; needs ``TRITON_INTERPRET=1`` from the start.

    A pointer may reach the tensor alone that it was made from, not another one that lies beside it.
    """
    launch = _Launch()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    convert, load, store = interpreter._implicit_cvt, builder.create_masked_load, builder.create_masked_store
    start, hint, dot = executor._init_args_hst, interpreter.TensorHandle.set_attr, builder.create_dot

    def start_checked(self: Any, *arguments: Any) -> Any:
        launch.__init__()  # type: ignore[misc]
        return start(self, *arguments)

    def convert_checked(argument: Any) -> Any:
        converted = convert(argument)
        if isinstance(argument, Tensor):
            converted.handle.data = np.array([launch.take(argument)], dtype=np.uint64)
        return converted

    def hint_checked(self: Any, name: str, runs: list[int]) -> None:
        _check_promise(self.data, name, runs)
        hint(self, name, runs)

    def dot_of_floats(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _as_float(a), _as_float(b), *rest)

    with contextlib.ExitStack() as patches:

        def patch(owner: Any, name: str, new: Any) -> None:
            patches.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)

        patch(executor, "_init_args_hst", start_checked)
        patch(interpreter, "_implicit_cvt", convert_checked)
        patch(interpreter.TensorHandle, "set_attr", hint_checked)
        patch(builder, "create_dot", dot_of_floats)
        patch(builder, "create_masked_load", lambda self, p, m, *rest: load(self, launch.plain(p, m), m, *rest))
        patch(builder, "create_masked_store", lambda self, p, v, m, *rest: store(self, launch.plain(p, m), v, m, *rest))
        yield
