"""torch.export programs: parameters are placeholders, named by the program's signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.utils import _pytree as pytree

from fxfuse.errors import InputError
from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph

__all__ = ["ExportedGraph"]

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class ExportedGraph(TorchGraph):
    """A front end over an ExportedProgram and the positional arguments it is measured on."""

    def __init__(self, program: ExportedProgram, example_inputs: Sequence[Any]) -> None:
        self.program = program
        placeholders = program.graph.find_nodes(op="placeholder")
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        given = iter(_flatten(program, example_inputs))
        weights, inputs = {}, []
        for node in placeholders:
            spec = specs[node.name]
            if spec.kind in _STORED:
                weights[node] = self._tensor(spec)
            inputs.append(weights[node] if node in weights else next(given))
        super().__init__(program.graph_module, inputs, weights)

    def attach(
        self, fused: FusedGraph, weights: Mapping[str, torch.Tensor], index: int
    ) -> dict[str, fx.Node]:
        """Make placeholders for the wide weights, before all others, as parameters stand first."""
        nodes = {}
        first = fused.module.graph.find_nodes(op="placeholder")[len(fused.added)]
        mode = first.meta["val"].fake_mode if isinstance(first.meta.get("val"), torch.Tensor) else None
        for name, tensor in weights.items():
            with fused.module.graph.inserting_before(first):
                node = fused.module.graph.placeholder(f"p_fxfuse_{index}_{name}")
            if mode is not None:
                node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
            fused.added[node] = torch.nn.Parameter(tensor, requires_grad=False)
            nodes[name] = node
        return nodes

    def finish(self, fused: FusedGraph) -> ExportedProgram:
        """The rewritten program, with the weights that it reads and no others."""
        old = self.program
        graph = fused.module.graph
        named = {node.name: node for node in graph.find_nodes(op="placeholder")}
        specs = [_parameter(node) for node in fused.added]
        written = {spec.target for spec in old.graph_signature.output_specs}
        for spec in old.graph_signature.input_specs:
            node = named[spec.arg.name]
            if spec.kind in _STORED and not node.users and spec.target not in written:
                graph.erase_node(node)
            else:
                specs.append(spec)
        fused.module.recompile()
        kept = {spec.target for spec in specs if spec.target is not None}
        state = {name: tensor for name, tensor in old.state_dict.items() if name in kept}
        state |= {_target(node): tensor for node, tensor in fused.added.items()}
        signature = old.graph_signature
        return ExportedProgram(
            root=fused.module,
            graph=_with_values(fused),
            graph_signature=type(signature)(specs, list(signature.output_specs)),
            state_dict=state,
            range_constraints=old.range_constraints,
            module_call_graph=old.module_call_graph,
            example_inputs=old.example_inputs,
            constants={
                name: value for name, value in old.constants.items() if name in kept or not _is_tensor(value)
            },
            verifiers=old.verifiers,
        )

    def _tensor(self, spec: InputSpec) -> torch.Tensor:
        assert spec.target is not None
        found: torch.Tensor | None = self.program.state_dict.get(spec.target)
        return self.program.constants[spec.target] if found is None else found


def _flatten(program: ExportedProgram, example_inputs: Sequence[Any]) -> list[Any]:
    """The arguments in the order of the program's own inputs."""
    spec = program.call_spec.in_spec
    args = tuple(example_inputs)
    flat, given = pytree.tree_flatten((args, {}))
    if spec is not None and given != spec and len(flat) != spec.num_leaves:
        raise InputError(
            f"The program takes {spec.num_leaves} inputs but example_inputs holds {len(flat)}: give them in "
            "the order of its arguments."
        )
    return flat


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _target(node: fx.Node) -> str:
    return node.name.removeprefix("p_")


def _parameter(node: fx.Node) -> InputSpec:
    return InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), _target(node), None)


def _with_values(fused: FusedGraph) -> fx.Graph:
    """Give the new nodes fake values, which a program's graph must hold."""
    known = [
        node.meta["val"]
        for node in fused.module.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    ]
    mode = known[0].fake_mode
    # Without the dispatcher in Python, linear's own decomposition asks open sizes for numbers in torch 2.11.
    with mode, torch.no_grad(), enable_python_dispatcher():
        for node in fused.module.graph.nodes:
            if node.op == "call_function" and "val" not in node.meta:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
                node.meta["val"] = node.target(*args, **kwargs)
    return fused.module.graph
