"""What comes from outside or can be seen there: D25 W&B, D36 settings, D38 modes and ports."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE
from launch.drills.oracle.leftovers import processes_of
from launch.drills.runs import Site
from launch.drills.wandb_server import MODES, server
from trainer.errors import Exit, LonghaulError
from trainer.records.json_file import read_json

_KEY = "0" * 40
_INIT_S = 1.0
_LOOPBACK = ("0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F")


def tracker_down(bench: Bench) -> Result:
    """D25. W&B refuses, is silent, fails, is slow, knows no key, dies: training is unaffected."""
    site, wrong, late, added = bench.site, list[str](), list[str](), list[float]()
    modes = MODES[:2] if bench.short else MODES
    plain = _until_first_step(site, bench.reference.name)
    for mode in modes:
        name = f"d25-{mode.replace(' ', '-')}"
        before = site.look(name)
        with server(mode) as url:
            env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": _KEY, "WANDB_MODE": "online"}
            last = site.begin("train", name, "observers.wandb.mode=online", env=env).wait()
        wrong += bench.judge(name, endings=[DONE], before=before, last=last)
        if _KEY in last.out + last.err:
            wrong.append(f"{name}: the key was printed")
        added.append(_until_first_step(site, name) - plain)
        if added[-1] > _INIT_S:
            late.append(f"{name}: the first step came {added[-1]:.1f} s later")
    said = f"{len(modes)} kinds of dead server: bits equal, first step {max(added):+.1f} s at most"
    return Result(len(modes), said, tuple(wrong), {"tracker_init_s": max(added)}, tuple(late))


def _until_first_step(site: Site, name: str) -> float:
    """Seconds from "started" to the end of the first step."""
    started = read_json(site.run(name).attempt(1).started)["time"]
    return float(min(line["time"] for line in site.steps(name)) - started)


def malicious_settings(bench: Bench) -> Result:
    """D36. Settings that would run code if anything believed them: data, never a target."""
    canary = bench.site.folder / "canary"
    run = str(bench.site.run(bench.reference.name).root)
    wrong, refused = list[str](), 0
    overrides = _overrides(canary)
    _composed("run.seed=2", bench.site)  # what is no attack is no problem
    for text in overrides:
        try:
            _composed(text, bench.site)
        except LonghaulError:
            refused += 1
        except Exception as e:
            wrong.append(f"{text!r} is no clear refusal but {type(e).__name__}: {str(e)[:200]}")
        if canary.exists():
            wrong.append(f"{text!r} was executed")
            canary.unlink()
    for text in overrides[:2]:  # and at a user's door
        said = bench.site.command(_argv("train", text)).wait()
        wrong += [f"{text!r}: a traceback"] if "Traceback" in said.err else []
        wrong += [f"{text!r}: returned {said.code}"] if said.code != Exit.REFUSED else []
    bad = Path(run) / "attempts" / "0001" / "plan.json"
    kept = bad.read_text(encoding="utf-8")
    try:
        touch = f'"task": {{"_target_": "os.system", "_args_": ["touch {canary}"],'
        bad.write_text(kept.replace('"task": {', touch, 1), encoding="utf-8")
        said = bench.site.resume(bench.reference.name, "steps.total=31")
    finally:
        bad.write_text(kept, encoding="utf-8")
    wrong += ["a stored plan was executed"] if canary.exists() else []
    wrong += ["a stored plan with a target was believed"] if said.code == Exit.DONE else []
    cases = len(overrides) + 1
    return Result(cases, f"canary absent {cases} of {cases}; {refused} refused", tuple(wrong))


def _argv(verb: str, *arguments: str) -> list[str]:

    return [sys.executable, "-m", "launch", verb, *arguments]


def _composed(text: str, site: Site) -> Any:
    from launch.compose import compose
    from trainer.config.explain import validate

    return validate(compose([text], config_dirs=[str(site.conf)]).values)


def _overrides(canary: Path) -> list[str]:
    touch = f"touch {canary}"
    calls = (
        f"os.system,_args_:['{touch}']",
        f"subprocess.run,args:[touch,'{canary}']",
        f"builtins.open,_args_:['{canary}','w']",
        f"builtins.eval,_args_:['open(\\'{canary}\\',\\'w\\')']",
        f"builtins.exec,_args_:['open(\\'{canary}\\',\\'w\\')']",
        f"pathlib.Path.touch,_args_:['{canary}']",
        f"torch.load,f:'{canary}',weights_only:false",
        "importlib.import_module,name:antigravity",
        f"shutil.copy,src:/etc/hostname,dst:'{canary}'",
        f"pickle.loads,_args_:['{canary}']",
    )
    nested = [f"+model.extra={{_target_:{call}}}" for call in calls]
    partial = [f"+task.extra={{_partial_:true,_target_:{call}}}" for call in calls[:4]]
    tops = [f"+_target_={call.partition(',')[0]}" for call in calls[:4]]
    return [
        *nested,
        *partial,
        *tops,
        f"task.target=os:system task.settings={{command:'{touch}'}}".split()[0],
        "run.name='${oc.env:HOME}'",
        "run.name='${oc.decode:1}'",
        f"run.name='${{eval:{canary}}}'",
        f"+x='${{python:open({canary})}}'",
        f"hydra.run.dir={canary}",
        f"hydra.searchpath=[file://{canary}]",
        "hydra/launcher=joblib",
        f"hydra.sweep.dir={canary}",
        f"run.name=$(touch {canary})",
        f"run.name=`touch {canary}`",
        "run.name=!!python/object/apply:os.system",
        "run.root={_target_:os.getcwd}",
    ]


def modes_and_ports(bench: Bench) -> Result:
    """D38. While a run trains and after: its files are its owner's, its ports loopback's."""
    site, name, wrong = bench.site, "d38", list[str]()
    target = site.folder / "elsewhere"
    target.mkdir(exist_ok=True)
    (site.folder / "runs").mkdir(exist_ok=True)
    before = site.look(name)
    running = site.begin("train", name)
    site.until(name, running, step=3)
    pids = [pid for pid, _ in processes_of(site.run(name).root)]
    open_to_all = sorted(set(_listening(pids)))
    wrong += [f"port {port} is open on {address}" for address, port in open_to_all]
    last = running.wait()
    wrong += bench.judge(name, endings=[DONE], before=before, last=last)
    files = [p for p in site.run(name).root.rglob("*") if not p.is_symlink()]
    seen = [p for p in files if stat.S_IMODE(p.lstat().st_mode) & 0o077]
    wrong += [f"{p} has mode {stat.S_IMODE(p.lstat().st_mode):o}" for p in seen]
    planted = site.run("d38-link").root
    planted.symlink_to(target)
    said = site.train("d38-link", "steps.total=2")
    if said.code == Exit.DONE and any(target.iterdir()):
        wrong.append("a link planted in the runs' folder was followed")
    planted.unlink()
    text = f"{len(files)} files, 0 with a bit for others; ports beyond loopback: {len(open_to_all)}"
    return Result(len(files), text, tuple(wrong))


def _listening(pids: list[int]) -> list[tuple[str, int]]:
    """(address, port) of TCP sockets of these processes that listen beyond loopback."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            mine = fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
            if mine and address not in _LOOPBACK:
                found.append((address, int(port, 16)))
    return found
