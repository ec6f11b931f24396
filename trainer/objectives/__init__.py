"""Losses summed over terms: pure functions of log-probabilities, without state or collectives."""
