"""fxfuse.json, the record in a fused checkpoint: which layers became one, and what undoes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxfuse._version import __version__
from fxfuse.checkpoints.records import Checkpoint, Layout, OutputLayer, OutputTensor
from fxfuse.checkpoints.sidefiles import RECORD
from fxfuse.checkpoints.undoing import undo_of
from fxfuse.checkpoints.without import removed_tensors
from fxfuse.errors import InputError
from fxfuse.planning.records import Plan

__all__ = ["as_text", "read_record", "record_of"]

_KIND = "fxfuse checkpoint"


def record_of(
    checkpoint: Checkpoint,
    layout: Layout,
    made: Sequence[OutputTensor],
    plan: Plan | None = None,
    recovery: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What was done, as JSON data.

    source: how the checkpoint was before, its config whole, and the record that lay there if it was fused
    already. layers: each with the numbers of the layers that it was made of. recovery: what was tried to
    correct the weights, and what was kept; the blocks are then the corrected ones. removed: the layers of the
    source whose attention was left out before, which its config says here already, and how they were chosen.
    undo: None where nothing is fused.
    """
    return {
        "kind": _KIND,
        "format": 1,
        "fxfuse": __version__,
        "dialect": layout.dialect,
        "layers": [_layer(checkpoint, each) for each in layout.layers],
        **({} if checkpoint.removed is None else {"removed": asdict(checkpoint.removed)}),
        "plan": None if plan is None else plan.to_dict(),
        **({} if recovery is None else {"recovery": dict(recovery)}),
        "source": {
            "dialect": checkpoint.dialect,
            "num_hidden_layers": len(checkpoint.layers),
            "config": dict(checkpoint.config),
            "record": read_record(checkpoint.folder, missing_ok=True),
        },
        "undo": undo_of(checkpoint.tensors, made, removed_tensors(checkpoint)) if layout.groups else None,
    }


def read_record(folder: Path, *, missing_ok: bool = False) -> dict[str, Any] | None:
    """The record of a fused checkpoint; None where there is none and that is no error.

    Raises:
        InputError: There is none, or it is of another kind or format.
    """
    path = folder / RECORD
    if not path.exists():
        if missing_ok:
            return None
        raise InputError(f"{folder} has no {RECORD}: give a folder that fxfuse checkpoint wrote.")
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: copy the checkpoint anew.") from None
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise InputError(f"{path} is no record of a fused checkpoint: copy the checkpoint anew.")
    if found.get("format") != 1:
        raise InputError(
            f"{path} is of format {found.get('format')!r}, and this fxfuse reads format 1: update fxfuse."
        )
    return found


def _layer(checkpoint: Checkpoint, layer: OutputLayer) -> dict[str, Any]:
    widths = [checkpoint.layers[number].intermediate_size for number in layer.sources]
    return {
        "number": layer.number,
        "sources": list(layer.sources),
        "attention": layer.attention,
        "intermediate_size": layer.intermediate_size,
        "widths": widths if layer.ffn else [],
        "padding": layer.padding,
        "keeps_gain": layer.keeps_gain,
    }


def as_text(data: Mapping[str, Any]) -> str:
    """JSON as files of a checkpoint hold it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
