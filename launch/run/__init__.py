"""A run as its folder shows it: attempts, their ends, who carries it now, what it costs to keep."""
