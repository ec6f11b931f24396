"""Parameters, FLOPs and bytes, by arithmetic alone: nothing here allocates or imports torch."""
