"""Architectures and where their values come from. Only build.py knows transformers."""
