"""Why a job waits, or what holds up one that runs, in words. Slurm's own: `man squeue`, "JOB STATE
CODES" and "JOB REASON CODES"."""

from __future__ import annotations

_WORDS = {
    "Priority": "others are before it in the queue",
    "Resources": "it is next, and waits for nodes to become free",
    "BeginTime": "it was requeued a moment ago; Slurm lets it start a little later",
    "Dependency": "the job before it in its chain has not ended",
    "DependencyNeverSatisfied": "the job it depends on ended another way: cancel it and resume",
    "JobHeldUser": "you hold it: scontrol release JOB",
    "JobHeldAdmin": "an administrator holds it",
    "Licenses": "a licence it asks for is in use",
    "NodeDown": "a node that it asks for is down",
    "ReqNodeNotAvail": "a node that it asks for (launch.nodelist) is down or reserved",
    "PartitionDown": "the partition takes jobs but starts none",
    "PartitionInactive": "the partition starts no jobs",
    "PartitionNodeLimit": "it asks for more nodes than the partition has: it never starts",
    "PartitionTimeLimit": "it asks for more time than the partition gives: it never starts",
    "PartitionConfig": "the partition does not have what it asks for: it never starts",
    "Reservation": "its reservation has not begun, or is full",
    "ReservationDeleted": "its reservation is gone",
    "BadConstraints": "no node has what launch.constraint asks for: it never starts",
    "AssociationJobLimit": "your account runs as many jobs as it may",
    "AssociationResourceLimit": "your account uses as much as it may",
    "AssociationTimeLimit": "your account has no time left",
    "InvalidAccount": "launch.account does not exist any more",
    "InvalidQOS": "launch.qos does not exist any more",
    "QOSJobLimit": "this QOS runs as many jobs as it may",
    "QOSResourceLimit": "this QOS uses as much as it may",
    "QOSTimeLimit": "this QOS gives less time: it never starts",
    "JobArrayTaskLimit": "as many of the array run as it allows",
    "Prolog": "the nodes are being prepared",
    "Cleaning": "what is left of its last try is being cleaned up",
    "SystemFailure": "Slurm itself had a failure",
    "launch failed requeued held": "it could not be started and is held: scontrol release JOB",
    "job requeued in held state": "it was queued again and is held: scontrol release JOB",
    "None": "Slurm has not looked at it yet",
}
_STARTS = (  # families of reasons
    ("QOSMax", "this QOS gives no more to you now"),
    ("QOSGrp", "this QOS is used up by everybody together"),
    ("QOSMin", "it asks for less than this QOS wants: it never starts"),
    ("AssocMax", "your account may use no more now"),
    ("AssocGrp", "your account's group may use no more now"),
    ("MaxGRESPerAccount", "your account may use no more GPUs now"),
    ("ReqNodeNotAvail", _WORDS["ReqNodeNotAvail"]),
    ("BurstBuffer", "the burst buffer is not ready"),
)
_BUSY = {  # states of a job that has its nodes and does not simply run
    "CONFIGURING": "its nodes are being started; no rank runs yet",
    "POWER_UP_NODE": "its nodes are being started; no rank runs yet",
    "COMPLETING": "it is over, and Slurm clears up what it left on its nodes",
    "STAGE_OUT": "it is over, and its files are copied from the burst buffer",
    "SUSPENDED": "its processes stand still and keep their memory until Slurm, or somebody with "
    "scontrol resume JOB, lets them go on",
    "STOPPED": "its processes were stopped by a signal and keep their nodes",
}
_REQUEUED = ("REQUEUED", "REQUEUE_FED")


def note_of(state: str, reason: str) -> str:
    """What `status` shows beside running or pending: Slurm's word for it; "" of a usual job."""
    if state in _BUSY:
        return state.lower()
    if state == "SPECIAL_EXIT" or state.endswith("_HOLD") or "held" in reason.lower():
        return "held"
    if state in _REQUEUED or reason == "BeginTime":
        return "requeued"
    return "never starts" if "it never starts" in why_pending(reason) else ""


def why_busy(state: str) -> str:
    """What the state of a job that has its nodes means; "" of one that simply runs."""
    return _BUSY.get(state, "")


def why_pending(reason: str, start: str = "") -> str:
    """`start`: when Slurm expects it to begin, if it says so."""
    words = _WORDS.get(reason) or _WORDS.get(reason.replace("_", " "))
    if words is None:
        words = next((said for head, said in _STARTS if reason.startswith(head)), "")
    expected = f", expected to start {start}" if start[:2] == "20" else ""
    return (
        f"{words} ({reason}){expected}" if words else f"{reason or 'no reason is given'}{expected}"
    )
