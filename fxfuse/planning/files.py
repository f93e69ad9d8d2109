"""Plans as files: read with every mistake told in one sentence, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fxfuse.analysis.records import ModelId
from fxfuse.errors import InputError
from fxfuse.planning.records import FrontPoint, Plan, PlannedGroup
from fxfuse.report_file import write_text

__all__ = ["AnyPlan", "read_plan", "write_plan"]

AnyPlan: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Plan"
"""A plan as every front end takes it: its file, its JSON as a dict, or the object."""

_Record = TypeVar("_Record", FrontPoint, PlannedGroup)


def read_plan(source: AnyPlan) -> Plan:
    """A plan from its file, from the data of its JSON, or as it is.

    Raises:
        InputError: There is no such file, it is no plan, or of another format.
    """
    if isinstance(source, Plan):
        return source
    if isinstance(source, Mapping):
        return _plan(source, "The plan")
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"plan must be a file, a dict or a Plan, not {type(source).__name__}.")
    return _plan(_read_json(Path(source)), f"The plan {os.fspath(source)}")


def write_plan(path: str | os.PathLike[str], plan: Plan) -> None:
    """Write a plan as JSON; a file that is there is replaced at the end, in one step.

    Raises:
        FxfuseError: The disk is full, or the place cannot be written.
    """
    write_text(Path(path), plan.to_json(), what="plan")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"There is no plan file {path}: check the path.") from None
    except OSError as error:
        raise InputError(f"The plan {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"{path} is no plan: it is not JSON; make one with fxfuse plan.") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path} is no plan: it holds no JSON object; make one with fxfuse plan.")
    return found


def _plan(data: Mapping[str, Any], what: str) -> Plan:
    kind, version = data.get("kind"), data.get("format")
    if kind != "fxfuse plan":
        told = f"it is of the kind {kind!r}" if kind is not None else "it says no kind"
        raise InputError(f"{what} is no plan: {told}; make one with fxfuse plan.")
    if version != 1:
        raise InputError(f"{what} is of format {version!r}, and this fxfuse reads format 1: make it again.")
    try:
        return Plan(
            id=ModelId(
                int(data["id"]["hidden_size"]),
                tuple((str(name), int(width)) for name, width in data["id"]["blocks"]),
            ),
            groups=tuple(_record(PlannedGroup, each) for each in data["groups"]),
            front=tuple(_record(FrontPoint, each) for each in data.get("front", ())),
            notes=tuple(map(str, data.get("notes", ()))),
            **{name: data[name] for name in _PLAIN if name in data},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{what} cannot be used: {told}.") from None


_PLAIN = ("budget", "predicted_kl", "kl", "kl_error", "model", "versions", "command")


def _record(kind: type[_Record], data: Mapping[str, Any]) -> _Record:
    """A record from its JSON, in which tuples are lists; an unknown field is an error."""
    what = "a group" if kind is PlannedGroup else "a point of the front"
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a JSON object, not {data!r}")
    known = [each.name for each in fields(kind)]
    unknown = next((name for name in data if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{what} has no {unknown!r}, only {', '.join(known)}")
    blocks = data.get("blocks")
    if kind is PlannedGroup and not (
        isinstance(blocks, list | tuple) and all(isinstance(e, str) for e in blocks)
    ):
        raise ValueError(f"the blocks of a group must be a list of names, not {blocks!r}")
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
