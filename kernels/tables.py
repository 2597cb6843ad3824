"""Tables of coefficients: numbers by row, prepared once and put on a device once, from which a call takes its rows.

A call with plain tensors of coefficients forms them anew and sends them to the device. One with rows of a table sends
nothing: the kernel looks its row up, by the number that each sample has there already.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from dydiff_kernels.checks import check_per_sample
from dydiff_kernels.dtypes import square_roots


class Coefficients(Protocol):
    """Numbers of several samples or rows, (N,) each: ``Levels``, ``StepCoefficients``, ``Gammas``, ``Numbers``."""

    def checked(self, op: str, batch: int) -> Self:
        """The same in float64, refused where a value is out of range."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed alike, as by taking rows."""

    def columns(self) -> list[Tensor]:
        """Columns of the kernels' table, (N,) float64."""


C = TypeVar("C", bound=Coefficients)


class Numbers(NamedTuple):
    """A table of one column, as weights by timestep."""

    values: Tensor
    """(N,) finite and at least 0."""

    def checked(self, op: str, batch: int) -> "Numbers":
        """As `Coefficients`."""
        return Numbers(check_per_sample(op, "values", self.values, batch, "[0, inf)"))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Numbers":
        """As `Coefficients`."""
        return Numbers(change(self.values))

    def columns(self) -> list[Tensor]:
        """The one column."""
        return [self.values]


class Gammas(NamedTuple):
    """Levels γ̄ of one Dynamics operator."""

    gamma_bar: Tensor
    """(N,) in [0, 1]."""

    def checked(self, op: str, batch: int) -> "Gammas":
        """As `Coefficients`."""
        return Gammas(check_per_sample(op, "gamma_bar", self.gamma_bar, batch, "[0, 1]"))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Gammas":
        """As `Coefficients`."""
        return Gammas(change(self.gamma_bar))

    def columns(self) -> list[Tensor]:
        """√γ̄ and √(1-γ̄)."""
        return list(square_roots(self.gamma_bar))


class CoefficientTable(Generic[C]):
    """Coefficients by row, (N,) each, on the CPU; what devices need of them is kept there.

    Args:
        values: of N rows.
        num_rows: N.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, values: C, num_rows: int):
        self.values, self.num_rows = values.checked("table", num_rows), num_rows
        self._on: dict[torch.device, Tensor] = {}

    def at(self, rows: Tensor | int) -> "TableRows[C]":
        """The row of each sample, (B,) int64 on the tensors' device, or one row for all samples.

        Raises:
            ValueError: another type, or (on the CPU, where a look doesn't wait) a row that is not there.
        """
        if isinstance(rows, Tensor):
            if rows.dtype not in (torch.int64, torch.int32) or rows.ndim != 1:
                raise ValueError(f"rows are {rows.dtype} of shape {tuple(rows.shape)}; expected int64 of shape (B,)")
            if rows.device.type == "cpu" and rows.numel():
                self._check(int(rows.min()), int(rows.max()))
        else:
            self._check(rows, rows)
        return TableRows(self, rows)

    def on(self, device: torch.device) -> Tensor:
        """The kernels' table, (N, columns) float32."""
        if device not in self._on:
            self._on[device] = torch.stack(self.values.columns(), dim=1).to(device, torch.float32).contiguous()
        return self._on[device]

    def _check(self, smallest: int, largest: int) -> None:
        if smallest < 0 or largest >= self.num_rows:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(f"row {wrong} is not in the table; expected 0 to {self.num_rows - 1}")


@dataclass(frozen=True, eq=False)
class TableRows(Generic[C]):
    """What an op takes in the place of coefficients; made by `CoefficientTable.at`."""

    table: CoefficientTable[C]
    rows: Tensor | int

    def checked(self, op: str, batch: int) -> "TableRows[C]":
        """Itself: the table was checked when it was made.

        Raises:
            ValueError: rows of another number of samples.
        """
        if isinstance(self.rows, Tensor) and self.rows.shape != (batch,):
            raise ValueError(f"{op}: rows have shape {tuple(self.rows.shape)}; expected ({batch},), one per sample")
        return self

    def packed(self, batch: int) -> Tensor:
        """The rows of the kernels' table on the CPU, (B, columns) float32."""
        table = self.table.on(torch.device("cpu"))
        if isinstance(self.rows, Tensor):
            return table.index_select(0, self.rows.cpu())
        return table[self.rows].expand(batch, -1).contiguous()


def of_samples(coefficients: C | TableRows[C], like: Tensor) -> C:
    """Coefficients as tensors (B,) float64, from rows of a table too; what references calculate with."""
    if not isinstance(coefficients, TableRows):
        return coefficients
    rows = coefficients.rows
    index = rows.cpu() if isinstance(rows, Tensor) else torch.full((like.shape[0],), rows)
    return coefficients.table.values.each(lambda column: column.index_select(0, index).to(like.device))


def as_operand(coefficients: C | TableRows[C]) -> list[Tensor] | TableRows[C]:
    """Coefficients as an operand of kernels: rows of a table, or columns (B,) float64 of which one is made."""
    return coefficients if isinstance(coefficients, TableRows) else coefficients.columns()


def in_general(coefficients: C | TableRows[C]) -> C:
    """The coefficients themselves or all those of the table, for what is the same in every row."""
    return coefficients.table.values if isinstance(coefficients, TableRows) else coefficients


@lru_cache(maxsize=256)
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A few numbers that come again with every call, (n,) float32; put on the device once. Not to be written to."""
    return torch.tensor(values, dtype=torch.float64).to(device, torch.float32)
