"""Several real processes, joined over gloo; each world ends before the next begins."""
