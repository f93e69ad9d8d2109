"""Quantise the linear products of a fused torch graph through torchao: int8 weights, float sums.

    linear(x, W, b)   becomes   linear(x, W8 as W's type) * scale + b

torchao rounds the weights; the graph then holds plain tensors and plain operators, so that a program is
saved, loaded and compiled as any other, without torchao.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph, first_call
from fxfuse.passes.records import Miss
from fxfuse.quantisation.judging import QuantisedJudge, decline, kept_notes, over_budget, settle
from fxfuse.quantisation.options import Quantise
from fxfuse.quantisation.products import OVER_BUDGET
from fxfuse.quantisation.records import GroupQuantisation, Quantisation
from fxfuse.quiet import quiet
from fxfuse.report import Report

__all__ = ["QuantisedGraph", "check_torch", "quantise_graph"]

_ATEN = torch.ops.aten
_SLICES = (_ATEN.slice.Tensor, torch.narrow, operator.getitem)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_torch(wish: Quantise) -> None:
    """Refuse what torchao does not offer, before any work is done.

    Raises:
        InputError: The kind is not int8, or torchao is not installed.
    """
    if wish.kind != "int8":
        raise InputError(
            f"A torch graph is quantised to int8 alone, since torchao's {wish.kind} weights run on no CPU: "
            f"take int8, or write ONNX with fxfuse.export_onnx(..., quantize={wish.kind!r})."
        )
    _torchao()


def quantise_graph(
    front: TorchGraph,
    fused: FusedGraph,
    wish: Quantise,
    report: Report,
    budget: Budget,
    progress: Callable[[str], None],
) -> FusedGraph | None:
    """Quantise `fused`, in place; fills `report`. None where that is over the budget.

    A group that min_sqnr does not allow to lose so much keeps its float products; the rest is quantised.

    Raises:
        InputError: No product can be quantised.
        VerificationError: The quantised graph gives NaN or infinity.
    """
    names = [group.blocks for group in report.groups]
    judge = QuantisedJudge(front, fused, names, report.chains[0].blocks[0].hidden_size, budget)
    before = weight_bytes(fused)
    progress(f"quantising to {wish.kind}")
    graph = QuantisedGraph(front, fused, wish)

    def again(kept: Sequence[GroupQuantisation]) -> FusedGraph:
        for group in kept:
            graph.leave(names.index(group.blocks), OVER_BUDGET)
        return fused

    progress("judging what was quantised")
    groups = settle(judge, budget, again)
    if not graph.products:
        decline(report, f"as {wish.kind} no group keeps the budget of {budget.min_sqnr:g} dB")
        return None
    graph.drop_unread()
    report.quantisation = Quantisation(
        wish.kind, graph.products, tuple(graph.left), tuple(groups), **judge.totals(fused),
        bytes_before=before, bytes_after=weight_bytes(fused),
    )  # fmt: skip
    report.notes += kept_notes(report.quantisation, budget)
    if (reason := over_budget(report.quantisation, budget)) is not None:
        decline(report, reason)
        return None
    return fused


@dataclass
class _Product:
    """A linear product, its weight in the graph and in memory, and how to put the float form back."""

    node: fx.Node
    name: str
    weight: fx.Node
    tensor: torch.Tensor
    args: tuple[Any, ...] = ()
    made: tuple[fx.Node, ...] = ()


class QuantisedGraph:
    """Quantises `fused`, in place; `leave` puts some products back as they were."""

    def __init__(self, front: TorchGraph, fused: FusedGraph, wish: Quantise) -> None:
        self._front, self._fused = front, fused
        self.left: list[Miss] = []
        self._products = [
            product
            for product in self._find()
            if not self._is_left_out(wish, product.name, product.node.name)
        ]
        if not self._products:
            raise InputError("The graph has no linear product with a float weight to quantise.")
        quantised: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        for product in self._products:
            if product.weight not in quantised:
                quantised[product.weight] = self._store(len(quantised), product)
            self._replace(product, *quantised[product.weight])
        fused.module.recompile()

    @property
    def products(self) -> int:
        """How many are quantised."""
        return sum(bool(product.made) for product in self._products)

    def leave(self, index: int, reason: str) -> None:
        """Put the products of the wide FFN `index` back as they were."""
        graph = self._fused.module.graph
        for product in self._products:
            if product.made and re.match(rf"(p_)?fxfuse_{index}_", product.name):
                product.made[-1].replace_all_uses_with(product.node)
                _swap_names(product.node, product.made[-1])
                product.node.args = product.args
                for node in reversed(product.made):
                    graph.erase_node(node)
                product.made = ()
                self.left.append(Miss(product.name, reason))
        self._fused.module.recompile()

    def drop_unread(self) -> None:
        """Let go of the weights, and slices of them, that nothing reads any more."""
        fused, module = self._fused, self._fused.module
        for node in reversed(module.graph.nodes):
            if node.target in _SLICES and not node.users:
                module.graph.erase_node(node)
        for node in [each for each in fused.added if not each.users]:
            module.graph.erase_node(node)
            del fused.added[node]
        unread = [node for node in module.graph.find_nodes(op="get_attr") if not node.users]
        for node in unread:
            module.graph.erase_node(node)
        read = {node.target for node in module.graph.find_nodes(op="get_attr")}
        for path in {str(node.target) for node in unread if node.target not in read}:
            owner, _, name = path.rpartition(".")
            delattr(module.get_submodule(owner), name)
        module.recompile()

    def _is_left_out(self, wish: Quantise, *names: str) -> bool:
        reason = wish.leaves_out(*names)
        self.left += [] if reason is None else [Miss(names[0], reason)]
        return reason is not None

    def _find(self) -> list[_Product]:
        fused, found = self._fused, []
        weights = {**fused.view.weights, **fused.added}
        for node in fused.module.graph.nodes:
            if node.op != "call_function" or node.target not in (F.linear, _ATEN.linear.default):
                continue
            weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
            if not isinstance(weight, fx.Node):
                continue
            stored, tensor = self._stored(weight, weights)
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.dtype in _FLOATS:
                found.append(_Product(node, str(stored.target), weight, tensor))
        return found

    def _stored(self, weight: fx.Node, weights: Mapping[fx.Node, torch.Tensor]) -> tuple[fx.Node, Any]:
        """The node of a stored tensor that a weight is, or is a slice of, and what the weight holds."""
        if weight.op == "get_attr":
            return weight, operator.attrgetter(str(weight.target))(self._fused.module)
        cut: Any = weight.target
        source = weight.args[0] if weight.args and not weight.kwargs else None
        if cut not in _SLICES or not isinstance(source, fx.Node):
            return weight, weights.get(weight)
        stored, tensor = self._stored(source, weights)
        if not isinstance(tensor, torch.Tensor) or any(isinstance(each, fx.Node) for each in weight.args[1:]):
            return stored, None
        with torch.no_grad():
            return stored, cut(tensor, *weight.args[1:])

    def _store(self, index: int, product: _Product) -> tuple[fx.Node, fx.Node]:
        """The nodes of the int8 weight and of its scales."""
        packed, scale = _int8(product.tensor)
        tensors = {f"int8_{index}": packed, f"scale_{index}": scale}
        if isinstance(self._front, ExportedGraph):
            nodes = self._front.attach(self._fused, tensors, len(self._fused.groups))
            return nodes[f"int8_{index}"], nodes[f"scale_{index}"]
        module = self._fused.module
        made = []
        with module.graph.inserting_before(first_call(module.graph)):
            for name, tensor in tensors.items():
                path = f"fxfuse_{name}"
                while hasattr(module, path):
                    path += "_"
                module.register_buffer(path, tensor)
                made.append(module.graph.get_attr(path))
        return made[0], made[1]

    def _replace(self, product: _Product, packed: fx.Node, scale: fx.Node) -> None:
        node, graph = product.node, self._fused.module.graph
        x, weight, bias = _arguments(node)
        aten = isinstance(node.target, torch._ops.OpOverload)
        with graph.inserting_before(node):
            if aten:
                own = graph.call_function(_ATEN.to.dtype, (packed, product.tensor.dtype))
            else:
                own = graph.call_method("to", (packed, product.tensor.dtype))
        users = list(node.users)
        with graph.inserting_after(node):
            last = graph.call_function(_ATEN.mul.Tensor if aten else torch.mul, (node, scale))
        made = [own, last]
        if bias is not None:
            with graph.inserting_after(last):
                made.append(graph.call_function(_ATEN.add.Tensor if aten else torch.add, (last, bias)))
        for user in users:
            user.replace_input_with(node, made[-1])
        _swap_names(node, made[-1])  # a program's signature knows its outputs by name
        product.args, product.made = (x, weight, bias), tuple(made)
        node.args, node.kwargs = (x, own, None), {}
        for each in made:
            each.meta |= {key: node.meta[key] for key in ("custom",) if key in node.meta}


def _arguments(node: fx.Node) -> tuple[Any, Any, Any]:
    names = ("input", "weight", "bias")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    x, weight, bias = (given.get(name) for name in names)
    return x, weight, bias


def _swap_names(node: fx.Node, other: fx.Node) -> None:
    node.name, other.name = other.name, node.name


def _int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What torchao makes of a weight [out, in]: int8 numbers, and a scale for each output."""
    quantize, config = _torchao()
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    with torch.no_grad():
        quantize(linear, config())
    made: Any = linear.weight
    return made.qdata.detach(), made.scale.detach().reshape(-1).to(weight.dtype)


def _torchao() -> tuple[Callable[..., Any], Callable[[], Any]]:
    with warnings.catch_warnings(), quiet("torchao", "torch.utils._pytree"):
        warnings.simplefilter("ignore")
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            raise InputError(
                f"quantize takes torchao for torch graphs ({reason}): pip install 'fxfuse[quantize]'."
            ) from None
    return quantize_, Int8WeightOnlyConfig


def weight_bytes(fused: FusedGraph) -> int:
    """Bytes of the stored tensors that a graph reads."""
    stored = {**fused.view.weights, **fused.added}
    tensors = [tensor for node, tensor in stored.items() if node.users]
    for node in fused.module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(fused.module)
        tensors += [value] if node.users and isinstance(value, torch.Tensor) else []
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values())
