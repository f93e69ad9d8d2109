"""One copy of the weights: the parameters of fused blocks become views of the wide ones.

    gate_i = wide.gate[rows of i]      up_i = wide.up[rows of i]      down_i = wide.down[:, columns of i]

The wide weights have the gains folded in, so the norms' own gains become neutral (1, or 0 where the model
adds 1) and a norm's bias moves into the product's: the model stays the same function, under the same names.
What is written into a parameter is then written into the wide weight; what cannot be (a gain, a tensor put in
the place of a parameter) is noticed and brought back in.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxfuse.guards import can_restride, restride
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.quantised.objections import is_quantised
from fxfuse.passes.records import Block, Linear, Value
from fxfuse.passes.weights import Weights, Wide, affine, sources

__all__ = ["Shared", "adopted", "objection"]

_ROLES = ("gate", "up", "down")


@dataclass
class Shared:
    """What is shared in one group: parts of its wide weights, by the placeholder of the parameter.

    fills: the value of each gain (and norm bias) that leaves the norm as it is. biases: parts of the wide
    biases that a product's own bias has to be equal to, since its norm's bias went into it.
    """

    slices: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    fills: dict[fx.Node, float] = field(default_factory=dict)
    biases: dict[fx.Node, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, view: FxView, blocks: Sequence[Block], wide: Wide) -> Shared:
        """What would be shared with `wide`."""
        shared, stop = cls(), 0
        for block in blocks:
            start, stop = stop, stop + block.intermediate_size
            for role, linear in _linears(block):
                matrix, bias = getattr(wide, role), getattr(wide, f"{role}_bias")
                part = matrix[:, start:stop] if role == "down" else matrix[start:stop]
                shared.slices[_node(linear.weight)] = part.T if linear.transposed else part
                if role != "down" and _adds(block):
                    shared.biases[_node(linear.steps[0].operand)] = bias[start:stop]
            shared.fills |= _fills(view, block) or {}
        return shared

    @classmethod
    def held(cls, view: FxView, blocks: Sequence[Block], weights: Weights) -> Shared | None:
        """What is shared already, where all of the parameters are such views."""
        if not isinstance(weights, Wide) or adopted(view, blocks) is None:
            return None
        shared = cls.of(view, blocks, weights)
        held = all(_is_same(view.weights[node], part) for node, part in shared.slices.items())
        return shared if held else None

    def join(self, view: FxView) -> None:
        """Make the parameters views, one after the other, so that each one's own memory is free at once."""
        for node, part in self.slices.items():
            restride(node, part)
            view.weights[node].data = part
        self.neutralise(view)

    @torch.no_grad()
    def rejoin(self, view: FxView) -> None:
        """Copy parameters that were replaced into the wide weights, and make views of them again."""
        for node, part in self.slices.items():
            parameter = view.weights[node]
            if not _is_same(parameter, part):
                part.copy_(parameter)
                parameter.data = part

    @torch.no_grad()
    def neutralise(self, view: FxView) -> None:
        """After the wide weights were written: what was folded into them must not be applied again."""
        for node, part in self.biases.items():
            view.weights[node].copy_(part)
        for node, value in self.fills.items():
            if not bool((view.weights[node] == value).all()):
                view.weights[node].fill_(value)


def objection(view: FxView, blocks: Sequence[Block], weights: Weights) -> str | None:
    """Why the parameters of `blocks` cannot become views of `weights`; None where they can.

    `view` is of the graph in which the group was fused already, so that whatever still reads a parameter of
    it is outside of the group.
    """
    if not isinstance(weights, Wide):
        return "its packed product is cut into slices"
    if any(is_quantised(view, block) for block in blocks):
        return "its weights are quantised"
    for block in blocks:
        for role, linear in _linears(block):
            reason = _of_product(view, linear, getattr(weights, role))
            if reason is not None:
                return f"the {role} weight of {block.name} {reason}"
        reason = _of_norm(view, block)
        if reason is not None:
            return f"the norm of {block.name} {reason}"
    reason = _of_others(view, blocks)
    if reason is None and not all(
        can_restride(node, view.weights[node], part)
        for node, part in Shared.of(view, blocks, weights).slices.items()
    ):
        reason = "this version of torch does not let a parameter's strides change while it compiles"
    return reason


def adopted(view: FxView, blocks: Sequence[Block]) -> Wide | None:
    """The wide weights that the parameters of `blocks` are views of already, in this order; biases apart."""
    if any(linear.rows is not None for block in blocks for _, linear in _linears(block)):
        return None
    if any(
        is_quantised(view, block) or not _is_neutral(view, block) or _of_norm(view, block) for block in blocks
    ):
        return None
    matrices = {}
    for role, _ in _linears(blocks[0]):
        linears = [getattr(block.ffn, role) for block in blocks]
        parts = [_oriented(view, linear) for linear in linears]
        whole = _joined([each for each in parts if each is not None], 1 if role == "down" else 0)
        if whole is None or None in parts:
            return None
        matrices[role] = whole
    return Wide(matrices["gate"], matrices.get("up"), matrices["down"])


def _oriented(view: FxView, linear: Linear) -> torch.Tensor | None:
    """The stored weight as [out, in]; None where it is computed from something, or multiplied afterwards."""
    if linear.weight not in view.weights or any(step.kind != "add" for step in linear.steps):
        return None
    tensor = view.weights[_node(linear.weight)].detach()
    return tensor.T if linear.transposed else tensor


