"""Graphs as dynamo captures them for a torch.compile backend: parameters are inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph
from fxfuse.one_copy import adopted
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form
from fxfuse.passes.fx.decode import kernels_fit, sums_fit
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block
from fxfuse.passes.storing import Stored
from fxfuse.passes.weights import biased_roles, refill, sources

__all__ = ["DynamoGraph"]


class DynamoGraph(TorchGraph):
    """A front end over a dynamo graph: weights are the placeholders that dynamo lifted from modules."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        placeholders = module.graph.find_nodes(op="placeholder")
        weights = {
            node: value for node, value in zip(placeholders, inputs, strict=True) if _is_weight(node, value)
        }
        super().__init__(module, inputs, weights)

    def objection(self) -> str | None:
        """Why this graph is compiled as it is; None where it may be fused."""
        if any(isinstance(value, FakeTensor) for value in self._inputs.values()):
            return "the example inputs hold no data (fake tensors), so nothing can be measured on them"
        if any(torch.is_autocast_enabled(tensor.device.type) for tensor in self.weights.values()):
            return "autocast is on: convert the model, as in model.to(torch.bfloat16), instead"
        trained = self._trained() if torch.is_grad_enabled() else None
        if trained is not None:
            return (
                f"the weights of {trained} require gradients, which their wide copy would not pass on: call "
                "model.requires_grad_(False), or run under torch.no_grad()"
            )
        return None

    def _trained(self) -> str | None:
        """The first block of a chain with a weight that requires a gradient; None if there is none."""
        trained = {node for node, tensor in self.weights.items() if tensor.requires_grad}
        chains = find_chains(self.view).chains if trained else ()
        blocks = (block for chain in chains for block in chain.blocks)
        names = (block.name for block in blocks if trained.intersection(sources(self.view, [block])))
        return next(names, None)

    def legal(self, view: FxView, blocks: Sequence[Block], form: Form) -> Form:
        """Kernels and sums where they fit."""
        fits = {"kernel": kernels_fit, "sums": sums_fit}.get(form.products)
        return form if fits is None or fits(view, blocks) else Form()

    def store(self, view: FxView, blocks: Sequence[Block], form: Form) -> Stored:
        """As of any graph, but for parameters that are parts of a wide weight already (see one_copy)."""
        wide = adopted(view, blocks)
        if wide is None or form.packed(blocks[0].gated):
            return super().store(view, blocks, form)
        rows = {"gate": len(wide.gate), "up": len(wide.gate), "down": blocks[0].hidden_size}
        for role in biased_roles(view, blocks):
            setattr(wide, f"{role}_bias", wide.gate.new_zeros(rows[role]))
        refill(view, blocks, wide)
        return Stored(wide.tensors(), [wide])

    def attach(
        self, fused: FusedGraph, weights: Mapping[str, torch.Tensor], index: int
    ) -> dict[str, fx.Node]:
        """Append placeholders, marked as weights for the inner backend."""
        nodes = {}
        last = fused.module.graph.find_nodes(op="placeholder")[-1]
        for name, tensor in weights.items():
            with fused.module.graph.inserting_after(last):
                last = fused.module.graph.placeholder(f"fxfuse_{index}_{name}")
            last.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
            last._dynamo_source = None
            fused.added[last] = tensor.detach().requires_grad_(False)
            nodes[name] = last
        return nodes

    def weights_of(self, fused: FusedGraph) -> dict[fx.Node, torch.Tensor]:
        """The weights that the fused graph reads, as placeholders of its own."""
        return {**fused.view.weights, **fused.added}


def _is_weight(node: fx.Node, value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, torch.nn.Parameter) or bool(static) or _is_module_number(node, value)


def _is_module_number(node: fx.Node, value: torch.Tensor) -> bool:
    """A float attribute of a module (an eps) that dynamo passes as a tensor under dynamic=True."""
    return value.dim() == 0 and "_modules_" in str(node.target)
