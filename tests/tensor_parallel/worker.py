"""What the ranks of the tests do: python -m tests.tensor_parallel.worker FOLDER."""

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import fxfuse
from fxfuse.parallel.state import whole_state
from models.decoder import Decoder, DecoderConfig, LayerConfig
from tests.checkpoints.drawn import OWN, drawn
from tests.families import build, ids
from tests.tensor_parallel import crew
from tests.tensor_parallel.wide import fused_by_hand
from tools import tensor_parallel

FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma", "granite")
_NO_END = {"pad_token_id": 0, "eos_token_id": None}
GROUPS = ((0, 1, 2), (3, 4))
SMALL = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    num_heads=4,
    layers=(LayerConfig(True, 48), LayerConfig(False, 144), LayerConfig(True, 40)),
)


def compared(model: nn.Module, given: torch.Tensor, **options: Any) -> dict[str, Any]:
    """The relative error against one process, the collectives of a call, and whether weights come back."""
    before = copy.deepcopy(model)
    with torch.no_grad():
        expected = _logits(before(given))
        shared = fxfuse.parallelize(model, **options)
        with CommDebugMode() as counted:
            value = _logits(shared(given))
    error = float((value.double() - expected.double()).norm() / expected.double().norm())
    counts = {str(each).rpartition(".")[2]: n for each, n in counted.get_comm_counts().items() if n}
    state, old = whole_state(shared), before.state_dict()
    same = state.keys() == old.keys() and all(torch.equal(state[name], old[name]) for name in old)
    held = sum(each.to_local().numel() for each in shared.parameters() if isinstance(each, DTensor))
    return {"error": error, "counts": counts, "same": same, "held": held, "dtype": str(value.dtype)}


def family(name: str, fused: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A family of transformers, its groups as they are or fused."""
    model = build(name, dtype=dtype)
    return compared(fused_by_hand(model, GROUPS) if fused else model, ids())


def small(config: DecoderConfig = SMALL, **options: Any) -> dict[str, Any]:
    """The decoder of models/, with random gains."""
    return compared(_decoder(config), ids(2, 6) % config.vocab_size, **options)


def program(module: torch.fx.GraphModule) -> dict[str, Any]:
    """A traced graph, whose attentions stay whole."""
    given = ids(2, 7)
    with torch.no_grad():
        expected = module(given)
        shared = fxfuse.parallelize(module)
        with CommDebugMode() as counted:
            value = shared(given)
    counts = {str(each).rpartition(".")[2]: n for each, n in counted.get_comm_counts().items() if n}
    return {"error": float((value - expected).norm() / expected.norm()), "counts": counts}


def gradients() -> float:
    """The largest relative error of a weight's gradient against one process."""
    model = _decoder(SMALL).train()
    given = ids(2, 6) % SMALL.vocab_size
    other = copy.deepcopy(model)
    _logits(other(given)).square().mean().backward()
    fxfuse.parallelize(model)
    _logits(model(given)).square().mean().backward()
    for module in model.modules():
        for name, each in list(module._parameters.items()):
            if each is not None:
                module._parameters[name] = nn.Parameter(each.grad)
    found, worst = whole_state(model), 0.0
    for name, each in other.named_parameters():
        worst = max(worst, float((found[name] - each.grad).norm() / each.grad.norm()))
    return worst


def compiled() -> float:
    """The error of a shared decoder that dynamo reads as one graph."""
    model = _decoder(SMALL)
    given = ids(2, 6) % SMALL.vocab_size
    with torch.no_grad():
        expected = model(given)
        value = torch.compile(fxfuse.parallelize(model), backend="eager", fullgraph=True)(given)
    return float((value - expected).norm() / expected.norm())


def generated() -> bool:
    """Whether greedy tokens are those of one process, with a cache of each rank's own heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        num_key_value_heads=2, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    given = ids(1, 5) % 64
    expected = model.generate(given, max_new_tokens=8, do_sample=False)
    found = fxfuse.parallelize(model).generate(given, max_new_tokens=8, do_sample=False)
    return torch.equal(expected, found)


def on_meta() -> list[str]:
    """A model without weights is shared out without any; its shares have their shapes."""
    with torch.device("meta"):
        model = Decoder(SMALL)
    fxfuse.parallelize(model)
    weight = model.layers[1].mlp.down_proj.weight
    return [weight.device.type, str(tuple(weight.to_local().shape)), str(tuple(weight.shape))]


def loaded(folder: Path, expected: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A checkpoint read share by share: logits, tokens and weights against those of load_pretrained."""
    model = fxfuse.load_parallel(folder, **options)
    with torch.no_grad(), CommDebugMode() as counted:
        logits = model(ids(2, 6) % 40).logits
    tokens = model.generate(ids(1, 4) % 40, max_new_tokens=6, do_sample=False)
    state = whole_state(model)
    same = state.keys() == expected["state"].keys()
    return {
        "error": float((logits - expected["logits"]).norm() / expected["logits"].norm()),
        "tokens": torch.equal(tokens, expected["tokens"]),
        "same": same and all(torch.equal(state[name], each) for name, each in expected["state"].items()),
        "all_reduce": sum(n for each, n in counted.get_comm_counts().items() if "all_reduce" in str(each)),
        "share": sum(_local(each).numel() for each in model.parameters()) / expected["numbers"],
    }


def _local(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _whole(folder: Path) -> dict[str, Any]:
    model = fxfuse.load_pretrained(folder)
    with torch.no_grad():
        logits = model(ids(2, 6) % 40).logits
    tokens = model.generate(ids(1, 4) % 40, max_new_tokens=6, do_sample=False)
    numbers = sum(each.numel() for each in model.parameters())
    return {"logits": logits, "tokens": tokens, "state": model.state_dict(), "numbers": numbers}


def checkpoints(folder: Path) -> crew.Cases:
    """Fused checkpoints of every family, one that is not fused, and one whose width is filled."""
    cases: crew.Cases = {}
    for name in OWN:
        source = drawn(folder / name, name, **_NO_END)
        fxfuse.fuse_checkpoint(source, folder / f"{name}-fused", auto=True)
        fused = folder / f"{name}-fused"
        cases[f"loaded {name}"] = functools.partial(loaded, fused, _whole(fused))
    source = folder / "llama"
    cases["loaded unfused"] = functools.partial(loaded, source, _whole(source))
    fxfuse.fuse_checkpoint(source, folder / "nas", auto=True, dialect="nemotron-nas")
    cases["loaded nemotron-nas"] = functools.partial(loaded, folder / "nas", _whole(folder / "nas"))
    odd = drawn(folder / "odd", "phi3", intermediate_size=49, **_NO_END)
    options = tensor_parallel.parser().parse_args(
        [str(folder / "llama-fused"), "--ids", "1", "2", "--tokens", "3"]
    )
    cases["example"] = functools.partial(tensor_parallel.run, options, "cpu")
    cases["loaded odd"] = functools.partial(loaded, odd, _whole(odd), pad=True)
    return cases


def sentences() -> dict[str, str]:
    """What is told of models and meshes that cannot be shared."""
    ranks = dist.get_world_size()
    odd = DecoderConfig(hidden_size=32, num_heads=4, layers=(LayerConfig(True, 41),))
    normed = _decoder(SMALL)
    for layer in normed.layers:
        layer.mlp.inner_norm = nn.RMSNorm(layer.mlp.down_proj.in_features)
    shared = fxfuse.parallelize(_decoder(SMALL))
    torch.manual_seed(dist.get_rank())
    drawn = Decoder(SMALL)
    mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("dp", "tp"))
    tries = {
        "width": lambda: fxfuse.parallelize(_decoder(odd)),
        "nothing": lambda: fxfuse.parallelize(nn.Sequential(nn.Linear(2, 2))),
        "normed": lambda: fxfuse.parallelize(normed),
        "twice": lambda: fxfuse.parallelize(shared),
        "weights": lambda: fxfuse.parallelize(drawn),
        "axes": lambda: fxfuse.parallelize(_decoder(SMALL), mesh),
        "no mesh": lambda: fxfuse.parallelize(_decoder(SMALL), 2),
        "no module": lambda: fxfuse.parallelize(42),
    }
    return {name: _told(each) for name, each in tries.items()}


def one_axis() -> dict[str, Any]:
    """One axis of a mesh of two."""
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("dp", "tp"))
    return small(mesh=mesh["tp"])


