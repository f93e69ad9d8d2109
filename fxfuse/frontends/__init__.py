"""Kinds of graph: a view at the start, a writer at the end, and a runtime to measure both on."""
