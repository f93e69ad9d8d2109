"""Attention removal: which attentions, decided or measured, and models without them."""
