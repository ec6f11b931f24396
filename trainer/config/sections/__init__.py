"""One file a group of settings, as in conf/."""
