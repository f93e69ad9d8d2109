"""Short names for runs of layers and for sets of them."""

import pytest

from fxfuse.naming import layer_words, printable, span, spans


def layers(*numbers: int, suffix: str = ".mlp") -> list[str]:
    return [f"model.layers.{number}{suffix}" for number in numbers]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["alone"], "alone"),
        (layers(3, 4), "model.layers.3-4.mlp"),
        (layers(9, 10, 11), "model.layers.9-11.mlp"),
        (layers(1, 2, suffix=""), "model.layers.1-2"),
        (layers(1, 3), "model.layers.1.mlp and model.layers.3.mlp"),
        (layers(1, 3, 4), "model.layers.1.mlp to model.layers.4.mlp"),
        (layers(2, 1), "model.layers.2.mlp and model.layers.1.mlp"),
        (["a.0.mlp", "b.1.mlp"], "a.0.mlp and b.1.mlp"),
        (["t13", "t26", "t39"], "t13 to t39"),
        (["a.²", "a.³"], "a.² and a.³"),
        (["a.0", "a.0.1"], "a.0 and a.0.1"),
    ],
)
def test_span(names, expected):
    assert span(names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["alone"], "alone"),
        (layers(3, 4), "model.layers.3-4.mlp"),
        (layers(0, 2, 3, 7), "model.layers.0,2-3,7.mlp"),
        (layers(4, 0, 2), "model.layers.0,2,4.mlp"),
        (layers(1, 1), "model.layers.1.mlp"),
        (["a.0.mlp", "b.0.mlp", "a.1.mlp"], "a.0-1.mlp, b.0.mlp"),
        (["t1", "t2"], "t1, t2"),
        ([f"t{index}" for index in range(9)], "t0, t1, t2, t3 and 5 more"),
        (["a.²"], "a.²"),
    ],
)
def test_spans(names, expected):
    assert spans(names) == expected


def test_layers_in_a_sentence():
    assert [layer_words(each) for each in ((2,), (4, 3), (1, 2, 4))] == [
        "layer 2",
        "layers 3-4",
        "layers 1-2,4",
    ]


def test_control_characters_never_reach_a_terminal():
    assert printable("a\x1b[31mred\r\nb") == r"a\x1b[31mred\x0d\x0ab"
    assert printable("größer ≥ 2") == "größer ≥ 2"
