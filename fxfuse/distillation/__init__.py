"""End-to-end knowledge distillation: a changed model learns the logits of the original again."""

from fxfuse.distillation.api import Distilled, distill
from fxfuse.distillation.recipe import Recipe

__all__ = ["Distilled", "Recipe", "distill"]
