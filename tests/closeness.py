"""How near a fused output must come to the hand-written parallel model.

    |output - exact| / |exact|     exact = the oracle of `parallel` in float64, on the weights as stored

The bound is the rounding of the type, and a small multiple of what the oracle itself loses in that type.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.families import build, example
from tests.parallel import parallel_model

GROUPS = ((0, 1, 2), (3, 4))
"""All that can be fused in a family of `families.FUSED`."""

ROUNDING = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@functools.cache
def oracle(
    family: str,
    dtype: torch.dtype = torch.float32,
    groups: tuple[tuple[int, ...], ...] = GROUPS,
    size: tuple[int, int] = (2, 7),
) -> tuple[Tensor, float]:
    """Return the logits of the parallel model in float64, and the relative error of its own in `dtype`."""
    hand = parallel_model(build(family, dtype=dtype), groups)
    given = example(family, *size)
    rounded = hand(given.to(dtype) if given.is_floating_point() else given)
    exact = hand.double()(given.double() if given.is_floating_point() else given)
    return exact, relative_error(rounded, exact)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return |value - exact| / |exact| in the Frobenius norm."""
    assert value.shape == exact.shape
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def assert_parallel(
    output: Tensor,
    family: str,
    dtype: torch.dtype = torch.float32,
    groups: Sequence[Sequence[int]] = GROUPS,
    size: tuple[int, int] = (2, 7),
) -> None:
    """Hold logits against the oracle's."""
    exact, own = oracle(family, dtype, tuple(map(tuple, groups)), size)
    error = relative_error(output, exact)
    assert error < ROUNDING[dtype]
    assert error < 3 * own
