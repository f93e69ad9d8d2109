"""A demo model's card, from the figures its training left; `python -m models.card [NAME]` writes it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from models.checkpoint import load, write_whole

__all__ = ["render_card", "write_card"]

TEMPLATE = """# A byte-level decoder with a chain of {chain} FFNs

{depth} layers, hidden size {hidden_size}, intermediate size {intermediate_size}, {num_heads} heads,
{parameters:.2f} M parameters, {megabytes:.1f} MB of float16. {style};
the vocabulary is the 256 byte values. Layers {first} to {last} have no attention, so the FFNs of
layers {before} to {last} follow each other with nothing between: a run that FFN Fusion can rewrite, with
weights that were learned. `models.load_demo("{name}")` returns it; `models.load_demo("{name}-dense")` returns
the model it came from.

| held-out nats/byte | mean | standard error |
| --- | --- | --- |
| dense, every attention in place | {dense[mean]:.4f} | {dense[standard_error]:.4f} |
| {removed_count} attentions removed, not trained on | {removed[mean]:.4f} | {removed[standard_error]:.4f} |
| removed and healed: this model | {healed[mean]:.4f} | {healed[standard_error]:.4f} |

On {tokens:,} held-out bytes in windows of {context}, none of which sees bytes before it; dense and healed
as stored, in float16.

## Training

    python -m models.train --name {name}

{steps} steps dense, then {heal_steps} steps of healing (next-byte loss plus KL to the dense model), each of
{batch} windows of {context} bytes; Muon for the matrices inside the layers, AdamW for the rest, bfloat16
autocast, seed {seed}. {minutes:.0f} minutes on two CPU cores{shared}. Python {python}, torch {torch}.

## Which attentions were removed

For each layer, the cosine of the residual stream before and after attention (near 1: it changes little) and
the loss added by leaving that attention out of the dense model. The window was chosen by the loss added
without all of it, among those that leave attention in the first and in the last layer. Measured on training
text, so that held-out files decided nothing.

| layer | cosine | loss added | loss added without the {removed_count} attentions from here |
| --- | --- | --- | --- |
{importance}

## Data

The `.py` files of the standard library of the Python that runs the script, without test suites, generated
tables and the packages many installations leave out; about 7 % of the files are held out, by a hash of
their path, the same files in every Python version. Figures move a little with that version, since the files
differ. The text is licensed under the PSF License (https://docs.python.org/3/license.html) and is not part
of this repository; the weights are under the repository's licence.

## Limits

It knows Python source in English and nothing else, writes text that looks like code and rarely is, and was
made small and quick on purpose. It exists so that quality can be shown and measured on learned weights. How
well the FFNs of a large model bear fusion has to be measured on that model.
"""


STYLES = {
    "rms": "RMSNorm, SwiGLU and rotary attention as in Llama",
    "layer": "LayerNorm, an ungated FFN with GELU, biases, and rotary attention",
}


def _importance_rows(importance: dict[str, Any]) -> str:
    """Return the table's rows, one a layer."""
    windows = {int(first): f"{loss:.4f}" for first, loss in importance["window_loss"].items()}
    pairs = zip(importance["cosines"], importance["added_loss"], strict=True)
    return "\n".join(
        f"| {i} | {cos:.3f} | {loss:.4f} | {windows.get(i, '')} |" for i, (cos, loss) in enumerate(pairs)
    )


def render_card(folder: Path) -> str:
    """Return the model card of the model in `folder`, which holds its `training.json` too."""
    figures = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    model, removed = load(folder), figures["removed_layers"]
    recipe = figures["recipe"]
    return TEMPLATE.format(
        **{key: figures[key] for key in ("dense", "removed", "healed", "minutes", "python", "torch")},
        **{key: recipe[key] for key in ("steps", "batch", "context", "seed")},
        name=folder.name,
        style=STYLES[model.config.norm],
        hidden_size=model.config.hidden_size,
        num_heads=model.config.num_heads,
        intermediate_size=model.config.layers[0].intermediate_size,
        depth=len(model.config.layers),
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        first=removed[0],
        last=removed[-1],
        before=removed[0] - 1,
        chain=len(removed) + 1,
        removed_count=len(removed),
        tokens=figures["healed"]["tokens"],
        heal_steps=figures["healing"]["steps"],
        shared=figures.get("note", ""),
        importance=_importance_rows(figures["importance"]),
    )


def write_card(folder: Path) -> None:
    """Write `folder`'s README.md."""
    write_whole(folder / "README.md", render_card(folder).encode())


if __name__ == "__main__":
    write_card(Path(__file__).parent / (sys.argv[1] if len(sys.argv) > 1 else "demo"))
