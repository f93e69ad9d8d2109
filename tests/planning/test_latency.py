"""Times by name, width and length: what is looked up first, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fxfuse.errors import InputError
from fxfuse.planning.latency import read_latency

NAMES = ("model.layers.4.mlp", "model.layers.5.mlp")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({2: 0.5}, 0.5),
        ({"2": 0.5, "width 200": 0.4}, 0.4),
        ({"2": 0.5, "width 200": 0.4, "model.layers.4-5.mlp": 0.3}, 0.3),
        ({"2": 0.5, "model.layers.4.mlp + model.layers.5.mlp": 0.3}, 0.3),
        ({NAMES: 0.2, " width  200 ": 3}, 0.2),
        ({" width  200 ": 3}, 3.0),
        ({"3": 1, "width 100": 1, "model.layers.4.mlp": 1}, None),
    ],
)
def test_the_most_special_time_counts(times: Any, expected: float | None) -> None:
    assert read_latency(times).of(NAMES, (100, 100)) == expected
    assert read_latency(read_latency(times)).of(NAMES, (100, 100)) == expected


def test_one_block_needs_a_time() -> None:
    assert read_latency({"width 100": 0.25}).of_block("model.layers.4.mlp", 100) == 0.25
    sentence = (
        "The latency has no time for the single block model.layers.4.mlp: add one of "
        '"model.layers.4.mlp", "width 100", "1".'
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_latency({"2": 0.25}).of_block("model.layers.4.mlp", 100)


def test_a_file_holds_the_same(tmp_path) -> None:
    (tmp_path / "times.json").write_text(json.dumps({"1": 0.2, "width 200": 0.4}))
    assert read_latency(tmp_path / "times.json").of(NAMES, (100, 100)) == 0.4
    assert read_latency(str(tmp_path / "times.json")).times == {"1": 0.2, "width 200": 0.4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "There is no latency file {path}: check the path."),
        ("{1: 2}", "The latency file {path} is not JSON (Expecting property name enclosed in double quotes"),
        ("[1]", 'The latency file {path} must hold milliseconds by group, as in {{"1": 0.21, "2": 0.33}}.'),
        ("{}", 'The latency file {path} must hold milliseconds by group, as in {{"1": 0.21, "2": 0.33}}.'),
        ('{"1": "fast"}', "The latency file {path} has 'fast' for '1': give milliseconds."),
        ('{"1": -1}', "The latency file {path} has -1 for '1': give milliseconds."),
        ('{"1": NaN}', "The latency file {path} has nan for '1': give milliseconds."),
        ('{"1": true}', "The latency file {path} has True for '1': give milliseconds."),
        ('{"width x": 1}', "The latency file {path} has 'width x': write a width as \"width 5632\"."),
    ],
)
def test_what_is_no_time(tmp_path, text: str | None, sentence: str) -> None:
    path = tmp_path / "times.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence.format(path=path))):
        read_latency(path)


def test_what_is_no_mapping_and_what_cannot_be_read(tmp_path) -> None:
    with pytest.raises(InputError, match=re.escape("The latency must hold milliseconds by group")):
        read_latency({})
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_latency(tmp_path)
