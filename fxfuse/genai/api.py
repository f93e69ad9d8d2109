"""Export a decoder for ONNX Runtime GenAI, hold it against the torch model, and only then put it in place."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fxfuse.errors import InputError
from fxfuse.genai.checking import check, drawn_ids, logits_of_folder, logits_of_model
from fxfuse.genai.configuration import builder_config, carry_files
from fxfuse.genai.decoder import read_decoder
from fxfuse.genai.folder import check_place, new_folder
from fxfuse.genai.records import Form, GenaiReport, precision_of
from fxfuse.genai.writer import load_builder, make_writer
from fxfuse.progress import Progress, silent
from fxfuse.quiet import quiet
from fxfuse.removal.genai import NAME
from fxfuse.sessions import Provider

__all__ = ["export_genai"]

_QUANTISER = "onnxruntime.quantization.matmul_nbits_quantizer"  # tells every node

AnyPath = str | os.PathLike[str]

_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.1, "int4": 0.7}
"""About how many a weight takes, scales included."""


def export_genai(
    model: nn.Module | AnyPath,
    out_dir: AnyPath,
    *,
    precision: str | None = None,
    provider: Provider = "auto",
    tokenizer: Any = None,
    force: bool = False,
    progress: Progress = silent,
) -> GenaiReport:
    """Write a folder that onnxruntime-genai loads: the model, genai_config.json and the tokenizer.

    Layers without attention have no cache, and one wide FFN stays one. The operators are those of
    onnxruntime-genai's own model builder. Where the provider works here, the folder is run and its logits are
    held against the torch model's before it is put in place.

    Args:
        model: A causal language model of transformers, as `load_pretrained` gives it or with attention taken
            out by `remove_attention`; or the folder of a checkpoint, fused or not.
        out_dir: The folder to write: a name that is free, or an empty folder.
        precision: "fp32" (CPU), "fp16" or "bf16" (CUDA), "int8" or "int4" (weights in blocks, by the
            builder's defaults). By default fp32 for the CPU, and for CUDA the model's half type.
        provider: What the folder is for: "cuda", "cpu", or "auto" for what works here.
        tokenizer: One of transformers, or a folder that holds its files; by default the checkpoint's folder,
            or the one that the model was loaded from.
        force: Replace a folder that holds such an export.
        progress: Called with a short text at every step.

    Raises:
        InputError: An option, the model or the place cannot be used.
        VerificationError: The written model does not compute what the torch model does.
        FxfuseError: onnxruntime-genai is not installed, or the disk is full.
    """
    out = Path(out_dir)
    form = Form.of(precision, provider, bf16=False)  # what can be told before a model is loaded
    check_place(out, mark=NAME, force=force)
    load_builder()
    opened = _opened(model, form, progress)
    form = Form.of(precision, provider, bf16=getattr(opened, "dtype", None) is torch.bfloat16)
    if opened.training:
        raise InputError("The model is in training mode: call model.eval() before export_genai.")
    needed = int(sum(each.numel() for each in opened.parameters()) * _BYTES[form.precision])
    with new_folder(out, mark=NAME, force=force, needed=needed) as folder:
        report = _write(opened, folder, form, _tokenizer_of(model, opened, tokenizer), progress)
        expected = _expected(opened, progress) if form.runs else None
        del opened  # where it was loaded here, its memory is needed now
        if expected is not None:
            progress("running the written model")
            found = logits_of_folder(folder, expected.ids)
            report.relative_error = check(found, expected.logits, form.precision, expected.precision)
    report.output = str(out)
    if expected is None:
        report.notes.append("CUDA does not work here, so the folder was not run")
    return report


class _Expected(NamedTuple):
    """What the torch model gives for some tokens, and the precision that it has."""

    ids: torch.Tensor
    logits: torch.Tensor
    precision: str


def _expected(model: Any, progress: Progress) -> _Expected:
    progress("running the torch model")
    ids = drawn_ids(model.config.vocab_size, model.config.max_position_embeddings - 1)
    return _Expected(ids, logits_of_model(model, ids), precision_of(model.dtype))


def _opened(model: nn.Module | AnyPath, form: Form, progress: Progress) -> Any:
    if isinstance(model, nn.Module):
        return model
    progress("loading the checkpoint")
    from fxfuse.loading import load_pretrained

    # Held against the torch model in the type that the file computes in, rounding is all that may differ.
    return load_pretrained(Path(model), torch.float32 if form.precision == "fp32" else None)


def _tokenizer_of(model: nn.Module | AnyPath, opened: Any, tokenizer: Any) -> Any:
    """The tokenizer that was given, or the folder where it may be."""
    if tokenizer is not None:
        if isinstance(tokenizer, (str, os.PathLike)) and not Path(tokenizer).is_dir():
            raise InputError(f"There is no folder {os.fspath(tokenizer)}: give the folder of a tokenizer.")
        return tokenizer
    named = getattr(getattr(opened, "config", None), "_name_or_path", "")
    place = named if isinstance(model, nn.Module) else model
    return place if place and Path(place).is_dir() else None


def _write(model: Any, folder: Path, form: Form, tokenizer: Any, progress: Progress) -> GenaiReport:
    decoder = read_decoder(model)
    with tempfile.TemporaryDirectory() as beside, torch.no_grad(), _without_prints():
        side = Path(beside)
        has_tokenizer = carry_files(model, tokenizer, side)
        config = builder_config(decoder, side)
        writer = make_writer(decoder, config, form.precision, form.provider, progress)
        writer.make_model("")
        progress("saving the model")
        with contextlib.redirect_stderr(io.StringIO()), quiet(_QUANTISER):  # a bar of its own
            writer.save_model(str(folder))
        _write_config(writer, config, folder)
        notes = _write_tokenizer(writer, config, side, folder) if has_tokenizer else [_NO_TOKENIZER]
    widths = tuple(each.mlp.width for each in decoder.layers if each.mlp)
    files = tuple(sorted(each.name for each in folder.iterdir()))
    layers, caches = len(decoder.layers), len(decoder.caches)
    return GenaiReport("", form.precision, form.provider, layers, caches, widths, files, notes=notes)


_NO_TOKENIZER = "no tokenizer was found, so the folder generates from token ids alone: give the folder of one"


def _write_config(writer: Any, config: Any, folder: Path) -> None:
    try:
        writer.make_genai_config(config, {}, str(folder))
    except ValueError as error:
        if "eos_token_id" not in str(error):
            raise
        raise InputError(
            "Neither the model nor a tokenizer says which token ends a text: set eos_token_id "
            "in its generation config."
        ) from error


def _write_tokenizer(writer: Any, config: Any, side: Path, folder: Path) -> list[str]:
    """The files as transformers writes them today, which GenAI reads; else as they were."""
    config.save_pretrained(side)  # some tokenizers are found by the model's type
    try:
        writer.save_processing(str(side), {}, str(folder))
    except Exception as error:  # a tokenizer may need any package
        for each in side.iterdir():
            if each.name not in ("config.json", "generation_config.json"):
                (folder / each.name).write_bytes(each.read_bytes())
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return [
            f"the tokenizer's files were copied as they are, since transformers cannot load them ({reason})"
        ]
    return []


@contextlib.contextmanager
def _without_prints() -> Iterator[None]:
    """The builder prints every step; what a user is told is `progress`."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
