"""What readers insist on in the folder: tensors, the files' names and places, code, the tokenizer.

For the sources of these rules see `fxfuse.checkpoints.reader_rules`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from fxfuse.checkpoints.expected import expected
from fxfuse.checkpoints.seen import Seen
from fxfuse.checkpoints.settings import setting

__all__ = ["beside_config", "code_in_folder", "files_by_name", "leftovers", "tokenizer"]

_LLAMA_3_VOCABULARY = 128256


def code_in_folder(seen: Seen) -> Iterator[str]:
    """The configuration class lies in the folder, as transformers does not know the type."""
    reference = str((seen.config.get("auto_map") or {}).get("AutoConfig", ""))
    file = f"{reference.rpartition('--')[2].partition('.')[0]}.py"
    if not reference:
        yield "config.json has no auto_map with an AutoConfig"
    elif "--" not in reference and not (seen.checkpoint.folder / file).exists():
        yield f"{file}, which auto_map names, is not in the folder"


def leftovers(seen: Seen) -> Iterator[str]:
    """Tensors that the config has no place for, though some readers pass over them."""
    wanted = expected(seen.checkpoint)
    for name in seen.checkpoint.tensors:
        if name not in wanted and name != "lm_head.weight":
            yield f"{name} has no place in the model"


def files_by_name(seen: Seen) -> Iterator[str]:
    """Files that readers would open by their names, and which the index does not know."""
    files, folder = seen.checkpoint.tensors.files, seen.checkpoint.folder
    for file in files:
        if file.parent != folder or not file.name.startswith("model"):
            yield f"{file.relative_to(folder)} is not found: names must begin with model, beside config.json"
            return
    for file in sorted(folder.glob("model*.safetensors")):
        if file not in files:
            yield f"{file.name} is read too, and the index does not know it"


def beside_config(seen: Seen) -> Iterator[str]:
    """Files of weights lie where config.json lies."""
    folder = seen.checkpoint.folder
    other = next((file for file in seen.checkpoint.tensors.files if file.parent != folder), None)
    if other is not None:
        yield f"{other.relative_to(folder)} is not found: files must lie beside config.json"


def tokenizer(seen: Seen) -> Iterator[str]:
    """llama.cpp takes a vocabulary of 128256 for that of Llama 3, and any other for Llama 2's kind."""
    vocabulary = setting(seen.config, "vocab_size")
    if vocabulary == _LLAMA_3_VOCABULARY or (seen.checkpoint.folder / "tokenizer.model").exists():
        return
    path = seen.checkpoint.folder / "tokenizer.json"
    try:
        model = json.loads(path.read_bytes())["model"]
        fits = model.get("type") == "BPE" and model.get("byte_fallback") is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        yield (
            f"a tokenizer of {vocabulary} tokens, and not {_LLAMA_3_VOCABULARY}, must be of Llama 2's kind, "
            "and none such is in the folder"
        )
