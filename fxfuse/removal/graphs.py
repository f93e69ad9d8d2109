"""Torch graphs without some of their attentions: GraphModules and programs of torch.export, as new copies."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.passes.attention import find_attention
from fxfuse.passes.fx.bypass import Dropped, bypass, unread_inputs
from fxfuse.passes.fx.structures import prune
from fxfuse.passes.fx.view import FxView

__all__ = ["front_of", "without_attention"]

_GUARDS = "_guards_fn"
"""What `ExportedProgram.module()` calls on all inputs at once."""


def front_of(graph: fx.GraphModule | ExportedProgram) -> TorchGraph:
    """A front end that reads `graph` and has nothing to run it on."""
    if isinstance(graph, ExportedProgram):
        spec = graph.call_spec.in_spec
        return ExportedGraph(graph, [None] * (spec.num_leaves if spec is not None else 0))
    count = len(graph.graph.find_nodes(op="placeholder"))
    return TorchGraph(graph, [None] * count, {})


def without_attention(
    graph: fx.GraphModule | ExportedProgram, names: Collection[str]
) -> fx.GraphModule | ExportedProgram:
    """A copy of `graph` without the attentions of these names.

    Weights that nothing reads any more leave it, and so do the past keys and values that only these read and
    the present ones that they gave; what is left keeps its names. Tensors are shared with `graph`.

    Raises:
        InputError: The past or present stands in a structure that cannot be shortened.
    """
    front = front_of(graph)
    module, weights = front._copy()
    view = FxView(module, weights)
    attentions = [each for each in find_attention(view)[0] if each.name in names]
    dropped = bypass(view, attentions)
    try:
        if isinstance(graph, ExportedProgram):
            return _program(graph, module, dropped)
        return _module(graph, module, dropped)
    except ValueError as error:
        raise InputError(
            f"The cache stands in a structure that cannot be made shorter ({error}): let the model return "
            "its keys and values in tuples, lists or dicts."
        ) from error


def _module(old: fx.GraphModule, module: fx.GraphModule, dropped: Dropped) -> fx.GraphModule:
    for guard in module.graph.find_nodes(op="call_module", target=_GUARDS) if dropped.outputs else ():
        module.graph.erase_node(guard)  # it checks the inputs that the old graph had
    places = module.graph.find_nodes(op="placeholder")
    gone = unread_inputs(old.graph, module.graph)
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        dead = [index for index, node in enumerate(places) if node in gone]
        args = _left_names(info.orig_args, info.in_spec, dead)
        out = prune(info.out_spec, dropped.outputs) if info.out_spec is not None else None
        own = copy.copy(codegen)
        own.pytree_info = info._replace(orig_args=args, in_spec=prune(info.in_spec, dead), out_spec=out)
        module.graph.set_codegen(own)
    for node in gone:
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    _drop_unread_tensors(module)
    return module


def _left_names(names: Sequence[str], spec: pytree.TreeSpec, dead: Sequence[int]) -> list[str]:
    """The names of a graph's arguments whose every leaf was not dropped."""
    children = spec.children()
    if len(children) == 2 and children[0].type is tuple and children[1].type is dict:
        children = [*children[0].children(), *children[1].children()]
    own = list(names)
    start = 1 if own and own[0] == "self" else 0
    if len(own) - start != len(children):
        return own
    kept, place = own[:start], 0
    for name, child in zip(own[start:], children, strict=True):
        leaves = range(place, place + child.num_leaves)
        place += child.num_leaves
        if not child.is_leaf() or not set(leaves) & set(dead):
            kept.append(name)
    return kept


def _drop_unread_tensors(module: fx.GraphModule) -> None:
    """Parameters and buffers that the graph read from the module itself and reads no more."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    stored = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in stored:
        owner, _, leaf = name.rpartition(".")
        if name in read or any(owner == each or owner.startswith(f"{each}.") for each in called):
            continue
        delattr(module.get_submodule(owner), leaf)


def _program(old: ExportedProgram, module: fx.GraphModule, dropped: Dropped) -> ExportedProgram:
    graph, signature = module.graph, old.graph_signature
    users = [spec for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    written = {spec.target for spec in signature.output_specs}
    named = {node.name: node for node in graph.find_nodes(op="placeholder")}
    gone = {node.name for node in unread_inputs(old.graph, graph)}
    for spec in signature.input_specs:
        stored = spec.kind != InputKind.USER_INPUT
        if stored and not named[spec.arg.name].users and spec.target not in written:
            gone.add(spec.arg.name)
    for name in gone:
        graph.erase_node(named[name])
    module.recompile()
    specs = [spec for spec in signature.input_specs if spec.arg.name not in gone]
    kept = {spec.target for spec in specs if spec.target is not None}
    outputs = [each for index, each in enumerate(signature.output_specs) if index not in dropped.outputs]
    first = len(signature.output_specs) - len(signature.user_outputs)
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=type(signature)(specs, outputs),
        state_dict={name: tensor for name, tensor in old.state_dict.items() if name in kept},
        range_constraints=old.range_constraints,
        module_call_graph=_calls(old, users, gone, [place - first for place in dropped.outputs]),
        example_inputs=_examples(old, [place for place, spec in enumerate(users) if spec.arg.name in gone]),
        constants={
            name: value
            for name, value in old.constants.items()
            if name in kept or not hasattr(value, "shape")
        },
        verifiers=old.verifiers,
    )


def _calls(
    old: ExportedProgram, users: Sequence[Any], gone: Collection[str], outputs: Sequence[int]
) -> list[Any]:
    """The program's own signature as a call, without the inputs and outputs that went."""
    entries: list[Any] = copy.deepcopy(old.module_call_graph)
    own = entries[0].signature
    dead = [place for place, spec in enumerate(users) if spec.arg.name in gone]
    if own is None or not (dead or outputs):
        return entries
    own.in_spec = prune(own.in_spec, dead)
    own.out_spec = prune(own.out_spec, outputs)
    own.inputs = [each for each in own.inputs if getattr(each, "name", None) not in gone]
    own.outputs = [each for place, each in enumerate(own.outputs) if place not in outputs]
    return entries


def _examples(old: ExportedProgram, dead: Sequence[int]) -> Any:
    """The example inputs without those that went; None where the program does not tell them apart."""
    if old.example_inputs is None or not dead:
        return old.example_inputs
    flat, spec = pytree.tree_flatten(old.example_inputs)
    if spec.num_leaves != old.call_spec.in_spec.num_leaves or spec != old.call_spec.in_spec:
        return None
    left = [each for place, each in enumerate(flat) if place not in dead]
    return pytree.tree_unflatten(left, prune(spec, dead))
