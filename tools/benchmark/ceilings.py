"""What the machine can do at most, measured in the same run: bytes read a second, products a second.

A model cannot run faster than its weights are read, nor than its products are computed: of the two times the
larger is its floor, and floor / time is the share of the machine that a contestant uses.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["BYTES", "Ceilings", "Floor", "Meter", "open_meter"]


@dataclass(frozen=True)
class Floor:
    """The least time of a call in microseconds, and what binds it: "bandwidth" or "products"."""

    us: float
    binds: str
    in_cache: bool


@dataclass
class Ceilings:
    """GB/s by how it was measured, the one that shares are of, TFLOP/s by type, MB of the last cache.

    by_size: GB/s of a matrix-vector product whose matrix has so many MB: small ones may stay in a cache.
    """

    bandwidths: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    of: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    cache_mb: float | None = None
    failures: dict[str, str] = field(default_factory=dict)
    by_size: dict[str, float] = field(default_factory=dict)

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each: what one of two measurements reached is no ceiling."""
        bandwidths = _higher(self.bandwidths, other.bandwidths)
        rates = _higher(self.rates, other.rates)
        of = self.of if self.of == "copy" else max(bandwidths, key=lambda name: bandwidths[name], default="")
        failures = self.failures | other.failures
        by_size = _higher(self.by_size, other.by_size)
        return Ceilings(bandwidths, bandwidths.get(of, 0.0), of, rates, self.cache_mb, failures, by_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def floor(self, weights: int, tokens: int, kind: str) -> Floor | None:
        """The floor of a model with so many weights of that kind; None where no ceiling is known."""
        if not self.bandwidth:
            return None
        size = weights * BYTES[kind]
        near = [rate for mb, rate in self.by_size.items() if 0.7 <= float(mb) * 1e6 / size <= 1.4]
        read = 1e6 * size / (max([self.bandwidth, *near]) * 1e9)
        rate = self.rates.get("int8" if kind == "int4" else kind)
        computed = 1e6 * 2 * weights * tokens / (rate * 1e12) if rate else 0.0
        in_cache = self.cache_mb is not None and size < self.cache_mb * 1e6 and not near
        return Floor(max(read, computed), "bandwidth" if read >= computed else "products", in_cache)


BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 32}
"""Bytes a weight; int4 in blocks of 32 with a float32 scale."""


def _higher(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in one | other}


def open_meter(device: str, threads: int, small: bool = False, sizes: Sequence[float] = ()) -> Meter:
    """The factory of the measuring process; `sizes`: MB of matrices that are measured besides."""
    return Meter(device, threads, small, sizes)


class Meter:
    """Measures in a process of its own, whose memory is free again afterwards."""

    def __init__(self, device: str, threads: int, small: bool, sizes: Sequence[float]) -> None:
        self._device, self._threads, self._small, self._sizes = device, threads, small, sizes

    def measure(self) -> Ceilings:
        """All ceilings; what cannot be measured is told and the rest goes on."""
        import torch

        torch.set_num_threads(self._threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        found = Ceilings(cache_mb=_cache(self._device))
        parts = self._on_cuda() if self._device == "cuda" else self._on_cpu()
        for where, name, part in parts:
            try:
                value = part()
            except Exception as error:  # out of memory, an unknown kernel
                found.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            else:
                getattr(found, where)[name] = round(value, 3)
        if self._device == "cuda":
            found.of = "copy" if "copy" in found.bandwidths else "sum"
        elif found.bandwidths:
            found.of = max(found.bandwidths, key=lambda name: found.bandwidths[name])
        found.bandwidth = found.bandwidths.get(found.of, 0.0)
        return found

    def _on_cpu(self) -> list[tuple[str, str, Callable[[], float]]]:
        size = 2048 if self._small else 16384
        side = 512 if self._small else 2048
        return [
            ("bandwidths", "sum", lambda: self._sum(size)),
            ("bandwidths", "matrix-vector product", lambda: self._gemv(size, "float32")),
            ("rates", "float32", lambda: self._product(side, "float32")),
            ("rates", "int8", lambda: _int8_product(side, self._threads)),
            *(
                ("by_size", f"{mb:.1f}", partial(self._gemv, int(mb * 1e6 / 4 / 256), "float32", 256))
                for mb in self._sizes
            ),
        ]

    def _on_cuda(self) -> list[tuple[str, str, Callable[[], float]]]:
        return [
            ("bandwidths", "copy", lambda: self._copy(32768)),
            ("bandwidths", "sum", lambda: self._sum(32768)),
            ("bandwidths", "matrix-vector product", lambda: self._gemv(32768, "float16")),
            ("rates", "float32", lambda: self._product(8192, "float32")),
            ("rates", "float16", lambda: self._product(8192, "float16")),
            ("rates", "bfloat16", lambda: self._product(8192, "bfloat16")),
        ]

    def _sum(self, side: int) -> float:
        import torch

        x = torch.ones(side, side, device=self._device)
        return 4e-9 * side * side / self._time(lambda: x.sum())

    def _copy(self, side: int) -> float:
        import torch

        x = torch.ones(side, side, device=self._device)
        y = torch.empty_like(x)
        return 8e-9 * side * side / self._time(lambda: y.copy_(x))

    def _gemv(self, rows: int, dtype: str, columns: int | None = None) -> float:
        """The product of a matrix, square by default, and a vector."""
        import torch

        kind, columns = getattr(torch, dtype), columns or rows
        x = torch.ones(rows, columns, device=self._device, dtype=kind)
        v = torch.ones(columns, device=self._device, dtype=kind)
        return BYTES[dtype] * 1e-9 * rows * columns / self._time(lambda: torch.mv(x, v))

    def _product(self, side: int, dtype: str) -> float:
        import torch

        kind = getattr(torch, dtype)
        a, b = (torch.randn(side, side, device=self._device, dtype=kind) for _ in range(2))
        return 2e-12 * side**3 / self._time(lambda: a @ b)

    def _time(self, call: Callable[[], Any]) -> float:
        """The median time of a call, in seconds."""
        import torch

        wait = torch.cuda.synchronize if self._device == "cuda" else lambda: None
        times: list[float] = []
        call()
        wait()
        begin = time.perf_counter()
        while len(times) < 5 or (time.perf_counter() - begin < 0.5 and len(times) < 50):
            start = time.perf_counter()
            call()
            wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def _int8_product(side: int, threads: int) -> float:
    """ONNX Runtime's MatMulInteger, which dynamic int8 runs."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    import fxfuse

    weight = np.random.default_rng(0).integers(-127, 127, (side, side), dtype=np.int8)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [side, side])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [side, side])
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = fxfuse.session(model.SerializeToString(), "cpu", threads=threads)
    feed = {"x": np.ones((side, side), np.uint8)}
    times = []
    for _ in range(6):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return 2e-12 * side**3 / statistics.median(times[1:])


def _cache(device: str) -> float | None:
    """MB of the last cache, as far as the machine tells."""
    if device == "cuda":
        import torch

        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", None)
        return size / 1e6 if size else None
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit / 1e6)
    return round(max(sizes), 1) if sizes else None
