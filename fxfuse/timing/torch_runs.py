"""The inside of a process that runs a chain as torch compiles it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fxfuse.passes.forms import Form
from fxfuse.passes.fx import decode
from fxfuse.timing.shape import Shape

__all__ = ["Chain", "GraphRuns", "TorchRuns", "make", "make_graph"]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "identity": lambda x: x,
}


def make(inner: str, options: Mapping[str, Any], device: str, threads: int | None) -> TorchRuns:
    """What a worker runs: `inner` and `options` are those of torch.compile."""
    return TorchRuns(inner, options, device, threads)


def make_graph(inner: str, options: Mapping[str, Any], device: str, threads: int | None) -> GraphRuns:
    """The same for a whole graph."""
    return GraphRuns(inner, options, device, threads)


class TorchRuns:
    """One chain at a time, compiled once for each token count."""

    def __init__(self, inner: str, options: Mapping[str, Any], device: str, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._inner, self._options, self._device = inner, dict(options), device
        self._module: Any = None
        self._run: Any = None
        self._inputs: tuple[Any, ...] = ()
        torch._dynamo.config.recompile_limit = 64
        if inner == "inductor":  # contestants compile side by side, so that each needs no pool of its own
            torch._inductor.config.compile_threads = 1

    def open(self, shape: Shape, form: Form | None) -> None:
        """Make a chain, after the last one is gone."""
        self.close()
        dtype = getattr(torch, shape.dtype)
        with torch.device(self._device):
            self._module = Chain(shape, form, dtype).eval().requires_grad_(False)

    def close(self) -> None:
        """Let the chain go."""
        self._module, self._run, self._inputs = None, None, ()
        torch._dynamo.reset()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, inputs: tuple[int, int, str]) -> None:
        """Compile for the stream of so many tokens, of this size and type."""
        tokens, size, dtype = inputs
        x = torch.randn(1, tokens, size, device=self._device)
        self._compile(x.to(getattr(torch, dtype)))

    def _compile(self, *inputs: Any) -> None:
        self._inputs = inputs
        if self._run is None:
            self._run = torch.compile(
                self._module, backend=self._inner, dynamic=False, options=self._options or None
            )
        for _ in range(3):  # a CUDA graph is captured in the second call
            self.call()
        self.wait()

    def call(self) -> Any:
        """Run once, without gradients."""
        with torch.no_grad():
            return self._run(*self._inputs)

    def wait(self) -> None:
        """Wait for the GPU, where there is one."""
        if self._device == "cuda":
            torch.cuda.synchronize()


class GraphRuns(TorchRuns):
    """A whole graph with all that it reads, compiled in the same way."""

    def open(self, path: str) -> None:  # type: ignore[override]
        """Read what `TorchWhole` wrote: the module, and a value for each of its inputs."""
        self.close()
        self._module, self._values = torch.load(path, weights_only=False)

    def prepare(self, changed: Mapping[str, torch.Tensor]) -> None:  # type: ignore[override]
        """Compile for its inputs, some of which are `changed`."""
        self._compile(*({**self._values, **changed}).values())


class Chain(nn.Module):
    """FFN blocks one after the other, or as one wide FFN in some form; its weights are small and random."""

    def __init__(self, shape: Shape, form: Form | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._shape, self._form = shape, form
        self._bias = shape.bias or (form is not None and shape.norm == "layer")
        self._packed = shape.packed if form is None else form.packed(shape.gated)
        widths = shape.widths if form is None else (shape.width,)
        count = 2 if shape.gated else 1
        rows = [each for width in widths for each in ([count * width] if self._packed else [width] * count)]
        hidden = shape.hidden
        self.firsts = _weights(dtype, [(each, hidden) for each in rows])
        self.downs = _weights(dtype, [(hidden, width) for width in widths])
        self.gains = _weights(dtype, [(hidden,) for _ in widths if form is None])
        self.first_biases = _weights(dtype, [(each,) for each in rows if self._bias])
        self.down_biases = _weights(dtype, [(hidden,) for _ in widths if self._bias])
        self._activation = _ACTIVATIONS.get(shape.activation, F.silu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream after the chain."""
        if self._form is not None and self._form.products == "kernel":
            gate, up = self.firsts
            inner = decode.gate_up(x, gate, up, 1e-6, self._shape.activation)
            branch: torch.Tensor = decode.down(inner, self.downs[0]).sum(0).to(x.dtype)
            return x + branch
        for index, down in enumerate(self.downs):
            hidden = self._norm(x, index)
            slices = 1 if self._form is None else self._form.slices
            spans = Form(slices=slices).spans(down.shape[1])
            parts = []
            for place, (start, stop) in enumerate(spans):
                inner = self._inner(hidden, index, start, stop)
                bias = self.down_biases[index] if self._bias and place == 0 else None
                parts.append(self._product(inner, down[:, start:stop], bias))
            x = x + functools.reduce(torch.add, parts)
        return x

    def _norm(self, x: torch.Tensor, index: int) -> torch.Tensor:
        size = (x.shape[-1],)
        gain = self.gains[index] if len(self.gains) else None
        if self._shape.norm == "layer":
            return F.layer_norm(x, size, gain)
        return F.rms_norm(x, size, gain, 1e-6)

    def _inner(self, hidden: torch.Tensor, index: int, start: int, stop: int) -> torch.Tensor:
        if not self._shape.gated:
            return self._activation(self._linear(hidden, index, start, stop))
        if self._packed:
            width = self.downs[index].shape[1]
            if stop - start == width:
                gate, up = self._linear(hidden, index, 0, 2 * width).chunk(2, -1)
            else:  # a packed matrix holds gate and up of a slice side by side
                gate, up = self._linear(hidden, index, 2 * start, 2 * stop).chunk(2, -1)
        else:
            gate = self._linear(hidden, 2 * index, start, stop)
            up = self._linear(hidden, 2 * index + 1, start, stop)
        return self._activation(gate) * up

    def _linear(self, x: torch.Tensor, place: int, start: int, stop: int) -> torch.Tensor:
        weight = self.firsts[place]
        bias = self.first_biases[place] if self._bias else None
        if (start, stop) == (0, len(weight)):
            return self._product(x, weight, bias)
        return self._product(x, weight[start:stop], None if bias is None else bias[start:stop])

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._form is None or self._form.products != "sums":
            return F.linear(x, weight, bias)
        total = (x.unsqueeze(-2) * weight).sum(-1)
        return total if bias is None else total + bias


def _weights(dtype: torch.dtype, sizes: Sequence[tuple[int, ...]]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(0.02 * torch.randn(size, dtype=dtype)) for size in sizes)
