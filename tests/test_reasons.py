"""Reasons told outside of the matcher: graphs that are declined, blocks that stand alone, the log's line."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxfuse.frontends.dynamo_graph import DynamoGraph
from fxfuse.passes.chains import find_chains
from fxfuse.report import Report
from tests import exporters
from tests.passes.graphs import Spec, Stack, example, symbolic


def front(model: nn.Module, *, fake: bool = False) -> DynamoGraph:
    """A dynamo graph of `model`, with inputs that hold data or that do not."""
    graph, inputs = exporters.dynamo_graph(model, example())
    if fake:
        mode = FakeTensorMode()
        inputs = [mode.from_tensor(each.detach()) for each in inputs]
    return DynamoGraph(graph, inputs)


def test_fake_inputs_are_declined() -> None:
    reason = front(Stack([Spec(), Spec()]), fake=True).objection()
    assert reason == "the example inputs hold no data (fake tensors), so nothing can be measured on them"


def test_autocast_is_declined() -> None:
    graph = front(Stack([Spec(), Spec()]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reason = graph.objection()
    assert reason == "autocast is on: convert the model, as in model.to(torch.bfloat16), instead"


def test_trainable_weights_are_declined() -> None:
    graph = front(Stack([Spec(), Spec()]).requires_grad_(True))
    with torch.enable_grad():
        assert graph.objection() == (
            "the weights of layers.0.mlp require gradients, which their wide copy would not pass on: call "
            "model.requires_grad_(False), or run under torch.no_grad()"
        )
    assert graph.objection() is None or torch.is_grad_enabled()


def test_a_block_alone_is_told() -> None:
    report = Report("m")
    report.add_found(find_chains(symbolic(Stack([Spec()]), example(), shapes=True)))
    (miss,) = report.misses
    assert miss.reason == (
        "the block stands alone: attention or something else stands between it and every other FFN block"
    )
    assert report.summary() == "fxfuse: nothing fused (chains found: none; 1 misses)"
