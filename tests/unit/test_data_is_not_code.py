"""Nothing that is read can become code: what could make it so is in no file, but for named ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_FILES = sorted(
    path.relative_to(_ROOT)
    for room in ("trainer", "launch")
    for path in (_ROOT / room).rglob("*.py")
)

_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "numpy.fromfile",
    "dcp.load",
    "dcp.save",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "instantiate",
    "hydra.utils.instantiate",
    "pd.read_pickle",
}
_METHODS = {"load_checkpoint", "save_checkpoint", "load_state_dict_from_url", "read_pickle"}
_KEYWORDS = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
_STARTS = ("os.spawn", "os.exec", "subprocess.getoutput", "subprocess.getstatusoutput")

# Who may, and why.
_MAY = {
    "trainer/verify/malice.py": {"pickle": "makes the files that a drill has refused"},
    "trainer/evals/metrics/sandbox_child.py": {
        "os.execve": "starts the interpreter of a program to be judged, once all rights are gone"
    },
}


def _found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            yield from ((node.lineno, name) for name in names & _MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in _MODULES:
                yield node.lineno, module
            if node.module == "torch.distributed.checkpoint":
                yield node.lineno, node.module
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _of_call(node))


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in _CALLS or name.startswith(_STARTS):
        yield name
    if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
        yield node.func.attr
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in _KEYWORDS and value is _KEYWORDS[keyword.arg]:
            yield f"{keyword.arg}={value}"


def test_no_file_can_make_code_of_data() -> None:
    assert len(_FILES) > 100
    wrong = [
        f"{path}:{line}: {what}"
        for path in _FILES
        for line, what in _found(ast.parse((_ROOT / path).read_text(encoding="utf-8")))
        if what not in _MAY.get(path.as_posix(), {})
    ]
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=True)",
        "engine.load_checkpoint(folder)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "hydra.utils.instantiate(config)",
        "AutoModel.from_config(config, trust_remote_code=True)",
        "from torch.distributed.checkpoint import load",
    ],
)
def test_the_check_sees_it(source: str) -> None:
    assert list(_found(ast.parse(source)))


@pytest.mark.parametrize("source", ["yaml.safe_load(text)", "model.eval()", "re.compile(text)"])
def test_the_check_leaves_alone_what_is_none(source: str) -> None:
    assert not list(_found(ast.parse(source)))
