"""Fused decoders for ONNX Runtime GenAI: fewer caches than layers, every FFN as wide as it is."""
