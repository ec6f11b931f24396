"""Proofs on the user's own settings: equal on every layout, interrupted = uninterrupted."""
