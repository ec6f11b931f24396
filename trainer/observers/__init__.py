"""Told what happened, on rank 0; none of them can change, slow or end a run."""
