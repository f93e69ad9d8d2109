"""Tests of fxfuse, and the material that they share."""
