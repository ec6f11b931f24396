"""Watching the ranks of a node from outside: who stands still, since when, and who is to blame."""
