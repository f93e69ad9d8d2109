"""Decoders drawn at random, for torch and for ONNX, with what they mean written beside them."""
