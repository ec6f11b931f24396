"""Several machines of a Ray cluster that KubeRay or `ray up` made: launch=ray drives them."""

from __future__ import annotations

from launch.cloud.carried import carried_by
from launch.cloud.peers import settings_of_peers
from tests.helpers.cloud import KUBERAY, plan_for
from tests.helpers.configs import config
from trainer.config.explain import validate
from trainer.config.sections.ray import RayLaunch


def test_several_machines_of_a_ray_cluster_are_driven_from_its_head() -> None:
    wanted = config(*KUBERAY, "resources.nodes=2", "batch.micro_batch_size=1")
    carried = carried_by(plan_for(wanted))
    there = carried.config | {"launch": settings_of_peers(carried.config["launch"], {})}
    launch = validate(there).launch
    assert isinstance(launch, RayLaunch)
    assert (launch.address, launch.auth, launch.foreground) == ("auto", "token", True)
    assert launch.grace_s == wanted.launch.grace_s
