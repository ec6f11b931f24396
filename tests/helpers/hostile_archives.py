"""Files that should not be imported, each as its bytes. `canary` is what they touch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PICKLES: dict[str, Callable[[Path], bytes]] = {}
_FILES: dict[str, Callable[[Path], bytes]] = {}


class Call:
    """Pickled, it is a call of `module.name(*arguments)`."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


def call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls a global when it is read by who believes it."""
    return b"".join(
        [
            b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n",
            pickle.dumps(arguments, 2)[2:-1],
            b"R.",
        ]
    )


def archive(pickled: bytes, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return out.getvalue()


def tensor(
    *,
    key: str = "0",
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
) -> bytes:
    """The pickle of {"w": tensor} with these claims."""
    body = [b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("]
    body.append(b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\n")
    body.append(_raw(key) + _raw("cpu") + _raw(count) + b"tQ")
    body.append(_raw(offset) + _raw(shape) + _raw(stride))
    body.append(b"\x89ccollections\nOrderedDict\n)Rt\x52s.")
    return b"".join(body)


def _raw(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")


def pickles(canary: Path) -> dict[str, bytes]:
    """Archives whose table wants to run something."""
    touch, path = f"touch {canary}", str(canary)
    opened = ("io", "open", path, "w")
    calls: dict[str, tuple[Any, ...]] = {
        "os.system": ("os", "system", touch),
        "posix.system": ("posix", "system", touch),
        "nt names": ("os", "popen", touch),
        "subprocess": ("subprocess", "getoutput", touch),
        "eval": ("builtins", "eval", f"open({path!r}, 'w')"),
        "exec of Python 2": ("__builtin__", "eval", f"open({path!r}, 'w')"),
        "exec": ("builtins", "exec", f"open({path!r}, 'w')"),
        "open": opened,
        "pathlib": ("pathlib", "Path.touch", path),
        "getattr": ("builtins", "getattr", "os", "system"),
        "import": ("importlib", "import_module", "antigravity"),
        "runpy": ("runpy", "run_path", path),
        "torch.load": ("torch", "load", path),
        "torch hub": ("torch.hub", "load", path),
        "torch jit": ("torch.jit", "load", path),
        "numpy": ("numpy", "load", path),
        "pickle again": ("pickle", "loads", call(*opened)),
        "code": ("types", "CodeType", 0),
        "functools": ("functools", "partial", "os.system"),
        "dotted": ("torch._utils", "_rebuild_tensor_v2.__globals__", touch),
        "a class of DeepSpeed": ("deepspeed.runtime.engine", "DeepSpeedEngine", touch),
    }
    found = {f"call {name}": archive(call(*given)) for name, given in calls.items()}
    found["call by stack"] = archive(
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + pickle.dumps((touch,), 4)[11:-1] + b"R."
    )
    found["object with a state"] = archive(
        b"\x80\x02cos\nsystem\n)\x81" + pickle.dumps({"a": 1}, 2)[2:-1] + b"b."
    )
    found["old instance"] = archive(b"(S'" + touch.encode() + b"'\nios\nsystem\n.")
    found["old object"] = archive(b"(cos\nsystem\nS'" + touch.encode() + b"'\no.")
    found["extension"] = archive(b"\x80\x02\x82\x01)R.")
    found["hook of a tensor"] = archive(
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + pickle.dumps((touch,), 2)[2:-1]
        + b"}tR."
    )
    found["alias of a name"] = archive(b"\x80\x02ctorch\nload\nq\x000h\x00" + b")R.")
    return found


def lies(canary: Path) -> dict[str, bytes]:
    """Archives and pickles that claim what is not so, or too much."""
    del canary
    good, data = tensor(), b"\0" * 16
    whole = archive(good, data__0=data)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", good)
        file.writestr("archive/data/0", bytes(1 << 22))
    twice = whole.replace(b"archive/data/0", b"archive/data.p")  # two members of nearly one name
    aliases = b"\x80\x02]q\x00" + b"".join(
        b"(" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 15 + b"lq" + bytes([i + 1])
        for i in range(30)
    )
    return {
        "compressed": bomb.getvalue(),
        "cut short": whole[: len(whole) // 2],
        "no archive": pickle.dumps({"w": 1}),
        "empty": b"",
        "a name twice": _renamed(archive(good, data__0=data, data__1=data), "data/1", "data/0"),
        "a name with dots": _renamed(whole, "archive/data/0", "../hive/data/0"),
        "an absolute name": _renamed(whole, "archive/data/0", "/rchive/data/0"),
        "names that differ": twice,
        "members on top of each other": _nested(good, data),
        "sizes that differ": _sized(whole, 1 << 30),
        "a tensor beyond its bytes": archive(tensor(shape=(5,), count=5), data__0=data),
        "a tensor of petabytes": archive(tensor(shape=(1 << 50,), count=1 << 50), data__0=data),
        "a tensor with many sides": archive(
            tensor(shape=(1 << 30, 1 << 30, 1 << 30), stride=(1 << 60, 1 << 30, 1)), data__0=data
        ),
        "a negative offset": archive(tensor(offset=-4), data__0=data),
        "a negative shape": archive(tensor(shape=(-4,)), data__0=data),
        "strides over each other": archive(tensor(shape=(4, 4), stride=(0, 1)), data__0=data),
        "a storage that is not there": archive(tensor(key="7"), data__0=data),
        "a storage with a path": archive(tensor(key="../../x"), data__0=data),
        "a storage of an unknown kind": archive(tensor(kind="EvilStorage"), data__0=data),
        "aliases of aliases": archive(aliases + b"."),
        "a list in itself": archive(b"\x80\x02]q\x00h\x00a."),
        "brackets": archive(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."),
        "a number of a million digits": archive(b"L" + b"9" * 1_000_000 + b"L\n."),
        "a text longer than the file": archive(
            b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x."
        ),
        "no end": archive(b"\x80\x02}q\x00"),
        "nothing on the stack": archive(b"\x80\x02R."),
        "marks": archive(b"\x80\x02(((."),
    }


def _nested(pickled: bytes, data: bytes) -> bytes:
    """data/1 lies inside of data/0: a file of any size could be said many times over."""
    plain = archive(pickled, data__0=data, data__1=data)
    first, directory = plain.rindex(b"PK\x03\x04"), plain.index(b"PK\x01\x02")
    whole = archive(pickled, data__0=plain[first:directory], data__1=data)
    inner = whole.index(plain[first:directory])
    at = whole.rindex(b"PK\x01\x02") + 42  # where the directory says that data/1 begins
    return whole[:at] + struct.pack("<I", inner) + whole[at + 4 :]


def _renamed(content: bytes, old: str, new: str) -> bytes:
    assert len(old) == len(new)
    return content.replace(old.encode(), new.encode())


def _sized(content: bytes, size: int) -> bytes:
    """The last member's size in the directory becomes another."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]
