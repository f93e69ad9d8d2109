"""Inputs to measure on: read from a user's .npz files and checked against the model, or drawn from a seed.

One .npz file is one sample and holds one array per graph input, under the input's name.
"""

from __future__ import annotations

import difflib
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .drawing import draw_inputs
from .errors import InputError
from .specs import InputSpec, dim_names, dim_size, is_float, is_int, is_name, specs_of

__all__ = ["InputSpec", "Sample", "check_sample", "draw_inputs", "load_inputs", "read_arrays", "specs_of"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Sample: TypeAlias = "dict[str, Array]"


def load_inputs(paths: Sequence[str | os.PathLike[str]], specs: Sequence[InputSpec]) -> list[Sample]:
    """Read samples and bring them to the types that the model expects.

    Raises:
        InputError: A file cannot be read, or its arrays do not fit the model; names file, input, what the
            model expects and what was given.
    """
    return [check_sample(os.fspath(path), read_arrays(Path(path)), specs) for path in paths]


def check_sample(where: str, given: Mapping[str, Array], specs: Sequence[InputSpec]) -> Sample:
    """Bring the arrays of one sample to the types that the model expects; `where` names the sample.

    Raises:
        InputError: They do not fit the model.
    """
    _check_names(where, given, specs)
    sample = {spec.name: _cast(where, spec, np.asarray(given[spec.name])) for spec in specs}
    _check_shapes(where, sample, specs)
    return sample


def read_arrays(path: Path) -> Sample:
    """Read the arrays of an .npz file.

    Raises:
        InputError: It is not there, is none, is damaged or holds what are no arrays of numbers.
    """
    if not path.is_file():
        raise InputError(f"There is no input file {path}: check the path.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz file: write it with numpy.savez(path, input_ids=...).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _read_array(path, archive, name) for name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): write it again with numpy.savez.") from error


def _read_array(path: Path, archive: Any, name: str) -> Array:
    try:
        array = archive[name]
    except (ValueError, pickle.UnpicklingError) as error:
        if "allow_pickle" not in str(error):
            raise InputError(f"{path} holds a damaged array {name!r}: write it again.") from error
        raise InputError(
            f"{path} holds pickled objects in {name!r}, which are never loaded: save arrays of numbers."
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds {name!r}, which is no array: write the file with numpy.savez.")
    return array


def _check_names(where: str, given: Iterable[str], specs: Sequence[InputSpec]) -> None:
    given, expected = list(given), [spec.name for spec in specs]
    for name in given:
        if name not in expected:
            near = _nearest(name, [other for other in expected if other not in given] or expected)
            raise InputError(f"{where} holds {name!r}, which is no input of the model: {near}.")
    for spec in specs:
        if spec.name not in given:
            raise InputError(f"{where} lacks the input {spec.name!r}: the model expects {spec} there.")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}" if near else f"the model's inputs are {', '.join(known) or 'none'}"


def _cast(where: str, spec: InputSpec, given: Array) -> Array:
    """Bring an array to the input's type where no value changes but by rounding."""
    if given.dtype == spec.dtype:
        return given
    if given.dtype.kind == "V" and given.dtype.itemsize == spec.dtype.itemsize and is_float(spec.dtype):
        return given.view(spec.dtype)  # numpy saves bfloat16 as bytes without a name
    floats = is_float(given.dtype) and is_float(spec.dtype)
    whole = (is_int(given.dtype) or given.dtype.kind == "b") and is_int(spec.dtype)
    if floats or whole:
        with np.errstate(over="ignore"):
            cast = given.astype(spec.dtype)
        if _is_kept(given, cast, floats):
            return cast
        what_to_do = "its values do not fit into that type"
    else:
        what_to_do = "save it in that type"
    raise InputError(
        f"{where} gives {spec.name!r} as {given.dtype} where the model expects {spec.dtype}: {what_to_do}."
    )


def _is_kept(given: Array, cast: Array, floats: bool) -> bool:
    if floats:
        return np.array_equal(np.isfinite(given), np.isfinite(cast))
    return np.array_equal(given, cast)


def _check_shapes(where: str, sample: Sample, specs: Sequence[InputSpec]) -> None:
    """Hold the shapes against the model's, and sizes with one name against each other."""
    for spec in specs:
        shape = sample[spec.name].shape
        if len(shape) != len(spec.shape):
            raise InputError(f"{where} gives {spec.name!r} the shape {shape} where the model expects {spec}.")
    axes = [(spec, axis) for spec in specs for axis in range(len(spec.shape))]
    learnt: dict[str, tuple[int, str]] = {}
    # Names alone come first, since expressions are computed from them.
    for spec, axis in sorted(axes, key=lambda place: not is_name(place[0].shape[place[1]])):
        size, dim = sample[spec.name].shape[axis], spec.shape[axis]
        if is_name(dim):
            learnt.setdefault(dim, (size, spec.name))
        _check_size(where, spec, axis, size, learnt)


def _check_size(
    where: str, spec: InputSpec, axis: int, size: int, learnt: dict[str, tuple[int, str]]
) -> None:
    dim = spec.shape[axis]
    expected = dim_size(dim, {name: known for name, (known, _) in learnt.items()})
    if expected is None or expected == size:
        return
    sources = [f"{name} is {learnt[name][0]} in {learnt[name][1]!r}" for name in dim_names(dim)]
    why = f", since {' and '.join(sources)}" if sources else ""
    raise InputError(
        f"{where} gives {spec.name!r} the size {size} at axis {axis} where the model expects {expected}"
        f"{why}: its shape must be {spec}."
    )
