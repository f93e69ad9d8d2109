"""What fxfuse may make of a mutant, judged from outside.

1. It refuses in one line, or says that nothing fuses, and leaves no file; or it writes a model that ONNX
   Runtime runs, finite where the original is, with the same outputs.
2. Where all blocks of a group but one add nothing, because their down weights are zero, sequential and
   parallel are the same, so the fused model must equal the original: a place that was taken for a block and
   is none would show.

        x + 0 + F1(n1(x)) + 0   =   x + (0 + F1(n1(x)) + 0)
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime

import fxfuse
from fxfuse.errors import FxfuseError, VerificationError
from fxfuse.frontends.onnx_file import vocab_size
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.inputs import draw_inputs, specs_of
from fxfuse.onnxio import load_model
from fxfuse.passes.chains import find_chains
from tests.fuzz.silence import only_one_block

__all__ = ["Outcome", "check_exact", "check_fusing", "check_reading"]

_CLOSE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class Outcome:
    """`kind` is refused, nothing, fused, skipped or bug; `detail` says what was met."""

    kind: str
    detail: str = ""


def check_reading(path: Path) -> Outcome:
    """Read the graph and find its chains; nothing but a FxfuseError may come out."""
    try:
        model, folder = load_model(path)
        found = find_chains(read_graph(model, folder))
    except FxfuseError as error:
        return _refusal(error)
    except Exception:
        return Outcome("bug", traceback.format_exc())
    return Outcome(
        "fused" if found.chains else "nothing", " ".join(str(len(each.blocks)) for each in found.chains)
    )


def check_fusing(path: Path) -> Outcome:
    """Fuse the file with no budget, and hold what is written against rule 1."""
    out, before = path.with_name("out.onnx"), _files(path.parent)
    try:
        report = fxfuse.fuse_onnx(path, out, min_sqnr=None, provider="cpu")
    except FxfuseError as error:
        return (
            _refusal(error)
            if _files(path.parent) == before
            else Outcome("bug", f"left files behind: {error}")
        )
    except Exception:
        return Outcome("bug", traceback.format_exc())
    if report.output is None:
        return (
            Outcome("nothing")
            if _files(path.parent) == before
            else Outcome("bug", "nothing fused, but files")
        )
    return _judge_written(path, out)


def check_exact(path: Path, rng: Random) -> Outcome:
    """Silence all blocks of each group but one, fuse, and hold the outputs against rule 2."""
    try:
        silenced = only_one_block(path, rng)
    except FxfuseError:
        silenced = None
    except Exception:
        return Outcome("bug", traceback.format_exc())
    if silenced is None:
        return Outcome("skipped", "no chain whose blocks can be silenced")
    outcome, out = check_fusing(silenced), silenced.with_name("out.onnx")
    if outcome.kind != "fused":
        return outcome
    try:
        sample = _sample(silenced)
        before, again = _run(silenced, sample), _run(silenced, sample, optimise=False)
    except Exception as error:
        return Outcome("skipped", f"the original does not run on another shape: {error}")
    after = _run(out, sample)
    for name, one, two, other in zip(_names(silenced), before, again, after, strict=True):
        if (problem := _unequal(one, two, other)) is not None:
            return Outcome("bug", f"wrong yes: output {name}: {problem}")
    return Outcome("fused", "equal")


def _refusal(error: FxfuseError) -> Outcome:
    text = str(error)
    if not re.fullmatch(r"[^\n]+[.)]", text):
        return Outcome("bug", f"not one sentence: {text!r}")
    return Outcome("unverified" if isinstance(error, VerificationError) else "refused", text)


def _judge_written(path: Path, out: Path) -> Outcome:
    try:
        onnx.checker.check_model(str(path))
    except Exception:
        pass
    else:
        try:
            onnx.checker.check_model(str(out))
        except Exception as error:
            return Outcome("bug", f"the checker passes the input and refuses the output: {error}")
    sample = _sample(path)
    try:
        before = _run(path, sample)
    except Exception as error:
        return Outcome("fused", f"the original does not run on another shape: {error}")
    try:
        after = _run(out, sample)
    except Exception as error:
        return Outcome("bug", f"ONNX Runtime runs the input and refuses the output: {error}")
    for name, one, other in zip(_names(path), before, after, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return Outcome(
                "bug", f"output {name} was {one.dtype}{one.shape} and is {other.dtype}{other.shape}"
            )
        if one.dtype.kind == "f" and bool((np.isfinite(one) & ~np.isfinite(other)).any()):
            return Outcome("bug", f"output {name} is no longer finite")
    return Outcome("fused")


def _unequal(one: Any, again: Any, other: Any) -> str | None:
    """How far `other` is from `one`; None where rounding, as between `one` and `again`, explains it."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"was {one.dtype}{one.shape} and is {other.dtype}{other.shape}"
    one, again, other = (np.asarray(each, np.float64) for each in (one, again, other))
    good = np.isfinite(one) & np.isfinite(again)
    if not np.isfinite(other[good]).all():
        return "is no longer finite"
    scale = float(np.abs(one[good]).max(initial=0.0)) or 1.0
    error = float(np.abs(one - other)[good].max(initial=0.0)) / scale
    noise = float(np.abs(one - again)[good].max(initial=0.0)) / scale
    return f"differs by {error:.2g} where rounding is {noise:.2g}" if error > 1e-3 + 30 * noise else None


def _names(path: Path) -> list[str]:
    return [each.name for each in onnx.load(path, load_external_data=False).graph.output]


def _sample(path: Path) -> dict[str, Any]:
    """Two rows of five tokens: other sizes than the ones that fxfuse itself draws."""
    model = onnx.load(path, load_external_data=False)
    return draw_inputs(specs_of(model), 3, vocab_size(model), batch=2, sequence=5)[0]


def _run(path: Path, sample: dict[str, Any], *, optimise: bool = True) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {each.name: sample[each.name] for each in opened.get_inputs()}
    return list(opened.run([each.name for each in opened.get_outputs()], feed))


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {each.name: (each.stat().st_size, each.stat().st_mtime_ns) for each in folder.iterdir()}
