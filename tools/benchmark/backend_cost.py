"""What torch.compile(backend=fxfuse) costs: compile time, work at every call, memory; a process for each.

first call   a 32-layer Llama with a run of 12 FFNs, from nothing: inductor alone, and after fxfuse
every call   the trained demo model, one token: the check for stale weights beside the whole step
memory       the 32-layer Llama: what the fused blocks' weights take, with two copies and with one
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxfuse.timing.workers import Worker

__all__ = ["CONTESTANTS", "COPIES", "Shape", "Subject", "calls", "compiling", "memory"]

CONTESTANTS = ("inductor", "fxfuse")
COPIES = ("inductor", "two copies", "one copy")
REMOVED = 11  # attentions in the middle: with the FFN of the layer before them a run of 12

_OPTIONS = {"min_sqnr": None}  # random weights keep little; what they lose is not the question here


@dataclass(frozen=True)
class Shape:
    """A decoder with random weights, and the prompt that it is compiled with."""

    hidden_size: int = 256
    layers: int = 32
    tokens: int = 128
    threads: int = 1
    device: str = "cpu"


class Subject:
    """One process's work; every method is asked for once."""

    def __init__(self, shape: Shape) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="inductor-")  # nothing compiled before is found
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._folder.name
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        import torch

        torch.set_num_threads(shape.threads)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self._shape = shape

    def first_call(self, contestant: str) -> dict[str, float]:
        """Seconds of the first call, and those of fxfuse alone; imports and the compiler's start apart."""
        import torch

        model, given = _llama(self._shape), _ids(self._shape)
        own = [0.0]
        if contestant == "fxfuse":
            backend = _timed(own)
        else:
            backend = "inductor"
        torch.compile(_warm_up, backend=backend)(torch.ones(8, device=self._shape.device))
        own[0] = 0.0
        compiled = torch.compile(model, backend=backend)
        start = time.perf_counter()
        compiled(given)
        _wait(self._shape.device)
        return {"seconds": time.perf_counter() - start, "fxfuse": own[0], "groups": _groups(contestant)}

    def every_call(self, seconds: float) -> dict[str, float]:
        """Microseconds of the check for stale weights and of a whole step of one token, median and least."""
        import torch

        import fxfuse
        from models import load_demo

        model = load_demo("demo").eval().requires_grad_(False).to(self._shape.device)
        given = torch.ones(1, 1, dtype=torch.long, device=self._shape.device)
        seen: list[Any] = []

        def take(module: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
            seen[:] = [module, list(inputs)]
            return module.forward  # type: ignore[no-any-return]

        torch.compile(model, backend=take)(given)
        module, inputs = seen
        nothing = _OPTIONS | {"inner": lambda *_: _nothing}
        checked = fxfuse.backend(module, inputs, options=nothing)
        wide = [None] * 3
        torch._dynamo.reset()
        step = torch.compile(model, backend=fxfuse, options=_OPTIONS)
        step(given)
        alone = _times(lambda: _nothing(*inputs, *wide), seconds / 4)
        check = _times(lambda: checked(*inputs), seconds / 2)
        whole = _times(lambda: (step(given), _wait(self._shape.device)), seconds)
        return {
            "check_us": 1e6 * (statistics.median(check) - statistics.median(alone)),
            "check_least_us": 1e6 * (min(check) - min(alone)),
            "step_us": 1e6 * statistics.median(whole),
            "tensors": sum(isinstance(each, torch.nn.Parameter) for each in inputs),
        }

    def memory(self, contestant: str) -> dict[str, float]:
        """Bytes of all tensors before and after the first call, those of the model, and the process's own."""
        import torch

        import fxfuse

        model, given = _llama(self._shape), _ids(self._shape)
        before = {"model": _tensors(), "process": _resident(self._shape.device)}
        options = _OPTIONS | {"inner": "eager", "one_copy": contestant == "one copy"}
        backend = fxfuse if contestant != "inductor" else "eager"
        chosen = {"options": options} if contestant != "inductor" else {}
        compiled = torch.compile(model, backend=backend, **chosen)
        compiled(given)
        compiled(given)
        after = {"model": _tensors(), "process": _resident(self._shape.device)}
        return {
            "before": before["model"],
            "after": after["model"],
            "added": after["model"] - before["model"],
            "added_to_process": after["process"] - before["process"],
        }


def compiling(shape: Shape, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of the first call by contestant, in turn, and the ratio fxfuse / inductor of each round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for number in range(rounds):
        for name in CONTESTANTS[:: 1 if number % 2 else -1]:
            tell(f"first call, round {number + 1} of {rounds}: {name}")
            found[name].append(_in_a_process(shape, "first_call", name))
    pairs = zip(found["fxfuse"], found["inductor"], strict=True)
    ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
    return {"shape": asdict(shape), "rounds": found, "ratios": ratios, "ratio": statistics.median(ratios)}


def calls(shape: Shape, rounds: int, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """The check for stale weights in several processes: medians, and its share of a step."""
    found = []
    for number in range(rounds):
        tell(f"every call, round {number + 1} of {rounds}")
        found.append(_in_a_process(shape, "every_call", seconds))
    middle = {key: statistics.median(each[key] for each in found) for key in found[0]}
    return {"rounds": found, **middle, "share": middle["check_us"] / middle["step_us"]}


def memory(shape: Shape, tell: Callable[[str], None]) -> dict[str, Any]:
    """Bytes by contestant."""
    found = {}
    for name in COPIES:
        tell(f"memory: {name}")
        found[name] = _in_a_process(shape, "memory", name)
    return {"shape": asdict(shape), "copies": found}


def _in_a_process(shape: Shape, request: str, *arguments: Any) -> dict[str, float]:
    with Worker("tools.benchmark.backend_cost:Subject", shape, quiet=True) as worker:
        found: dict[str, float] = worker.ask(request, *arguments)
    return found


def _llama(shape: Shape) -> Any:
    import transformers

    import fxfuse

    size = shape.hidden_size
    config = transformers.LlamaConfig(
        hidden_size=size, intermediate_size=size * 8 // 3 // 16 * 16, num_hidden_layers=shape.layers,
        num_attention_heads=max(1, size // 64), num_key_value_heads=max(1, size // 128), vocab_size=2048,
        use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    first = (shape.layers - REMOVED) // 2
    removed = list(range(first, first + REMOVED))
    return fxfuse.remove_attention(model, removed, inplace=True, cache=False).to(shape.device)


def _ids(shape: Shape) -> Any:
    import torch

    return torch.randint(0, 2048, (1, shape.tokens)).to(shape.device)


def _warm_up(x: Any) -> Any:
    return x.exp() + 1


def _timed(own: list[float]) -> Callable[..., Any]:
    """The backend, which adds to own[0] the seconds that are not inductor's."""
    import fxfuse
    from fxfuse.inner import inner_backend

    inductor = inner_backend("inductor", None, None)

    def inner(module: Any, inputs: Sequence[Any]) -> Any:
        start = time.perf_counter()
        compiled = inductor(module, inputs)
        own[0] -= time.perf_counter() - start
        return compiled

    def backend(module: Any, inputs: Sequence[Any]) -> Any:
        start = time.perf_counter()
        compiled = fxfuse.backend(module, inputs, options=_OPTIONS | {"inner": inner})
        own[0] += time.perf_counter() - start
        return compiled

    return backend


def _groups(contestant: str) -> int:
    """How many blocks are in groups, so that a run that fused nothing is seen."""
    import fxfuse

    return fxfuse.reports()[-1].fused_blocks if contestant == "fxfuse" else 0


def _nothing(*_: Any) -> None:
    """What stands in the place of the compiled graph."""


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of single calls; the first fifth warms up."""
    found, begin = [], time.perf_counter()
    gc.disable()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    gc.enable()
    return found[len(found) // 5 :]


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _tensors() -> int:
    """Bytes of the memory of all tensors that there are, each counted once."""
    import torch

    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and type(each) in (torch.Tensor, torch.nn.Parameter):
            storage = each.untyped_storage()
            if storage.device.type != "meta":
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _resident(device: str) -> int:
    """Bytes that the process holds: on the GPU, or in this machine's memory where the system tells."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0
