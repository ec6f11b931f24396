"""The one schema of every setting: closed, frozen, every problem reported at once."""
