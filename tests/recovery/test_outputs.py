"""h: D + [(A'A + lambda s I)^-1 A'(Y - A D')]' by three roads, held against least squares on stacked rows."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxfuse.recovery.gram import Gram, mirror, symmetric_sum
from fxfuse.recovery.solvers import Blocks, Direct, Gradients, choose_solver
from tests.closeness import relative_error
from tests.recovery.subjects import STYLES, Group


@pytest.fixture(params=STYLES)
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    made = Group(request.param)
    yield made
    made.store.close()


def weighted(group: Group) -> tuple[Tensor, Tensor]:
    """A and Y - A D' - d, their rows multiplied by sqrt(w)."""
    x, end, weight = group.rows()
    inner = group.ffn.inner(group.wide, group.ffn.unit(x.float())).double()
    bias = 0.0 if group.wide.down_bias is None else group.wide.down_bias.double()
    missing = end - x - inner @ group.wide.down.double().T - bias
    return inner * weight.sqrt(), missing * weight.sqrt()


def ridge(rows: Tensor, right: Tensor, penalty: float) -> Tensor:
    """Least squares on [A; sqrt(lambda s) I] = [Y; 0], without any Gram matrix."""
    shift = (penalty * rows.square().sum(0).mean()).sqrt()
    stacked = torch.cat([rows, shift * torch.eye(rows.shape[1], dtype=rows.dtype)])
    target = torch.cat([right, right.new_zeros(rows.shape[1], right.shape[1])])
    return torch.linalg.lstsq(stacked, target).solution


def close(found: Tensor | None, expected: Tensor, tolerance: float) -> None:
    assert found is not None
    assert relative_error(found, expected) < tolerance


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
def test_direct_is_the_ridge_solution(group: Group, penalty: float) -> None:
    rows, right = weighted(group)
    close(Direct(group.ffn, group.tokens, group.wide).solve(penalty), ridge(rows, right, penalty), 1e-6)


def objective(rows: Tensor, right: Tensor, found: Tensor | None, penalty: float) -> float:
    """|right - A E'|^2 + lambda s |E|^2, what h minimises."""
    assert found is not None
    shift = penalty * rows.square().sum(0).mean()
    return float((right - rows @ found).square().sum() + shift * found.square().sum())


def test_gradients_come_to_the_direct_solution(group: Group) -> None:
    rows, right = weighted(group)
    solver = Gradients(group.ffn, group.tokens, group.wide, iterations=60)
    for penalty in (1.0, 0.1):  # from the largest down, each from where the last one ended
        close(solver.solve(penalty), ridge(rows, right, penalty), 1e-4)


def test_blocks_come_to_the_direct_solution(group: Group) -> None:
    rows, right = weighted(group)
    solver = Blocks(group.ffn, group.tokens, group.wide, sweeps=20, memory=1 << 30)
    for penalty in (10.0, 1.0):
        close(solver.solve(penalty), ridge(rows, right, penalty), 1e-2)
    solver.close()


@pytest.mark.parametrize("name", ["blocks", "gradients"])
def test_what_few_passes_find_gains_nearly_as_much(group: Group, name: str) -> None:
    """Where the matrix is ill conditioned the solution is far away, but what it gains is not."""
    rows, right = weighted(group)
    given = (group.ffn, group.tokens, group.wide)
    solver = (
        Blocks(*given, sweeps=4, memory=1 << 30) if name == "blocks" else Gradients(*given, iterations=20)
    )
    for penalty in (1.0, 0.1, 1e-2):
        found = solver.solve(penalty)
    start, best = float(right.square().sum()), objective(rows, right, ridge(rows, right, 1e-2), 1e-2)
    assert start - objective(rows, right, found, 1e-2) > 0.95 * (start - best)
    solver.close()


def test_blocks_without_memory_for_their_matrices_give_the_same() -> None:
    group = Group()
    kept, made = (Blocks(group.ffn, group.tokens, group.wide, 3, memory) for memory in (1 << 30, 0))
    first, second = kept.solve(1e-2), made.solve(1e-2)
    assert first is not None
    close(second, first, 1e-12)
    group.store.close()


def test_a_gram_matrix_is_summed_in_float64() -> None:
    group = Group()
    rows, right = weighted(group)
    gram = Gram(group.ffn, group.tokens, group.wide)
    assert gram.matrix.dtype == gram.moment.dtype == torch.float64
    close(gram.matrix, rows.T @ rows, 1e-12)
    close(gram.moment, rows.T @ right, 1e-9)
    group.store.close()


def test_panels_make_the_whole_product() -> None:
    rows = torch.randn(50, 2500, dtype=torch.float64)
    total = torch.zeros(2500, 2500, dtype=torch.float64)
    symmetric_sum(total, rows)
    mirror(total)
    close(total, rows.T @ rows, 1e-12)


def test_a_matrix_that_is_not_positive_definite_has_no_solution() -> None:
    group = Group()
    solver = Direct(group.ffn, group.tokens, group.wide)
    solver.gram.matrix = -solver.gram.matrix
    assert solver.solve(1e-3) is None
    group.store.close()


def test_weights_that_fit_already_stay() -> None:
    """Y = A (D + E)': from D + E, h finds nothing to correct."""
    group = Group()
    found = Direct(group.ffn, group.tokens, group.wide).solve(1e-9)
    assert found is not None
    better = replace(group.wide, down=(group.wide.down.double() + found.T).float())
    again = Direct(group.ffn, group.tokens, better).solve(1e-9)
    assert again is not None
    assert float(again.norm()) < 1e-3 * float(found.norm())
    group.store.close()


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(8 * 100**2, "direct"), (8 * 100**2 - 1, "blocks"), (8 * 60**2, "blocks"), (8 * 60**2 - 1, "gradients")],
)
def test_the_solver_follows_the_memory(memory: int, expected: str) -> None:
    assert choose_solver([40, 60], "auto", memory) == expected
    assert choose_solver([40, 60], "gradients", memory) == "gradients"
