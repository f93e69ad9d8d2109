"""Made-up but plausible measurements: a demo-sized model and models as large as real ones."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from fxfuse.analysis.records import Analysis, AttentionScore, ChainFacts, Dependency, ModelId, Segment
from fxfuse.page.records import Stage
from fxfuse.passes.records import Miss
from fxfuse.planning.records import FrontPoint, Plan, PlannedGroup
from fxfuse.report import BlockReport, ChainReport, GroupReport, Report, Size

VERSIONS = {"fxfuse": "0.3.0", "python": "3.11.7", "torch": "2.13.0", "onnx": "1.23.2", "numpy": "2.4.6"}


def ffn(layer: int) -> str:
    return f"model.layers.{layer}.mlp"


def attention(layer: int) -> str:
    return f"model.layers.{layer}.self_attn"


def analysis(
    layers: int = 12,
    removed: Sequence[range] = (range(5, 11),),
    width: int = 512,
    hidden: int = 192,
    measure_all: bool = True,
) -> Analysis:
    """`removed` are ranges of layers without attention; each makes one chain, with the layer before them."""
    rng = random.Random(7)
    gone = {layer for run in removed for layer in run}
    chains = [
        ChainFacts(
            tuple(ffn(layer) for layer in range(run.start - 1, run.stop)),
            (width,) * (len(run) + 1),
            (width * hidden * 12,) * (len(run) + 1),
        )
        for run in removed
    ]
    updates = [
        update
        for layer in range(layers)
        for update in ([] if layer in gone else [("attention", attention(layer))]) + [("ffn", ffn(layer))]
    ]
    return Analysis(
        model="demo.onnx",
        id=ModelId(hidden, tuple((ffn(layer), width) for layer in range(layers))),
        source="models/corpus (bytes of public-domain books)",
        tokens=40_960,
        held_out_tokens=8_192,
        seed=0,
        chains=chains,
        updates=updates,
        segments=[
            s for n, chain in enumerate(chains) for s in segments(n, len(chain.blocks), rng, measure_all)
        ],
        attention=[score(layer, layers, rng) for layer in range(layers) if layer not in gone],
        dependency=dependency(updates, rng),
        notes=["The held-out part is 20 % of the data, chosen with seed 0."],
        versions=dict(VERSIONS),
        command="fxfuse analyze demo.onnx --data corpus.npz --max-tokens 51200 -o analysis.json",
        seconds=214.0,
    )


def segments(chain: int, size: int, rng: random.Random, measure_all: bool) -> list[Segment]:
    found = []
    for first in range(size):
        for last in range(first, size):
            length = last - first + 1
            drift = 0.004 * (length - 1) ** 1.6 * (1 + 0.5 * (size - first) / size)
            predicted = 1e-4 * (length - 1) ** 3.2 * (1 + 0.9 * (size - first) / size) / (1 + length / 20)
            kl = predicted * math.exp(rng.gauss(0, 0.16))
            measured = length > 1 and (measure_all or length < 5 or rng.random() < 0.15)
            found.append(
                Segment(
                    chain, first, last, drift, 32 - 7 * math.log(max(1, length)), 0.02 * length, drift * 2.2,
                    predicted if length > 1 else 0.0,
                    kl if measured else None,
                    kl * 0.07 if measured else None,
                )
            )  # fmt: skip
    return found


def score(layer: int, layers: int, rng: random.Random) -> AttentionScore:
    depth = layer / max(1, layers - 1)
    turn = 0.002 + 0.25 * math.exp(-6 * depth) + 0.03 * max(0, depth - 0.9)
    kl = 0.8 * turn * math.exp(rng.gauss(0, 0.5))
    return AttentionScore(attention(layer), 1 - turn, kl, kl * 0.06)


def dependency(updates: Sequence[tuple[str, str]], rng: random.Random) -> Dependency:
    size = len(updates)
    matrix = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            near = math.exp(-(j - i) / (0.15 * size))
            early = 0.35 * math.exp(-8 * i / size) + 0.02
            matrix[i][j] = min(1.0, (early + 0.06 * near) * rng.uniform(0.6, 1.4))
    kinds, names = zip(*updates, strict=True)
    return Dependency(names, kinds, tuple(map(tuple, matrix)))


def plan(found: Analysis, lengths: Sequence[Sequence[int]] = ((3, 2, 2),), latency: bool = False) -> Plan:
    """Groups of these lengths in each chain, and a front around them."""
    groups = [
        PlannedGroup(names, kl=kl, sqnr_db=18.2 - len(names) / 2, measured=True)
        for chain, each in zip(found.chains, lengths, strict=True)
        for names, kl in _divide(found, found.chains.index(chain), each)
    ]
    total = sum(group.kl or 0.0 for group in groups)
    return Plan(
        id=found.id,
        groups=tuple(groups),
        budget={"max_kl": 0.004 if len(found.updates) < 40 else 0.3},
        predicted_kl=total * 0.93,
        kl=total * 1.04,
        kl_error=total * 0.05,
        front=front(found, lengths, latency),
        model="demo.onnx",
        versions=dict(VERSIONS),
        command="fxfuse plan analysis.json --max-kl 0.004 -o plan.json",
    )


def _divide(found: Analysis, chain: int, lengths: Sequence[int]):
    first = 0
    for length in lengths:
        if length > 1:
            segment = found.segment(chain, first, first + length - 1)
            yield found.chains[chain].blocks[first : first + length], segment.loss
        first += length


def front(found: Analysis, chosen: Sequence[Sequence[int]], latency: bool) -> tuple[FrontPoint, ...]:
    """Equal divisions of every chain into 1, 2, 3, ... groups, and the chosen one."""
    sizes = [len(chain.blocks) for chain in found.chains]
    every = {tuple(_even(size, count) for size in sizes) for count in range(1, max(sizes) + 1)}
    every.add(tuple(map(tuple, chosen)))
    points = []
    for lengths in sorted(every, key=lambda each: sum(map(len, each))):
        predicted = sum(1e-4 * (n - 1) ** 3.3 for each in lengths for n in each)
        depth = sum(map(len, lengths))
        measured = predicted > 0 and depth % 2 == 1
        is_chosen = lengths == tuple(map(tuple, chosen))
        points.append(
            FrontPoint(
                lengths, depth, predicted,
                predicted * 1.12 if measured or is_chosen else None,
                predicted * 0.08 if measured or is_chosen else None,
                4.1 + 0.31 * depth if latency else None,
                is_chosen,
            )
        )  # fmt: skip
    best = math.inf
    kept = []
    for point in points:  # the front falls
        if point.predicted_kl < best or point.chosen:
            best = min(best, point.predicted_kl)
            kept.append(point)
    return tuple(kept)


def _even(size: int, count: int) -> tuple[int, ...]:
    count = min(size, count)
    return tuple(size // count + (place < size % count) for place in range(count))


def report(found: Analysis, planned: Plan) -> Report:
    """What fusing the plan's groups might have reported."""
    widths = dict(found.id.blocks)
    return Report(
        model="demo.onnx",
        output="demo.fused.onnx",
        ffn_blocks=len(found.id.blocks),
        chains=[
            ChainReport(
                len(chain.blocks),
                tuple(
                    BlockReport(name, "RMSNorm", "silu", True, found.id.hidden_size, width)
                    for name, width in zip(chain.blocks, chain.intermediate_sizes, strict=True)
                ),
            )
            for chain in found.chains
        ],
        groups=[
            GroupReport(
                group.blocks, sum(widths[name] for name in group.blocks), 2.1e-7,
                17.4 - len(group.blocks) / 3, 0.99213, 0.018 * len(group.blocks), 1.9e-7,
            )
            for group in planned.groups
        ],
        misses=[
            Miss(ffn(0), "the block stands alone: attention stands between it and every other FFN block"),
            Miss(ffn(1), "the block stands alone: attention stands between it and every other FFN block"),
        ],
        end_to_end={
            "output": "logits", "tokens": 8192, "kl": 0.00231, "top1_agreement": 0.9871,
            "relative_error": 0.0312,
        },
        before=Size(412, len(found.id.blocks), 233, 4_812_288, 19_301_102),
        after=Size(351, len(found.id.blocks) - 4, 198, 4_812_288, 19_298_240),
        seconds=12.4,
        versions=dict(VERSIONS),
    )  # fmt: skip


