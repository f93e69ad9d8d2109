"""Three ways to solve for h: the correction E [hidden, width] of the down projection.

    (A'A + lambda s I) E' = A'R            s: the mean of A'A's diagonal

The penalty pulls towards the weights there are, never towards 0.

    Direct     one Cholesky factor; the matrix takes 8 width^2 bytes
    Blocks     Gauss-Seidel: one FFN of the group at a time on the residual that the others leave
    Gradients  conjugate gradients over all columns at once, preconditioned by the diagonal; no matrix at all

The two iterative ones go on from where the last penalty left them: take penalties from the largest down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fxfuse.passes.weights import Wide
from fxfuse.progress import Progress, silent
from fxfuse.recovery.ffn import WideFfn, rows_of
from fxfuse.recovery.gram import Gram, inner_rows, mirror, residual_rows, symmetric_sum
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["Blocks", "Direct", "Gradients", "OutputSolver", "choose_solver"]


class OutputSolver(Protocol):
    """Solves for h at one penalty after the other."""

    name: str

    def solve(self, penalty: float) -> torch.Tensor | None:
        """E' [width, hidden] in float64; None where rounding leaves nothing to solve."""

    def close(self) -> None:
        """Free what was kept."""


def choose_solver(widths: Sequence[int], wish: str, memory: int) -> str:
    """The solver for FFNs of these widths: `wish`, or for "auto" the first that fits into `memory` bytes."""
    if wish != "auto":
        return wish
    if 8 * sum(widths) ** 2 <= memory:
        return "direct"
    return "blocks" if 8 * max(widths) ** 2 <= memory else "gradients"


class Direct:
    """One Gram matrix, factored anew for each penalty."""

    name = "direct"

    def __init__(self, ffn: WideFfn, tokens: GroupTokens, wide: Wide, progress: Progress = silent) -> None:
        self.gram = Gram(ffn, tokens, wide, progress)

    def solve(self, penalty: float) -> torch.Tensor | None:
        """See `OutputSolver.solve`."""
        return _solve(self.gram.matrix, self.gram.moment, penalty * self.gram.scale)

    def close(self) -> None:
        """See `OutputSolver.close`."""


class Blocks:
    """Block Gauss-Seidel; each sweep passes once over the tokens for each FFN of the group."""

    name = "blocks"

    def __init__(self, ffn: WideFfn, tokens: GroupTokens, wide: Wide, sweeps: int, memory: int) -> None:
        self.ffn, self.tokens, self.sweeps = ffn, tokens, sweeps
        self._known: dict[int, torch.Tensor] = {}
        stops = [0]
        for block in tokens.blocks:
            stops.append(stops[-1] + block.intermediate_size)
        self.rows = [slice(start, stop) for start, stop in zip(stops, stops[1:], strict=False)]
        self.parts = [rows_of(wide, rows) for rows in self.rows]
        self.found = torch.zeros_like(wide.down.T, dtype=torch.float64)
        self._keeps = sum(8 * block.intermediate_size**2 for block in tokens.blocks) <= memory
        self.scale = self._begin(wide)

    def solve(self, penalty: float) -> torch.Tensor | None:
        """See `OutputSolver.solve`."""
        for _ in range(self.sweeps):
            for index, rows in enumerate(self.rows):
                matrix, moment = self._matrix(index), self._moment(index)
                own = self.found[rows]
                better = _solve(matrix, moment + matrix @ own, penalty * self.scale)
                if better is None:
                    return None
                self._leave(index, better - own)
                self.found[rows] = better
        return self.found.clone()

    def _begin(self, wide: Wide) -> float:
        """Keep the residual of the weights as they are; returns s."""
        trace = 0.0
        for place in self.tokens.places:
            rows = list(residual_rows(self.ffn, self.tokens, wide, [place]))
            self._put(place, torch.cat([residual for _, residual in rows]))
            trace += sum(float(inner.square().sum()) for inner, _ in rows)
        return trace / wide.down.shape[1]

    def _matrix(self, index: int) -> torch.Tensor:
        """A_i'A_i; kept where all of them fit into the memory."""
        if index in self._known:
            return self._known[index]
        width = self.parts[index].down.shape[1]
        matrix = self.found.new_zeros(width, width)
        for place in self.tokens.places:
            symmetric_sum(matrix, self._inner(index, place))
        mirror(matrix)
        if self._keeps:
            self._known[index] = matrix
        return matrix

    def _moment(self, index: int) -> torch.Tensor:
        """A_i' times the running residual."""
        moment = torch.zeros_like(self.found[self.rows[index]])
        for place in self.tokens.places:
            moment.addmm_(self._inner(index, place).T, self._get(place))
        return moment

    def _leave(self, index: int, change: torch.Tensor) -> None:
        for place in self.tokens.places:
            self._put(place, self._get(place) - self._inner(index, place) @ change)

    def _inner(self, index: int, place: int) -> torch.Tensor:
        return torch.cat([a for a, _ in inner_rows(self.ffn, self.tokens, self.parts[index], place)])

    def _put(self, place: int, residual: torch.Tensor) -> None:
        self.tokens.states.store.put(("residual", id(self)), place, residual)

    def _get(self, place: int) -> torch.Tensor:
        return self.tokens.states.store.get(("residual", id(self)), place)

    def close(self) -> None:
        """See `OutputSolver.close`."""
        self.tokens.states.store.drop(("residual", id(self)))


