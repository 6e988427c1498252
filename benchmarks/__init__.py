"""Measurements of imix-aug: ``python -m benchmarks --help``."""
