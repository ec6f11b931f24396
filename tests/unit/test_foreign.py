"""Foreign checkpoints: nothing in them is run or believed, and good ones are read exactly."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import hostile_archives as hostile
from trainer.errors import Refused
from trainer.foreign import child
from trainer.foreign.archive import read_archive
from trainer.foreign.importing import read_source
from trainer.foreign.inert import Forbidden
from trainer.foreign.sandbox import Range, Sandbox, TensorPlace, Thing
from trainer.foreign.source import Flat, Piece, Source, blocks, fitted, number
from trainer.foreign.torch_folder import read_dcp, read_torch_files
from trainer.foreign.zero_folder import read_deepspeed
from trainer.records.fragment import MASTER, Fragment

_HERE = Path("canary")
_REPOSITORY = Path(__file__).parents[2]
_PICKLES = sorted(hostile.pickles(_HERE))
_LIES = sorted(hostile.lies(_HERE))


def _read(path: Path) -> object:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_archive(descriptor, 0, path.stat().st_size)
    finally:
        os.close(descriptor)


# --- hostile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _PICKLES)
def test_a_table_that_calls_something_is_refused_and_not_called(name: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    path.write_bytes(hostile.pickles(canary)[name])
    with pytest.raises(Forbidden, match=r"no checkpoint|by something that is no name|no pickle"):
        _read(path)
    assert not canary.exists()


@pytest.mark.parametrize("name", _LIES)
def test_a_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(hostile.lies(tmp_path)[name])
    with pytest.raises(Forbidden):
        _read(path)


def test_there_are_enough_of_them() -> None:
    assert len(_PICKLES) >= 25
    assert len(_LIES) >= 25


def test_what_a_believer_would_have_run(tmp_path: Path) -> None:
    """The canary would be there: the same pickle in an interpreter that believes it."""
    canary = tmp_path / "canary"
    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    pickled = hostile.call("os", "system", f"touch '{canary}'")
    subprocess.run([sys.executable, "-c", program], input=pickled, check=True, timeout=300)
    assert canary.exists()


def test_through_the_door_the_file_and_the_reason_are_named(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    path.write_bytes(hostile.archive(hostile.call("os", "system", f"touch '{canary}'")))
    with pytest.raises(Refused) as refused:
        Sandbox().read(path)
    said = f"{path} is not imported: it names os.system, which no checkpoint needs"
    assert str(refused.value) == said
    assert not canary.exists()


def test_a_link_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(hostile.archive(hostile.tensor(), data__0=bytes(16)))
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(Refused, match="it is a link"):
        Sandbox().read(tmp_path / "link.pt")
    with pytest.raises(Refused, match="it is no file"):
        Sandbox().read(tmp_path / "pipe.pt")


# --- the process that reads ----------------------------------------------------------------------

_PROBE = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from trainer.foreign import child
import resource
missing = child.restrict(60)
told = {"missing": missing, "environment": dict(os.environ), "torch": "torch" in sys.modules}
told["limits"] = {n: resource.getrlimit(getattr(resource, n))[0] for n in
                  ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")}
told["status"] = None
for what, act in {
    "read": lambda: open("/etc/hostname").read(),
    "write": lambda: open(sys.argv[2], "w"),
    "connect": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 2),
    "memory": lambda: bytearray(8 << 30),
}.items():
    try:
        act()
        told[what] = "done"
    except (OSError, MemoryError) as e:
        told[what] = type(e).__name__
print(json.dumps(told))
"""


