"""Nodes that OpenSSH's own client reaches; the only place where a command passes a remote shell."""
