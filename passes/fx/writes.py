"""Calls that write into a value they were given, and who would notice if the write moved or went away.

    x.add_(f)                   a residual add like any other, while nothing reads x later
    g.clamp_(max=7); silu(g)    silu does not read what computed g

Graphs of symbolic_trace and dynamo hold such calls; those of torch.export do not.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxfuse.passes.fx.calls import name_of

__all__ = ["Writes", "has_effect", "target_of"]

_NAMES = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul", "setitem"}
_ALIASES = {
    "view", "reshape", "getitem", "slice", "narrow", "select", "chunk", "split", "split_with_sizes",
    "unflatten", "flatten", "squeeze", "unsqueeze", "expand", "transpose", "permute", "t", "T", "mT",
    "detach", "alias",
}  # fmt: skip
_INPLACE_AT = {
    **dict.fromkeys(("relu", "silu", "mish", "relu6", "selu", "hardswish", "hardsigmoid"), 1),
    **dict.fromkeys(("elu", "celu", "leaky_relu"), 2),
    **dict.fromkeys(("dropout", "hardtanh", "threshold"), 3),
}  # where a function takes its `inplace`


class Writes:
    """All in-place writes of one graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._order = {node: index for index, node in enumerate(module.graph.nodes)}
        self._writers: dict[fx.Node, list[fx.Node]] = {}
        self._all: list[fx.Node] = []
        for node in self._order:
            targets = list(self._written_by(node))
            self._all += [node] if targets else []
            for target in targets:
                self._writers.setdefault(target, []).append(node)

    def spoil(self, node: fx.Node) -> bool:
        """Whether something reads `node` after it was written over, so that it is not what computed it."""
        return any(self._read_after(node, writer) for writer in self._writers.get(node, ()))

    def touch(self, node: fx.Node) -> bool:
        """Whether `node` writes, or is written over, at any time."""
        return node in self._writers or target_of(node, self._module) is not None

    def is_noticed(self, node: fx.Node) -> bool:
        """Whether `node` writes into a graph input, or into a value that something else reads later."""
        targets = list(self._written_by(node))
        return any(self._read_after(each, node) for each in targets) or self._reaches_input(targets)

    def pin(self, node: fx.Node) -> bool:
        """Whether `node` reads a value that something else writes over later, so that it cannot be moved."""
        for source in node.all_input_nodes:
            for writer in self._writers.get(source, ()):
                if writer is not node and any(
                    self._order[user] < self._order[writer] for user in source.users
                ):
                    return True
        return False

    def storage(self, node: fx.Node) -> fx.Node:
        """The value whose memory `node` looks into, as a view of it or as what was written there."""
        while True:
            source = node.args[0] if node.args and _is_alias(node) else target_of(node, self._module)
            if not isinstance(source, fx.Node):
                return node
            node = source

    def by_storage(self) -> dict[fx.Node, list[fx.Node]]:
        """All calls that write, in order, under the value whose memory they write into."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in self._all:
            found.setdefault(self.storage(node), []).append(node)
        return found

    def _written_by(self, node: fx.Node) -> Iterator[fx.Node]:
        """What `node` writes into: its target and all that this is a view of."""
        target = target_of(node, self._module)
        while isinstance(target, fx.Node):
            yield target
            target = target.args[0] if target.args and _is_alias(target) else None

    def _read_after(self, value: fx.Node, writer: fx.Node) -> bool:
        return any(self._order[user] > self._order[writer] for user in value.users)

    def _reaches_input(self, targets: list[fx.Node]) -> bool:
        while targets:
            last = targets[-1]
            if last.op == "placeholder":
                return True
            targets = list(self._written_by(last))
        return False


def _is_alias(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and name_of(node) in _ALIASES


def target_of(node: fx.Node, module: fx.GraphModule) -> object:
    """The value that a call writes into; None if it writes into none."""
    if node.op == "call_module":
        return node.args[0] if getattr(module.get_submodule(str(node.target)), "inplace", False) else None
    if node.op not in ("call_function", "call_method"):
        return None
    name, place = name_of(node), _INPLACE_AT.get(name_of(node))
    positional = place is not None and len(node.args) > place and node.args[place] is True
    named = name in _NAMES or (name.endswith("_") and not name.endswith("__"))
    if named or positional or node.kwargs.get("inplace") is True:
        return node.args[0] if node.args else node.kwargs.get("input")
    return node.kwargs.get("out")


def has_effect(node: fx.Node) -> bool:
    """Whether a call does more than give a value."""
    module = node.graph.owning_module
    return node.is_impure() or module is None or target_of(node, module) is not None