def test_the_reading_process_can_do_next_to_nothing(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        argv = [sys.executable, "-I", "-S", "-c", _PROBE, str(_REPOSITORY), str(tmp_path / "x")]
        argv.append(str(port))
        done = subprocess.run(argv, capture_output=True, text=True, env={}, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["torch"] is False
    assert set(told["environment"]) <= {"LC_CTYPE"}  # Python's own
    assert told["memory"] == "MemoryError"
    assert told["limits"]["RLIMIT_FSIZE"] == told["limits"]["RLIMIT_CORE"] == 0
    assert told["limits"]["RLIMIT_NOFILE"] <= 16
    assert told["limits"]["RLIMIT_AS"] <= 4 << 30
    assert told["limits"]["RLIMIT_CPU"] == 60
    missing = " ".join(told["missing"])
    if "network" not in missing:
        assert told["connect"] != "done"
    if "other files" not in missing:
        assert told["read"] == told["write"] == "PermissionError"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0, "the limits are the child's alone"


def test_what_could_not_be_given_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(hostile.archive(hostile.tensor(), data__0=bytes(16)))
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import trainer.foreign.child as c; "
        "c._no_more_files = lambda libc: 'Function not implemented'; c.main()"
    )
    monkeypatch.setattr("trainer.foreign.sandbox._PROGRAM", program)
    sandbox = Sandbox()
    sandbox.read(path)
    assert "other files (Function not implemented)" in sandbox.missing
    assert child.main.__module__ == "trainer.foreign.child"


# --- good ones -----------------------------------------------------------------------------------


def test_a_good_archive_says_where_its_numbers_lie(tmp_path: Path) -> None:
    path, data = tmp_path / "model.pt", bytes(range(16))
    path.write_bytes(hostile.archive(hostile.tensor(), data__0=data))
    ((answer,),) = (Sandbox().read(path),)
    place = answer["w"]
    assert isinstance(place, TensorPlace)
    assert (place.dtype, place.shape) == ("float32", (4,))
    assert path.read_bytes()[place.offset :][:16] == data


def test_numbers_of_every_type_become_fp32(tmp_path: Path) -> None:
    import numpy as np

    values = np.array([1.5, -2.25, 0.0, 65504.0], np.float32)
    stored = {
        "float32": values.tobytes(),
        "float64": values.astype(np.float64).tobytes(),
        "float16": values.astype(np.float16).tobytes(),
        "bfloat16": (values.view(np.uint32) >> 16).astype(np.uint16).tobytes(),
    }
    for dtype, content in stored.items():
        path = tmp_path / dtype
        path.write_bytes(b"xx" + content)
        got = b"".join(b.tobytes() for b in blocks(Flat((Piece(path, 2, dtype, 4),))))
        wanted = values.copy()
        if dtype == "bfloat16":
            wanted[3] = (np.array([wanted[3]]).view(np.uint32) & 0xFFFF0000).view(np.float32)[0]
        assert got == wanted.tobytes(), dtype


def test_a_count_is_a_count(tmp_path: Path) -> None:
    assert number(7, "x") == number(7.0, "x") == 7
    for wrong in (-1, 0.5, True, "7", float("nan"), None, 1 << 60):
        with pytest.raises(Refused):
            number(wrong, "x")


# --- names and shapes ----------------------------------------------------------------------------


def _source(*names: str, kinds: tuple[str, ...] = (MASTER,), elements: int = 6) -> Source:
    flat = Flat((Piece(Path("x"), 0, "float32", elements),), (elements // 3, 3))
    tensors = {(name, kind): flat for name in names for kind in kinds}
    return Source(what="a test", step=3, tensors=tensors)


_WANTED = [Fragment(name, MASTER, (2, 3), 0, 6) for name in ("up.weight", "down.weight")]


@pytest.mark.parametrize("prefix", ["", "module.", "model.model."])
def test_names_may_have_one_prefix(prefix: str) -> None:
    found = fitted(_source(f"{prefix}up.weight", f"{prefix}down.weight"), _WANTED)
    assert set(found) == {("up.weight", MASTER), ("down.weight", MASTER)}


def test_a_tied_head_may_be_there_twice() -> None:
    assert fitted(_source("up.weight", "down.weight", "lm_head.weight"), _WANTED)


@pytest.mark.parametrize(
    ("names", "elements", "said"),
    [
        (("up.weight",), 6, "it lacks 'down.weight'"),
        (("up.weight", "other.weight"), 6, "it lacks 'down.weight'; it has 'other.weight', for"),
        (("up.weight", "down.weight", "more.weight"), 6, "the model has no 'more.weight'"),
        (("up.weight", "down.weight"), 9, r"has shape \[3, 3\], the run's model \[2, 3\]"),
        ((), 6, "it lacks 'up.weight', 'down.weight'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    names: tuple[str, ...], elements: int, said: str
) -> None:
    with pytest.raises(Refused, match=said):
        fitted(_source(*names, elements=elements), _WANTED)


# --- folders that are not what they seem ---------------------------------------------------------


def test_folders_that_are_not_what_they_seem(tmp_path: Path) -> None:
    sandbox = Sandbox()
    zero = tmp_path / "zero"
    zero.mkdir()
    (zero / "latest").write_text("../../etc")
    with pytest.raises(Refused, match="which is no folder beside it"):
        read_deepspeed(zero, sandbox)
    (zero / "latest").write_text("global_step9")
    with pytest.raises(Refused, match="which is not there; give the step's folder"):
        read_deepspeed(zero, sandbox)
    (zero / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(Refused, match="a model cut over several ranks"):
        read_deepspeed(zero, sandbox)
    (zero / "mp_rank_01_model_states.pt").unlink()
    good = hostile.archive(hostile.tensor(), data__0=bytes(16))
    (zero / "mp_rank_00_model_states.pt").write_bytes(good)
    with pytest.raises(Refused, match="no ZeRO checkpoint of stage 1 to 3"):
        read_deepspeed(zero, sandbox)
    (zero / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(good)
    with pytest.raises(Refused, match=r"no \*_optim_states.pt of rank 0"):
        read_deepspeed(zero, sandbox)
    dcp = tmp_path / "dcp"
    dcp.mkdir()
    canary = tmp_path / "canary"
    (dcp / ".metadata").write_bytes(hostile.call("os", "system", f"touch '{canary}'"))
    with pytest.raises(Refused, match=r"it names os\.system, which no checkpoint needs"):
        read_dcp(dcp, sandbox)
    assert not canary.exists()
    index = tmp_path / "pytorch_model.bin.index.json"
    for name in ("../x.bin", "/etc/passwd", ".hidden", "a/b.bin"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(Refused, match="which is no file beside it"):
            read_torch_files(tmp_path, sandbox)


# --- tables that say something else --------------------------------------------------------------


@dataclass
class _Answers(Sandbox):
    """What the reading process would answer, by file."""

    trees: Mapping[str, Any] = field(default_factory=dict)

    def read(self, path: Path, ranges: Sequence[Range] = (("archive", 0, None),)) -> list[Any]:
        return [self.trees[path.name] for _ in ranges]


_MODEL, _OPTIMIZER = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
_SHARD = "__0_0.distcp"
_JUNK = (None, 5, 1.5, True, "x", (), (1,), ((1, 2),), {}, {"x": 1}, Thing("y", (), None), 10**30)


def _numbers(*shape: int) -> TensorPlace:
    return TensorPlace(Path("/dev/null"), 0, "float32", shape)


def _good_tables() -> dict[str, dict[str, Any]]:
    """Folder -> file -> what stands in it; each is imported as it is."""
    model = {"param_shapes": ({"up": (2, 3)},), "global_steps": 5}
    moments = {"state": {0: {"exp_avg": _numbers(6), "step": 5}}}
    two = {
        "zero_stage": 2,
        "partition_count": 1,
        "single_partition_of_fp32_groups": (_numbers(6),),
        "base_optimizer_state": moments,
        "param_slice_mappings": ({"up": Thing("a", (), {"start": 0, "numel": 6})},),
    }
    three = {
        "zero_stage": 3,
        "partition_count": 1,
        "fp32_flat_groups": (_numbers(6),),
        "optimizer_state_dict": moments,
    }
    chunk = Thing("c", (), {"offsets": (0, 0), "sizes": (2, 3)})
    described = Thing("t.TensorStorageMetadata", (), {"size": (2, 3), "chunks": (chunk,)})
    index = Thing("i", (), {"fqn": "up", "offset": (0, 0)})
    place = Thing("s", (), {"relative_path": _SHARD, "offset": 0, "length": 10})
    table = {"state_dict_metadata": {"up": described}, "storage_data": ((index, place),)}
    return {
        "zero2": {_MODEL: model, _OPTIMIZER: {"optimizer_state_dict": two}},
        "zero3": {_MODEL: model, _OPTIMIZER: {"optimizer_state_dict": three}},
        "dcp": {".metadata": Thing("Metadata", (), table), _SHARD: _numbers(2, 3)},
        "torch": {"pytorch_model.bin": {"model": {"up": _numbers(2, 3)}}},
    }


def _changed(tree: Any) -> Iterator[Any]:
    """`tree` with each thing of it in turn replaced by something else."""
    yield from _JUNK
    if isinstance(tree, dict):
        for key, inside in tree.items():
            yield from ({**tree, key: other} for other in _changed(inside))
    elif isinstance(tree, tuple):
        for at, inside in enumerate(tree):
            yield from ((*tree[:at], other, *tree[at + 1 :]) for other in _changed(inside))
    elif isinstance(tree, Thing):
        yield from (Thing(tree.name, tree.arguments, other) for other in _changed(tree.state))


@pytest.mark.parametrize("kind", ["zero2", "zero3", "dcp", "torch"])
def test_a_table_that_is_laid_out_otherwise_is_refused_in_one_sentence(
    kind: str, tmp_path: Path
) -> None:
    trees = _good_tables()[kind]
    for name in trees:
        (tmp_path / name).touch()
    wanted = [Fragment("up", MASTER, (2, 3), 0, 6)]

    def imported(said: Mapping[str, Any]) -> None:
        fitted(read_source(tmp_path, _Answers(trees=said)).without_moments(), wanted)

    imported(trees)
    said = []
    for name, tree in trees.items():
        for other in _changed(tree):
            try:
                imported({**trees, name: other})
            except Refused as e:
                said.append(str(e))
    assert len(said) >= 30
    assert not [text for text in said if "\n" in text]


def test_a_pipe_named_latest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "latest")
    with pytest.raises(Refused, match="latest cannot be read: it is no file"):
        read_source(tmp_path, Sandbox())
