"""What a target may be, and what is told of one that makes no sense."""

import pytest

from fxfuse.errors import InputError
from fxfuse.timing.target import Target, parse_tokens
from fxfuse.timing.using import target_on


@pytest.mark.parametrize(
    "given, target",
    [
        (None, None),
        (1, Target((1,))),
        ([1, 8, 1], Target((1, 8))),
        ({"tokens": [1, 8], "threads": 2}, Target((1, 8), threads=2)),
        ({"tokens": 4}, Target((4,))),
        (Target((3,), "cuda"), Target((3,), "cuda")),
    ],
)
def test_a_target_is_written_in_many_ways(given: object, target: Target | None):
    assert Target.of(given) == target


@pytest.mark.parametrize(
    "given, message",
    [
        (0, "from 1 to"),
        (True, "must be token counts"),
        ("1,8", "must be token counts"),
        ((), "must be token counts"),
        ((1, 2.5), "2.5"),
        ({"token": 1}, "has no 'token'"),
        ({"tokens": "1"}, "must be token counts"),
        ({"threads": 0}, "threads"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"cuda_graphs": True}, "needs the device cuda"),
        ({"cuda_graphs": 1, "device": "cuda"}, "True or False"),
    ],
)
def test_a_target_that_makes_no_sense_is_an_input_error(given: object, message: str):
    with pytest.raises(InputError, match=message):
        Target.of(given)


def test_the_command_line_writes_counts_with_commas():
    assert parse_tokens("1,8, 32") == (1, 8, 32)
    with pytest.raises(ValueError, match="invalid literal"):
        parse_tokens("one")


def test_the_provider_is_the_device_unless_the_target_names_one():
    assert target_on((1,), "cpu") == Target((1,), "cpu")
    assert target_on((1,), "cuda") == Target((1,), "cuda")
    assert target_on({"tokens": 1, "device": "cpu"}, "cuda") == Target((1,), "cpu")
    assert target_on(None, "auto") is None
