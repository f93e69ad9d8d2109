"""A small byte-level decoder and its trained weights, which examples, tests and benchmarks run on."""

from models.checkpoint import load_demo

__all__ = ["load_demo"]
