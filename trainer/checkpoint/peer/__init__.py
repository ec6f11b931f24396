"""The newest state in memory: of this node and of a neighbour, kept and loaded beside the disk."""
