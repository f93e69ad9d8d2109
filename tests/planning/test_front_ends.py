"""One plan, made on the torch model, in every front end.

chains of 3 and 2 blocks; the plan fuses 0+1 and 3+4, which no budget would choose
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fxfuse
from fxfuse import cli
from fxfuse.analysis.identity import model_id
from fxfuse.analysis.records import ModelId
from fxfuse.errors import InputError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.planning.files import write_plan
from fxfuse.planning.records import Plan, PlannedGroup
from tests import exporters
from tests.closeness import assert_parallel
from tests.families import build, ids
from tests.test_backend import HIDDEN, WIDTH, Tiny, tokens

GROUPS = ((0, 1), (3, 4))
NAMES = [tuple(f"model.layers.{index}.mlp" for index in group) for group in GROUPS]


@functools.cache
def made(groups: tuple[tuple[int, ...], ...] = GROUPS) -> Plan:
    identity = model_id(read_torch(build("llama"), {"input_ids": ids()}))
    names = [name for name, _ in identity.blocks]
    return Plan(
        identity, tuple(PlannedGroup(tuple(names[i] for i in group)) for group in groups), model="Llama"
    )


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", made())
    return tmp_path / "plan.json"


@functools.cache
def onnx_bytes(write: Callable[..., Path], folder: str) -> bytes:
    return write(build("llama"), (ids(),), Path(folder) / "whole.onnx", dynamic=True).read_bytes()


@pytest.fixture
def model_file(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(exporters.onnx_dynamo, str(tmp_path_factory.getbasetemp())))
    return tmp_path / "m.onnx"


def assert_planned(report: fxfuse.Report) -> None:
    assert [group.blocks for group in report.groups] == NAMES
    (left,) = [miss for miss in report.misses if "plan" in miss.reason]
    assert (left.where, left.reason) == ("model.layers.2.mlp", "left sequential: the plan has it in no group")
    assert report.notes[0] == "the groups follow the plan made for Llama"


# -- every front end takes it ----------------------------------------------------------------------


def test_a_torch_program_takes_the_object(plan_file: Path) -> None:
    program, report = fxfuse.fuse(exporters.exported(build("llama"), (ids(),)), (ids(),), plan=made())
    assert_planned(report)
    assert_parallel(program.module()(ids()), "llama", groups=GROUPS)


def test_torch_compile_takes_the_file(plan_file: Path) -> None:
    torch._dynamo.reset()
    options = {"plan": str(plan_file), "inner": "eager"}
    output = torch.compile(build("llama"), backend=fxfuse, options=options)(ids())
    assert_planned(fxfuse.reports()[-1])
    assert_parallel(output, "llama", groups=GROUPS)


@pytest.mark.parametrize("write", [exporters.onnx_dynamo, exporters.onnx_torchscript])
def test_files_of_both_onnx_exporters_take_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(build("llama"), (ids(),), tmp_path / "m.onnx", dynamic=True)
    report = fxfuse.fuse_onnx(path, plan=made().to_dict(), provider="cpu")
    assert_planned(report)
    session = fxfuse.session(tmp_path / "m.fused.onnx", "cpu")
    (output,) = session.run(None, {session.get_inputs()[0].name: ids().numpy()})
    assert_parallel(torch.from_numpy(np.asarray(output)), "llama", groups=GROUPS)


def test_export_takes_it(tmp_path: Path, plan_file: Path) -> None:
    report = fxfuse.export_onnx(build("llama"), (ids(),), tmp_path / "e.onnx", plan=plan_file, provider="cpu")
    assert_planned(report)


def test_the_command_line_takes_it(
    tmp_path: Path, plan_file: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "fuse",
        str(model_file),
        "--plan",
        str(plan_file),
        "--provider",
        "cpu",
        "--report",
        str(tmp_path / "r"),
    ]
    assert cli.main(words) == 0
    assert [tuple(each["blocks"]) for each in json.loads((tmp_path / "r").read_text())["groups"]] == NAMES
    assert "the groups follow the plan made for Llama" in capsys.readouterr().out
    assert cli.main([*words[:-1], str(plan_file), "--force"]) == 2
    assert f"The report would overwrite {plan_file}: choose another file." in capsys.readouterr().err


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.inner(input_ids)


def test_a_wrapped_model_has_other_names_and_takes_it() -> None:
    program, report = fxfuse.fuse(
        exporters.exported(Wrapped(build("llama")), (ids(),)), (ids(),), plan=made()
    )
    assert [len(group.blocks) for group in report.groups] == [2, 2]
    assert report.groups[0].blocks[0] == "inner.model.layers.0.mlp"
    assert (
        "the plan names the layers otherwise; one of its groups is inner.model.layers.0-1.mlp here"
        in report.notes
    )
    assert_parallel(program.module()(ids()), "llama", groups=GROUPS)


class Broken(Tiny):
    """Five blocks in a row, with a graph break after the third."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers[:3]:
            x = layer(x)
        torch._dynamo.graph_break()
        for layer in self.layers[3:]:
            x = layer(x)
        return self.lm_head(self.norm(x))


