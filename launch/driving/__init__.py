"""Carries a run over several nodes; knows nothing of how they are reached."""
