"""One pool of memory for the many short sessions of a process.

A model that is run piece by piece opens a session for every piece, each with memory of its own. Where ONNX
Runtime turns 16-bit weights to float32 to compute with them, the system takes longer to hand that memory out
than the products take. What the pool has grown to stays until the process ends, so it is for programs.
"""

from __future__ import annotations

from typing import Any

from fxfuse.runtime import load_onnxruntime

__all__ = ["memory_options", "share_memory"]

_state = {"shared": False}


def share_memory() -> None:
    """From now on, sessions over pieces of models on the CPU take their memory from one pool."""
    if _state["shared"]:
        return
    runtime = load_onnxruntime()
    if not hasattr(runtime, "create_and_register_allocator"):
        return
    kind, use = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
    as_requested = {"max_mem": 0, "arena_extend_strategy": 1}
    as_chosen = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    config = runtime.OrtArenaCfg(as_requested | as_chosen)
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", kind, 0, use), config)
    _state["shared"] = True


def memory_options(on_cpu: bool) -> dict[str, Any]:
    """Options of a session over a piece: the pool where there is one, else memory that is given back."""
    if on_cpu and _state["shared"]:
        return {"session.use_env_allocators": "1"}
    return {"enable_cpu_mem_arena": False}
