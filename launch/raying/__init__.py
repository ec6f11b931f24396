"""Ray's door: nowhere else is it imported, and here only once it is needed."""
