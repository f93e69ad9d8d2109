"""The written folder in ONNX Runtime GenAI, held against the torch model: a prompt, then token by token.

    ids       t0 ............ t11 | t12 | t13 | t14 | t15       drawn over the vocabulary
    torch     one pass over all of them, without a cache
    GenAI     the prompt in one call, then each token with the cache of those before it

Logits are compared behind the prompt and behind each token, so that a wrong cache is seen, not only a wrong
weight.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fxfuse.errors import VerificationError
from fxfuse.genai.records import PRECISIONS
from fxfuse.numerics import relative_error

__all__ = ["check", "drawn_ids", "logits_of_folder", "logits_of_model"]

_PROMPT, _STEPS = 12, 4


def drawn_ids(words: int, longest: int) -> torch.Tensor:
    """Example tokens [1, S] of a vocabulary of `words`; S is at most `longest`."""
    count = max(2, min(_PROMPT + _STEPS, longest))
    return torch.randint(0, words, (1, count), generator=torch.Generator().manual_seed(0))


def logits_of_model(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Behind the prompt and each token that follows, in float32 on the CPU: [steps, words]."""
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    found: torch.Tensor = logits[0, _prompt(ids) - 1 :]
    return found.float().cpu()


def logits_of_folder(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """The same of what GenAI runs.

    Raises:
        VerificationError: It cannot load or run the folder.
    """
    genai = importlib.import_module("onnxruntime_genai")
    tokens, prompt = ids.numpy().astype("int32"), _prompt(ids)
    try:
        loaded = genai.Model(str(folder))
        options = genai.GeneratorParams(loaded)
        options.set_search_options(max_length=ids.shape[1] + 1, do_sample=False)
        generator = genai.Generator(loaded, options)
        found = []
        for start, stop in [(0, prompt), *((each, each + 1) for each in range(prompt, ids.shape[1]))]:
            generator.append_tokens(tokens[:, start:stop])
            found.append(
                torch.from_numpy(generator.get_logits()).reshape(-1, generator.get_logits().shape[-1])
            )
    except Exception as error:  # its errors share no narrower base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise VerificationError(
            f"ONNX Runtime GenAI cannot run what was written ({reason}), so that nothing was put in place: "
            "try another precision."
        ) from error
    return torch.cat([each[-1:] for each in found]).float()


def check(found: torch.Tensor, expected: torch.Tensor, *precisions: str) -> float:
    """The relative error of all logits; `precisions` are those of the file and of the torch model.

    Raises:
        VerificationError: It is more than rounding in this precision, or logits are no numbers.
    """
    if (what := _no_number(expected)) is not None:
        raise VerificationError(
            f"The torch model's own logits hold {what}, so that nothing was put in place: look for a weight "
            "that is no number or too large, and copy or make the checkpoint anew."
        )
    if (what := _no_number(found)) is not None:
        raise VerificationError(
            f"The logits of the written model hold {what} where the torch model's are numbers, so that "
            "nothing was put in place: try another precision."
        )
    error, bound = relative_error(found, expected), max(PRECISIONS[each] for each in precisions)
    if not error <= bound:
        raise VerificationError(
            f"The logits of the written model differ from the torch model's by {error:.2g} of their norm, "
            f"which is more than {precisions[0]} explains, so that nothing was put in place: try fp32."
        )
    return error


def _no_number(logits: torch.Tensor) -> str | None:
    """What there is in logits that is no number."""
    if torch.isnan(logits).any():
        return "NaN"
    return None if torch.isfinite(logits).all() else "infinity"


def _prompt(ids: torch.Tensor) -> int:
    return max(1, ids.shape[1] - _STEPS)
