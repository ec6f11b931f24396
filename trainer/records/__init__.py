"""The formats that several parts read and write. Standard library only."""
