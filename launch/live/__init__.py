"""Runs while they run, in a terminal: longhaul watch."""
