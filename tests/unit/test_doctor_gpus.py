"""`nvidia-smi -q -x`, in the shapes that drivers 418, 515, 535 and 590 print, and what it means.

The texts are written here after those shapes: no GPU was at hand.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from trainer.health.finding import Finding, Needs
from trainer.health.gpus import gather_gpus, judge_gpus, read_report

_REASONS = (
    "gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown",
    "hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost", "sw_thermal_slowdown",
)  # fmt: skip
GPUS = Needs(ranks_per_node=2, device="cuda")


def ecc_of(version: int, errors: int) -> str:
    """Two errors of different kinds add up to `errors`, where the version tells kinds apart."""
    if version < 10:
        kinds = f"<device_memory>{errors}</device_memory><total>{errors}</total>"
        single = "<single_bit><total>7</total></single_bit>"
        return f"<volatile>{single}<double_bit>{kinds}</double_bit></volatile>"
    corrected = "<sram_correctable>7</sram_correctable><dram_correctable>7</dram_correctable>"
    sram = f"<sram_uncorrectable>{errors // 2}</sram_uncorrectable>"
    if version >= 13:
        sram = f"<sram_uncorrectable_parity>{errors // 2}</sram_uncorrectable_parity>"
        sram += "<sram_uncorrectable_secded>0</sram_uncorrectable_secded>"
    dram = f"<dram_uncorrectable>{errors - errors // 2}</dram_uncorrectable>"
    return f"<volatile>{corrected}{sram}{dram}</volatile>"


def report(version: int, *, gpus: int = 2, active: str = "", errors: int = 0, **more: str) -> str:
    """`more`: replaces single values, by the element's name."""
    kind = "event" if version >= 12 else "throttle"
    tags = [f"clocks_{kind}_reason_{reason}" for reason in _REASONS]
    reasons = "".join(
        f"<{tag}>{'Active' if active and tag.endswith('_' + active) else 'Not Active'}</{tag}>"
        for tag in tags
    )
    width = f"<max_link_width>16x</max_link_width><current_link_width>{more.get('width', '16x')}"
    one = f"""
    <gpu id="00000000:01:00.0">
      <product_name>NVIDIA H100 80GB HBM3</product_name>
      <pci><pci_gpu_link_info><link_widths>{width}</current_link_width></link_widths>
      </pci_gpu_link_info></pci>
      <clocks_{kind}_reasons>{reasons}</clocks_{kind}_reasons>
      <fb_memory_usage><total>81559 MiB</total></fb_memory_usage>
      <ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
      <ecc_errors>{ecc_of(version, errors)}</ecc_errors>
      <remapped_rows><remapped_row_pending>{more.get("pending", "No")}</remapped_row_pending>
      <remapped_row_failure>No</remapped_row_failure></remapped_rows>
      <temperature><gpu_temp>{more.get("temperature", "41")} C</gpu_temp></temperature>
      <clocks><sm_clock>1980 MHz</sm_clock></clocks>
      <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
      <gpu_recovery_action>{more.get("action", "None")}</gpu_recovery_action>
    </gpu>"""
    head = f'<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v{version}.dtd">'
    driver = {9: "418.226.00", 11: "515.105.01", 12: "535.54.03", 13: "590.44.01"}[version]
    return (
        f'<?xml version="1.0" ?>\n{head}\n<nvidia_smi_log><driver_version>{driver}'
        f"</driver_version><attached_gpus>{gpus}</attached_gpus>{one * gpus}</nvidia_smi_log>"
    )


def judged(text: str, needs: Needs = GPUS) -> list[Finding]:
    return list(judge_gpus({"found": True, **read_report(text)}, needs))


@pytest.mark.parametrize("version", [9, 11, 12, 13])
def test_a_healthy_node(version: int) -> None:
    (one,) = judged(report(version))
    assert one.verdict == "ok"
    assert one.value.startswith("2 x NVIDIA H100 80GB HBM3, driver ")
    facts = read_report(report(version))["gpus"][0]
    assert (facts["clock_mhz"], facts["clock_max_mhz"], facts["uncorrected"]) == (1980, 1980, 0)
    assert (facts["ecc"], facts["memory_mib"]) == ("Enabled", 81559)


@pytest.mark.parametrize("version", [9, 11, 12, 13])
@pytest.mark.parametrize(
    ("planted", "verdict", "value"),
    [
        ({"active": "hw_thermal_slowdown"}, "problem", "throttled: hw thermal slowdown"),
        ({"active": "sw_power_cap"}, "warn", "throttled: sw power cap"),
        ({"errors": 3}, "problem", "3 memory errors"),
        ({"pending": "Yes"}, "problem", "rows wait to be remapped until it is reset"),
        ({"temperature": "88"}, "warn", "88 C"),
        ({"width": "8x"}, "warn", "PCIe x8 of x16"),
        ({"action": "Drain and Reset"}, "problem", "it wants: Drain and Reset"),
    ],
)
def test_what_is_wrong_with_a_gpu(
    version: int, planted: dict[str, Any], verdict: str, value: str
) -> None:
    head, *found = judged(report(version, **planted))
    assert head.verdict == "ok"
    assert [one.name for one in found] == ["GPU 0", "GPU 1"]
    assert {one.verdict for one in found} == {verdict}
    assert value in found[0].value


def test_an_idle_gpu_is_not_throttled() -> None:
    assert len(judged(report(13, active="gpu_idle"))) == 1


def test_what_a_gpu_does_not_tell_is_no_error() -> None:
    text = report(13).replace("<dram_uncorrectable>0<", "<dram_uncorrectable>N/A<")
    text = text.replace("41 C", "N/A").replace("16x", "N/A")
    assert len(judged(text)) == 1


def test_one_gpu_with_a_lower_clock_than_the_others() -> None:
    first, rest = report(13).split("</gpu>", 1)
    slow = first.replace("<max_clocks><sm_clock>1980", "<max_clocks><sm_clock>1200")
    head, one = judged(f"{slow}</gpu>{rest}")
    assert (one.name, one.verdict) == ("GPU 0", "warn")
    assert "limited to 1200 MHz, others' to 1980" in one.value
    assert head.value.endswith("1980 MHz now, ECC enabled")


def test_fewer_gpus_than_ranks() -> None:
    (one,) = judged(report(12, gpus=1))
    assert one.verdict == "problem"
    assert "1 x" in one.value
    assert "2 are wanted" in one.value


def test_cpu_ranks_want_no_gpus() -> None:
    facts = {"found": False, "gpus": []}
    assert not list(judge_gpus(facts, Needs()))
    (one,) = judge_gpus(facts, GPUS)
    assert one.verdict == "problem"


def test_a_broken_driver_is_said_in_its_own_words(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library mismatch'\nexit 18\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    facts = gather_gpus(program=str(program))
    (one,) = judge_gpus(facts, GPUS)
    assert one.verdict == "problem"
    assert "Driver/library mismatch" in one.value


def test_a_report_that_is_none() -> None:
    (one,) = judged("No devices were found")
    assert one.verdict == "problem"
    assert "cannot be read" in one.value
