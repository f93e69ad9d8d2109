"""Fuzzing of the ONNX reader and tool; `python -m tests.fuzz --minutes 10` runs for longer than the tests do.

A mutant is named by what it is made from, "llama/nodes/17": a seed, a kind of mutation and a number that
seeds all choices. So every finding can be made again from its name alone.
"""
