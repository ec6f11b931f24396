"""What the doctor takes of the settings of a run, and what it only warns of."""

from __future__ import annotations

from launch.doctor.settings import asked_for, doctor_config

_PLACE = ["resources.ranks_per_node=3", "resources.collective_timeout_s=200"]  # below watch.start_s


def test_what_is_wrong_with_a_run_is_no_reason_not_to_look_at_its_machines() -> None:
    batch = ["batch.global_batch_size=6", "batch.micro_batch_size=4"]
    config, findings = asked_for([*_PLACE, *batch], config_dirs=(), root=None)
    assert config.resources.ranks_per_node == 3
    (one,) = findings
    assert (one.verdict, one.name) == ("warn", "settings")
    assert one.value.startswith("batch.micro_batch_size: 4 rows on each of 3 ranks")
    job = doctor_config(config, root="runs")
    assert (job.batch.global_batch_size, job.watch.enabled) == (3, True)
