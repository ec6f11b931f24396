"""Which rank a Slurm task is, and where the ranks of its attempt meet. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import WorldError

_FIRST_PORT, _PORTS = 20000, 10000  # below the range that the kernel hands out by itself


@dataclass(frozen=True)
class SlurmPlace:
    rank: int
    local_rank: int
    node: int  # number of the node within the step
    world_size: int
    job: str
    step: str
    node_name: str
    nodes: str  # of the step, as Slurm writes them

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> SlurmPlace:
        """Raises: WorldError outside a task of srun."""
        try:
            return cls(
                rank=int(env["SLURM_PROCID"]),
                local_rank=int(env["SLURM_LOCALID"]),
                node=int(env["SLURM_NODEID"]),
                world_size=int(env["SLURM_STEP_NUM_TASKS"]),
                job=env["SLURM_JOB_ID"],
                step=env["SLURM_STEP_ID"],
                node_name=env["SLURMD_NODENAME"],
                nodes=env["SLURM_STEP_NODELIST"],
            )
        except (KeyError, ValueError) as e:
            raise WorldError(f"this is no task of srun ({e}); start it with srun") from e

    def rendezvous(self, wanted: int, *, attempt: int) -> tuple[str, int]:
        """MASTER_ADDR and MASTER_PORT. A rank of an earlier attempt meets nobody at a new port."""
        if wanted:
            return first_host(self.nodes), wanted
        number = int("".join(c for c in self.job if c.isdigit()) or 0)
        return first_host(self.nodes), _FIRST_PORT + (number * 7 + attempt) % _PORTS


def job_of(env: Mapping[str, str]) -> str:
    """The job as people write it and as it was written down: 123, or 123_4 of an array, where
    SLURM_JOB_ID is a number of its own."""
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID", "")


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: rack[01-03,7]-n[1,2],x -> rack01-n1."""
    name, depth = "", 0
    taking = True
    for c in nodes:
        if c == "[":
            depth, taking = depth + 1, True
        elif c == "]":
            depth, taking = depth - 1, True
        elif depth and c in ",-":
            taking = False  # the rest of this range
        elif not depth and c == ",":
            break
        elif taking:
            name += c
    return name
