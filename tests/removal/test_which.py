"""Which attentions are meant: lists, paths, choices, and other tools' decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxfuse.errors import InputError
from fxfuse.passes.attention import Attention
from fxfuse.passes.records import Miss
from fxfuse.removal.decisions import read_decisions
from fxfuse.removal.records import Candidate, Choice, Step
from fxfuse.removal.which import Which, parse_layers, select

FOUND = [Attention(f"layers.{n}.attn", f"x{n}", f"y{n}", n, frozenset()) for n in range(4)]
UNNAMED = [Attention(f"add_{n}", f"x{n}", f"y{n}", None, frozenset()) for n in (5, 6)]
MISSES = [Miss("layers.9.attn", "it is cross attention")]


def names(which: Which) -> list[str]:
    return [each.name for each in select(which, FOUND, MISSES)]


def refused(which: Any, found: Any = FOUND, misses: Any = MISSES) -> str:
    with pytest.raises(InputError) as caught:
        select(which, found, misses)
    return str(caught.value)


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, layers",
    [("5", [5]), ("5-7,12", [5, 6, 7, 12]), (" 1 , 2 - 3", [1, 2, 3]), ("2,1,2", [2, 1])],
)
def test_lists_of_layers(text: str, layers: list[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "5-", "a", "1;2", "-3", "1,,2"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(InputError, match="is no list of layers: write one such as 5-10,12"):
        parse_layers(text)


def test_a_range_backwards() -> None:
    with pytest.raises(InputError, match="The range 7-5 runs backwards: write 5-7"):
        parse_layers("1,7-5")


def test_every_form_gives_the_same() -> None:
    two = ["layers.1.attn", "layers.2.attn"]
    step = Step("layers.2.attn", 0.1, 0.0, False, (Candidate("layers.2.attn", 0.1, 0.0),))
    choice = Choice((step, Step("layers.1.attn", 0.2, 0.0, True, ())), (1, 2), 10, 10)
    for which in ("1-2", [2, 1], (1, "layers.2.attn"), {"drop_attn_list": [1, 2]}, choice, iter([1, 2])):
        assert names(which) == two
    assert names("layers.1.attn") == two[:1]


def test_a_configuration_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"drop_attn_list": [3]}))
    assert names(tmp_path / "config.json") == names(str(tmp_path)) == ["layers.3.attn"]


def test_where_paths_have_no_numbers_places_count() -> None:
    assert [each.name for each in select("1", UNNAMED, [])] == ["add_6"]


def test_what_is_not_there() -> None:
    assert refused([7]) == ("There is no attention to remove in layer 7: the model has layers.0-3.attn.")
    assert refused("layers.7.attn") == (
        "There is no attention to remove in layers.7.attn: the model has layers.0-3.attn."
    )
    assert refused([9]) == "layers.9.attn cannot be removed: it is cross attention."
    assert refused([7], []) == (
        "There is no attention to remove in layer 7: the model has none that can be removed."
    )
    assert refused([]) == "No attention is named: say which are to go."
    assert refused([1], [], []) == (
        "The model holds no attention on its residual stream, so there is none to remove."
    )
    assert refused([True]) == "True names no layer: give numbers or layer paths."


# -- decisions of other tools ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"drop_attn_list": [1, 3]},
        {"drop_attn_list": [False, True, False, True]},
        {"block_configs": [{"attention": {"no_op": layer in (1, 3)}, "ffn": {}} for layer in range(4)]},
        {"per_layer_config": {"1": {"skip": ["attention"]}, "2": {"intermediate_size": 8, "skip": []},
                              "3": {"skip": ["attention", "mlp"]}}},
        {"per_layer_config": {n: {"skip": ["attention"]} for n in (3, 1)}, "drop_attn_list": None},
    ],
)  # fmt: skip
def test_decisions(config: dict[str, Any], tmp_path: Path) -> None:
    assert read_decisions(config) == (1, 3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert read_decisions(path) == read_decisions(tmp_path) == (1, 3)


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"model_type": "llama"}, "does not say which attentions go: it holds none of drop_attn_list, "),
        ({"drop_attn_list": [True, 2]}, "drop_attn_list in the configuration is not as it should be"),
        ({"drop_attn_list": [1.5]}, "1.5 is no layer"),
        ({"drop_attn_list": 3}, "drop_attn_list in the configuration is not as it should be"),
        ({"block_configs": [{"ffn": {}}]}, "block_configs in the configuration is not as it should be"),
        (
            {"block_configs": [{"attention": {"replace_with_linear": True}}]},
            "layer 0 puts a linear map in the place of its attention",
        ),
        ({"per_layer_config": {"a": {"skip": ["attention"]}}}, "is not as it should be"),
    ],
)
def test_decisions_that_make_no_sense(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_decisions(config)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no configuration .*: check the path"):
        read_decisions(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(InputError, match="is not JSON .*: give the model's config.json"):
        read_decisions(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no JSON object: give the model's config.json"):
        read_decisions(tmp_path / "list.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_decisions(tmp_path)
