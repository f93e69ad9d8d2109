"""Smaller weights after fusing: int8 and int4 through the runtimes' own quantisers, judged as they run.

options ──> products ──> library ──> onnx ──> judging ──> after      ONNX files
        └─> torch                                                     programs of torch.export
"""
