"""The parts of tools/bench.py.

cases, machine, figures       plain facts, no torch
subjects ─┬─> files           in a process of its own: ONNX files and float64 references
          └─> contestants ──> workers     one process each: build, check, time
contest                       takes the workers in turn
results                       JSON and table
"""
