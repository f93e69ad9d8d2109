"""Hugging Face checkpoints of any size: fused tensor by tensor, checked, and loaded again."""
