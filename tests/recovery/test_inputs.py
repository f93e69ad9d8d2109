"""g': M = I + C (K + lambda s I)^-1, rows scaled so that second moments match; affine where biases allow."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fxfuse.recovery.inputs import InputMaps, Moments
from tests.closeness import relative_error
from tests.recovery.subjects import STYLES, Group


@pytest.fixture(params=STYLES)
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    made = Group(request.param)
    yield made
    made.store.close()


def unit(group: Group, x: Tensor) -> Tensor:
    """The norm without gain, by hand."""
    x = x.double()
    x = x - x.mean(-1, keepdim=True) if group.blocks[0].norm.kind == "layer" else x
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_the_linear_map_is_ridge_with_matched_second_moments() -> None:
    group = Group("gated")
    x, _, weight = group.rows()
    start, share = unit(group, x), weight / weight.sum()
    for block, moments in zip(group.blocks, InputMaps(group.ffn, group.tokens).moments, strict=True):
        read = unit(group, group.reads(block))
        shift = (1e-2 * (share * start.square()).sum(0).mean()).sqrt()
        rows = torch.cat([start * share.sqrt(), shift * torch.eye(32, dtype=torch.float64)])
        right = torch.cat([(read - start) * share.sqrt(), torch.zeros(32, 32, dtype=torch.float64)])
        plain = torch.eye(32, dtype=torch.float64) + torch.linalg.lstsq(rows, right).solution.T
        matrix, moved = moments.map(1e-2, affine=False)
        mapped = start @ matrix.T
        powers = [(share * each.square()).sum(0) for each in (mapped, read)]
        assert relative_error(powers[0], powers[1]) < 1e-6
        assert not moved.any()
        directions = [torch.nn.functional.normalize(each, dim=-1) for each in (matrix, plain)]
        assert relative_error(*directions) < 1e-6  # a factor for each row
    group.store.close()


@pytest.mark.parametrize("style", ["plain", "biased"])
def test_the_affine_map_matches_mean_and_variance(style: str) -> None:
    group = Group(style)
    x, _, weight = group.rows()
    start, share = unit(group, x), weight / weight.sum()
    for block, moments in zip(group.blocks, InputMaps(group.ffn, group.tokens).moments, strict=True):
        matrix, moved = moments.map(1e-3, affine=True)
        mapped, read = start @ matrix.T + moved, unit(group, group.reads(block))
        means = [(share * each).sum(0) for each in (mapped, read)]
        spreads = [(share * (v - m).square()).sum(0) for v, m in zip((mapped, read), means, strict=True)]
        assert float((means[0] - means[1]).abs().max()) < 1e-6
        assert relative_error(spreads[0], spreads[1]) < 1e-6
    group.store.close()


def test_the_first_block_reads_what_it_read_before(group: Group) -> None:
    """t = n0, so M = I: its rows stay."""
    mapped = InputMaps(group.ffn, group.tokens).apply(group.wide, 1e-2)
    rows = slice(0, group.blocks[0].intermediate_size)
    assert relative_error(mapped.gate[rows], group.wide.gate[rows]) < 1e-6
    assert relative_error(mapped.gate, group.wide.gate) > 0.05


def test_maps_are_folded_into_gate_and_up_and_their_biases(group: Group) -> None:
    """(W M) n0 + (W m + b) = W (M n0 + m) + b, block by block; down stays, and so does every shape."""
    maps = InputMaps(group.ffn, group.tokens)
    mapped = maps.apply(group.wide, 1e-2)
    start = unit(group, group.rows()[0][:50])
    affine = group.wide.gate_bias is not None
    at = 0
    for block, moments in zip(group.blocks, maps.moments, strict=True):
        matrix, moved = moments.map(1e-2, affine=affine)
        rows = slice(at, at + block.intermediate_size)
        for role in ("gate", "up"):
            weight, bias = getattr(group.wide, role), getattr(group.wide, f"{role}_bias")
            if weight is not None:
                expected = (start @ matrix.T + moved) @ weight[rows].double().T
                found = start @ getattr(mapped, role)[rows].double().T
                if bias is not None:
                    expected = expected + bias[rows].double()
                    found = found + getattr(mapped, f"{role}_bias")[rows].double()
                assert relative_error(found, expected) < 1e-6
        at += block.intermediate_size
    assert mapped.down is group.wide.down
    shapes = [{n: t.shape for n, t in wide.tensors().items()} for wide in (mapped, group.wide)]
    assert shapes[0] == shapes[1]


def test_a_large_penalty_leaves_only_the_scale() -> None:
    """lambda -> infinity: M -> diag(sqrt(E[t_c^2] / E[n0_c^2]))"""
    gram = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    zero = torch.zeros(2, dtype=torch.float64)
    power = torch.tensor([4.0, 1.0], dtype=torch.float64)
    matrix, _ = Moments(gram, zero, torch.ones_like(gram), zero, power).map(1e12, affine=False)
    assert relative_error(matrix, torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))) < 1e-9


def test_a_channel_that_is_always_zero_stays() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    zero = torch.zeros(2, dtype=torch.float64)
    matrix, _ = Moments(gram, zero, torch.zeros_like(gram), zero, gram.diagonal()).map(1e-3, affine=False)
    assert torch.equal(matrix, torch.eye(2, dtype=torch.float64))
