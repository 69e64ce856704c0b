"""Which hidden units to keep, and what the kept ones can say for the others: linear algebra, no module in sight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64
"""Units that are chosen before the residual covariance is brought up to date."""


@dataclass
class Moments:
    """First and second moments of hidden units over samples and positions.

    Attributes:
        count: Rows seen.
        total: Their sum, float64 ``(U,)``.
        products: Sum of their outer products, float64 ``(U, U)``.
    """

    count: Tensor
    total: Tensor
    products: Tensor

    @classmethod
    def zero(cls, units: int) -> Moments:
        """Nothing seen yet."""
        zeros = torch.zeros(units * (units + 1) + 1, dtype=torch.float64)
        return cls(*cls._split(zeros, units))

    @staticmethod
    def _split(flat: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor]:
        return flat[0], flat[1 : 1 + units], flat[1 + units :].view(units, units)

    def add(self, rows: Tensor) -> None:
        """Take in the units' values, ``(M, U)``."""
        rows = rows.detach().float()
        self.count += len(rows)
        self.total += rows.sum(0).double().cpu()
        self.products += (rows.T @ rows).double().cpu()

    def flat(self) -> Tensor:
        """All of it in one vector, so that ranks add theirs up in one go."""
        return torch.cat([self.count.view(1), self.total, self.products.flatten()])

    @classmethod
    def from_flat(cls, flat: Tensor) -> Moments:
        """Inverse of :meth:`flat`."""
        units = int((len(flat) - 1) ** 0.5)
        return cls(*cls._split(flat, units))

    def second(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Mean ``(U,)`` and covariance ``(U, U)``; not centred: zero and the plain second moment."""
        mean, second = self.total / self.count, self.products / self.count
        return (mean, second - torch.outer(mean, mean)) if centred else (torch.zeros_like(mean), second)


def greedy_order(second: Tensor, weights: Tensor, fixed: int = 0) -> list[int]:
    """Units in the order in which each explains most of what is left of the consumer's output.

    With residual covariance R (given the units taken before) and outgoing weights W, unit u explains
    ``||R[u] W||^2 / R[u, u]``; that is orthogonal matching pursuit, by pivoted Cholesky steps.

    Args:
        second: Covariance of the units, ``(U, U)``.
        weights: Outgoing weights, ``(U, K)``.
        fixed: The first so many units are taken beforehand, in their own order.

    Returns:
        All units, the fixed ones first.

    Example:
        >>> greedy_order(torch.eye(3), torch.tensor([[1.0], [3.0], [2.0]]))
        [1, 2, 0]
    """
    rest = second.double().clone()
    explained = rest @ weights.double()
    variance = rest.diagonal().clone()
    floor = 1e-9 * variance.clamp(min=0).mean().clamp(min=torch.finfo(torch.float64).tiny)
    open_ = torch.ones(len(rest), dtype=torch.bool)
    order: list[int] = []
    while len(order) < len(rest):
        panel = rest.new_zeros(len(rest), min(_BLOCK, len(rest) - len(order)))
        for column in panel.T:  # what the units of this block explain is taken from `rest` at its end, all at once
            unit = len(order) if len(order) < fixed else _best(explained, variance, open_, floor)
            order.append(unit)
            open_[unit] = False
            if variance[unit] > floor:
                column.copy_((rest[unit] - panel @ panel[unit]) / variance[unit].sqrt())
                explained -= torch.outer(column, explained[unit] / column[unit])
                variance -= column.square()
        rest.addmm_(panel, panel.T, alpha=-1)
    return order


def _best(explained: Tensor, variance: Tensor, open_: Tensor, floor: Tensor) -> int:
    """The open unit that explains most of what is left."""
    gain = explained.square().sum(1) / variance.clamp(min=floor)
    gain[variance <= floor] = 0  # a combination of the units taken before
    return int(torch.where(open_, gain, -1.0).argmax())


def stand_in(mean: Tensor, second: Tensor, keep: list[int], drop: list[int], ridge: float) -> tuple[Tensor, Tensor]:
    """What the kept units can say for the dropped ones, by ridge least squares: ``h_drop ~ T^T h_keep + m``.

    Args:
        mean: Mean of each unit, ``(U,)``.
        second: Covariance, ``(U, U)``.
        keep: The kept units.
        drop: The dropped ones.
        ridge: Added to the variance of each kept unit, as a share of it.

    Returns:
        ``T``, ``(keep, drop)``, and ``m``, ``(drop,)``.
    """
    if not keep:
        return second.new_zeros(0, len(drop)), mean[drop]
    kept = second[keep][:, keep].clone()
    floor = torch.finfo(kept.dtype).eps * kept.diagonal().max().clamp(min=torch.finfo(kept.dtype).tiny)
    kept.diagonal().mul_(1 + ridge).add_(floor)
    table = torch.linalg.solve(kept, second[keep][:, drop])
    return table, mean[drop] - table.T @ mean[keep]


def fold(weight: Tensor, table: Tensor, keep: list[int], drop: list[int]) -> Tensor:
    """Outgoing weights that give, from the kept units alone, what the dropped ones gave.

    Args:
        weight: ``(rows, U, taps)``: taps are a kernel's elements, or positions behind a flatten.
        table: ``(keep, drop)``, of :func:`stand_in`.
        keep: The kept units.
        drop: The dropped ones; their weights become zero.

    Returns:
        Same shape as ``weight``.
    """
    folded = weight.clone()
    folded[:, keep] += torch.einsum("kd,rdt->rkt", table.to(weight.dtype), weight[:, drop])
    folded[:, drop] = 0
    return folded


def candidate_widths(most: int) -> list[int]:
    """Numbers of units to try: 0, 1, 2, 3, 4, 6, 8, 12, 16, ... and all of them.

    Example:
        >>> candidate_widths(20)
        [0, 1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    steps = {0, 1}
    power = 2
    while power <= most:
        steps |= {power, power * 3 // 2}
        power *= 2
    return sorted({step for step in steps if step <= most} | {most})
