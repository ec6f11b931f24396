"""One machine: what it is and has, found by looking, and what that means. Standard library only."""
