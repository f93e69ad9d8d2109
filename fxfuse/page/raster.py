"""Drawings as PNG files, rasterised by resvg (the package resvg-py), without a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from fxfuse.errors import InputError
from fxfuse.page.records import Chart
from fxfuse.page.style import LIGHT, chart_style
from fxfuse.page.svg import element, escape

__all__ = ["check_raster", "png_of"]

_ZOOM = 2
"""Pixels of a PNG for each of the drawing, so that it is sharp on paper and on dense screens."""
_MARGIN, _TITLE = 20, 36
_FONTS = "'Helvetica Neue', Arial, 'DejaVu Sans', 'Liberation Sans', 'Noto Sans', sans-serif"
_SIZE = re.compile(r'width="([0-9.]+)" height="([0-9.]+)"')
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


def png_of(chart: Chart) -> bytes:
    """The wide drawing under its title, in the light colours on their paper."""
    import resvg_py

    found = resvg_py.svg_to_bytes(
        svg_string=_framed(chart),
        style_sheet=f"text {{ font-family: {_FONTS}; }}{chart_style()}",
        background=LIGHT["paper"],
        zoom=_ZOOM,
        resources_dir=None,
    )
    return bytes(found)


def _framed(chart: Chart) -> str:
    """The drawing with a margin and its title above it."""
    width, height = (float(found) for found in _SIZE.search(chart.wide).groups())  # type: ignore[union-attr]
    title = element("text", escape(chart.title), x=0, y=17, class_="strong", style="font-size: 17px")
    inner = f'<g transform="translate({_MARGIN} {_MARGIN})">{title}'
    inner += f'<g transform="translate(0 {_TITLE})">{chart.wide}</g></g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" '
        f'width="{width + 2 * _MARGIN:g}" height="{height + 2 * _MARGIN + _TITLE:g}">{inner}</svg>'
    )


@cache
def _has_fonts(render: Callable[..., bytes]) -> bool:
    """Whether a letter leaves a trace."""
    return bytes(render(svg_string=_PROBE)) != bytes(render(svg_string=_PROBE.replace("M</", " </")))
