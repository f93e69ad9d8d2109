"""A torch.fx graph as a `View`: dynamo, torch.export before and after decomposition, symbolic_trace."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.fx.calls import ASSERTIONS, SHAPE_READERS, Call, name_of
from fxfuse.passes.fx.modules import canonical_module
from fxfuse.passes.fx.ops import HANDLERS
from fxfuse.passes.fx.run import compute
from fxfuse.passes.fx.writes import Writes, has_effect
from fxfuse.passes.naming import MARK, is_wide_weight
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, is_constant

__all__ = ["Attribute", "FxView", "module_path"]

_KINDS = {*FUNCTIONS, "mean", "row_mean", "rms_norm", "layer_norm", "linear", "route", "shape"}
# Calls without operands that always give the same; and words in the names of those that never do.
_CREATORS = {"full", "zeros", "ones", "scalar_tensor", "tensor", "arange", "eye"}
_CHANCE = (
    "rand",
    "bernoulli",
    "normal_",
    "uniform",
    "multinomial",
    "poisson",
    "exponential",
    "empty",
    "dropout",
)


@dataclass(frozen=True)
class Attribute:
    """A tensor held by a module of the graph, by dotted path."""

    path: str


class FxView:
    """Reads `module.graph`; `weights` holds the tensors of placeholders that stand for parameters."""

    def __init__(self, module: fx.GraphModule, weights: Mapping[fx.Node, torch.Tensor] | None = None) -> None:
        self.module = module
        self.weights = dict(weights or {})
        self.writes = Writes(module)
        self._order = {node: index for index, node in enumerate(module.graph.nodes)}
        self._ops: dict[fx.Node, Op | None] = {}
        self._constants: set[fx.Node] = set()
        self._noted: dict[Value, Any] = {}
        for node in self._order:
            self._read(node)
        self._dead = _unread(module)
        self._weight_readers = self._read_weights()

    def values(self) -> Iterable[Value]:
        """Every call of the graph, in order."""
        return [node for node in self._order if node.op.startswith("call_")]

    def op(self, value: Value) -> Op | None:
        """See `View.op`."""
        return self._ops.get(value) if isinstance(value, fx.Node) else None

    def readers(self, value: Value) -> Sequence[Value]:
        """See `View.readers`; assertions about a value's type read nothing."""
        if self._holds_tensor(value):
            return self._weight_readers.get(id(self.stored(value)), [])
        users = value.users if isinstance(value, fx.Node) else ()
        return [user for user in users if self._takes(user)]

    def is_output(self, value: Value) -> bool:
        """See `View.is_output`."""
        return isinstance(value, fx.Node) and any(user.op == "output" for user in value.users)

    def is_constant(self, value: Value) -> bool:
        """See `View.is_constant`."""
        return isinstance(value, Attribute) or value in self._constants

    def is_parameter(self, value: Value) -> bool:
        """See `View.is_parameter`."""
        if isinstance(value, fx.Node) and value.op.startswith("call_"):
            return any(self.is_parameter(each) for each in value.all_input_nodes)
        return self._holds_tensor(value) and isinstance(self.stored(value), torch.nn.Parameter)

    def stored(self, value: Value) -> torch.Tensor:
        """See `View.stored`."""
        if isinstance(value, fx.Node) and value in self.weights:
            return self.weights[value]
        if isinstance(value, fx.Node) and value.op.startswith("call_"):
            return compute(self.module, [value], self.weights, self.writes)[value]  # type: ignore[no-any-return]
        path = value.path if isinstance(value, Attribute) else str(getattr(value, "target", value))
        found: torch.Tensor = operator.attrgetter(path)(self.module)
        return found

    def shape(self, value: Value) -> tuple[int | None, ...] | None:
        """See `View.shape`."""
        meta = self._meta(value)
        if not isinstance(meta, torch.Tensor):
            return None
        return tuple(size if isinstance(size, int) else None for size in meta.shape)

    def dtype(self, value: Value) -> str | None:
        """See `View.dtype`."""
        meta = self._meta(value)
        return str(meta.dtype).removeprefix("torch.") if isinstance(meta, torch.Tensor) else None

    def node_name(self, value: Value) -> str:
        """See `View.node_name`."""
        return value.path if isinstance(value, Attribute) else str(value)

    def scope(self, value: Value) -> str:
        """See `View.scope`."""
        if isinstance(value, Attribute):
            return value.path.rpartition(".")[0]
        if not isinstance(value, fx.Node):
            return ""
        if value.op == "call_module":
            return str(value.target)
        stack = value.meta.get("nn_module_stack") or {}
        return module_path(next(reversed(list(stack.values())))[0]) if stack else ""

    def origin(self, value: Value) -> tuple[str, ...] | None:
        """See `View.origin`: by the node's mark, by the weight's name."""
        mark = value.meta.get("custom", {}).get(MARK) if isinstance(value, fx.Node) else None
        if mark is not None:
            return tuple(mark.split(", "))
        name = str(getattr(value, "path", getattr(value, "target", value)))
        return () if self._holds_tensor(value) and is_wide_weight(name) else None

    def index(self, node: fx.Node) -> int:
        """The place of `node` in the graph."""
        return self._order[node]

    def _meta(self, value: Value) -> Any:
        if not isinstance(value, (fx.Node, Attribute)):
            return None
        if self._holds_tensor(value):
            return self.stored(value)
        meta = value.meta.get("val", value.meta.get("example_value"))  # type: ignore[union-attr]
        return self._computed(value) if meta is None and value in self._constants else meta

    def _read(self, node: fx.Node) -> None:
        if (node.op == "get_attr" or node in self.weights) and not self.writes.spoil(node):
            self._constants.add(node)
        op = self._canonical(node)
        self._ops[node] = op
        if op is not None and self._is_pure(node, op):
            self._constants.add(node)

    def _takes(self, user: fx.Node) -> bool:
        """Whether a user of a value needs its numbers; assertions about types and dead calls do not."""
        return user.op != "output" and name_of(user) not in ASSERTIONS and user not in self._dead

    def _is_pure(self, node: fx.Node, op: Op) -> bool:
        """Whether a call gives the same at every run, because it reads constants alone."""
        if node.op not in ("call_function", "call_method") or op.kind == "shape" or self.writes.touch(node):
            return False
        if not node.all_input_nodes:
            return name_of(node) in _CREATORS
        chance = any(word in name_of(node) for word in _CHANCE) or op.attrs.get("active")
        operands: Iterable[Any] = op.inputs if op.kind in FUNCTIONS else node.all_input_nodes
        return not chance and all(is_constant(self, each) for each in operands if each is not None)

    def _computed(self, value: Value) -> Any:
        """A constant that the graph computes, kept as its shape and type alone."""
        if value not in self._noted:
            found = self.stored(value)
            self._noted[value] = found.to("meta") if isinstance(found, torch.Tensor) else found
        return self._noted[value]

    def _holds_tensor(self, value: Value) -> bool:
        stored = isinstance(value, Attribute) or value in self.weights
        return stored or (isinstance(value, fx.Node) and value.op == "get_attr")

    def _read_weights(self) -> dict[int, list[Value]]:
        """Who reads each stored tensor, under whichever of its names."""
        readers: dict[int, list[Value]] = {}
        for node in self._order:
            op = self._ops[node]
            for each in op.inputs if op else ():
                if isinstance(each, Attribute):
                    readers.setdefault(id(self.stored(each)), []).append(node)
            if self._holds_tensor(node):
                calls = [user for user in node.users if self._takes(user)]
                readers.setdefault(id(self.stored(node)), []).extend(calls)
        return readers

    def _canonical(self, node: fx.Node) -> Op | None:
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            return self._unless_written(node, canonical_module(node, module, Attribute, self.shape))
        if node.op not in ("call_function", "call_method"):
            return None
        name = name_of(node)
        if name in SHAPE_READERS:
            return Op("shape", (node.args[0],) if node.args else ())  # type: ignore[arg-type]
        handler = HANDLERS.get(name) or HANDLERS.get(name.removesuffix("_"))
        op = handler(Call(node, self.shape)) if handler else None
        return self._unless_written(node, op or Op(_other(name), tuple(node.all_input_nodes)))

    def _unless_written(self, node: fx.Node, op: Op) -> Op:
        """`op`, or an operator no rule knows where an in-place write makes it mean something else."""
        if self.writes.spoil(node):
            return Op(f"{op.kind} that is written over", tuple(node.all_input_nodes))
        if self.writes.is_noticed(node) or (op.kind == "add" and self.writes.pin(node)):
            return Op(f"{op.kind} beside an in-place write", tuple(node.all_input_nodes))
        return op


def _unread(module: fx.GraphModule) -> set[fx.Node]:
    """Calls whose results nothing needs, which symbolic tracing leaves in a graph."""
    dead: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op.startswith("call_") and all(user in dead for user in node.users) and not has_effect(node):
            dead.add(node)
    return dead


def _other(name: str) -> str:
    """The kind of an operator that no handler took, which must not pass for one that was."""
    return f"another {name}" if name in _KINDS else name


def module_path(text: str) -> str:
    """The dotted path a user knows from what a tracer wrote: "L['self'].layers.2" -> "layers.2"."""
    text = re.sub(r"\.(forward\.)?__self__\b|\._modules\b|\._orig_mod\b", "", text)
    text = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", text)
    parts = [part for part in text.split(".") if part]
    drop = {"L", "G", "self", "L__self__", "mod", "fn", "_orig_mod"}
    while parts and parts[0] in drop:
        parts.pop(0)
    return ".".join(parts)
