"""Times and token counts as a user reads them."""

from __future__ import annotations

__all__ = ["milliseconds", "number", "token_count"]


def number(milliseconds: float) -> str:
    """Three digits, or all before the point: "0.0592", "1.12", "1,250"."""
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def milliseconds(value: float) -> str:
    """With its unit."""
    return f"{number(value)} ms"


def token_count(tokens: int) -> str:
    """One token, or several."""
    return f"{tokens} token{'s' if tokens > 1 else ''}"
