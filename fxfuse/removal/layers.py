r"""A module of a torch model without its attention, and still a module.

    def forward(self, x, mask):                        def forward(self, x, mask):
        y, _ = self.self_attn(self.norm1(x), mask)         return x + self.mlp(self.norm2(x))
        x = x + y                            becomes
        return x + self.mlp(self.norm2(x))             norm1 and self_attn are None

The layer's own forward is traced with every child as one call. The first sum of a value that comes from the
attention's call and one that comes from the layer's input alone is the residual add: what reads it then reads
the latter. The rest of the forward is what is left, in the modes of training and of evaluation. The layer
stays the same object under a class of the same name: children that are left, their names, hooks and what
isinstance says of it are as before.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxfuse.errors import InputError
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.fx.rewrite import remove_unread

__all__ = ["take_out"]

_ADDS = ("add", "iadd", "add_")
_FORWARDS = ("_forward_in_training", "_forward_in_evaluation")


def take_out(layer: nn.Module, child: str, name: str) -> None:
    """Take the attention `child` out of `layer`, which is changed; `name` is the attention's path.

    Raises:
        InputError: The layer's forward cannot be read, or hands on what the attention computes.
    """
    was = layer.training
    graphs = []
    try:
        for mode in (True, False):
            layer.training = mode  # of the layer alone: its children are not looked into
            graphs.append(_without(layer, child, name))
    finally:
        layer.training = was
    before = {str(node.target) for graph, _ in graphs for node in graph}
    _retire(layer, before - {target for _, left in graphs for target in _targets(left)})
    layer.__class__ = _namesake(type(layer), *(_Source.of(left) for _, left in graphs))


class _Tracer(fx.Tracer):
    """Calls every child as a whole; arguments that have a default take it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is one call."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value that knows its type, which some layers ask for."""
        return _Typed(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Placeholders for all parameters, of which the required ones are what the forward is called with."""
        given: list[Any] = [self.root]
        for each in list(inspect.signature(root_fn).parameters.values())[1:]:
            stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")  # type: ignore[call-overload]
            optional = stars or each.default is not each.empty
            place = self.create_proxy(
                "placeholder", stars + each.name, (None,) if optional and not stars else (), {}
            )
            given += [] if optional else [place]
        return root_fn, given


class _Typed(fx.Proxy):
    """A proxy whose dtype is known."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the layer's weights."""
        return self.tracer.dtype  # type: ignore[attr-defined, no-any-return]


def _without(layer: nn.Module, child: str, name: str) -> tuple[list[fx.Node], fx.Graph]:
    """The nodes of the layer's forward, and the graph of it without the attention."""
    dtype = next((each.dtype for each in layer.parameters() if each.is_floating_point()), torch.float32)
    try:
        graph = _Tracer(dtype).trace(layer)
    except Exception as error:  # a forward may do anything with what it is given
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"The forward of {type(layer).__name__}, which holds {name}, cannot be read ({first}): export "
            "the model and remove attention from the program."
        ) from error
    module = fx.GraphModule(layer, graph)  # so that the graph knows what its calls do
    nodes = list(graph.nodes)
    calls = [node for node in nodes if node.op == "call_module" and node.target == child]
    places = [node for node in nodes if node.op == "placeholder"]
    stream, touched = _reached(nodes, places[:1]), _reached(nodes, calls)
    total = next((node for node in nodes if _joins(node, stream, touched)), None)
    if len(calls) != 1 or total is None:
        raise InputError(
            f"The forward of {type(layer).__name__} does not add {name} to what it is given: export the "
            "model and remove attention from the program."
        )
    (x,) = (each for each in total.all_input_nodes if each not in touched)
    total.replace_all_uses_with(x)
    remove_unread(graph, touched)
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    if any(node.target == child for node in module.graph.nodes):
        raise InputError(
            f"{type(layer).__name__} hands on something else that {name} computes, such as a position bias "
            "for the layers behind it: export the model and remove attention from the program."
        )
    return nodes, graph


def _reached(nodes: list[fx.Node], sources: list[fx.Node]) -> set[fx.Node]:
    """All that is computed from `sources`, these included."""
    found = set(sources)
    for node in nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _joins(node: fx.Node, stream: set[fx.Node], touched: set[fx.Node]) -> bool:
    """Whether a node adds what the attention gives to what the layer was given."""
    if node.op not in ("call_function", "call_method") or name_of(node) not in _ADDS:
        return False
    operands = node.all_input_nodes
    return (
        len(operands) == 2
        and sum(each in touched for each in operands) == 1
        and all(each in stream for each in operands)
    )


def _targets(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}


def _retire(layer: nn.Module, paths: set[str]) -> None:
    """Set to None what only the attention's branch called: modules, and parameters of the layer itself."""
    for path in paths:
        owner_path, _, leaf = path.rpartition(".")
        try:
            owner = layer.get_submodule(owner_path)
        except AttributeError:
            continue
        for held in (owner._modules, owner._parameters, owner._buffers):
            if leaf in held:
                held[leaf] = None


class _Source:
    """A forward as text, with the names that it uses: what a pickle can hold."""

    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self.text = text
        self.names = dict(names)

    @classmethod
    def of(cls, graph: fx.Graph) -> _Source:
        code = graph.python_code("self")
        modules = {name: value.__name__ for name, value in code.globals.items() if inspect.ismodule(value)}
        others = {name: value for name, value in code.globals.items() if name not in modules}
        return cls(code.src, {**others, "": modules})

    def function(self) -> Callable[..., Any]:
        """The forward, ready to be called."""
        import importlib

        names = {name: value for name, value in self.names.items() if name}
        names |= {name: importlib.import_module(path) for name, path in self.names[""].items()}
        exec(compile(self.text, "<layer without attention>", "exec"), names)
        made: Callable[..., Any] = names["forward"]
        return made


def _namesake(old: type, training: _Source, evaluation: _Source) -> type:
    """A class of the same name with these forwards; instances can be copied and pickled."""
    functions = [training.function(), evaluation.function()]
    same = training.text == evaluation.text

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (functions[0] if self.training else functions[1])(self, *args, **kwargs)

    def reduce(self: Any, _protocol: int) -> tuple[Any, ...]:
        return _restore, (old, training, evaluation), self.__dict__

    parts = {
        "forward": functions[1] if same else forward,
        "__reduce_ex__": reduce,
        "__module__": old.__module__,
    }
    return type(old.__name__, (old,), parts)


def _restore(old: type, training: _Source, evaluation: _Source) -> Any:
    return copyreg.__newobj__(_namesake(old, training, evaluation))  # type: ignore[attr-defined]
