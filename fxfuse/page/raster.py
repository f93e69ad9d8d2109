"""Drawings as PNG files, rasterised by resvg (https://pypi.org/project/resvg-py), without a browser."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from fxfuse.errors import InputError
from fxfuse.page.style import LIGHT, chart_style

__all__ = ["check_raster", "png_of"]

_ZOOM = 2
"""Pixels of a PNG for each of the drawing, so that it is sharp on paper and on dense screens."""
_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text y="9">M</text></svg>'


def check_raster() -> None:
    """See that PNG files can be made, before any work.

    Raises:
        InputError: The library is missing, or the machine has no fonts.
    """
    try:
        import resvg_py
    except ImportError:
        raise InputError(
            "PNG files need the library resvg-py: install it with pip install 'fxfuse[page]', or leave the "
            "folder for PNG files out."
        ) from None
    if not _has_fonts(resvg_py.svg_to_bytes):
        raise InputError(
            "This machine has no fonts, so PNG files would lack their text: install some (fonts-dejavu-core "
            "in Debian), or leave the folder for PNG files out."
        )


def png_of(svg: str) -> bytes:
    """One drawing in the light colours on their paper."""
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            style_sheet=chart_style(),
            background=LIGHT["paper"],
            zoom=_ZOOM,
            font_family="sans-serif",
        )
    )


@cache
def _has_fonts(render: Callable[..., bytes]) -> bool:
    """Whether a letter leaves a trace."""
    return bytes(render(svg_string=_PROBE)) != bytes(render(svg_string=_PROBE.replace("M</", " </")))
