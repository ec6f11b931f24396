"""GPUs, as `nvidia-smi -q -x` tells of them. The XML of drivers 450 to 590 differs in names only.

Names of its elements by version (device DTD): throttling is clocks_throttle_reasons up to v11 and
clocks_event_reasons from v12; errors that were not corrected are double_bit/total before v10, then
sram_/dram_uncorrectable, with _parity and _secded apart from v13.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from trainer.health.finding import Facts, Finding, Needs

_PATIENCE_S = 60.0  # a driver that hangs in it is a finding
# What slows a GPU down for a reason that somebody should look at, and what merely happens.
_BAD = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
_MILD = ("sw_power_cap",)
_HOT_C = 85
_COUNTED = re.compile(r"(double_bit|[sd]ram_uncorrectable(_parity|_secded)?)$")


def gather_gpus(*, program: str = "nvidia-smi") -> dict[str, Any]:
    """`found` False: no such program here."""
    where = shutil.which(program)
    if where is None:
        return {"found": False, "gpus": []}
    try:
        done = subprocess.run(
            [where, "-q", "-x"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"found": True, "gpus": [], "error": f"no answer within {_PATIENCE_S:.0f} s"}
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return {"found": True, "gpus": [], "error": said[0] if said else f"rc {done.returncode}"}
    return {"found": True, **read_report(done.stdout)}


def read_report(text: str) -> dict[str, Any]:
    """The report as plain values; what a GPU does not tell ("N/A") is None."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as e:
        return {"gpus": [], "error": f"its report cannot be read ({e})"}
    return {"driver": _text(root, "driver_version"), "gpus": [_gpu(g) for g in root.iter("gpu")]}


def judge_gpus(facts: Facts, needs: Needs) -> Iterator[Finding]:
    wanted = needs.ranks_per_node if needs.device == "cuda" else 0
    if not facts["found"]:
        if wanted:
            fix = "a node with GPUs and their driver, or resources.device=cpu"
            yield Finding("GPUs", f"no nvidia-smi, and {wanted} are wanted", "problem", fix)
        return
    if "error" in facts:
        fix = "look at dmesg for Xid lines; the node needs a reboot or a repair"
        yield Finding("GPUs", f"nvidia-smi: {facts['error']}", "problem", fix)
        return
    gpus = facts["gpus"]
    names = sorted({str(one["name"]) for one in gpus})
    text = f"{len(gpus)} x {', '.join(names) or 'nothing'}, driver {facts['driver']}"
    text += "".join(_alike(gpus))
    if len(gpus) < wanted:
        fix = f"resources.ranks_per_node={max(len(gpus), 1)}, or another node: did one drop out?"
        yield Finding("GPUs", f"{text}, and {wanted} are wanted", "problem", fix)
    elif len(names) > 1 and wanted:
        yield Finding("GPUs", text, "warn", "all ranks wait for the slowest kind")
    else:
        yield Finding("GPUs", text)
    fastest = max((one["clock_max_mhz"] or 0 for one in gpus), default=0)
    for index, one in enumerate(gpus):
        limit = one["clock_max_mhz"]
        if limit and limit < fastest:
            what = f"its clock is limited to {limit} MHz, others' to {fastest}"
            yield Finding(f"GPU {index}", what, "warn", f"nvidia-smi -i {index} -rgc")
        yield from _judge_one(index, one)


def _alike(gpus: list[dict[str, Any]]) -> Iterator[str]:
    """Clocks now and at most, and ECC: an idle GPU's clock is low."""
    clocks = [one["clock_mhz"] for one in gpus if one["clock_mhz"]]
    if clocks:
        low, high = min(clocks), max(clocks)
        yield f", {low} MHz now" if low == high else f", {low} to {high} MHz now"
    modes = sorted({one["ecc"] for one in gpus} - {None, "N/A"})
    if modes:
        yield f", ECC {' and '.join(modes).lower()}"


