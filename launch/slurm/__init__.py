"""What runs inside a Slurm job, and what talks to Slurm. Standard library only below backends/."""
