"""Fuse the FFN chains of an ONNX model: python tools/onnx_fuse.py MODEL.onnx [-o OUT.onnx] ... (--help)."""

import sys

from fxfuse.cli import main

if __name__ == "__main__":
    sys.exit(main(["fuse", *sys.argv[1:]]))
