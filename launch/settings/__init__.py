"""The way in for settings: files, overrides and their spelling, and who set what."""
