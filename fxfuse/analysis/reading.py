"""Read an analysis from its JSON, with every mistake told in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from fxfuse.analysis.records import Analysis, AttentionScore, ChainFacts, Dependency, ModelId, Segment
from fxfuse.errors import InputError

__all__ = ["parse_analysis", "read_analysis"]

_Record = TypeVar("_Record", AttentionScore, ChainFacts, Dependency, ModelId, Segment)
_TEXTS = ("name", "names", "kinds")
_FILE = "make one with fxfuse analyze"


def read_analysis(path: str | os.PathLike[str]) -> Analysis:
    """The analysis in a file that `fxfuse analyze -o` wrote.

    Raises:
        InputError: There is no such file, or it is no analysis.
    """
    path = Path(path)
    try:
        return parse_analysis(path.read_text(encoding="utf-8"), os.fspath(path))
    except FileNotFoundError:
        raise InputError(f"There is no analysis {path}: check the path, or {_FILE}.") from None
    except OSError as error:
        raise InputError(f"The analysis {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no analysis: it is no text; {_FILE}.") from None


def parse_analysis(text: str, what: str = "the JSON") -> Analysis:
    """The analysis in a JSON text; errors call it `what`.

    Raises:
        InputError: It is no analysis, or one of another version.
    """
    try:
        data = json.loads(text)
    except ValueError:
        raise InputError(f"{what} is no analysis: it is not JSON; {_FILE}.") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind != "fxfuse analysis":
        told = f"it is of the kind {kind!r}" if kind is not None else "it says no kind"
        raise InputError(f"{what} is no analysis: {told}; {_FILE}.")
    if data.get("format") != 1:
        raise InputError(
            f"{what} is an analysis of format {data.get('format')!r}, and this fxfuse reads format 1: make "
            "it again."
        )
    try:
        return _analysis({name: value for name, value in data.items() if name not in ("kind", "format")})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{what} cannot be used as an analysis: {told}.") from None


def _analysis(data: dict[str, Any]) -> Analysis:
    known = {each.name for each in fields(Analysis)}
    unknown = next((name for name in data if name not in known), None)
    if unknown is not None:
        raise ValueError(f"it holds {unknown!r}, which is no part of one")
    data |= {
        "id": _record(ModelId, data["id"]),
        "chains": [_record(ChainFacts, each) for each in data.get("chains", ())],
        "segments": [_record(Segment, each) for each in data.get("segments", ())],
        "attention": [_record(AttentionScore, each) for each in data.get("attention", ())],
        "updates": [(str(kind), str(name)) for kind, name in data.get("updates", ())],
    }
    if data.get("dependency") is not None:
        data["dependency"] = _record(Dependency, data["dependency"])
    found = Analysis(**data)
    _check(found)
    return found


def _check(found: Analysis) -> None:
    """Hold the segments against the chains that they are of."""
    for each in found.segments:
        lengths = [len(chain.blocks) for chain in found.chains]
        if not 0 <= each.chain < len(lengths) or not 0 <= each.first <= each.last < lengths[each.chain]:
            place = f"{each.first} to {each.last} of chain {each.chain}"
            raise ValueError(f"it has a segment {place}, which is not there")


def _record(kind: type[_Record], data: Mapping[str, Any]) -> _Record:
    """A record from its JSON, in which tuples are lists; an unknown field or a wrong type is an error."""
    known = [each.name for each in fields(kind)]
    unknown = next((name for name in data if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{kind.__name__} has no field {unknown!r}, only {', '.join(known)}")
    for name, value in data.items():
        numeric = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if name not in _TEXTS and not numeric and not isinstance(value, list):
            raise ValueError(f"{name} of a {kind.__name__} must be a number, not {value!r}")
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
