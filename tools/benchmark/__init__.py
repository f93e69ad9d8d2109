"""The parts of tools/bench.py.

cases, entries, machine       what is timed, who takes part, on what; no torch
subjects, references          the models, and float64 answers
files                         a process that writes ONNX files: plain, by other optimisers, fused, quantised
hosting ─┬─> in_torch         a process that holds a contestant: build, check, time
         └─> in_onnxruntime
ceilings, norm_checks         processes that measure the machine, and norms in 16 bits
crew, memory                  the processes, and which fit in memory together
contest                       takes the contestants in turn
results, page, plots, bars    JSON and table; docs/performance.md (tools/performance.py)
checks                        --check
"""