def _joined(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor | None:
    """The matrix that `parts` are pieces of, one after the other along `axis`, if there is one."""
    first = parts[0]
    place, size = first.data_ptr(), 0
    for part in parts:
        same = part.dtype == first.dtype and part.stride() == first.stride() and part.dim() == 2
        if not same or part.shape[1 - axis] != first.shape[1 - axis] or part.data_ptr() != place:
            return None
        place += part.shape[axis] * part.stride(axis) * part.element_size()
        size += part.shape[axis]
    storage = first.untyped_storage()
    if len(parts) < 2 or any(part.untyped_storage().data_ptr() != storage.data_ptr() for part in parts):
        return None
    shape = list(first.shape)
    shape[axis] = size
    # No view of a tensor: tracers would follow it to its base.
    whole = torch.empty(0, dtype=first.dtype, device=first.device)
    return whole.set_(storage, first.storage_offset(), shape, first.stride())


def _of_product(view: FxView, linear: Linear, matrix: torch.Tensor) -> str | None:
    if linear.rows is not None:
        return "is a part of a packed one, whose other parts lie elsewhere in the wide weights"
    if any(step.kind != "add" for step in linear.steps):
        return "is multiplied by a constant after its product"
    tensor = view.weights.get(_node(linear.weight)) if isinstance(linear.weight, fx.Node) else None
    if tensor is None:
        return "is no parameter but computed from one"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_inference():
        return "is a tensor of another kind, or was made in inference mode"
    if (tensor.dtype, tensor.device) != (matrix.dtype, matrix.device):
        return "has another type or device than the wide one"
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        return "is itself a part of a larger tensor"
    return None


def _of_norm(view: FxView, block: Block) -> str | None:
    if _fills(view, block) is None:
        return "has a gain that no value of its parameters makes neutral"
    if not _adds(block):
        return None
    for role, linear in _linears(block):
        own = [step.operand for step in linear.steps]
        if role != "down" and not (len(own) == 1 and own[0] in view.weights):
            return f"has a bias, and the {role} product has none that could take it over"
    return None


def _of_others(view: FxView, blocks: Sequence[Block]) -> str | None:
    """Whether something outside of the group would see its parameters change."""
    nodes = [_node(linear.weight) for block in blocks for _, linear in _linears(block)]
    nodes += [node for block in blocks for node in _fills(view, block) or {}]
    read = next((node for node in nodes if node.users), None)
    if read is not None:
        return f"{read.name} is also read outside of the group"
    own = set(nodes)
    memory = {view.weights[node].untyped_storage().data_ptr() for node in own}
    tied = next((n for n, t in view.weights.items() if n not in own and _memory(t) in memory), None)
    if tied is not None:
        return f"a weight shares its memory with {tied.name}"
    held = _holders([view.weights[node] for node in own])
    if any(count > 1 for count in held.values()):
        return "one of its parameters belongs to several modules"
    return None


def _holders(tensors: Sequence[torch.Tensor]) -> dict[int, int]:
    """How many modules of this process hold each parameter, by the parameter's id."""
    held = {id(tensor): 0 for tensor in tensors}
    for each in gc.get_objects():
        kind = type(each)
        if issubclass(kind, torch.nn.Module) and not issubclass(kind, fx.GraphModule):
            for parameter in each.__dict__.get("_parameters", {}).values():
                if id(parameter) in held:
                    held[id(parameter)] += 1
    return held


def _fills(view: FxView, block: Block) -> dict[fx.Node, float] | None:
    """The values of its parameters that make a norm's gain 1 and its bias 0; None if none are known."""
    found: dict[fx.Node, float] = {}
    for value in _gain_sources(view, block):
        if not isinstance(value, fx.Node) or value not in view.weights:
            return None
        found[value] = 0.0
    held = {node: view.weights[node] for node in found}
    with torch.no_grad():
        for node, tensor in held.items():  # each alone: a gain of 1, a bias of 0, a gain that is 1 + w
            for value in (1.0, 0.0):
                view.weights |= {other: torch.full_like(each, found[other]) for other, each in held.items()}
                view.weights[node] = torch.full_like(tensor, value)
                found[node] = value
                if _is_neutral(view, block):
                    break
    view.weights |= {node: torch.full_like(tensor, found[node]) for node, tensor in held.items()}
    neutral = _is_neutral(view, block)
    view.weights |= held
    return found if neutral else None


def _is_neutral(view: FxView, block: Block) -> bool:
    device = next(iter(view.weights.values())).device
    scale, offset = affine(view, block.norm.gain, block.hidden_size, device)
    return bool((scale == 1).all()) and not bool(offset.any())


def _gain_sources(view: FxView, block: Block) -> list[Value]:
    """The stored tensors that the norm's gain and bias are computed from."""
    products = [linear for _, linear in _linears(block)]
    others = {linear.weight for linear in products} | {s.operand for each in products for s in each.steps}
    return [value for value in sources(view, [block]) if value not in others]


def _adds(block: Block) -> bool:
    return any(step.kind == "add" for step in block.norm.gain)


def _linears(block: Block) -> Iterable[tuple[str, Linear]]:
    return [(role, each) for role in _ROLES if (each := getattr(block.ffn, role)) is not None]


def _is_same(tensor: torch.Tensor, part: torch.Tensor) -> bool:
    return tensor.data_ptr() == part.data_ptr() and tensor.stride() == part.stride()


def _memory(tensor: Any) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value
