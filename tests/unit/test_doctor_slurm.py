"""Slurm's settings explained for checkpoints, from the texts of `scontrol show`.

The texts have the lines of 20.11, 22.05 and 25.11 that are read; tests/cluster asks a real one.
"""

from __future__ import annotations

import pytest

from launch.doctor.slurm import Asked, Site, judge_site, read_config, read_partition
from trainer.health.finding import Finding

_CONFIG = """\
Configuration data as of 2026-11-22T14:10:52
AuthInfo                = {authinfo}
AuthType                = auth/munge
JobRequeue              = {requeue}
KillWait                = {killwait} sec
MaxArraySize            = 1001
{batch}PreemptMode             = {mode}
PreemptType             = {type}
PreemptExemptTime       = 00:00:00
SlurmdTimeout           = 300 sec
SLURM_VERSION           = {version}

Slurmctld(primary) at login is UP
"""
_PARTITION = """\
PartitionName={name}
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default={default} QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime={grace} Hidden=NO
   MaxNodes=UNLIMITED MaxTime=2-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   OverTimeLimit=NONE PreemptMode={mode}
   State=UP TotalCPUs=16 TotalNodes=2 SelectTypeParameters=NONE
"""
_ASKED = Asked(save_s=60.0, lead_s=300.0)


def config(**changed: str) -> dict[str, str]:
    values = {
        "authinfo": "(null)", "requeue": "1", "killwait": "30", "batch": "", "mode": "OFF",
        "type": "preempt/none", "version": "22.05.8",
    } | changed  # fmt: skip
    return read_config(_CONFIG.format(**values))


def partition(**changed: str) -> dict[str, str]:
    values = {"name": "gpu", "default": "YES", "grace": "0", "mode": "OFF"} | changed
    return read_partition(_PARTITION.format(**values), None)


def judged(
    config_: dict[str, str], partition_: dict[str, str] | None = None, asked: Asked = _ASKED
) -> dict[str, Finding]:
    found = judge_site(Site(config_, partition_ or partition()), asked)
    return {one.name: one for one in found}


@pytest.mark.parametrize(
    ("version", "kind", "batch"),
    [
        ("20.11.9", "preempt/none", ""),
        ("22.05.8", "preempt/none", ""),
        ("25.11.4", "(null)", "MaxBatchRequeue         = 5\n"),
    ],
)
def test_what_versions_show(version: str, kind: str, batch: str) -> None:
    found = judged(config(version=version, type=kind, batch=batch))
    assert found["Slurm"].value == version
    assert "not preempted" in found["Slurm PreemptMode"].value
    assert "Slurm GraceTime" not in found
    assert ("Slurm MaxBatchRequeue" in found) == bool(batch)
    assert not [one for one in found.values() if one.verdict != "ok"]


def test_killwait_is_enough_for_a_save_or_the_run_is_told_earlier() -> None:
    assert "enough for a save" in judged(config(killwait="90"))["Slurm KillWait"].value
    assert "told 300 s before" in judged(config())["Slurm KillWait"].value
    late = judged(config(), asked=Asked(save_s=400.0, lead_s=300.0))["Slurm KillWait"]
    assert late.verdict == "problem"
    assert late.fix == "launch.signal_lead_s=800"


@pytest.mark.parametrize(
    ("mode", "verdict", "value"),
    [
        ("REQUEUE", "ok", "queues again"),
        ("CANCEL", "warn", "does not come back"),
        ("SUSPEND,GANG", "warn", "stopped in mid-step"),
        ("OFF", "ok", "not preempted"),
    ],
)
def test_what_a_preemption_does(mode: str, verdict: str, value: str) -> None:
    site = config(mode="REQUEUE", type="preempt/partition_prio")
    one = judged(site, partition(mode=mode))["Slurm PreemptMode"]
    assert one.verdict == verdict
    assert value in one.value


def test_the_grace_of_the_partition_is_held_against_a_save() -> None:
    site = config(type="preempt/partition_prio", mode="REQUEUE")
    short = judged(site, partition(mode="REQUEUE"))["Slurm GraceTime"]
    assert short.verdict == "warn"
    assert short.value.startswith("0 s of grace, then 30 s of KillWait")
    long = judged(site, partition(mode="REQUEUE", grace="120"))["Slurm GraceTime"]
    assert long.verdict == "ok"


def test_a_job_that_does_not_come_back() -> None:
    assert judged(config(requeue="0"))["Slurm JobRequeue"].verdict == "ok"  # ours says --requeue
    asked = Asked(save_s=60.0, lead_s=300.0, requeue=False)
    one = judged(config(), asked=asked)["Slurm JobRequeue"]
    assert one.verdict == "warn"
    assert "launch.requeue=true" in one.fix


def test_a_short_life_of_credentials() -> None:
    assert judged(config(authinfo="cred_expire=5"))["Slurm cred_expire"].verdict == "warn"
    assert judged(config(authinfo="cred_expire=120"))["Slurm cred_expire"].verdict == "ok"


def test_the_partition_is_the_one_that_is_asked_or_the_default() -> None:
    """22.05 leaves an empty line between partitions, 25.11 does not."""
    first = _PARTITION.format(name="cpu", default="NO", grace="1", mode="OFF")
    second = _PARTITION.format(name="gpu", default="YES", grace="2", mode="REQUEUE")
    for text in (f"{first}\n{second}", first + second):
        assert read_partition(text, None)["gracetime"] == "2"
        assert read_partition(text, "cpu")["gracetime"] == "1"
        assert read_partition(text, "other") == {}
