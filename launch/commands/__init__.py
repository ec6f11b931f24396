"""One file a verb of the command; nothing here is imported before its verb is asked for."""
