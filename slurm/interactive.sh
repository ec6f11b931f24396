#!/bin/bash
# A shell on a compute node, with the environment of this one. Options are those of srun:
#   slurm/interactive.sh -p debug --gpus-per-node=1 --time=1:00:00
# There, launch=local trains on that node; Ctrl-C or `exit` gives it back.
set -eu
command -v srun >/dev/null || { echo "srun not found on PATH: type this on a login node" >&2; exit 2; }
exec srun --nodes=1 --ntasks=1 "$@" --pty "${SHELL:-/bin/bash}" -l
