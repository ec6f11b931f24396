"""Settings of an enemy: what would run code elsewhere is refused here, in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.compose import compose
from trainer.config.explain import validate
from trainer.errors import ConfigError, LonghaulError

_TARGETS = {
    "os.system": "_args_:['touch {canary}']",
    "subprocess.run": "args:[touch,'{canary}']",
    "builtins.open": "_args_:['{canary}','w']",
    "builtins.eval": "_args_:['1']",
    "builtins.exec": "_args_:['1']",
    "pathlib.Path.touch": "_args_:['{canary}']",
    "torch.load": "f:'{canary}',weights_only:false",
    "torch.jit.load": "f:'{canary}'",
    "torch.hub.load": "repo_or_dir:'{canary}'",
    "numpy.load": "file:'{canary}',allow_pickle:true",
    "importlib.import_module": "name:antigravity",
    "functools.partial": "_args_:[os.system]",
    "multiprocessing.Process": "target:os.system",
    "asyncio.create_subprocess_shell": "cmd:'touch {canary}'",
    "code.InteractiveInterpreter": "locals:null",
    "urllib.request.urlopen": "url:'file:///etc/passwd'",
    "torch.utils.cpp_extension.load": "name:x",
}
_PLACES = ("+model.extra", "+task.extra", "+optimizer.inner", "+observers.wandb.hook")


def _overrides(canary: Path) -> dict[str, str]:
    found = {}
    for number, (target, arguments) in enumerate(_TARGETS.items()):
        place = _PLACES[number % len(_PLACES)]
        given = arguments.format(canary=canary)
        found[f"target {target}"] = f"{place}={{_target_:{target},{given}}}"
    found |= {
        "a target at the top": "+_target_=os.system",
        "a partial target": "+task.extra={_partial_:true,_target_:os.system}",
        "a nested target": "+model={x:{y:[{_target_:os.system}]}}",
        "a target of our own keys": "task.target=os:system",
        "a task that is not trusted": "task={kind:custom,target:'os:system',settings:{}}",
        "a secret variable": "run.root=${oc.env:LONGHAUL_TEST_SECRET_KEY}",
        "a variable as a name": "run.name=${oc.env:HOME}",
        "decoded by a resolver": "run.name='${oc.decode:1}'",
        "created by a resolver": "run.name='${oc.create:{a:1}}'",
        "an unknown resolver": f"run.name='${{eval:{canary}}}'",
        "Python as a resolver": f"+x='${{python:open({canary})}}'",
        "Hydra's folder": f"hydra.run.dir={canary}",
        "Hydra's launcher": "hydra/launcher=joblib",
        "Hydra's sweeper": "hydra/sweeper=optuna",
        "Hydra's search path": f"hydra.searchpath=[file://{canary}]",
        "Hydra's callbacks": "+hydra.callbacks.x={_target_:os.system}",
        "Hydra's job": "hydra.job.chdir=true",
        "a shell in a name": f"run.name='$(touch {canary})'",
        "quotes in a name": f"run.name='`touch {canary}`'",
        "a way out of the root": "run.name=../../x",
        "an option as a name": "run.name=--help",
        "a hidden name": "run.name=.hidden",
    }
    return found


_ALL = sorted(_overrides(Path("canary")))


def test_there_are_enough_of_them() -> None:
    assert len(_ALL) >= 30


@pytest.mark.parametrize("name", _ALL)
def test_an_override_is_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_TEST_SECRET_KEY", "canary-of-a-key")
    canary = tmp_path / "canary"
    with pytest.raises(LonghaulError) as refused:
        validate(compose([_overrides(canary)[name]]).values)
    assert not canary.exists()
    assert "canary-of-a-key" not in str(refused.value)
    assert "Traceback" not in str(refused.value)


_YAML = {
    "object/apply": "seed: !!python/object/apply:os.system ['touch {canary}']",
    "object/new": "seed: !!python/object/new:os.system ['touch {canary}']",
    "name": "seed: !!python/name:os.system",
    "module": "seed: !!python/module:os",
    "a tag of its own": "seed: !evil {{x: 1}}",
    "aliases of aliases": "\n".join(
        ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        + [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    ),
    "a list in itself": "seed: &s [*s]",
    "a target": "seed: {{_target_: os.system}}",
    "deep brackets": "seed: " + "[" * 3000 + "]" * 3000,
}


@pytest.mark.parametrize("name", _YAML)
def test_a_file_of_a_folder_of_settings_is_data(name: str, tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = _YAML[name].replace("{canary}", str(canary)).replace("{{", "{").replace("}}", "}")
    body = "".join(f"  {line}\n" for line in text.splitlines())
    (folder / "evil.yaml").write_text(f"# @package _global_\nrun:\n{body}")
    said = "values by its aliases" if name == "aliases of aliases" else "."
    with pytest.raises(ConfigError, match=said):
        validate(compose(["experiment=evil"], config_dirs=[str(folder.parent)]).values)
    assert not canary.exists()
