"""Set the down weights of all blocks of a group but one to zero, wherever those weights lie."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import numpy_helper

from fxfuse.external import load_data
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.onnxio import load_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block, Chain
from fxfuse.passes.view import Op, View

__all__ = ["only_one_block"]

_KEEP_ZERO = ("cast", "pass", "transpose", "part", "neg", "abs", "relu", "mul")
"""What makes zero of zeros, where a weight is computed; others cannot be silenced."""


def only_one_block(path: Path, rng: Random) -> Path | None:
    """A copy of the model with one block of each chain left; None where it has no chain, or not of floats."""
    model, folder = load_model(path)
    load_data(model, folder)
    view = read_graph(model, path.parent)
    chains = find_chains(view).chains
    kept = {rng.choice(chain.blocks).name for chain in chains}
    names = {
        name
        for chain in chains
        for block in chain.blocks
        if block.name not in kept
        for name in _added(view, block)
    }
    zeroed = [_zero(model, name) for name in names]
    if not chains or not all(zeroed):
        return None
    silenced = path.with_name("silenced.onnx")
    onnx.save(model, silenced)
    again = find_chains(read_graph(model, path.parent)).chains
    return silenced if _same(chains, again) else None


def _same(chains: tuple[Chain, ...], again: tuple[Chain, ...]) -> bool:
    one, other = ([[block.name for block in chain.blocks] for chain in each] for each in (chains, again))
    return one == other


def _added(view: View, block: Block) -> list[str]:
    """The stored tensors that must be zero for the block to add nothing: its down weight and bias."""
    down = block.ffn.down
    stack: list[object] = [down.weight, *(step.operand for step in down.steps if step.kind == "add")]
    found = []
    while stack:
        value = stack.pop()
        op = value if isinstance(value, Op) else view.op(value) if isinstance(value, str) else None
        if op is not None and op.kind != "Constant":
            keeps_zero = op.kind in _KEEP_ZERO or op.kind.startswith("dequantize")
            stack += op.inputs if keeps_zero else [1.0]
        elif isinstance(value, str):
            found.append(value)
        elif isinstance(value, (int, float)):
            found.append("")  # a literal cannot be zeroed
    return found


def _zero(model: onnx.ModelProto, name: str) -> bool:
    stored = [each for each in model.graph.initializer if each.name == name]
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output:
            stored += [each.t for each in node.attribute if each.name == "value"]
    for tensor in stored:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return bool(stored)
