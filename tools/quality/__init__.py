"""The study of quality behind docs/quality.md: what fusing costs on learned weights, and what is won back."""