def _told(call: Any) -> str:
    try:
        call()
    except fxfuse.InputError as error:
        return str(error)
    return ""


def _decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config).eval()
    for name, each in model.named_parameters():
        if "norm" in name:
            each.data = 1 + 0.3 * torch.randn(each.shape)
    return model


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def cases_of_two() -> crew.Cases:
    """What two ranks do."""
    cases: crew.Cases = {}
    for name in FAMILIES:
        for fused in (False, True):
            cases[f"{name} {fused}"] = functools.partial(family, name, fused)
    cases["bfloat16"] = functools.partial(family, "llama", True, torch.bfloat16)
    cases |= {"small": small, "head whole": functools.partial(small, head=False), "one axis": one_axis}
    cases["biases"] = functools.partial(small, DecoderConfig(**{**SMALL.__dict__, "bias": True}))
    cases["ungated"] = functools.partial(small, DecoderConfig(**{**SMALL.__dict__, "gated": False}))
    cases |= {
        "gradients": gradients,
        "generated": generated,
        "compiled": compiled,
        "meta": on_meta,
        "sentences": sentences,
    }
    for name in ("llama", "phi3"):
        exported = torch.export.export(build(name), (ids(2, 7),))
        fused, _ = fxfuse.fuse(exported, (ids(2, 7),), min_sqnr=None)
        cases[f"program {name}"] = functools.partial(program, fused.module())
        cases[f"program unfused {name}"] = functools.partial(program, exported.module())
    return cases


def cases_of_four() -> crew.Cases:
    """What four ranks do: two key-value heads do not divide, nor do some widths."""
    odd = tuple(LayerConfig(True, width) for width in (41, 48, 3))
    config = DecoderConfig(vocab_size=62, hidden_size=32, num_heads=4, layers=odd)
    cases: crew.Cases = {
        f"{name} {fused}": functools.partial(family, name, fused)
        for name in ("llama", "phi3")
        for fused in (False, True)
    }
    return {**cases, "padded": functools.partial(small, config, pad=True)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    crew.run({**cases_of_two(), **checkpoints(place)}, 2, place)
    crew.run(cases_of_four(), 4, place)
