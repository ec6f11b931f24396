"""A Ray cluster, as much of it as an attempt needs: nodes, a place on some of them, agents.

The only file that calls Ray while a run lasts. Ray must not be imported before `connect`: it reads
its settings from the environment at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.raying.actor import THREADS, AgentHolder
from trainer.config.sections.ray import RayLaunch
from trainer.errors import Refused

_NODE_ID = "ray.io/node-id"  # a label that every node has
NAMESPACE = "longhaul"


@dataclass(frozen=True)
class RayNode:
    """Units: `total` and `free` in Ray's. `is_leaving`: it is being drained."""

    id: str
    host: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    is_leaving: bool

    @property
    def name(self) -> str:
        return f"{self.host}-{self.id[:8]}"


def settings_for_ray(launch: RayLaunch) -> dict[str, str]:
    """Variables that Ray reads once it is imported: whether a token is shown is never left to it.

    Raises: Refused if `launch.token_file` is not there.
    """
    found = {
        "RAY_AUTH_MODE": launch.auth,
        "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
        "RAY_NUM_REDIS_GET_RETRIES": "3",  # else a wrong token is told after 20 s
        "RAY_DEDUP_LOGS": "0",
    }
    if launch.auth == "token" and launch.token_file is not None:
        path = Path(launch.token_file).expanduser()
        if not path.is_file():
            raise Refused(f"launch.token_file: there is no file {path}")
        found["RAY_AUTH_TOKEN_PATH"] = str(path)
    return found


def environment_for_ray(launch: RayLaunch, env: Mapping[str, str]) -> dict[str, str]:
    """`env` as a process that imports Ray gets it."""
    ours = settings_for_ray(launch)
    kept = dict(env)
    if launch.auth == "disabled" or "RAY_AUTH_TOKEN_PATH" in ours:
        kept.pop("RAY_AUTH_TOKEN", None)  # Ray would prefer it
    return kept | ours


def bundle_of(launch: RayLaunch, *, ranks: int, device: str) -> dict[str, float]:
    """What one node's ranks take of it."""
    gpus = launch.gpus_per_rank
    gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
    found = {"CPU": launch.cpus_per_rank * ranks, "GPU": gpus * ranks}
    return {name: n for name, n in (found | dict(launch.per_node)).items() if n}


class Cluster:
    """Connected from `connect` to `close`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    @classmethod
    def connect(cls, launch: RayLaunch) -> Cluster:
        """Raises: what Ray raises if it cannot; launch/raying/preflight.py says why beforehand."""
        os.environ.update(environment_for_ray(launch, os.environ))
        if launch.auth == "disabled" or launch.token_file is not None:
            os.environ.pop("RAY_AUTH_TOKEN", None)
        address = None if launch.address == "auto" else launch.address
        return cls.at(address or os.environ.get("RAY_ADDRESS") or "auto")

    @classmethod
    def at(cls, address: str) -> Cluster:
        """With the environment as it is."""
        import ray

        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        return cls(ray)

    @property
    def head(self) -> str:
        """host:port of it."""
        return str(self._ray.get_runtime_context().gcs_address)

    def nodes(self) -> list[RayNode]:
        """Those that live, by host."""
        leaving = self.leaving()
        free = self._state().available_resources_per_node()
        found = [
            RayNode(
                id=each["NodeID"],
                host=each["NodeManagerHostname"],
                address=each["NodeManagerAddress"],
                total=dict(each["Resources"]),
                free=dict(free.get(each["NodeID"], {})),
                is_leaving=each["NodeID"] in leaving,
            )
            for each in self._ray.nodes()
            if each["Alive"]
        ]
        return sorted(found, key=lambda node: (node.host, node.id))

    def leaving(self) -> frozenset[str]:
        """Ids of nodes that are being drained: maintenance, or a spot machine taken back."""
        return frozenset(self._state().get_draining_nodes())

    def _state(self) -> Any:
        """Not public in Ray 2.60, which has no other door to it; a test holds it in place."""
        return self._ray._private.state.state

    def call(
        self,
        nodes: Sequence[RayNode],
        function: Callable[..., Any],
        words: Sequence[Any],
        *,
        patience_s: float,
    ) -> dict[str, Any]:
        """What it says on each node, by id; a node that does not answer in time is left out."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            task = self._ray.remote(function).options(
                num_cpus=0, max_retries=0, scheduling_strategy=there
            )
            asked[node.id] = task.remote(*words)
        self.wait(list(asked.values()), patience_s=patience_s)
        found = {}
        for name, reference in asked.items():
            with suppress(self.error):
                answer = self.answer(reference)
                if answer is not None:
                    found[name] = answer
        return found

    def answers(self, node: RayNode, *, patience_s: float) -> bool:
        """Whether it still starts something: for a while Ray takes a dead node for a living one."""
        return bool(self.call([node], _nothing, (), patience_s=patience_s))

    def reserve(self, nodes: Sequence[RayNode], bundle: Mapping[str, float]) -> Any:
        """A place on all of them or on none, once Ray can give it; does not wait."""
        from ray.util.placement_group import placement_group

        where = [{_NODE_ID: node.id} for node in nodes]
        bundles = [dict(bundle) for _ in nodes]
        return placement_group(bundles, strategy="STRICT_SPREAD", bundle_label_selector=where)

    def give_up(self, group: Any) -> None:
        """What still runs there is ended by Ray."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(group)

    def holder(self, group: Any, place: int) -> Any:
        """An AgentHolder on a node of the group, on its way."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = group.bundle_specs[place]
        rest = {name: n for name, n in bundle.items() if name not in ("CPU", "GPU")}
        options = self._ray.remote(AgentHolder).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            resources=rest or None,
            max_concurrency=THREADS,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, place),
        )
        return options.remote()

    def answer(self, reference: Any) -> Any:
        """What a call came to; None while it has not. Raises: ray's errors."""
        done, _ = self._ray.wait([reference], timeout=0)
        return self._ray.get(reference) if done else None

    def wait(self, references: Sequence[Any], *, patience_s: float) -> None:
        if references:
            self._ray.wait(list(references), num_returns=len(references), timeout=patience_s)

    @property
    def died(self) -> type[Exception]:
        """Raised by `answer` for an actor that will never answer again."""
        error: type[Exception] = self._ray.exceptions.ActorDiedError
        return error

    @property
    def error(self) -> type[Exception]:
        """Any of Ray's."""
        error: type[Exception] = self._ray.exceptions.RayError
        return error

    def close(self) -> None:
        self._ray.shutdown()


def _nothing() -> bool:
    return True
