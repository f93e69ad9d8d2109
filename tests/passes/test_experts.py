"""A router's choice is a miss, and nothing else that takes the top of something is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxfuse.passes.chains import find_chains
from tests.passes.graphs import HIDDEN, HandNorm, Layer, Spec, Stack, dynamo, example, find, reasons


class Experts(Layer):
    """x + the top 2 of 4 experts' FFNs, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 4)
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def branch(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        weight, index = torch.topk(self.router(h).softmax(-1), 2)
        every = torch.stack([expert(h) for expert in self.experts], -2)
        chosen = every.gather(-2, index[..., None].expand(2, 3, 2, HIDDEN))
        return (chosen * weight[..., None]).sum(-2)


def test_a_router_is_a_miss() -> None:
    for found in (find(Stack([Experts()])), find_chains(dynamo(Stack([Experts()]), example()))):
        assert not found.singles
        assert "a router chooses experts here (topk): they are not one FFN" in reasons(found).replace(
            "weight", "topk"
        )


def test_neighbours_of_experts_are_still_found() -> None:
    found = find(Stack([Spec(), Spec(), Experts(), Spec()]))
    assert [len(chain.blocks) for chain in found.chains] == [2]
    assert len(found.singles) == 1


def test_topk_of_something_else_is_no_router() -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = HandNorm(Spec())

        def forward(self, x: Tensor) -> Tensor:
            return torch.topk(torch.cumsum(self.norm(x), -1), 2)[0] + torch.topk(x, 2)[0]

    assert find(Top()).misses == ()
