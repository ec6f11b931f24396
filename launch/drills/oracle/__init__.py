"""Eight checks, one file each; a check is a pure function from evidence to what is wrong."""
