"""A small random decoder, the same without two attentions, and data: what distillation is tested on."""

import functools

import torch
from torch.export import ExportedProgram

import fxfuse
from fxfuse.calibration import Calibration
from fxfuse.frontends.torch_model import export_module
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.surgery import remove_attention

VOCABULARY, CONTEXT = 40, 12


def teacher(seed: int = 0, vocab_size: int = VOCABULARY) -> Decoder:
    torch.manual_seed(seed)
    layers = (LayerConfig(intermediate_size=24),) * 3
    model = Decoder(DecoderConfig(vocab_size=vocab_size, hidden_size=16, num_heads=2, layers=layers)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def student() -> Decoder:
    return remove_attention(teacher(), range(1, 3)).eval()


def data(windows: int = 60, seed: int = 0) -> Calibration:
    ids = torch.randint(0, VOCABULARY, (windows, CONTEXT), generator=torch.Generator().manual_seed(seed))
    pieces = [{"input_ids": piece} for piece in ids.split(10)]
    return Calibration(tuple(pieces[:-1]), tuple(pieces[-1:]), "drawn", 0, ())


@functools.cache
def exported() -> ExportedProgram:
    return export_module(student(), data().fit[0])


@functools.cache
def fused() -> ExportedProgram:
    ids = (data().fit[0]["input_ids"],)
    program, report = fxfuse.fuse(exported(), ids, min_sqnr=None)
    assert report.groups
    return program


def maker() -> tuple[Decoder, tuple[torch.Tensor]]:
    """For the command line: tests/distillation/tiny.py:maker."""
    return student(), (data().fit[0]["input_ids"],)


def teacher_maker() -> tuple[Decoder, tuple[torch.Tensor]]:
    return teacher(), (data().fit[0]["input_ids"],)
