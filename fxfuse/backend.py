"""torch.compile(model, backend=fxfuse): fuse the dynamo graph, then hand it to an inner backend.

Dynamo lifts parameters to placeholders. The wide weights become placeholders too, appended at the end, so
that the inner backend treats them as it treats parameters, and one wrapper adds them to every call.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor

from fxfuse.budget import Budget
from fxfuse.errors import FxfuseError, InputError
from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph, size_of
from fxfuse.passes.chains import find_chains
from fxfuse.passes.weights import Wide, sources
from fxfuse.pipeline import fuse
from fxfuse.report import Report
from fxfuse.stale import Watch

__all__ = ["backend", "reports", "CompiledGraph"]

log = logging.getLogger("fxfuse")

Compiled = Callable[..., Any]
Inner = str | Callable[..., Any]
_OWN_OPTIONS = ("inner", "inner_options")
_reports: list[Report] = []


def reports() -> list[Report]:
    """The reports of the compilations in this process, newest last."""
    return list(_reports)


def backend(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The torch.compile backend.

    Args:
        module: The graph that dynamo captured.
        example_inputs: The real inputs of this call, on which the loss is measured.
        mode: Passed on to the inner backend, as in torch.compile.
        options: The fields of `Budget`; `inner`, the backend that compiles the rewritten graph ("inductor",
            "eager", any other name or a callable); `inner_options`, a dict that is passed on to it.

    Raises:
        ValueError: An option is unknown or its value makes no sense.
    """
    given = dict(options or {})
    inner = given.pop("inner", "inductor")
    inner_options = given.pop("inner_options", None)
    budget = Budget.of(given, also=_OWN_OPTIONS)
    compile_inner = _inner_backend(inner, mode, inner_options)
    report = Report(model=f"graph {len(_reports)} of this process")
    _reports.append(report)
    front = DynamoGraph(module, example_inputs)
    fused = None
    reason = front.objection()
    if reason is None:
        try:
            fused = fuse(front, budget, report)
        except FxfuseError as error:
            reason = str(error)
    if fused is None:
        _tell(report, reason)
        return compile_inner(module, example_inputs)
    report.before = size_of(module, front.weights, report.ffn_blocks)
    report.after = size_of(fused.module, front.weights_of(fused), report.ffn_blocks_left)
    report.notes.append(_memory_note(fused))
    _tell(report, None)
    return CompiledGraph(front, fused, compile_inner, list(example_inputs), report)


class DynamoGraph(TorchGraph):
    """A front end over a dynamo graph: weights are the placeholders that dynamo lifted from modules."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        placeholders = module.graph.find_nodes(op="placeholder")
        weights = {
            node: value for node, value in zip(placeholders, inputs, strict=True) if _is_weight(node, value)
        }
        super().__init__(module, inputs, weights)

    def objection(self) -> str | None:
        """Why this graph is compiled as it is; None where it may be fused."""
        if any(isinstance(value, FakeTensor) for value in self._inputs.values()):
            return "the example inputs hold no data (fake tensors), so nothing can be measured on them"
        if any(torch.is_autocast_enabled(tensor.device.type) for tensor in self.weights.values()):
            return "autocast is on: convert the model, as in model.to(torch.bfloat16), instead"
        trained = self._trained() if torch.is_grad_enabled() else None
        if trained is not None:
            return (
                f"the weights of {trained} require gradients, which their wide copy would not pass on: call "
                "model.requires_grad_(False), or run under torch.no_grad()"
            )
        return None

    def _trained(self) -> str | None:
        """The first block of a chain with a weight that requires a gradient; None if there is none."""
        trained = {node for node, tensor in self.weights.items() if tensor.requires_grad}
        chains = find_chains(self.view).chains if trained else ()
        blocks = (block for chain in chains for block in chain.blocks)
        names = (block.name for block in blocks if trained.intersection(sources(self.view, [block])))
        return next(names, None)

    def attach(self, fused: FusedGraph, wide: Wide, index: int) -> dict[str, fx.Node]:
        """Append placeholders, marked as weights for the inner backend."""
        nodes = {}
        last = fused.module.graph.find_nodes(op="placeholder")[-1]
        for name, tensor in wide.tensors().items():
            with fused.module.graph.inserting_after(last):
                last = fused.module.graph.placeholder(f"fxfuse_{index}_{name}")
            last.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
            last._dynamo_source = None
            fused.added[last] = tensor.detach().requires_grad_(False)
            nodes[name] = last
        return nodes

    def weights_of(self, fused: FusedGraph) -> dict[fx.Node, torch.Tensor]:
        """The weights that the fused graph reads, as placeholders of its own."""
        return {**fused.view.weights, **fused.added}


class CompiledGraph:
    """The compiled graph; every call first makes sure that the wide weights are those of the parameters."""

    def __init__(
        self,
        front: DynamoGraph,
        fused: FusedGraph,
        compile_inner: Callable[..., Compiled],
        example_inputs: list[Any],
        report: Report,
    ) -> None:
        extra = list(fused.added.values())
        _make_static(extra)
        _carry_dynamo_facts(front.module, fused.module)
        self._wide = tuple(extra)
        self._watches = [
            Watch(fused.view, blocks, wide, _positions(fused, sources(fused.view, blocks)))
            for blocks, wide, _ in fused.groups
        ]
        self._fixed = _assumed_numbers(front, fused)
        self._report = report
        self._inner = compile_inner(fused.module, example_inputs + extra)

    def __call__(self, *args: Any) -> Any:
        """Run on the arguments of the graph that dynamo captured.

        Raises:
            RuntimeError: Something changed that the wide weights cannot follow.
        """
        if any(float(args[place]) != known for place, known in self._fixed):
            raise RuntimeError(
                "A number of a fused block (an eps) changed after compilation: call torch.compiler.reset() "
                "and compile again."
            )
        for watch in self._watches:
            if watch.is_stale(args):
                watch.refresh(args)
                self._tell_refreshed()
        return self._inner(*args, *self._wide)

    def _tell_refreshed(self) -> None:
        note = (
            "weights changed after compilation: the wide ones were rebuilt; the loss is that of the old ones"
        )
        if note not in self._report.notes:
            self._report.notes.append(note)
            log.warning("fxfuse: %s", note)


def _positions(fused: FusedGraph, values: Sequence[object]) -> list[tuple[fx.Node, int]]:
    """Where among the call's arguments the sources of a wide weight come in."""
    places = {node: index for index, node in enumerate(fused.module.graph.find_nodes(op="placeholder"))}
    return [(value, places[value]) for value in values if isinstance(value, fx.Node) and value in places]


