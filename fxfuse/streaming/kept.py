"""A recovery beside the folder that is to be written, so that a run that was killed does not fit again.

    parent/.OUT.fxfuse-recovered/recovered-4.safetensors      corrected blocks of the group of update 4
                                 recovery.json                what it is of, and its figures; written last

It goes when OUT is there. Another source, other groups, data or options make another recovery.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fxfuse._version import __version__
from fxfuse.calibration import Calibration
from fxfuse.checkpoints.corrections import in_block
from fxfuse.checkpoints.records import Checkpoint, Group
from fxfuse.disks import check_space, explain_write, sync
from fxfuse.progress import Progress, silent
from fxfuse.recovery.records import Recovered, RecoveryOptions
from fxfuse.sessions import Provider
from fxfuse.streaming.recovering import RecoveredCheckpoint, recover_checkpoint

__all__ = ["KeptRecovery", "kept_recovery"]

_RECORD = "recovery.json"


@dataclass(frozen=True)
class KeptRecovery:
    """The checkpoint with corrected weights in the place of its own, and the figures as JSON data.

    A context manager, in which the weights are used.

    figures: "kl_before" and "kl_after" with all groups fused, naively and corrected, in nats on the tokens
    held out; "groups", each as a `GroupRecovery`; "notes".
    """

    checkpoint: Checkpoint
    figures: Mapping[str, Any]
    folder: Path

    def __enter__(self) -> KeptRecovery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is made of it is written, or failed; what was interrupted will be gone on with."""
        if error is None or isinstance(error, Exception):
            shutil.rmtree(self.folder, ignore_errors=True)


def kept_recovery(
    checkpoint: Checkpoint,
    groups: Sequence[Group],
    calibration: Calibration,
    out: Path,
    options: RecoveryOptions,
    *,
    beside: int = 0,
    resume: bool = True,
    provider: Provider = "auto",
    progress: Progress = silent,
) -> KeptRecovery:
    """`recover_checkpoint` for what goes to the folder `out`; what a killed run left of the same is taken.

    beside: Bytes that will be written to the same disk while the corrected weights are still there.

    Raises:
        InputError: As `recover_checkpoint`. What was written is removed then.
        FxfuseError: The disk has no room for both, which is known before anything is computed, or is full.
    """
    target = Path(os.path.realpath(out))
    folder = target.with_name(f".{target.name}.fxfuse-recovered")
    key = _key(checkpoint, groups, calibration, options)
    found = _read(folder / _RECORD)
    if not (resume and found is not None and found.get("key") == key):
        shutil.rmtree(folder, ignore_errors=True)
        check_space(folder.parent, beside + _corrected_bytes(checkpoint, groups))
        folder.mkdir()
        try:
            made = recover_checkpoint(
                checkpoint, groups, calibration, folder, options, provider=provider, progress=progress
            )
            found = _recorded(folder, key, checkpoint, made)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    files = [folder / name for name in found["files"]]
    tensors = checkpoint.tensors.replaced(files) if files else checkpoint.tensors
    return KeptRecovery(replace(checkpoint, tensors=tensors), found["figures"], folder)


def _corrected_bytes(checkpoint: Checkpoint, groups: Sequence[Group]) -> int:
    """At most what corrected weights take: all blocks of all groups."""
    layers = {layer for group in groups for layer in group}
    stored = checkpoint.tensors.values()
    return sum(each.nbytes for each in stored if in_block(each.name, layers, checkpoint.family))


def _recorded(folder: Path, key: str, before: Checkpoint, made: RecoveredCheckpoint) -> dict[str, Any]:
    """Write the record once the corrected weights are on the disk; as JSON gives it back."""
    own = set(before.tensors.files)
    files = [path for path in made.checkpoint.tensors.files if path not in own]
    found = {"key": key, "files": [path.name for path in files], "figures": _figures(made.found)}
    text = json.dumps(found)
    try:
        for path in files:
            sync(path)
        (folder / _RECORD).write_text(text)
        sync(folder / _RECORD)
        sync(folder)
    except OSError as error:
        told = explain_write(error, folder.parent, folder, None)
        if told is None:
            raise
        raise told from error
    return dict(json.loads(text))


def _figures(found: Recovered) -> dict[str, Any]:
    before, after = found.kl_before, found.kl_after
    return {
        "kl_before": None if before is None else before.kl,
        "kl_after": None if after is None else after.kl,
        "groups": [asdict(group) for group in found.groups],
        "notes": list(found.notes),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """What an earlier run wrote; None where there is nothing whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _key(
    checkpoint: Checkpoint, groups: Sequence[Group], calibration: Calibration, options: RecoveryOptions
) -> str:
    """A digest of all that a recovery depends on."""
    told = hashlib.sha256(repr((__version__, list(groups), asdict(options))).encode())
    for file in checkpoint.tensors.files:
        status = file.stat()
        told.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
    told.update(json.dumps(dict(checkpoint.config), sort_keys=True).encode())
    for place, batch in enumerate(calibration.batches):
        for name, tensor in batch.items():
            told.update(repr((place < len(calibration.fit), name, tuple(tensor.shape))).encode())
            told.update(tensor.cpu().contiguous().numpy().tobytes())
    return told.hexdigest()
