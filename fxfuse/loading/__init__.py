"""Checkpoints whose layers differ, as models of transformers built from its own layers."""
