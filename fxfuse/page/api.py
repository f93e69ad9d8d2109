"""Write the page, and the PNG files beside it: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxfuse.analysis.records import Analysis
from fxfuse.errors import InputError
from fxfuse.files import stage
from fxfuse.page.place import check_page_place
from fxfuse.page.raster import check_raster, png_of
from fxfuse.page.reading import AnyPath, read_part, read_stages
from fxfuse.page.records import Chart, Stage
from fxfuse.page.sections import build_page
from fxfuse.page.summary import Parts
from fxfuse.planning.records import Plan
from fxfuse.recovery.records import GroupRecovery, Recovered
from fxfuse.report import Report
from fxfuse.report_file import write_text

__all__ = ["write_page", "write_parts"]


def write_page(
    path: AnyPath,
    *,
    analysis: Analysis | AnyPath | None = None,
    plan: Plan | AnyPath | None = None,
    report: Report | AnyPath | None = None,
    recovery: Recovered | Sequence[GroupRecovery] | None = None,
    stages: Sequence[Stage | Mapping[str, Any] | Sequence[Any]] | AnyPath | None = None,
    title: str | None = None,
    command: str | None = None,
    png_folder: AnyPath | None = None,
) -> Path:
    """Write one HTML page that shows what is given and loads nothing from anywhere; returns its path.

    Args:
        path: The page; an earlier page there is replaced, any other file is not.
        analysis: What `fxfuse.analyze` measured, or its JSON file.
        plan: What `fxfuse.plan` chose, or its JSON file.
        report: What fusing reported, or its JSON file.
        recovery: What recovering the groups' weights came to.
        stages: Rows of the table of the whole way: `Stage` records, dicts, or rows in their fields' order.
        title: Instead of the model's name.
        command: The command that made the last of these.
        png_folder: A folder that gets each drawing as a PNG file; it is made if it is not there.

    Raises:
        InputError: Nothing was given, or not what it must be; the page or the PNG files cannot go there.
        FxfuseError: The disk is full.
    """
    files = [each for each in (analysis, plan, report, stages) if isinstance(each, (str, os.PathLike))]
    parts = Parts(
        read_part(Analysis, analysis),
        read_part(Plan, plan),
        read_part(Report, report),
        recovery if recovery is None or isinstance(recovery, Recovered) else tuple(recovery),
        read_stages(stages) if stages is not None else (),
    )
    return write_parts(
        path, parts, inputs=files, title=title, commands=[command] if command else [], png_folder=png_folder
    )


def write_parts(
    path: AnyPath,
    parts: Parts,
    *,
    inputs: Iterable[AnyPath] = (),
    title: str | None = None,
    commands: Sequence[str] = (),
    png_folder: AnyPath | None = None,
) -> Path:
    """The same for parts that were read; `inputs` are files that the page must not replace."""
    target = Path(path)
    if parts == Parts():
        raise InputError("There is nothing to show: give an analysis, a plan, a report or stages.")
    _check_one_model(parts)
    check_page_place(target, [Path(each) for each in inputs])
    if png_folder is not None:
        check_raster()
    page = build_page(parts, title, commands)
    if png_folder is not None:
        _write_pngs(Path(png_folder), page.charts)
    write_text(target, page.html, what="page")
    return target


def _check_one_model(parts: Parts) -> None:
    """A plan and an analysis of different models would be drawn as if they were one."""
    if parts.analysis is None or parts.plan is None:
        return
    one, other = parts.analysis.id, parts.plan.id
    same = [width for _, width in one.blocks] == [width for _, width in other.blocks]
    if one.hidden_size != other.hidden_size or not same:
        raise InputError(
            "The plan is for another model than the analysis, of other sizes: give files of one model."
        )


def _write_pngs(folder: Path, charts: Sequence[Chart]) -> None:
    """All are drawn before the first is written."""
    drawn = [(f"{chart.name}.png", png_of(chart)) for chart in charts]
    if not drawn:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {folder} for PNG files cannot be made ({error.strerror}): choose another."
        ) from None
    with stage(folder / drawn[-1][0], force=True) as staging:
        for name, content in drawn:
            staging.path(name).write_bytes(content)
