"""Measurements against what people use today; benchmarks/README.md says how to run each."""
