"""longhaul doctor [key=value ...]: is this machine, cluster, network and storage fit for a run."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal

from launch.doctor.job import Examined, Request, examine
from launch.doctor.judge import judge_result
from launch.doctor.report import as_json, as_text, excluded, is_well
from launch.doctor.settings import asked_for
from launch.doctor.slurm import Asked, ask_site, judge_site
from launch.machine import device_for, num_cores
from launch.settings.asked import split
from trainer.config.schema import Config
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import ConfigError, Exit, Refused
from trainer.health.finding import Finding, Needs
from trainer.health.machine import gather_machine, judge_machine
from trainer.health.versions import gather_versions, judge_versions
from trainer.planning import make_plan
from trainer.records.redact import redactor_of

_HELP = """\
usage: longhaul doctor [RUN] [key=value ...] [--config-dir DIR] [options]

Looks at this machine, then runs a small job of ranks where `launch` says (local by default) and
measures with them: versions, rendezvous, names, all-reduce, stragglers, clocks, the shared folder.
Nothing of a run is touched; the job's own folder under run.root goes again.

options
  --here          this machine alone: no ranks are started
  --pairs         measure every pair of nodes (of ranks, on one node), not only when all are slow
  --expect GB/S   what a link carries in an all-reduce (1e9 bytes/s); less is a problem
  --json          everything as JSON
  --exclude       print only the nodes to leave out, with commas, for sbatch --exclude

exit codes: 0 no problems (warnings are none), 78 problems, 2 what was asked cannot be done

examples: longhaul doctor; longhaul doctor launch=slurm cluster=mine resources.nodes=16
"""
_SLOW_DISK = 50e6  # bytes a second of a rank's save that nobody has measured yet
_FIXED_S = 10.0  # of a save and a stop besides the bytes


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(_HELP, end="")
        return Exit.DONE
    settings, options = split(argv) if argv else ([], [])
    given = _parsed(options)
    config, said = asked_for(settings, config_dirs=given.config_dir, root=given.root)
    examined = Examined(None, device=device_for(config.resources.device))
    if not given.here:
        expected = given.expect * 1e9 if given.expect else None
        examined = examine(config, Request(pairs=given.pairs, expected_bytes_per_s=expected))
    needs, here = needs_of(config, examined.device), _here(config)
    findings, nodes = judged(examined, here, needs, is_local=config.launch.kind == "local")
    findings = [*said, *findings, *_slurm(config, needs)]
    _show(findings, nodes, examined, given)
    return Exit.DONE if is_well(findings) else Exit.STOP


def _parsed(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="longhaul doctor", add_help=False)
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--root", default=None)
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--expect", type=float)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--exclude", action="store_true")
    given = parser.parse_args(options)
    if given.expect is not None and not 0 < given.expect < float("inf"):
        raise Refused(f"--expect {given.expect:g}: give the GB/s of a link, such as --expect 20")
    if given.here and (given.pairs or given.expect or given.exclude):
        raise Refused("--here looks at this machine alone: leave --pairs, --expect, --exclude out")
    return given


def needs_of(config: Config, device: Literal["cpu", "cuda"]) -> Needs:
    """Of the run that these settings mean. `device`: what its ranks compute on."""
    wandb = config.observers.wandb
    return Needs(
        nodes=config.resources.nodes,
        ranks_per_node=config.resources.ranks_per_node,
        device=device,
        checkpoint_bytes=_checkpoint_bytes(config, device),
        wandb_online=wandb.mode == "online",
    )


def _checkpoint_bytes(config: Config, device: Literal["cpu", "cuda"]) -> int:
    """0 where the settings do not say it yet: the doctor answers all the same."""
    try:
        return make_plan(
            config,
            attempt=1,
            run_id="",
            stores=(),
            device=device,
            cores=num_cores(),
            vocab_size_of_tokenizer=None,
        ).checkpoint_bytes
    except ConfigError:
        return 0


def _here(config: Config) -> dict[str, Any]:
    root = Path(config.run.root)
    place = next(one for one in (root, *root.resolve().parents) if one.is_dir())
    return {"machine": gather_machine(os.environ, run_root=place), "versions": gather_versions()}


def judged(
    examined: Examined, here: dict[str, Any], needs: Needs, *, is_local: bool
) -> tuple[list[Finding], list[str]]:
    """(findings, names of nodes). Of this machine only what its ranks have not said themselves."""
    if examined.result is not None:
        nodes = [one["node"] for one in examined.result["ranks"] if "machine" in one]
        return _submitter(here, needs, is_local=is_local) + judge_result(
            examined.result, needs
        ), nodes
    host = here["machine"]["network"]["host"]
    found = [judge_versions({host: here["versions"]["packages"]})]
    if examined.failure is not None:
        found.append(examined.failure)
    is_node = is_local or examined.failure is None  # else its ranks are elsewhere, and silent
    seen = examined.early or ([{"node": host, "machine": here["machine"]}] if is_node else [])
    if not seen:
        found += _submitter(here, needs, is_local=is_local)
    for one in seen:
        found += judge_machine(one["machine"], needs, node=one["node"])
    nodes = [one["node"] for one in seen]
    if examined.failure is not None and len(seen) < needs.nodes:
        names = f": {', '.join(nodes[:8])}" if nodes else ""
        what = f"{len(seen)} of {needs.nodes} nodes were heard of{names}"
        who = "the others" if nodes else "they"
        found.append(
            Finding("nodes", what, "problem", f"{who} cannot start Python, or see run.root")
        )
    return found, nodes


def _submitter(here: dict[str, Any], needs: Needs, *, is_local: bool) -> list[Finding]:
    """What matters of the machine that hands jobs over: what it writes, not what it computes.

    Where it runs the ranks too, they have said all but this: they build in a folder of their own.
    """
    host = here["machine"]["network"]["host"]
    names: tuple[str, ...] = ("run root", "room", "disk speed", "credentials")
    if is_local:
        names = ("build lock",) if not here["machine"]["build_locks"]["chosen"] else ()
    found = judge_machine(here["machine"], needs, node=host if is_local else f"{host} (here)")
    return [one for one in found if one.name in names]


def _slurm(config: Config, needs: Needs) -> list[Finding]:
    """Only where jobs go there."""
    launch = config.launch
    if not isinstance(launch, SlurmLaunch):
        return []
    site = ask_site(launch.partition)
    if isinstance(site, str):
        fix = "type this on a login node; is the controller up? scontrol ping"
        return [Finding("Slurm", site, "problem", fix)]
    save_s = needs.checkpoint_bytes / needs.world_size / _SLOW_DISK + _FIXED_S
    asked = Asked(save_s, lead_s=launch.signal_lead_s, requeue=launch.requeue)
    return list(judge_site(site, asked))


def _show(
    findings: list[Finding], nodes: list[str], examined: Examined, given: argparse.Namespace
) -> None:
    redactor = redactor_of(os.environ)
    if given.exclude:
        text = ",".join(excluded(findings, nodes))
    elif given.json:
        value = as_json(findings, nodes=nodes, measured=examined.result)
        text = json.dumps(redactor.values(value), indent=2)
    else:
        text = as_text(findings, nodes=nodes)
    print(text if given.json else redactor.text(text))