class Gradients:
    """Conjugate gradients on the normal equations, one pass over the tokens for each iteration."""

    name = "gradients"

    def __init__(self, ffn: WideFfn, tokens: GroupTokens, wide: Wide, iterations: int) -> None:
        self.ffn, self.tokens, self.wide, self.iterations = ffn, tokens, wide, iterations
        self.found = torch.zeros_like(wide.down.T, dtype=torch.float64)
        self.moment, self.diagonal = torch.zeros_like(self.found), self.found.new_zeros(len(self.found))
        for inner, residual in residual_rows(ffn, tokens, wide):
            self.moment.addmm_(inner.T, residual)
            self.diagonal += inner.square().sum(0)

    def solve(self, penalty: float) -> torch.Tensor | None:
        """See `OutputSolver.solve`."""
        shift = penalty * float(self.diagonal.mean())
        inverse = (self.diagonal + shift).reciprocal().unsqueeze(-1)
        left = self.moment - self._times(self.found, shift)
        direction = inverse * left
        size = (left * direction).sum(0)
        target = 1e-20 * (self.moment * inverse * self.moment).sum(0)
        for _ in range(self.iterations):
            if bool((size <= target).all()):
                break
            image = self._times(direction, shift)
            step = _ratio(size, (direction * image).sum(0))
            self.found = self.found + step * direction
            left = left - step * image
            before, size = size, (left * inverse * left).sum(0)
            direction = inverse * left + _ratio(size, before) * direction
        return self.found.clone()

    def close(self) -> None:
        """See `OutputSolver.close`."""

    def _times(self, vector: torch.Tensor, shift: float) -> torch.Tensor:
        total = shift * vector
        for place in self.tokens.places:
            for inner, _ in inner_rows(self.ffn, self.tokens, self.wide, place):
                total.addmm_(inner.T, inner @ vector)
        return total


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Above / below for each column; a column that is solved already stays as it is."""
    return torch.where(below > 0, above / below.clamp(min=1e-300), 0.0)


def _solve(matrix: torch.Tensor, right: torch.Tensor, shift: float) -> torch.Tensor | None:
    """(matrix + shift I)^-1 right; None where the matrix is not positive definite in float64."""
    factor = matrix.clone()
    factor.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(factor)
    return None if int(failed) else torch.cholesky_solve(right, factor)
