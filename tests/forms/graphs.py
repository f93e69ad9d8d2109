"""Torch graphs as each tool leaves them, with the inputs that `fxfuse.fuse` takes beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, symbolic_trace
from torch.fx.proxy import TraceError

from tests import exporters
from tests.families import HIDDEN, build, decoder_layers, example
from tests.forms.record import NotMade

Graph = tuple[Any, tuple[Any, ...]]


def dynamo(family: str, **built: Any) -> Graph:
    """What a torch.compile backend is given; parameters are inputs."""
    graph, inputs = exporters.dynamo_graph(build(family, **built), example(family))
    return graph, tuple(inputs)


def aten(family: str, **built: Any) -> Graph:
    """torch.export's program."""
    given = (example(family),)
    return exporters.exported(build(family, **built), given), given


def core_aten(family: str, **built: Any) -> Graph:
    """The same after run_decompositions()."""
    program, given = aten(family, **built)
    with exporters.silenced(), _made("run_decompositions()"):
        return program.run_decompositions(), given


def aot(family: str, **built: Any) -> Graph:
    """What AOT autograd hands to its compiler: functional ATen, linears as mm between views."""
    caught: list[Graph] = []

    def compiler(graph: GraphModule, _: Any) -> Any:
        def run(*args: Any) -> Any:
            caught.append((graph, args))
            return graph(*args)

        return make_boxed_func(run)

    torch._dynamo.reset()
    with exporters.silenced(), torch.no_grad():
        torch.compile(build(family, **built), backend=aot_autograd(fw_compiler=compiler), fullgraph=True)(
            example(family)
        )
    (only,) = caught
    return only


class Layers(nn.Module):
    """The layers alone: a model of transformers as a whole is not for symbolic_trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = decoder_layers(model)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, None, None)
            x = x[0] if isinstance(x, tuple) else x
        return x


def symbolic(family: str) -> Graph:
    """All layers without attention, through torch.fx.symbolic_trace: call_module and get_attr."""
    model = build(family, removed=range(5))
    with _made("symbolic_trace"):
        return symbolic_trace(Layers(model)), (stream(),)


@contextlib.contextmanager
def _made(tool: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TraceError) as error:
        first = str(error).strip().splitlines()[0].partition(". ")[0].rstrip("!.")
        raise NotMade(f"torch's {tool} stops: {first}") from error


def stream() -> Tensor:
    """What `symbolic` is given: [2, 7, hidden]."""
    return torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(0))


GRAPHS: dict[str, Callable[..., Graph]] = {
    "dynamo": dynamo,
    "aten": aten,
    "core aten": core_aten,
    "aot": aot,
    "symbolic": symbolic,
}
"""By the name of the form in the table."""
