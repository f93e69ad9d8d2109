"""ONNX graphs over onnx-graphsurgeon: the view that matchers read and the rewrite."""
