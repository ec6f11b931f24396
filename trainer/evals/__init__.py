"""One file an evaluation. Collective: every rank runs the same number of batches."""
