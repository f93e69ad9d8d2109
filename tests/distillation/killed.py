"""python -m tests.distillation.killed FOLDER STEP: a distillation that is killed at a step, by `kill -9`."""

import os
import signal
import sys
from pathlib import Path

import torch

from fxfuse import distill
from tests.distillation import tiny

RECIPE = {"steps": 12, "batch_size": 10, "learning_rate": 5e-3, "optimizer": "muon"}
EVERY = 5


def main(folder: Path, step: int) -> None:
    torch.set_num_threads(1)

    def progress(text: str) -> None:
        if f": {step} of {RECIPE['steps']}" in text:
            os.kill(os.getpid(), signal.SIGKILL)

    distill(
        tiny.exported(), tiny.teacher(), tiny.data(), folder=folder, every=EVERY, progress=progress, **RECIPE
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
