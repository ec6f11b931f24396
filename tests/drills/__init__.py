"""The drills that matter most, in short form; `make drills` runs all of them."""
