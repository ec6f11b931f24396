"""What the ranks of `longhaul doctor` run: they measure and write down; launch/doctor judges."""
