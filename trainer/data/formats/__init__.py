"""Formats people have: a file each, all of them give rows; `table.py` makes Records of those."""
