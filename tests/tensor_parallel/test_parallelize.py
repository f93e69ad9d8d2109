"""Two and four gloo ranks hold a model together: its logits, its collectives, its weights given back."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import fxfuse
from models.decoder import Decoder
from tests.checkpoints.drawn import LAYERS, OWN, REMOVED, drawn
from tests.tensor_parallel.worker import FAMILIES, GROUPS, SMALL
from tools import tensor_parallel

ROOT = Path(__file__).resolve().parents[2]
ATTENTIONS, FFNS = 2, 5

Found = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What rank 0 of each crew wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.tensor_parallel.worker", str(folder)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return {ranks: json.loads((folder / f"{ranks}.json").read_text()) for ranks in (2, 4)}


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_two_ranks_give_the_logits_of_one(self, found: Found, family: str) -> None:
        for fused in (False, True):
            assert found[2][f"{family} {fused}"]["error"] < 2e-6

    def test_one_all_reduce_for_each_ffn_and_attention(self, found: Found, family: str) -> None:
        counts = found[2][f"{family} False"]["counts"]
        assert counts["all_reduce"] == ATTENTIONS + FFNS

    def test_one_all_reduce_for_each_group(self, found: Found, family: str) -> None:
        counts = found[2][f"{family} True"]["counts"]
        assert counts["all_reduce"] == ATTENTIONS + len(GROUPS)

    def test_weights_come_back_bit_for_bit(self, found: Found, family: str) -> None:
        assert found[2][f"{family} True"]["same"]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_four_ranks_keep_attentions_of_two_key_value_heads_whole(found: Found, family: str) -> None:
    for fused, ffns in ((False, FFNS), (True, len(GROUPS))):
        one = found[4][f"{family} {fused}"]
        assert one["error"] < 2e-6
        assert one["counts"]["all_reduce"] == ffns
        assert one["same"]


def test_widths_that_do_not_divide_are_filled_with_zeros(found: Found) -> None:
    padded = found[4]["padded"]
    assert padded["error"] < 2e-6
    assert padded["counts"] == {"all_reduce": 6}  # 62 logits do not divide, so lm_head stays whole
    assert padded["same"]


def test_bfloat16_differs_by_its_own_rounding(found: Found) -> None:
    assert found[2]["bfloat16"]["dtype"] == "torch.bfloat16"
    assert found[2]["bfloat16"]["error"] < 2e-2


def test_logits_are_gathered_where_lm_head_is_shared(found: Found) -> None:
    assert found[2]["small"]["counts"] == {"all_reduce": 5, "all_gather_into_tensor": 1}
    assert found[2]["head whole"]["counts"] == {"all_reduce": 5}
    assert found[2]["small"]["error"] < 2e-6


@pytest.mark.parametrize("case", ["biases", "ungated", "one axis"])
def test_other_forms(found: Found, case: str) -> None:
    assert found[2][case]["error"] < 2e-6
    assert found[2][case]["same"]


def test_a_rank_holds_its_share_alone(found: Found) -> None:
    hidden, vocab = SMALL.hidden_size, SMALL.vocab_size
    widths = sum(each.intermediate_size for each in SMALL.layers)
    attentions = sum(each.attention for each in SMALL.layers)
    total = 3 * hidden * widths + 4 * hidden * hidden * attentions + hidden * vocab
    assert found[2]["small"]["held"] == total // 2


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_program_that_was_fused_shares_its_groups(found: Found, family: str) -> None:
    one = found[2][f"program {family}"]
    assert one["counts"] == {"all_reduce": len(GROUPS)}
    assert one["error"] < 2e-6


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_program_that_was_not_fused_shares_each_ffn(found: Found, family: str) -> None:
    one = found[2][f"program unfused {family}"]
    assert one["counts"] == {"all_reduce": FFNS}
    assert one["error"] < 2e-6


LOADED = [*OWN, "unfused", "nemotron-nas", "odd"]


@pytest.mark.parametrize("case", LOADED)
class TestLoading:
    def test_the_logits_and_tokens_of_load_pretrained(self, found: Found, case: str) -> None:
        assert found[2][f"loaded {case}"]["error"] < 2e-6
        assert found[2][f"loaded {case}"]["tokens"]

    def test_all_weights_are_there(self, found: Found, case: str) -> None:
        assert found[2][f"loaded {case}"]["same"]

    def test_one_all_reduce_for_each_group(self, found: Found, case: str) -> None:
        layers = LAYERS if case in ("unfused", "odd") else LAYERS - len(REMOVED)
        assert found[2][f"loaded {case}"]["all_reduce"] == layers + LAYERS - len(REMOVED)

    def test_a_rank_holds_little_more_than_half(self, found: Found, case: str) -> None:
        assert found[2][f"loaded {case}"]["share"] < 0.6


def test_the_example_for_torchrun(found: Found) -> None:
    tokens, rate, collectives = found[2]["example"]
    assert len(tokens.split()) == 3
    assert rate.startswith("3 tokens on 2 ranks, ")
    assert collectives == "collectives of a step: 6 all_reduce, 1 all_gather_into_tensor"


def test_the_example_has_to_be_started_by_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert tensor_parallel.main(["."]) == 2
    assert "Start it as: torchrun --nproc-per-node 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--prompt", "The"], "No tokenizer can be loaded from FOLDER: give token ids with --ids.\n"),
        (["--ids", "1", "40"], "There is no token 40 in a vocabulary of 40: give --ids between 0 and 39.\n"),
        (["--ids", "-1"], "There is no token -1 in a vocabulary of 40: give --ids between 0 and 39.\n"),
    ],
)
def test_what_the_example_cannot_generate_from(
    tmp_path: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = drawn(tmp_path / "in")
    (folder / "tokenizer.json").unlink()
    assert _alone([str(folder), *words], monkeypatch) == 2
    assert capsys.readouterr().err.endswith(sentence.replace("FOLDER", str(folder)))


def test_the_example_needs_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = drawn(tmp_path / "in")
    monkeypatch.setattr(tensor_parallel, "_tokenizer", lambda _: lambda _: {"input_ids": []})
    assert _alone([str(folder), "--prompt", ""], monkeypatch) == 2
    assert capsys.readouterr().err == "The prompt has no tokens: give a longer one with --prompt.\n"


def test_the_example_tells_once_and_by_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    for _ in range(2):
        tensor_parallel.tell(fxfuse.InputError("It is 41 wide: pass pad=True."), store)
    assert capsys.readouterr().err == "It is 41 wide: give --pad.\n"


def _alone(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The example as the only rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tensor_parallel.main(words)


def test_gradients_are_those_of_one_process(found: Found) -> None:
    assert found[2]["gradients"] < 1e-5


def test_dynamo_reads_a_shared_model_as_one_graph(found: Found) -> None:
    assert found[2]["compiled"] < 2e-6


def test_generate_gives_the_same_tokens(found: Found) -> None:
    assert found[2]["generated"] is True


def test_a_model_on_the_meta_device_is_shared_out_without_weights(found: Found) -> None:
    assert found[2]["meta"] == ["meta", "(32, 72)", "(32, 144)"]


@pytest.mark.parametrize(
    "case, sentence",
    [
        ("width", "layers.0.mlp is 41 wide, which does not divide by 2 ranks: pass pad=True"),
        ("nothing", "Sequential has no FFN that ranks could share: its products must be nn.Linear"),
        ("normed", "layers.0.mlp: inner_norm.weight in it reads the whole width"),
        ("twice", "The model is shared out already (it holds DTensors): call parallelize once."),
        ("weights", "Rank 1 holds another embed_tokens.weight than rank 0: load the same checkpoint"),
        ("axes", "The mesh has 2 axes and tensor parallel takes one: pass that one, as mesh['tp']."),
        ("no mesh", "mesh must be a DeviceMesh of torch.distributed, not int."),
        ("no module", "parallelize takes a module, not int: load a checkpoint with fxfuse.load_pretrained"),
    ],
)  # fmt: skip
def test_sentences(found: Found, case: str, sentence: str) -> None:
    assert sentence in found[2]["sentences"][case]


def test_torch_distributed_has_to_be_set_up() -> None:
    with pytest.raises(fxfuse.InputError, match="not initialised: start the script with torchrun"):
        fxfuse.parallelize(Decoder(SMALL))
