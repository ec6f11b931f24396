"""What runs on a node beside its ranks, and how they are started, ended and remembered."""