def _judge_one(index: int, gpu: Mapping[str, Any]) -> Iterator[Finding]:
    slowed = [reason for reason in gpu["slowed_by"] if reason in _BAD]
    if slowed:
        fix = "cooling or power of the node; leave it out until then"
        yield Finding(f"GPU {index}", f"throttled: {_words(slowed)}", "problem", fix)
    elif mild := [reason for reason in gpu["slowed_by"] if reason in _MILD]:
        yield Finding(
            f"GPU {index}", f"throttled: {_words(mild)}", "warn", "nvidia-smi -q -d POWER"
        )
    if gpu["uncorrected"]:
        what = (
            f"{gpu['uncorrected']} memory errors that ECC could not correct, since it was started"
        )
        fix = f"nvidia-smi --gpu-reset -i {index}; if they come back, have it replaced"
        yield Finding(f"GPU {index}", what, "problem", fix)
    if gpu["pending_repair"]:
        fix = "reset the GPU or reboot the node"
        yield Finding(f"GPU {index}", f"{gpu['pending_repair']} until it is reset", "problem", fix)
    if gpu["temperature_c"] is not None and gpu["temperature_c"] >= _HOT_C:
        what = f"{gpu['temperature_c']} C"
        yield Finding(f"GPU {index}", what, "warn", "the node's cooling; it will throttle")
    if gpu["link_width"] and gpu["link_width_max"] and gpu["link_width"] < gpu["link_width_max"]:
        what = f"PCIe x{gpu['link_width']} of x{gpu['link_width_max']}"
        yield Finding(f"GPU {index}", what, "warn", "equal on all nodes: the board; else reseat it")


def _words(reasons: list[str]) -> str:
    return ", ".join(reason.replace("_", " ") for reason in reasons)


def _gpu(gpu: ElementTree.Element) -> dict[str, Any]:
    return {
        "name": _text(gpu, "product_name"),
        "clock_mhz": _number(gpu, "clocks/sm_clock"),
        "clock_max_mhz": _number(gpu, "max_clocks/sm_clock"),
        "temperature_c": _number(gpu, "temperature/gpu_temp"),
        "ecc": _text(gpu, "ecc_mode/current_ecc"),
        "uncorrected": _uncorrected(gpu),
        "pending_repair": _pending(gpu),
        "slowed_by": sorted(_slowed_by(gpu)),
        "link_width": _number(gpu, "pci/pci_gpu_link_info/link_widths/current_link_width"),
        "link_width_max": _number(gpu, "pci/pci_gpu_link_info/link_widths/max_link_width"),
        "memory_mib": _number(gpu, "fb_memory_usage/total"),
    }


def _slowed_by(gpu: ElementTree.Element) -> Iterator[str]:
    for kind in ("throttle", "event"):
        for reason in gpu.findall(f"clocks_{kind}_reasons/*"):
            if (reason.text or "").strip() == "Active":
                yield reason.tag.removeprefix(f"clocks_{kind}_reason_")


def _uncorrected(gpu: ElementTree.Element) -> int | None:
    """Since the driver was loaded; None: there is no ECC, or it is off."""
    volatile = gpu.find("ecc_errors/volatile")
    if volatile is None:
        return None
    values = []
    for one in volatile:
        if _COUNTED.match(one.tag):
            counted = _number(one, "total") if len(one) else _plain(one.text)
            values.append(counted)
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _pending(gpu: ElementTree.Element) -> str:
    """What waits for a reset; empty: nothing."""
    if _text(gpu, "remapped_rows/remapped_row_failure") == "Yes":
        return "a row could not be remapped"
    if _text(gpu, "remapped_rows/remapped_row_pending") == "Yes":
        return "rows wait to be remapped"
    if _text(gpu, "retired_pages/pending_retirement") == "Yes":
        return "pages wait to be retired"
    if _text(gpu, "gpu_reset_status/reset_required") == "Yes":
        return "it wants a reset"
    action = _text(gpu, "gpu_recovery_action")
    return f"it wants: {action}" if action not in (None, "None", "N/A") else ""


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.findtext(path)
    return found.strip() if found else None


def _number(element: ElementTree.Element, path: str) -> int | None:
    return _plain(element.findtext(path))


def _plain(text: str | None) -> int | None:
    """ "1410 MHz" is 1410, "16x" is 16, "N/A" is None."""
    found = re.match(r"\s*(\d+)", text or "")
    return int(found[1]) if found else None
