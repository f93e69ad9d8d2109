"""The whole model before and after, each in a process of its own, at the token counts that matter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfuse.drawing import draw_inputs
from fxfuse.errors import InputError
from fxfuse.report import WholeTiming
from fxfuse.specs import InputSpec, specs_of
from fxfuse.timing import onnx_runs
from fxfuse.timing.contest import BASELINE
from fxfuse.timing.pairs import FUSED, compare, turn
from fxfuse.timing.stages import seats_for
from fxfuse.timing.target import Target
from fxfuse.timing.wording import token_count
from fxfuse.timing.workers import Failure, Worker

__all__ = ["OnnxWhole", "sample_at"]

Sample = Mapping[str, "np.ndarray[Any, Any]"]


class OnnxWhole:
    """Times a rewritten file against the original; called with what `OnnxFile.apply` returned."""

    def __init__(
        self,
        model: onnx.ModelProto,
        path: Path,
        target: Target,
        seed: int,
        vocab_size: int | None,
        progress: Callable[[str], None],
        size: int,
    ) -> None:
        self._path, self._target, self._size, self._progress = path, target, size, progress
        self._specs, self._seed, self._vocab_size = specs_of(model), seed, vocab_size
        self.notes: list[str] = []

    def __call__(self, fused: Any) -> list[WholeTiming] | str:
        """The times by token count, or why there are none."""
        target = self._target
        if seats_for(3 * self._size, target.device) < 2:
            return "there is not enough memory for both models at a time"
        self._progress("timing the whole model")
        try:
            samples = {each: self._sample(each) for each in target.tokens}
            with contextlib.ExitStack() as stack:
                workers = {
                    name: stack.enter_context(
                        Worker(
                            onnx_runs.FACTORY, target.device, target.threads, target.cuda_graphs, quiet=True
                        )
                    )
                    for name in (BASELINE, FUSED)
                }
                for name, path in ((BASELINE, self._path), (FUSED, fused.path)):
                    workers[name].ask("open", str(path))
                return [self._compare(workers, each, sample) for each, sample in samples.items()]
        except (Failure, InputError, MemoryError, ValueError) as error:
            return str(error).rstrip(".") or type(error).__name__

    def _compare(self, workers: Mapping[str, Worker], tokens: int, sample: Sample) -> WholeTiming:
        for worker in workers.values():
            worker.ask("prepare", dict(sample))
        turns = {name: turn(worker) for name, worker in workers.items()}
        return compare(turns, tokens)

    def _sample(self, tokens: int) -> Sample:
        sample, note = sample_at(self._specs, tokens, self._seed, self._vocab_size)
        if note and note not in self.notes:
            self.notes.append(note)
        return sample


def sample_at(
    specs: Sequence[InputSpec], tokens: int, seed: int, vocab_size: int | None
) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """A sample of so many tokens, and a note where the model's shapes do not follow the count."""
    (sample,) = draw_inputs(specs, seed, vocab_size, sequence=tokens)
    (other,) = draw_inputs(specs, seed, vocab_size, sequence=tokens + 1)
    if any(sample[name].shape != other[name].shape for name in sample):
        return sample, ""
    shapes = ", ".join(f"{spec.name} {list(sample[spec.name].shape)}" for spec in specs)
    return sample, (
        f"the model's inputs are of fixed shapes ({shapes}), so the whole model was timed on those and not "
        f"at {token_count(tokens)}"
    )
