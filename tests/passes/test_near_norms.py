"""What looks like a norm and is none that can be folded, with the value that speaks against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.norm_places import find_norms
from tests.passes import onnx_graphs
from tests.passes.graphs import HIDDEN, Layer, Stack, example, find, reasons, symbolic


class Written(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(x)


def why(write: Callable[[Tensor], Tensor], x: Tensor | None = None) -> list[str | None]:
    """The reason of every norm found; None for one that is known."""
    x = example() if x is None else x
    return [place.reason for place in find_norms(symbolic(Written(write), x, shapes=True))]


def mean_square(x: Tensor, dim: Any = -1) -> Tensor:
    return x.pow(2).mean(dim, keepdim=True)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda x: x / (mean_square(x).sqrt() + 1e-3),
            "its eps (0.001) is added after the square root, not before",
        ),
        (
            lambda x: x * torch.sigmoid(mean_square(x)),
            "at mean square 1 it divides by 1.36788, which is not the root of mean square + eps",
        ),
        (
            lambda x: x * torch.rsqrt(mean_square(x) + torch.arange(1.0, HIDDEN + 1)),
            "its factor is not computed from the mean square and single numbers alone",
        ),
        (
            lambda x: x * torch.rsqrt(mean_square(x, 1) + 1e-6),
            "its mean of squares (mean) goes over axis 1",
        ),
        (
            lambda x: x * torch.rsqrt(mean_square(x, [1, 2]) + 1e-6),
            "its mean of squares (mean) goes over axes 1, 2",
        ),
        (
            lambda x: (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-6),
            "goes otherwise than over the last axis alone",
        ),
        (
            lambda x: x / x.pow(2).sum(1, keepdim=True),
            "it divides by a sum of squares (sum_1), not by the root of their mean",
        ),
        (
            lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
            "it divides by a length (linalg_vector_norm, an L2 norm), not by the root of a mean square",
        ),
        (lambda x: F.normalize(x, dim=1), "it divides by a length (normalize, an L2 norm)"),
        (
            lambda x: F.layer_norm(x, [3, HIDDEN]),
            "another layer_norm (layer_norm) normalises over axes -2",
        ),
        (
            lambda x: F.group_norm(x, 3),
            "group_norm (group_norm) normalises otherwise than",
        ),
        (lambda x: F.instance_norm(x), "instance_norm (instance_norm) normalises otherwise than over"),
    ],
)
def test_nearly_a_norm(write: Callable[[Tensor], Tensor], reason: str) -> None:
    (found,) = why(write)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x * torch.rsqrt(mean_square(x) + 1e-6),
        lambda x: F.rms_norm(x, [HIDDEN], eps=1e-6) * 2.0,
        lambda x: F.layer_norm(x, [HIDDEN]),
    ],
)
def test_a_norm_is_found_once_and_without_a_reason(write: Callable[[Tensor], Tensor]) -> None:
    assert why(write) == [None]


@pytest.mark.parametrize(
    "write",
    [
        F.silu,
        lambda x: x * torch.sigmoid(x),
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        lambda x: x * x.mean(-1, keepdim=True),
        lambda x: x / 3.0,
        lambda x: torch.linalg.vector_norm(x, dim=1),
    ],
)
def test_what_is_nothing_like_a_norm(write: Callable[[Tensor], Tensor]) -> None:
    assert why(write) == []


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        (
            "LayerNormalization",
            {"axis": 1},
            "(n0) normalises over axis 1 and those after it",
        ),
        ("LpNormalization", {"axis": 1}, "it divides by a length"),
        ("InstanceNormalization", {}, "normalises otherwise than over the last axis alone"),
    ],
)
def test_nearly_a_norm_in_onnx(op: str, attributes: dict[str, int], reason: str) -> None:
    graph = onnx_graphs.Graph()
    ones = graph.weight([1.0] * onnx_graphs.HIDDEN)
    given = {"LpNormalization": [], "InstanceNormalization": [ones, ones]}.get(op, [ones])
    out = graph.node("Relu", graph.node(op, "x", *given, **attributes))
    (place,) = find_norms(onnx_graphs.view_of(graph.model(out)))
    assert place.reason is not None
    assert reason in place.reason


def test_an_ffn_behind_one_says_so() -> None:
    class LateEps(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(x / (mean_square(x).sqrt() + 1e-3))

    told = reasons(find(Stack([LateEps(), LateEps()])))
    assert "what stands before the FFN is no norm that is known: its eps (0.001) is added" in told
