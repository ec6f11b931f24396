"""Pure functions and small files: no other process but a bare interpreter, seconds in all."""
