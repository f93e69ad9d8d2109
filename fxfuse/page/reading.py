"""The parts of a page from the JSON files that the commands wrote: what a file is, it says itself."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fxfuse.analysis.reading import read_analysis
from fxfuse.errors import InputError
from fxfuse.page.records import Stage
from fxfuse.page.summary import Parts
from fxfuse.planning.files import read_plan
from fxfuse.quantisation.records import Quantisation
from fxfuse.recovery.records import GroupRecovery
from fxfuse.report import Report

__all__ = ["AnyPath", "decode", "read_part", "read_parts", "read_stages"]

AnyPath = str | os.PathLike[str]
_Record = TypeVar("_Record")


def read_parts(paths: Iterable[AnyPath]) -> Parts:
    """The parts from files in any order, one of each kind.

    Raises:
        InputError: A file cannot be read, is none of these, or is the second of its kind.
    """
    found: dict[str, Any] = {}
    for path in paths:
        kind, part = _read_any(Path(path))
        if kind in found:
            raise InputError(f"{path} is a second {kind}: give one file of each kind.")
        found[kind] = part
    return Parts(**found)


def read_part(kind: type[_Record], part: _Record | AnyPath | None) -> _Record | None:
    """A part as it is, or from its file.

    Raises:
        InputError: It is neither, or the file holds something else.
    """
    name = kind.__name__.lower()
    if part is None or isinstance(part, kind):
        return part
    if not isinstance(part, (str, os.PathLike)):
        raise InputError(f"{name} must be a file or an object of fxfuse, not {type(part).__name__}.")
    found, read = _read_any(Path(part))
    if found != name:
        raise InputError(f"{part} is no {name}: it holds {_ARTICLES[found]}.")
    return cast("_Record", read)


def read_stages(stages: Sequence[Stage | Mapping[str, Any] | Sequence[Any]] | AnyPath) -> tuple[Stage, ...]:
    """Stages as records, dicts or rows in the order of their fields, or from a file {"stages": [...]}.

    Raises:
        InputError: A row is none of these.
    """
    if isinstance(stages, (str, os.PathLike)):
        kind, found = _read_any(Path(stages))
        if kind != "stages":
            raise InputError(f"{stages} holds no stages: it holds {_ARTICLES[kind]}.")
        return cast("tuple[Stage, ...]", found)
    return tuple(_stage(row, f"stage {place + 1}") for place, row in enumerate(stages))


_ARTICLES = {"analysis": "an analysis", "plan": "a plan", "report": "a report", "stages": "stages"}


def _read_any(path: Path) -> tuple[str, Any]:
    data = _read_json(path)
    if data.get("kind") == "fxfuse analysis":
        return "analysis", read_analysis(path)
    if data.get("kind") == "fxfuse plan":
        return "plan", read_plan(path)
    if "ffn_blocks" in data and "groups" in data:
        return "report", decode(Report, data, str(path))
    if isinstance(data.get("stages"), list):
        return "stages", read_stages(data["stages"])
    raise InputError(
        f"{path} is no analysis, plan, report or stages of fxfuse: give the JSON files it wrote."
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"{path} is not JSON: give the files that fxfuse wrote.") from None
    return data if isinstance(data, Mapping) else {}


def _stage(row: Stage | Mapping[str, Any] | Sequence[Any], where: str) -> Stage:
    names = [field.name for field in dataclasses.fields(Stage)]
    if isinstance(row, Stage):
        return row
    if isinstance(row, Mapping):
        if unknown := next((name for name in row if name not in names), None):
            raise InputError(f"{where} has no field {unknown!r}: its fields are {', '.join(names)}.")
        return decode(Stage, row, where)
    if isinstance(row, str) or len(row) > len(names):
        raise InputError(f"{where} must be a row of {', '.join(names)}.")
    return decode(Stage, dict(zip(names, row, strict=False)), where)


def decode(kind: type[_Record], data: Mapping[str, Any], where: str) -> _Record:
    """A record from its JSON. Fields it does not know are left out: a newer version may have written them.

    Raises:
        InputError: A field is missing, or holds what it cannot; `where` begins the sentence.
    """
    try:
        return cast("_Record", _value(kind, data, ""))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from None


@cache
def _fields(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, localns={"GroupRecovery": GroupRecovery, "Quantisation": Quantisation})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _value(hint: Any, data: Any, where: str) -> Any:
    """What a type hint says, made of plain data."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if origin in (Union, types.UnionType):
        rest = [each for each in inner if each is not type(None)]
        return None if data is None else _value(rest[0], data, where)
    if dataclasses.is_dataclass(hint):
        return _record(cast("type", hint), data, where)
    if origin is tuple or hint is tuple:
        return _tuple(inner, data, where)
    if origin is list:
        return [_value(inner[0], each, f"{where}[{n}]") for n, each in enumerate(_listed(data, where))]
    if origin is dict:
        pairs = _mapped(data, where).items()
        return {_key(inner[0], key, where): _value(inner[1], each, f"{where}.{key}") for key, each in pairs}
    return _plain(hint, data, where)


def _key(hint: Any, key: str, where: str) -> Any:
    """A key as it was before JSON made it a text."""
    if hint is not int:
        return key
    if not str(key).isdecimal():
        raise ValueError(f"{where} must have whole numbers as keys, not {key!r:.60}")
    return int(key)


def _record(kind: type, data: Any, where: str) -> Any:
    known = _fields(kind)
    values = {
        name: _value(known[name], value, f"{where}.{name}".lstrip("."))
        for name, value in _mapped(data, where).items()
        if name in known
    }
    try:
        return kind(**values)
    except TypeError:
        needed = [f.name for f in dataclasses.fields(kind) if f.name not in values and _is_needed(f)]
        raise ValueError(f"{where or 'it'} lacks {', '.join(needed)}") from None


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _tuple(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    values = _listed(data, where)
    kinds = [inner[0]] * len(values) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(values):
        raise ValueError(f"{where} must hold {len(kinds)} values, not {len(values)}")
    return tuple(
        _value(kind, each, f"{where}[{n}]") for n, (kind, each) in enumerate(zip(kinds, values, strict=True))
    )


def _listed(data: Any, where: str) -> Sequence[Any]:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where} must be a list, not {data!r:.60}")
    return data


def _mapped(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'it'} must be an object, not {data!r:.60}")
    return data


def _plain(hint: Any, data: Any, where: str) -> Any:
    if hint is float and data is None:  # JSON has no NaN
        return math.nan
    accepted = (int, float) if hint is float else hint
    if not isinstance(data, accepted) or (isinstance(data, bool) and hint is not bool):
        raise ValueError(f"{where} must be {_WORDS.get(hint, hint)}, not {data!r:.60}")
    return float(data) if hint is float else data


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
