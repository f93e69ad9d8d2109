"""Where the wide weights of a fused ONNX model came from, kept in its metadata under the key "fxfuse".

    {"format": 1, "fxfuse": "0.1.0", "groups": [{
        "blocks": [{"name": "model.layers.0.mlp", "rows": [0, 112]}, ...],
        "weights": {"gate": "fxfuse.0/gate", "up": "fxfuse.0/up", "down": "fxfuse.0/down"}}]}

`rows` are those of gate and up and of their biases, seen as [out, in]; down has them as columns. Of down
biases the model holds the sum alone, so each block has its own here as "down_bias": float32, little-endian,
base64. So the concatenation can be undone; the gains were folded into gate and up and stay there.

A group whose weights were then corrected on data has "recovered": true, and the format is 2: it is not the
concatenation of its blocks any more, and cannot be undone.

A group in another form than gate, up and down has that as "form", as `Form` writes it: "packed", "two/4".
Its weights are named by the roles of `fxfuse.passes.storing`; the format is then 3.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import onnx

from fxfuse.passes.forms import Form
from fxfuse.passes.naming import span
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.passes.weights import down_bias

__all__ = ["KEY", "WideGroup", "group_of", "next_number", "read_provenance", "record"]

KEY = "fxfuse"
FORMAT = 1
FORMAT_RECOVERED = 2
"""Of a record with recovered groups, which a reader that knows only format 1 must not split."""
FORMAT_FORMS = 3
"""Of a record with groups in other forms."""
_NUMBERED = re.compile(r"fxfuse\.(\d+)/")


@dataclass(frozen=True)
class WideGroup:
    """One wide FFN: its blocks in order, the rows [start, stop) of each, and its weights' names by role.

    `down_biases` [hidden], one for each block, where there is a down bias. `recovered`: the weights were
    corrected afterwards, so they are not the blocks' own. `form` says how the weights are stored.
    """

    blocks: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    weights: Mapping[str, str]
    down_biases: tuple[np.ndarray[Any, Any], ...] = ()
    recovered: bool = False
    form: Form = Form()


def group_of(
    view: View,
    blocks: Sequence[Block],
    weights: Mapping[str, str],
    *,
    recovered: bool = False,
    form: Form = Form(),  # noqa: B008
) -> WideGroup:
    """What to record of `blocks` of `view`, whose wide weights are stored under these names."""
    stops = list(accumulate(block.intermediate_size for block in blocks))
    rows = tuple(zip([0, *stops[:-1]], stops, strict=True))
    biased = blocks if "down_bias" in weights else ()
    biases = tuple(down_bias(view, block).float().numpy() for block in biased)
    return WideGroup(
        tuple(block.name for block in blocks),
        rows,
        dict(weights),
        biases,
        recovered,
        replace(form, norm="own"),
    )


def read_provenance(model: onnx.ModelProto) -> tuple[list[WideGroup], list[str]]:
    """The groups whose weights the model still has, and a note on everything else that its record holds."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        return [], []
    try:
        groups = _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [], [f"the model's record of an earlier fusion cannot be read ({error}), so it is ignored"]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kept, notes = [], []
    for group in groups:
        reason = _objection(group, shapes)
        kept += [group] if reason is None else []
        notes += (
            [f"the record of the wide FFN of {span(group.blocks)} is ignored: {reason}"] if reason else []
        )
    return kept, notes


def next_number(graph: onnx.GraphProto) -> int:
    """The first number N such that nothing in a graph or inside of it is named fxfuse.N/..."""
    names = [each.name for each in graph.initializer]
    inner = [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    names += [output for node in graph.node for output in node.output]
    found = [int(match[1]) + 1 for name in names if (match := _NUMBERED.match(name))]
    return max([0, *found, *map(next_number, inner)])


def record(model: onnx.ModelProto, groups: Sequence[WideGroup], version: str) -> None:
    """Write `groups` into the metadata of `model`, in place of what was there; without any, no record."""
    others = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    if groups:
        number = FORMAT_RECOVERED if any(group.recovered for group in groups) else FORMAT
        number = FORMAT_FORMS if any(group.form != Form() for group in groups) else number
        whole = {"format": number, "fxfuse": version, "groups": [_plain(group) for group in groups]}
        model.metadata_props.add(key=KEY, value=json.dumps(whole))


def _plain(group: WideGroup) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = [
        {"name": name, "rows": list(rows)} for name, rows in zip(group.blocks, group.rows, strict=True)
    ]
    for block, bias in zip(blocks, group.down_biases, strict=False):
        block["down_bias"] = base64.b64encode(bias.astype("<f4").tobytes()).decode()
    told: dict[str, Any] = {"recovered": True} if group.recovered else {}
    told |= {"form": str(group.form)} if group.form != Form() else {}
    return {"blocks": blocks, "weights": dict(group.weights), **told}


def _parse(whole: Any) -> list[WideGroup]:
    if whole["format"] not in (FORMAT, FORMAT_RECOVERED, FORMAT_FORMS):
        known = f"{FORMAT} to {FORMAT_FORMS}"
        raise ValueError(f"its format is {whole['format']!r}, and this version reads {known}")
    return [_group(group, group["blocks"], group["weights"]) for group in whole["groups"]]


def _group(group: Mapping[str, Any], blocks: Sequence[Any], weights: Mapping[Any, Any]) -> WideGroup:
    biased = blocks if "down_bias" in weights else ()
    return WideGroup(
        tuple(str(block["name"]) for block in blocks),
        tuple((int(block["rows"][0]), int(block["rows"][1])) for block in blocks),
        {str(role): str(name) for role, name in weights.items()},
        tuple(np.frombuffer(base64.b64decode(block["down_bias"]), "<f4") for block in biased),
        bool(group.get("recovered")),
        Form.parse(group.get("form", "two")),
    )


def _objection(group: WideGroup, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a record does not fit the model any more."""
    gone = [name for name in group.weights.values() if name not in shapes]
    if gone or not group.weights:
        return f"the model has no weight {', '.join(gone)}"
    starts = [start for start, _ in group.rows]
    stops = [stop for _, stop in group.rows]
    if not stops or starts != [0, *stops[:-1]] or any(a >= b for a, b in group.rows):
        return f"its rows {list(group.rows)} are not one after the other"
    if group.form != Form():
        return _form_objection(group, shapes)
    # Quantised weights are blocked along their inputs, so down shows its width in no axis.
    wide = [name for role, name in group.weights.items() if not role.startswith("down")]
    wrong = next((name for name in wide if stops[-1] not in shapes[name]), None)
    return None if wrong is None else f"{wrong} has no axis of {stops[-1]}, the rows of its blocks"


def _form_objection(group: WideGroup, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The same of weights that are stored in another form: each slice has its share of the rows."""
    width = group.rows[-1][1]
    for suffix, (start, stop) in zip(group.form.suffixes(width), group.form.spans(width), strict=True):
        for role, rows in (("gate_up", 2 * (stop - start)), ("gate", stop - start), ("up", stop - start)):
            name = group.weights.get(role + suffix)
            if name is not None and rows not in shapes[name]:
                return f"{name} has no axis of {rows}, the rows of its slice"
        if f"down{suffix}" not in group.weights:
            return f"it names no weight down{suffix}"
    return None
