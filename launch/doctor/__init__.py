"""Is this machine, this cluster, this network, this storage fit: asks, judges, and shows."""
