"""FFNs of a traced graph as modules, so that ranks can share them: `program.module()` of torch.export.

    linear(h, W_gate) ─ act ─ mul ─ linear(., W_down)      stored weights and calls
    becomes                                                     fxfuse_ffn_0.gate_proj(h) ...  nn.Linear

The products are found by what the graph computes, so a wide FFN that fxfuse wrote is one like any other; the
halves of a packed product become two. Attentions of a graph stay whole on every rank: heads stand in it as
numbers of reshapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.fx.rewrite import remove_unread
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block

__all__ = ["name_products"]


def name_products(module: fx.GraphModule) -> int:
    """Write the FFNs of `module` as modules, in place; returns how many."""
    view = FxView(module, {})
    found = find_chains(view)
    blocks = [*(block for chain in found.chains for block in chain.blocks), *found.singles]
    count = 0
    for block in blocks:
        products = _products(view, block)
        if products is not None:
            _write(module, f"fxfuse_ffn_{count}", products)
            count += 1
    if count:
        remove_unread(module.graph, {value for block in blocks for value in block.interior})
        _forget_weights(module)
        module.graph.lint()
        module.recompile()
    return count


class _Product:
    """A linear call with stored weights, or some rows of one, and the value that it gives."""

    def __init__(self, view: FxView, value: fx.Node, call: fx.Node, rows: slice) -> None:
        arguments: list[Any] = [*call.args, call.kwargs.get("bias")]
        source, weight, bias, *_ = arguments
        self.value, self.source = value, source
        self.weight = view.stored(weight)[rows]
        self.bias = None if bias is None else view.stored(bias)[rows]

    def module(self) -> nn.Linear:
        """The same as a module, over the same memory where all rows are meant."""
        width, size = self.weight.shape
        made = nn.Linear(size, width, bias=self.bias is not None, device="meta", dtype=self.weight.dtype)
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                setattr(made, name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
        return made


def _products(view: FxView, block: Block) -> dict[str, _Product] | None:
    """gate, up and down of a block; None where one is no call of linear on stored weights."""
    activation = block.ffn.activation
    leaves = {"gate_proj": activation.gate, "up_proj": activation.up}
    if activation.up is None:
        leaves = {"up_proj": activation.gate}
    found = {name: _first(view, leaf) for name, leaf in leaves.items()}
    down = _last(view, activation.output)
    if down is None or None in found.values():
        return None
    return {**{name: each for name, each in found.items() if each is not None}, "down_proj": down}


def _first(view: FxView, value: Any) -> _Product | None:
    call, rows = value, slice(None)
    op = view.op(value)
    if op is not None and op.kind == "part":
        call, rows = op.inputs[0], slice(op.attrs["start"], op.attrs["stop"])
    return _Product(view, value, call, rows) if _is_linear(view, call) else None


def _last(view: FxView, value: Any) -> _Product | None:
    calls = [user for user in value.users if _is_linear(view, user)]
    return _Product(view, calls[0], calls[0], slice(None)) if len(calls) == 1 else None


def _is_linear(view: FxView, node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function" or name_of(node) != "linear":
        return False
    weights = [*node.args[1:], *(node.kwargs[name] for name in ("weight", "bias") if name in node.kwargs)]
    stored = all(each is None or _is_stored(view, each) for each in weights)
    return stored and len(node.args) > 1


def _is_stored(view: FxView, node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and isinstance(view.stored(node), torch.Tensor)


def _write(module: fx.GraphModule, path: str, products: dict[str, _Product]) -> None:
    holder = nn.Module()
    module.add_submodule(path, holder)
    for name, product in products.items():
        holder.add_module(name, product.module())
        with module.graph.inserting_before(product.value):
            call = module.graph.call_module(f"{path}.{name}", (product.source,))
        call.meta = dict(product.value.meta)
        product.value.replace_all_uses_with(call)


def _forget_weights(module: fx.GraphModule) -> None:
    """Drop stored weights that no call reads any more."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in module.graph.nodes if node.op == "call_module")
    for name, _ in list(module.named_parameters()):
        if name not in read and not name.startswith(called):
            owner = module.get_submodule(name.rpartition(".")[0])
            delattr(owner, name.rpartition(".")[2])