@pytest.mark.parametrize(
    ("groups", "fused", "error"),
    [
        (GROUPS, [[(0, 1)], [(3, 4)]], None),
        (((0, 1, 2),), [[(0, 1, 2)], []], None),
        (
            ((2, 3),),
            [[], []],
            "The plan fuses layers.2-3.mlp, but layers.3.mlp is no block here: this graph is a part of the "
            "model.",
        ),
    ],
)
def test_each_graph_of_a_broken_model_takes_its_own_groups(
    groups: Any, fused: list[list[tuple[int, ...]]], error: str | None
) -> None:
    torch._dynamo.reset()
    names = [f"layers.{index}.mlp" for index in range(5)]
    planned = tuple(PlannedGroup(tuple(names[i] for i in group)) for group in groups)
    plan = Plan(ModelId(HIDDEN, tuple((name, WIDTH) for name in names)), planned)
    before = len(fxfuse.reports())
    model = Broken(depth=5).requires_grad_(False)
    torch.compile(model, backend=fxfuse, options={"plan": plan, "inner": "eager"})(tokens())
    reports = fxfuse.reports()[before:]
    expected = [[tuple(names[i] for i in group) for group in each] for each in fused]
    assert [[group.blocks for group in each.groups] for each in reports] == expected
    assert reports[0].error == error


# -- what still holds ------------------------------------------------------------------------------


def fused(plan: Plan, **budget: Any) -> fxfuse.Report:
    return fxfuse.fuse(exporters.exported(build("llama"), (ids(),)), (ids(),), plan=plan, **budget)[1]


def test_a_plan_is_not_cut_by_min_sqnr_but_told() -> None:
    report = fused(made(((0, 1, 2), (3, 4))), min_sqnr=60)
    assert [len(group.blocks) for group in report.groups] == [3, 2]
    notes = [note for note in report.notes if "dB" in note]
    assert len(notes) == 2
    assert re.fullmatch(
        r"the plan's group model\.layers\.0-2\.mlp keeps \d+\.\d dB, under the 60 dB that a group has to "
        "keep without a plan",
        notes[0],
    )
    assert not any("dB" in note for note in fused(made(), min_sqnr=None).notes)


def test_max_kl_still_holds() -> None:
    report = fused(made(((0, 1, 2), (3, 4))), max_kl=0.0)
    assert report.groups == []
    assert any("over the budget of 0" in miss.reason for miss in report.misses)


def test_groups_are_in_the_order_of_the_graph() -> None:
    assert [group.blocks for group in fused(made(((3, 4), (0, 1)))).groups] == NAMES


def test_a_plan_of_no_groups_fuses_nothing() -> None:
    report = fused(made(()))
    assert report.groups == []
    assert len([miss for miss in report.misses if "the plan has it in no group" in miss.reason]) == 5