def stages() -> list[Stage]:
    return [
        Stage("stock", 1.3121, 0.0041, None, None, 24, 5.91, "demo-dense"),
        Stage("6 attentions removed", 1.4032, 0.0044, 0.0912, 0.0021, 18, 4.98),
        Stage("healed by distillation", 1.3231, 0.0042, 0.0118, 0.0006, 18, 4.98, "demo-sparse"),
        Stage("fused as 3+2+2", 1.3302, 0.0043, 0.0184, 0.0007, 14, 4.33),
        Stage("recovered", 1.3247, 0.0042, 0.0139, 0.0006, 14, 4.33, "demo.fused.onnx"),
    ]


def demo() -> dict:
    """Everything of a demo-sized model, as arguments of write_page."""
    found = analysis()
    planned = plan(found)
    return {"analysis": found, "plan": planned, "report": report(found, planned), "stages": stages()}


def huge() -> dict:
    """80 layers; chains of 50 and 12, groups of 50 and of 2 to 6."""
    found = analysis(80, (range(2, 8), range(14, 25), range(27, 76)), 28_672, 8192, measure_all=False)
    planned = plan(found, ((2, 2, 3), (3, 2, 1, 6), (50,)), latency=True)
    return {"analysis": found, "plan": planned, "report": report(found, planned)}