def _assumed_numbers(front: DynamoGraph, fused: FusedGraph) -> list[tuple[int, float]]:
    """Numbers (an eps) that the fused graph reads no more, as the first block's stands for all."""
    followed = {value for blocks, _, _ in fused.groups for value in sources(fused.view, blocks)}
    own = {node.name: node for node in fused.module.graph.find_nodes(op="placeholder")}
    found = []
    for place, node in enumerate(front.module.graph.find_nodes(op="placeholder")):
        tensor, copy = front.weights.get(node), own[node.name]
        if (
            tensor is not None
            and tensor.dim() == 0
            and node.users
            and not copy.users
            and copy not in followed
        ):
            found.append((place, float(tensor)))
    return found


def _is_weight(node: fx.Node, value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, torch.nn.Parameter) or bool(static) or _is_module_number(node, value)


def _is_module_number(node: fx.Node, value: torch.Tensor) -> bool:
    """A float attribute of a module (an eps) that dynamo passes as a tensor under dynamic=True."""
    return value.dim() == 0 and "_modules_" in str(node.target)


def _inner_backend(
    inner: Inner, mode: str | None, options: Mapping[str, Any] | None
) -> Callable[..., Compiled]:
    """A function (module, inputs) -> callable of the inner backend, with mode and options passed on."""
    if inner == "inductor":
        return torch._TorchCompileInductorWrapper(mode, dict(options or {}), None)  # type: ignore[no-untyped-call]
    if isinstance(inner, str):
        inner = _lookup(inner)
    if not callable(inner):
        raise InputError(f"inner must be the name of a torch.compile backend or a callable, not {inner!r}.")
    keywords = {name: value for name, value in (("mode", mode), ("options", options)) if value}
    named = getattr(inner, "__name__", "")
    if keywords and named in ("eager", "aot_eager"):
        log.info("fxfuse: inner backend %s has no modes; %s is ignored", named, " and ".join(keywords))
        keywords = {}
    function = inner
    return lambda module, inputs: function(module, inputs, **keywords)


def _lookup(name: str) -> Callable[..., Any]:
    try:
        return lookup_backend(name)
    except Exception:
        near = difflib.get_close_matches(name, torch._dynamo.list_backends(None), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see torch._dynamo.list_backends()."
        raise InputError(f"There is no torch.compile backend {name!r} to use as inner: {hint}") from None


def _make_static(tensors: Sequence[torch.Tensor]) -> None:
    """Under dynamic=True, keep the inner backend from taking the sizes of wide weights for dynamic ones."""
    context = TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        for tensor in tensors:
            context.fake_mode.from_tensor(tensor, static_shapes=True)


def _carry_dynamo_facts(source: fx.GraphModule, target: fx.GraphModule) -> None:
    """What dynamo notes on a module and its placeholders for the inner backend, by name."""
    for name in ("_param_name_to_source", "_source_to_user_stacks", "_backend_id"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    own = {node.name: node for node in target.graph.find_nodes(op="placeholder")}
    for node in source.graph.find_nodes(op="placeholder"):
        if hasattr(node, "_dynamo_source"):
            own[node.name]._dynamo_source = node._dynamo_source


def _memory_note(fused: FusedGraph) -> str:
    size = sum(tensor.numel() * tensor.element_size() for tensor in fused.added.values())
    return f"the wide weights take {size / 1e6:,.1f} MB beside the model's own"


def _tell(report: Report, reason: str | None) -> None:
    if reason is not None:
        report.error = reason
        log.warning("fxfuse: not fused: %s", reason.rstrip("."))
    else:
        log.info("%s", report.summary())
