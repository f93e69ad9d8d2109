"""Checkpoints whose layers differ, as models of transformers built from its own layers."""

from fxfuse.loading.api import load_pretrained

__all__ = ["load_pretrained"]
