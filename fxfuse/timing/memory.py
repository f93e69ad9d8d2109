"""What is known of a shape from earlier, under all that its times depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfuse.timing.cache import Cache
from fxfuse.timing.contest import Standing
from fxfuse.timing.machine import device_name
from fxfuse.timing.shape import Shape
from fxfuse.timing.target import Target
from fxfuse.timing.workers import ENDED
from fxfuse.versions import versions

__all__ = ["Memory"]

_RUNTIMES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime"), "torch": ("torch",)}


class Memory:
    """The standings of shapes on one target, in one runtime."""

    def __init__(self, cache: Cache, target: Target, runtime: str, options: Mapping[str, Any]) -> None:
        self._cache, self._target = cache, target
        self._runtime, self._options = runtime, dict(options)

    def recall(self, shape: Shape) -> dict[int, Standing]:
        """What is known of a shape, by token count."""
        keys = {tokens: self._key(shape, tokens) for tokens in self._target.tokens}
        read = {tokens: _read(self._cache.get(key)) for tokens, key in keys.items()}
        return {tokens: standing for tokens, standing in read.items() if standing is not None}

    def remember(self, shape: Shape, standings: Mapping[int, Standing]) -> None:
        """Keep what was measured, unless a process ended in it."""
        failures = [each for standing in standings.values() for each in standing.failures.values()]
        if any(text.startswith(ENDED) for text in failures):
            return  # it may have been the memory, and go well another time
        for tokens, standing in standings.items():
            if not standing.base:
                continue
            figures = {
                "seconds": standing.seconds(),
                "ratios": {name: [round(r, 4) for r in found] for name, found in standing.ratios.items()},
                "failures": standing.failures,
            }
            self._cache.put(self._key(shape, tokens), figures)

    def _key(self, shape: Shape, tokens: int) -> str:
        target, found = self._target, versions()
        packages = _RUNTIMES.get(self._runtime, _RUNTIMES["torch"])
        version = next((f"{each} {found[each]}" for each in packages if each in found), "")
        parts = [
            device_name(target.device),
            f"{target.threads or 'all'} threads" + (", CUDA graphs" if target.cuda_graphs else ""),
            f"{self._runtime} on {version}" if self._runtime != "onnxruntime" else version,
            *(f"{key}={value}" for key, value in sorted(self._options.items())),
            str(shape),
            f"{tokens} tokens",
        ]
        return " | ".join(parts)


def _read(figures: Mapping[str, Any] | None) -> Standing | None:
    """A standing from the cache; None where it holds anything else."""
    try:
        assert figures is not None
        seconds, failures = float(figures["seconds"]), dict(figures["failures"])
        ratios = {str(name): [float(each) for each in found] for name, found in figures["ratios"].items()}
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return Standing([seconds], ratios, failures) if seconds > 0 else None
