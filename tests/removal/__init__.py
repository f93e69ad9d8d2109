"""Attention removal, held against models whose attention was removed by hand."""
