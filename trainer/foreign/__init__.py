"""Other programs' checkpoints: their pickles are read as data, by a process that can do nothing."""
