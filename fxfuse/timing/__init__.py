"""Timing on the user's machine: which groups pay there, in which form, and whether the whole model does.

Nothing here runs unless a target is given. Each contestant has a process of its own (`workers`), processes
are taken in turn for several rounds (`rounds`), and what was measured once is remembered (`cache`).
"""
