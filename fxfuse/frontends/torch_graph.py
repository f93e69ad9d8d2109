"""torch.fx graphs: GraphModules as dynamo, symbolic_trace and torch.export leave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxfuse.errors import InputError
from fxfuse.frontends.outputs import choose_output
from fxfuse.frontends.protocol import Batch
from fxfuse.passes.chains import find_chains
from fxfuse.passes.elementwise import evaluate
from fxfuse.passes.forms import ONE_TOKEN, Form
from fxfuse.passes.fx.rewrite import remove_unread, rewrite_group
from fxfuse.passes.fx.run import compute
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.fx.writes import Writes
from fxfuse.passes.records import Block, Value
from fxfuse.passes.storing import Stored, copied, written
from fxfuse.passes.view import Op, is_constant, root, strip
from fxfuse.passes.weights import Weights, Wide

__all__ = ["TorchGraph", "FusedGraph", "first_call"]


@dataclass
class FusedGraph:
    """A rewritten copy; `groups` holds, for each, the blocks in `view`, their wide weights and the new sum.

    `added` are placeholders that the rewrite made for wide weights, with their tensors, in order. `forms`
    are those that were written, one for each group.
    """

    module: fx.GraphModule
    view: FxView
    groups: list[tuple[list[Block], Weights, fx.Node]]
    added: dict[fx.Node, torch.Tensor]
    forms: list[Form] = field(default_factory=list)


class TorchGraph:
    """A front end over one GraphModule and one set of example inputs.

    `weights` are the placeholders that stand for parameters, with their tensors; `inputs` holds a value for
    every placeholder, in order.
    """

    def __init__(
        self, module: fx.GraphModule, inputs: Sequence[Any], weights: Mapping[fx.Node, torch.Tensor]
    ) -> None:
        self.module = module
        self.weights = dict(weights)
        self.view = FxView(module, weights)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._inputs = dict(zip(placeholders, map(_plain, inputs), strict=True))
        self._outputs: list[Any] = []
        self._logits: fx.Node | None = None

    @property
    def inputs(self) -> Mapping[fx.Node, Any]:
        """A value for every placeholder, in order."""
        return self._inputs

    def states(self, values: Sequence[Value]) -> list[dict[Value, torch.Tensor]]:
        """See `FrontEnd.states`."""
        nodes = [value for value in values if isinstance(value, fx.Node)]
        results = _output_nodes(self.module)
        try:
            with _quiet_run():
                found = compute(self.module, {*nodes, *results}, self._known(self.module), self.view.writes)
        except (RuntimeError, TypeError, IndexError) as error:
            raise InputError(
                f"The graph does not run on the example inputs ({_first_line(error)}): check them."
            ) from error
        self._outputs = [found[node] for node in results]
        return [{node: found[node] for node in nodes}]

    def run(
        self, batch: Batch, wanted: Sequence[Value], known: Mapping[Value, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `Runnable.run`."""
        given: dict[fx.Node, Any] = {**self.weights, **self._bind(batch)}
        for value, tensor in (known or {}).items():
            given |= dict.fromkeys(self._same(value), tensor)
        nodes = [value for value in wanted if isinstance(value, fx.Node)]
        try:
            with _quiet_run():
                found = compute(self.module, nodes, given, self.view.writes)
        except (RuntimeError, TypeError, IndexError) as error:
            raise InputError(
                f"The model does not run on the calibration data ({_first_line(error)}): check them."
            ) from error
        return [found[node] for node in nodes]

    def logits(self, batch: Batch) -> Value:
        """See `Runnable.logits`."""
        if self._logits is None:
            results = _output_nodes(self.module)
            found = find_chains(self.view)
            blocks = [*(block for chain in found.chains for block in chain.blocks), *found.singles]
            values = self.run(batch, results)
            chosen = choose_output([""] * len(values), values, blocks[0].hidden_size if blocks else 0)
            if chosen is None or not chosen[1]:
                raise InputError("No output of the model looks like logits: give a model that returns them.")
            self._logits = results[chosen[0]]
        return self._logits

    def _bind(self, batch: Batch) -> dict[fx.Node, torch.Tensor]:
        """A batch as values of the placeholders: by name, or in order where no name is known."""
        free = [node for node in self._inputs if node not in self.weights]
        named = {node.name: node for node in free} | {str(node.target): node for node in free}
        if not set(batch) & set(named) and len(batch) == len(free):
            pairs = list(zip(free, batch.values(), strict=True))
        else:
            unknown = [name for name in batch if name not in named]
            if unknown:
                raise InputError(
                    f"The model takes no input {unknown[0]!r}: name the data as one of {', '.join(named)}."
                )
            pairs = [(named[name], tensor) for name, tensor in batch.items()]
        missing = [node.name for node in free if node not in dict(pairs)]
        if missing:
            raise InputError(f"The calibration data hold no {missing[0]!r}, which the model reads: add it.")
        device = next((tensor.device for tensor in self.weights.values()), None)
        return {node: tensor if device is None else tensor.to(device) for node, tensor in pairs}

    def _same(self, value: Value) -> set[fx.Node]:
        """The nodes that hold the same stream as `value`, seen through casts and identities."""
        stream = root(self.view, value)
        return {each for each in (value, stream, strip(self.view, stream)) if isinstance(each, fx.Node)}

    def branch(self, block: Block, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.branch`."""
        inner = block.branch
        while isinstance(inner, Op):
            moving = (each for each in inner.inputs if each is not None)
            inner = next(each for each in moving if not is_constant(self.view, each))
        value = self._run(self.view, self.module, block, inner, x, writes=self.view.writes)
        with torch.no_grad():
            return evaluate(self.view, block.branch, {inner: value}, value.dtype)

    def onward(self, x: torch.Tensor, start: Value, stop: Value, sample: int) -> torch.Tensor:
        """See `FrontEnd.onward`."""
        known = self._known(self.module) | dict.fromkeys(self._same(start), x)
        with _quiet_run():
            return compute(self.module, [stop], known, self.view.writes)[stop]  # type: ignore[index, list-item, no-any-return]

    def apply(
        self,
        groups: Sequence[Sequence[Block]],
        wides: Sequence[Wide | None] | None = None,
        forms: Sequence[Form] | None = None,
    ) -> FusedGraph:
        """See `FrontEnd.apply`."""
        module, weights = self._copy()
        view = FxView(module, weights)
        blocks = {block.name: block for chain in find_chains(view).chains for block in chain.blocks}
        fused = FusedGraph(module, view, [], {})
        given = zip(wides or [None] * len(groups), forms or [Form()] * len(groups), strict=True)
        for index, (group, (corrected, asked)) in enumerate(zip(groups, given, strict=True)):
            own = [blocks[block.name] for block in group]
            form = self.legal(view, own, replace(asked, norm="own"))
            if corrected is None:
                stored = self.store(view, own, form)
            else:
                stored = copied(view, own, corrected, form, apart=False)
            nodes = self.attach(fused, stored.tensors, index)
            fused.groups.append((own, stored.weights, rewrite_group(view, own, nodes, form)))
            fused.forms.append(form)
        remove_unread(
            module.graph, {value for own, _, _ in fused.groups for block in own for value in block.interior}
        )
        module.graph.lint()
        module.recompile()
        return fused

    def legal(self, view: FxView, blocks: Sequence[Block], form: Form) -> Form:
        """What is written of a form: some are for graphs that torch.compile is given."""
        return form if form.products not in ONE_TOKEN else Form()

    def store(self, view: FxView, blocks: Sequence[Block], form: Form) -> Stored:
        """The wide weights of a group in memory."""
        return written(view, blocks, form, apart=False)

    def attach(
        self, fused: FusedGraph, weights: Mapping[str, torch.Tensor], index: int
    ) -> dict[str, fx.Node]:
        """Give the wide weights to the module as parameters, and make the nodes that read them, by role."""
        trained = any(parameter.requires_grad for parameter in self.module.parameters())
        nodes = {}
        with fused.module.graph.inserting_before(first_call(fused.module.graph)):
            for name, tensor in weights.items():
                path = f"fxfuse_{index}_{name}"
                while hasattr(fused.module, path):  # what an earlier fusion wrote stays
                    path += "_"
                fused.module.register_parameter(path, torch.nn.Parameter(tensor, requires_grad=trained))
                nodes[name] = fused.module.graph.get_attr(path)
        return nodes

    def fused_branch(self, fused: FusedGraph, index: int, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.fused_branch`."""
        blocks, _, total = fused.groups[index]
        return self._run(fused.view, fused.module, blocks[0], total.args[1], x, fused.added)

    def outputs(
        self, fused: FusedGraph | None, hidden_size: int
    ) -> tuple[str, bool, list[torch.Tensor]] | None:
        """See `FrontEnd.outputs`."""
        chosen = choose_output([""] * len(self._outputs), self._outputs, hidden_size)
        if chosen is None:
            return None
        values = self._outputs
        if fused is not None:
            results = _output_nodes(fused.module)
            with _quiet_run():
                found = compute(fused.module, dict.fromkeys(results), self._known(fused.module) | fused.added)
            values = [found[node] for node in results]
        index, logits = chosen
        return f"output {index}", logits, [values[index]]

    def _run(
        self,
        view: FxView,
        module: fx.GraphModule,
        block: Block,
        wanted: Any,
        x: torch.Tensor,
        added: Mapping[fx.Node, torch.Tensor] | None = None,
        writes: Writes | None = None,
    ) -> torch.Tensor:
        known = self._known(module, clone=False) | dict(added or {})
        stream = root(view, block.x)
        known |= {each: x for each in (block.x, stream, strip(view, stream)) if isinstance(each, fx.Node)}
        with _quiet_run():
            return compute(module, [wanted], known, writes)[wanted]  # type: ignore[no-any-return]

    def _known(self, module: fx.GraphModule, *, clone: bool = True) -> dict[fx.Node, Any]:
        """The placeholders' values; inputs are copied, because a graph may write to them."""
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        given = dict(zip((node.name for node in self._inputs), self._inputs.values(), strict=True))
        written = Writes(module).by_storage() if clone else ()
        fixed = {node.name for node in self.weights} - {node.name for node in written}
        known = {}
        for node in placeholders:
            if node.name not in given:
                continue
            value = given[node.name]
            copied = clone and node.name not in fixed and isinstance(value, torch.Tensor)
            known[node] = value.detach().clone() if copied else value
        return known

    def _copy(self) -> tuple[fx.GraphModule, dict[fx.Node, torch.Tensor]]:
        """The module with a graph of its own; tensors are shared."""
        mapping: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.module.graph, mapping))
        graph.set_codegen(self.module.graph._codegen)
        last, own = next(iter(reversed(graph.nodes))), next(iter(reversed(self.module.graph.nodes)))
        last.meta = dict(own.meta)
        module = fx.GraphModule(self.module, graph, type(self.module).__name__)
        module.meta = dict(self.module.meta)
        return module, {mapping[node]: tensor for node, tensor in self.weights.items()}


def first_call(graph: fx.Graph) -> fx.Node:
    """The first node after the placeholders."""
    node: fx.Node
    for node in graph.nodes:
        if node.op != "placeholder":
            return node
    raise ValueError("a graph without an output")


def _output_nodes(module: fx.GraphModule) -> list[fx.Node]:
    output = next(iter(reversed(module.graph.nodes)))
    return list(output.all_input_nodes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _plain(value: Any) -> Any:
    """A size that dynamo passes as a symbol, as the number it stands for."""
    return value.node.hint if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value


@contextmanager
def _quiet_run() -> Iterator[None]:
    """Run without gradients and leave the random state as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield
