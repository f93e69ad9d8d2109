"""Measure before anything is changed: drift, dependency, local errors, attention importance, KL."""
