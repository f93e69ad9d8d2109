"""Figures as a reader wants them: few digits, errors beside them, a dash where nothing was measured."""

from __future__ import annotations

import math

__all__ = ["DASH", "count", "figure", "known", "percent", "power", "power_text", "with_error"]

DASH = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL, _LARGE = 1e-3, 1e5


def known(value: float | None) -> bool:
    """Whether there is a finite figure to show or draw."""
    return value is not None and math.isfinite(value)


def figure(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; very small or large ones as a multiple of a power of ten."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded and not _SMALL <= abs(rounded) < _LARGE:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        return _minus(f"{mantissa} × {power(int(exponent))}")
    decimals = digits - 1 - _exponent(rounded) if rounded else 0
    return _minus(f"{rounded:,.{max(0, decimals)}f}")


def with_error(value: float | None, error: float | None) -> str:
    """A number and its standard error, both cut at the error's leading digits: 0.0175 ± 0.0005."""
    if value is None or error is None or not known(value) or not known(error) or error <= 0:
        return figure(value)
    leading = _exponent(error)
    digits = 1 if error / 10**leading < 2 else 0
    scale = _exponent(max(abs(value), error))
    if scale >= -3:
        decimals = max(0, digits - leading)
        return _minus(f"{value:,.{decimals}f} ± {error:,.{decimals}f}")
    decimals, unit = max(0, digits - leading + scale), 10.0**scale
    return _minus(f"({value / unit:.{decimals}f} ± {error / unit:.{decimals}f}) × {power(scale)}")


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return DASH if value is None else _minus(f"{value:,}")


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return f"{figure(None if share is None else 100 * share)} %" if known(share) else DASH


def power(exponent: int) -> str:
    """A power of ten with its exponent raised."""
    return "10" + str(exponent).translate(_RAISED)


def power_text(value: float) -> str:
    """A tick that is a digit times a power of ten, in as few letters as can be: 0.002, 2·10⁻⁵."""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -4 < exponent < 5:
        return figure(value, 1)
    leading = round(value / 10.0**exponent)
    return power(exponent) if leading == 1 else f"{leading}·{power(exponent)}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _minus(text: str) -> str:
    return text.replace("-", "−")