def large() -> dict:
    """80 layers with many groups close to each other."""
    found = analysis(80, (range(24, 76),), 28_672, 8192, measure_all=False)
    planned = plan(found, ((2,) * 10 + (3,) * 7 + (4, 8),))
    return {"analysis": found, "plan": planned, "report": report(found, planned)}


def hostile() -> dict:
    """Names that a browser would obey, very long ones, figures that are missing, zero, NaN or infinite."""
    found = analysis(8, (range(3, 6),))
    odd = '<script>alert("{}")</script>&\x1b[31m\u202e' + "x" * 60
    changed = renamed(found, {name: odd.format(name) for _, name in found.updates})
    changed.segments[1] = replace(changed.segments[1], kl=0.0, kl_error=math.nan, predicted_kl=math.inf)
    changed.segments[2] = replace(changed.segments[2], kl=math.nan, kl_error=None, predicted_kl=None)
    changed.attention[0] = replace(changed.attention[0], kl=None, kl_error=None)
    changed.attention[1] = replace(changed.attention[1], cosine=math.nan, kl=-1e-9, kl_error=1e-3)
    matrix = [list(row) for row in changed.dependency.matrix]
    matrix[0][1], matrix[0][2], matrix[0][3] = math.nan, math.inf, 1e-12
    changed.dependency = replace(changed.dependency, matrix=tuple(map(tuple, matrix)))
    changed.notes.append("<b>bold</b>\n\x00")
    planned = plan(changed, ((2, 2),))
    planned.front += (FrontPoint(((4,),), 1, math.nan, None), FrontPoint(((4,),), 1, 0.0, 0.0, 0.0))
    told = report(changed, planned)
    told.model, told.inputs, told.error = "/a/<i>model</i>" + "-folder" * 40, "random", 'it said "no" & left'
    told.end_to_end["kl"] = None
    return {"analysis": changed, "plan": planned, "report": told, "stages": [Stage("<u>only</u>" + "y" * 90)]}


def renamed(found: Analysis, names: dict[str, str]) -> Analysis:
    return replace(
        found,
        id=ModelId(found.id.hidden_size, tuple((names[name], width) for name, width in found.id.blocks)),
        chains=[replace(chain, blocks=tuple(names[name] for name in chain.blocks)) for chain in found.chains],
        updates=[(kind, names[name]) for kind, name in found.updates],
        attention=[replace(score, name=names[score.name]) for score in found.attention],
        dependency=replace(found.dependency, names=tuple(names[name] for name in found.dependency.names)),
    )
