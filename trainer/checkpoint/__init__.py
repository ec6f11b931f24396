"""Every rank writes its own fragments; a manifest written last makes them real."""
