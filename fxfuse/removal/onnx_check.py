"""Hold a written ONNX file without attention against the original whose streams pass the attentions by.

prefill: 8 tokens, no past        decode: 1 token, 3 positions past
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.onnx_file import OnnxFile, vocab_size
from fxfuse.frontends.protocol import Batch
from fxfuse.inputs import draw_inputs, specs_of
from fxfuse.passes.attention import Attention
from fxfuse.passes.onnx.view import to_torch
from fxfuse.removal.running import run_without

__all__ = ["check_written"]

_TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "float16": 2e-2, "bfloat16": 1e-1}
_LENGTHS = ((8, 0), (1, 3))


def check_written(
    source: onnx.ModelProto,
    original: OnnxFile,
    written: OnnxFile,
    attentions: Sequence[Attention],
    gone: Collection[str],
    renamed: Mapping[str, str],
) -> str | None:
    """Compare all outputs that are left; gives a note where the original could not be run.

    `gone` are inputs and outputs that went, `renamed` holds new names of those that are left by old ones.

    Raises:
        VerificationError: An output differs by more than rounding.
    """
    names = [each.name for each in source.graph.output if each.name not in gone]
    failures: list[str] = []
    for batch in _batches(source, failures):
        try:
            expected = run_without(original, batch, names, attentions)
        except InputError as error:
            failures.append(str(error))
            continue
        given = {renamed.get(name, name): value for name, value in batch.items() if name not in gone}
        values = written.run(given, [renamed.get(name, name) for name in names])
        for name, one, other in zip(names, expected, values, strict=True):
            _compare(name, one, other)
    if len(failures) < len(_LENGTHS):
        return None
    return f"not verified, since the original model does not run on drawn inputs: {failures[0]}"


def _batches(source: onnx.ModelProto, failures: list[str]) -> Iterator[Batch]:
    for sequence, past in _LENGTHS:
        try:
            (drawn,) = draw_inputs(specs_of(source), 0, vocab_size(source), sequence=sequence, past=past)
        except (InputError, MemoryError, ValueError) as error:
            failures.append(str(error))
        else:
            yield {name: to_torch(np.asarray(value)) for name, value in drawn.items()}


def _compare(name: str, expected: torch.Tensor, value: torch.Tensor) -> None:
    error = _difference(expected, value)
    if not error <= _TOLERANCE.get(str(expected.dtype).removeprefix("torch."), 0.0):
        raise VerificationError(
            f"Without attention {name} differs by {error:.2g} from the original that passes them by, "
            "so nothing was written: report this."
        )


def _difference(one: Any, other: Any) -> float:
    """|one - other| / |one|; values that are infinite or no numbers in both are the same."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    rest = (one - other).masked_fill(same, 0.0)
    scale = one.nan_to_num(0.0, 0.0, 0.0).norm()
    return float(rest.norm() / scale) if bool((~same).any()) else 0.0
