"""Proofs on the user's own settings, driving real runs: layouts, resume."""
