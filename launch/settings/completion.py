"""Shell completion: `eval "$(longhaul --shell-completion install=bash)"`.

Answers from file names and YAML alone (no Hydra, no schema), for people wait on every Tab.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from launch.settings.choices import Folders
from launch.settings.provenance import lines_of
from trainer.errors import Exit, Refused

SCRIPT = """\
_longhaul() {
  local IFS=$'\\n'
  COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" \\
    COMP_WORDBREAKS="$COMP_WORDBREAKS" longhaul --shell-completion query=bash 2>/dev/null))
}
complete -o nospace -o default -F _longhaul longhaul
"""
COMPOSING = ("train", "plan", "sweep", "resume", "data", "verify", "doctor")
TAKING_RUNS = ("status", "logs", "stop", "resume", "evaluate", "generate", "export", "runs")
FLAGS = {
    "train": ("--dry-run", "--cfg", "--json", "--config-dir", "--help"),
    "doctor": ("--here", "--pairs", "--expect", "--json", "--exclude", "--config-dir", "--help"),
    "plan": ("--why", "--fit", "--json", "--config-dir", "--help"),
}


def run(arguments: Sequence[str]) -> int:
    """`install=bash` prints the script; `query=bash` answers it. Raises: Refused otherwise."""
    asked = next((a for a in arguments if "=" in a), "")
    if asked == "install=bash":
        print(SCRIPT, end="")
    elif asked == "uninstall=bash":
        print("complete -r longhaul; unset -f _longhaul")
    elif asked == "query=bash":
        _answer()
    else:
        raise Refused(
            "--shell-completion: there is install=bash and uninstall=bash; "
            'type: eval "$(longhaul --shell-completion install=bash)"'
        )
    return Exit.DONE


def candidates(words: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """What may stand in place of the last word. `words`: what was typed after `longhaul`."""
    *before, word = words or [""]
    if not before:
        return [f"{verb} " for verb in verbs if verb.startswith(word)]
    verb = before[0]
    found: list[str] = []
    if word.startswith("-"):
        found = [f"{flag} " for flag in FLAGS.get(verb, ("--help",))]
    elif verb in COMPOSING:
        folders = _folders(before)
        typed_plus = word[: len(word) - len(word.lstrip("+"))]
        bare = word.lstrip("+")
        group = bare.partition("=")[0]
        if "=" in bare and folders.is_group(group):
            found = [f"{typed_plus}{group}={choice} " for choice in folders.choices(group)]
        elif "=" not in bare:
            names = [*folders.groups(), *_settings(folders, before)]
            found = [f"{typed_plus}{name}=" for name in names]
    if verb in TAKING_RUNS and "=" not in word:
        found += [f"{name} " for name in _runs()]
    return sorted(dict.fromkeys(f for f in found if f.startswith(word)))


def _answer() -> None:
    from launch.__main__ import VERBS

    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 1 << 20)]
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    found = candidates(words, list(VERBS))
    # bash replaces only what follows its last word break, and "=" is one unless taken out.
    word = words[-1] if words else ""
    cut = word.rfind("=") + 1 if "=" in os.environ.get("COMP_WORDBREAKS", "=") else 0
    sys.stdout.write("".join(f"{candidate[cut:]}\n" for candidate in found))


def _folders(words: Sequence[str]) -> Folders:
    given = [w.removeprefix("--config-dir=") for w in words if w.startswith("--config-dir=")]
    given += [words[i + 1] for i, w in enumerate(words[:-1]) if w == "--config-dir"]
    try:
        return Folders.find(given)
    except Refused:
        return Folders.find()


def _settings(folders: Folders, words: Sequence[str]) -> Iterator[str]:
    """Dotted settings of train.yaml and of the choices typed so far; else of every choice."""
    chosen = dict(w.lstrip("+").split("=", 1) for w in words if "=" in w)
    seen: dict[str, None] = {}
    for path in _files(folders, chosen):
        folder = next(f for f in folders.all() if path.is_relative_to(f))
        package = path.parent.relative_to(folder).as_posix().replace("/", ".").strip(".")
        seen.update((key, None) for key, _ in lines_of(path, package))
    yield from seen


def _files(folders: Folders, chosen: dict[str, str]) -> Iterator[Path]:
    yield folders.main / "train.yaml"
    for group in folders.groups():
        if group in ("experiment", "debug"):
            continue
        for folder in folders.all():
            for path in _sorted_yaml(folder / group):
                is_other = group in chosen and path.stem != chosen[group]
                if path.name.startswith("_") or not is_other:
                    yield path


def _sorted_yaml(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.yaml"))


def _runs() -> Iterator[str]:
    for path in sorted(Path("runs").glob("*/run.json")):
        yield path.parent.name
