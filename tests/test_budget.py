"""The budget: what it takes, what it refuses and with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fxfuse.budget import Budget
from fxfuse.errors import InputError


def test_defaults_bound_each_group_and_nothing_else() -> None:
    budget = Budget()
    assert (budget.min_sqnr, budget.max_kl, budget.max_group) == (12.0, None, None)
    assert (budget.include, budget.exclude, budget.seed) == (None, None, 0)


@pytest.mark.parametrize(
    "given",
    [
        {"min_sqnr": None},
        {"min_sqnr": -5},
        {"min_sqnr": float("-inf")},
        {"max_kl": 0},
        {"max_kl": 0.5},
        {"max_group": 2},
        {"include": r"layers\.\d+"},
        {"exclude": ""},
        {"seed": 3},
    ],
)
def test_what_is_taken(given: dict[str, Any]) -> None:
    budget = Budget.of(given)
    assert {name: getattr(budget, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_sqnr": "12"}, "min_sqnr must be a number or None, not '12'."),
        ({"min_sqnr": True}, "min_sqnr must be a number or None, not True."),
        ({"max_kl": float("nan")}, "max_kl must be a number or None, not nan."),
        ({"max_kl": -0.1}, "max_kl must not be negative, but is -0.1."),
        ({"max_group": 1}, "max_group must be a whole number of at least 2 or None, not 1."),
        ({"max_group": 2.5}, "max_group must be a whole number of at least 2 or None, not 2.5."),
        ({"max_group": True}, "max_group must be a whole number of at least 2 or None, not True."),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1."),
        ({"seed": "0"}, "seed must be a whole number of at least 0, not '0'."),
        ({"include": 3}, "include must be a regular expression as text or None, not 3."),
        ({"exclude": "("}, "exclude='(' is not a regular expression: "),
        ({"min_snqr": 3}, "unknown option 'min_snqr': did you mean 'min_sqnr'?"),
        (
            {"colour": 3},
            "unknown option 'colour': known are min_sqnr, max_kl, max_group, include, exclude, seed",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Budget.of(given)


def test_other_options_of_a_caller_are_hinted_at_too() -> None:
    with pytest.raises(InputError, match="did you mean 'inner'"):
        Budget.of({"iner": 1}, also=("inner",))


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ({}, None),
        ({"include": "layers"}, None),
        ({"exclude": "tower"}, None),
        ({"include": r"\.4\."}, r"left out: --include '\\.4\\.' does not match it"),
        ({"exclude": "mlp$"}, "left out: --exclude 'mlp$' matches it"),
        ({"include": "layers", "exclude": "layers"}, "left out: --exclude 'layers' matches it"),
    ],
)
def test_include_and_exclude_are_searched_for(patterns: dict[str, str], reason: str | None) -> None:
    assert Budget(**patterns).allows("model.layers.3.mlp") == reason