# -- errors, and nothing half written --------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ({"max_group": 2}, "max_group chooses groups, and so does the plan: give one of the two."),
        ({"include": "0"}, "include chooses groups, and so does the plan: give one of the two."),
        ({"exclude": "0"}, "exclude chooses groups, and so does the plan: give one of the two."),
    ],
)
def test_bounds_that_choose_groups_are_refused(bound: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        fused(made(), **bound)


def test_unknown_options_know_of_plans(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown option 'plam': did you mean 'plan'"):
        fxfuse.fuse_onnx(tmp_path / "m.onnx", plam=made())
    with pytest.raises(InputError, match="unknown option 'plam': did you mean 'plan'"):
        fxfuse.export_onnx(build("llama"), (ids(),), tmp_path / "m.onnx", plam=made())
    with pytest.raises(InputError, match="unknown option 'plam': did you mean 'plan'"):
        fxfuse.fuse(exporters.exported(build("llama"), (ids(),)), (ids(),), plam=made())


def test_a_plan_that_does_not_fit_leaves_no_file(
    tmp_path: Path, plan_file: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(plan_file.read_text())
    data["groups"][1]["blocks"][1] = "model.layers.44.mlp"
    plan_file.write_text(json.dumps(data))
    before = sorted(each.name for each in tmp_path.iterdir())
    words = ["fuse", str(model_file), "--provider", "cpu", "--plan"]
    assert cli.main([*words, str(plan_file)]) == 2
    sentence = (
        "The plan names model.layers.44.mlp, which is no block of its model; did you mean model.layers.4.mlp?"
    )
    assert capsys.readouterr().err == f"fxfuse: error: {sentence}\n"
    assert cli.main([*words, str(tmp_path / "gone.json")]) == 2
    assert "There is no plan file" in capsys.readouterr().err
    assert cli.main([*words, str(plan_file), "--max-group", "3"]) == 2
    assert "--max-group chooses groups, and so does the plan" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == before


def test_export_reads_the_plan_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no plan file"):
        fxfuse.export_onnx(build("llama"), (ids(),), tmp_path / "m.onnx", plan=tmp_path / "gone.json")
    assert list(tmp_path.iterdir()) == []


def test_torch_compile_refuses_what_is_no_plan_and_tells_what_does_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="There is no plan file"):
        torch.compile(build("llama"), backend=fxfuse, options={"plan": tmp_path / "gone.json"})(ids())
    torch._dynamo.reset()
    other = build("llama", intermediate_size=64)
    output = torch.compile(other, backend=fxfuse, options={"plan": made(), "inner": "eager"})(ids())
    sentence = "The plan is for another model: model.layers.0.mlp is 96 wide there, and 64 wide here."
    assert fxfuse.reports()[-1].error == sentence
    assert f"fxfuse: not fused: {sentence.rstrip('.')}" in caplog.messages
    assert torch.equal(output, other(ids()))


def test_a_tap_is_the_reason_that_is_told() -> None:
    tapped = exporters.exported(build("llama", hidden_states=True), (ids(),))
    with pytest.raises(
        InputError, match="but they are not in one chain of this model: the residual stream after"
    ):
        fxfuse.fuse(tapped, (ids(),), plan=made())


def test_bodies_are_left_as_they_are(model_file: Path) -> None:
    model = onnx.load(model_file)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["logits"], ["inside"])],
        "then",
        [],
        [onnx.helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, None)],
    )
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], ["picked"], then_branch=inner, else_branch=inner)
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("picked", onnx.TensorProto.FLOAT, None))
    onnx.save(model, model_file)
    report = fxfuse.fuse_onnx(model_file, plan=made(), provider="cpu")
    assert len(report.groups) == 2
    note = "what is inside of If, Loop and Scan nodes is left as it is: a plan names layers of the main graph"
    assert note in report.notes
