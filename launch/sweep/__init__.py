"""Sweeps: search space -> trials, each an ordinary run -> the best of them as a recipe."""
