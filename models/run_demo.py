"""The whole way on a trained model: export, fuse through tools/onnx_fuse.py, verify, judge on held-out text.

python -m models.run_demo [--out out/demo] [--max-bytes 102400]

The loss that decides which groups are kept is measured on training text; what fusing costs is then told on
held-out text, in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fxfuse.export import quiet_exporter
from fxfuse.sessions import session
from models.checkpoint import load_demo
from models.corpus import held_out, training
from models.evaluate import Evaluation, Predict, difference, nats_per_byte

CONTEXT = 256
ROOT = Path(__file__).resolve().parent.parent


def export(path: Path) -> None:
    """Write the demo model as ONNX with batch and sequence left open."""
    model = load_demo()
    ids = torch.zeros(2, 16, dtype=torch.int64)
    shapes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}}
    with quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            model, (ids,), path, dynamo=True, dynamic_shapes=shapes, external_data=False,
            input_names=["input_ids"], output_names=["logits"], verbose=False,
        )  # fmt: skip


def save_sample(path: Path, windows: int = 16) -> None:
    """Write training text as measuring input: `windows` stretches of `CONTEXT` bytes over all files."""
    data = training()
    starts = np.linspace(0, len(data) - CONTEXT, windows).astype(np.int64)
    np.savez(path, input_ids=data.astype(np.int64)[starts[:, None] + np.arange(CONTEXT)])


def predictor(path: Path) -> Predict:
    """An ONNX file as a function of token ids."""
    opened = session(path, "cpu")

    def predict(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = opened.run(["logits"], {"input_ids": ids})[0]
        return logits

    return predict


def show(label: str, plain: Evaluation, fused: Evaluation) -> None:
    """Print the losses before and after, and what lies between with its standard error over windows."""
    more, error = difference(plain, fused)
    print(f"{label}: {plain.mean:.4f} nats/byte before, {fused.mean:.4f} after: {more:+.4f} ± {error:.4f}")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code of tools/onnx_fuse.py."""
    parser = argparse.ArgumentParser(description="Export, fuse and judge the demo model.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--max-bytes", type=int, default=102_400)
    options = parser.parse_args(arguments)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    plain, fused, sample = folder / "demo.onnx", folder / "demo.fused.onnx", folder / "sample.npz"
    print(f"Exporting the demo model to {plain}")
    export(plain)
    save_sample(sample)
    command = ["tools/onnx_fuse.py", str(plain), "--inputs", str(sample), "--force"]
    command += ["--report", str(folder / "report.json")]
    print(f"Fusing it: python {' '.join(command)}\n", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False).returncode
    if code:
        return code
    data = held_out(options.max_bytes)
    print(
        f"\nHeld-out text through ONNX Runtime ({len(data):,} bytes of Python's standard library) ...",
        flush=True,
    )
    losses = [nats_per_byte(predictor(path), data, CONTEXT) for path in (plain, fused)]
    groups = json.loads((folder / "report.json").read_text())["groups"]
    sizes = " + ".join(str(len(group["blocks"])) for group in groups)
    show(f"groups of {sizes} FFNs", *losses)
    print(f"\nFiles: {plain}, {fused}, {folder / 'report.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
