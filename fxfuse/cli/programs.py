"""`fxfuse fuse` on a .pt2 file of torch.export: the same options, and a .pt2 file as the result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.cli import data
from fxfuse.errors import InputError
from fxfuse.files import default_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from fxfuse.report import Report

__all__ = ["fuse_program", "is_program"]


def is_program(model: Path) -> bool:
    """Whether a model is a program of torch.export, by the end of its name."""
    return model.suffix == ".pt2"


def fuse_program(
    options: argparse.Namespace, report: Report, budget: dict[str, Any], progress: Callable[[str], None]
) -> None:
    """Fuse, fill `report` and write, unless it is a dry run or nothing was fused.

    Raises:
        InputError: There are no data to measure on, or the program or the output's place cannot be used.
    """
    from fxfuse.frontends.opening import calibration_for
    from fxfuse.frontends.programs import check_program_place, load_program, save_program
    from fxfuse.recovery import RecoveryOptions
    from fxfuse.torch_api import fuse

    if options.data is None or options.inputs:
        raise InputError("A .pt2 file is measured on calibration data: give --data, and no --inputs.")
    out = options.output or default_output(options.model)
    inputs = [options.model, options.data, *([options.plan] if options.plan else [])]
    if not options.dry_run:
        check_program_place(out, inputs=inputs, force=options.force)
    calibration = calibration_for(options.model, options.data, progress, **data.wishes(options))
    wish = None
    if options.recover is not None:
        wish = RecoveryOptions(method=options.recover, seed=options.seed, activations=options.memory)
    fused, found = fuse(
        load_program(options.model),
        tuple(calibration.fit[0].values()),
        plan=options.plan,
        recover=wish,
        calibration=calibration if wish is not None else None,
        quantize=options.quantize,
        quantize_exclude=options.quantize_exclude,
        target=data.target(options),
        progress=progress,
        **budget,
    )
    report.__dict__.update(found.__dict__)
    report.model = str(options.model)
    if not found.groups:
        return
    report.output = str(out)
    if not options.dry_run:
        progress("writing")
        save_program(fused, out, inputs=inputs, force=options.force)
