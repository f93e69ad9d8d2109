"""Other libraries are silent where their failure is told in one sentence, and only there."""

import logging

import pytest
import torch

from fxfuse.errors import InputError
from fxfuse.frontends.programs import load_program
from fxfuse.frontends.torch_model import export_module
from fxfuse.quiet import quiet


def test_quiet_ends_with_the_context(caplog):
    log = logging.getLogger("another.library")
    with pytest.raises(ValueError, match="stop"), quiet("another.library"):
        log.error("a traceback")
        raise ValueError("stop")
    log.error("heard")
    assert caplog.messages == ["heard"]


def test_files_that_are_no_programs(tmp_path, capfd):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"m\.pt2 is no program of torch\.export: write it with"):
        load_program(path)
    torch.save({"weight": torch.ones(2)}, path)  # a checkpoint, which is a zip file too
    with pytest.raises(InputError, match=r"m\.pt2 is no program of torch\.export \("):
        load_program(path)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_does_not_run_on_the_batch(capfd):
    with pytest.raises(InputError, match=r"torch\.export cannot capture the model \("):
        export_module(torch.nn.Linear(3, 3).eval(), {"input": torch.ones(2, 4)})
    assert capfd.readouterr() == ("", "")
