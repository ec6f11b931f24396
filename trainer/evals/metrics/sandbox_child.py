"""The inside of sandbox.py: run as a script of its own, with the standard library alone.

It knows nothing of the trainer. The steps and their order are the point: unshare, fork the first
process of the namespace, close the file system, fork again, give up every right, start a fresh
interpreter that runs the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_REC, _PRIVATE, _READ_ONLY, _NO_SUID, _NO_DEV = 0x4000, 0x40000, 1, 2, 4
_SYS_MOUNT_SETATTR, _AT_CWD, _AT_RECURSIVE = 442, -100, 0x8000
_DEATH_SIGNAL, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 36, 38
_SYS_OPEN_TREE, _OPEN_TREE_CLONE, _SYS_MOVE_MOUNT, _MOVE_EMPTY_PATH = 428, 1, 429, 4
_REMOUNT, _BIND = 0x20, 0x1000
_WORKPLACE = str(Path("/tmp").resolve())
_HIDDEN = ("/run", "/var/tmp", "/dev/shm", "/home", "/root", "/mnt", "/media", "/srv", _WORKPLACE)
_PYTHON = str(Path(sys.executable).resolve())  # not that of a virtual environment
_RUN = (
    "import os, sys\n"
    "nonce = sys.stdin.readline().strip()\n"
    "program = sys.stdin.read()\n"
    "os.dup2(os.open('/dev/null', os.O_RDONLY), 0)\n"
    "verdict = int(sys.argv.pop())\n"
    "try:\n"
    "    exec(compile(program, 'program', 'exec'), {'__name__': '__main__'})\n"
    "    said = 'passed:' + nonce\n"
    "except BaseException as e:\n"
    "    said = 'failed: ' + type(e).__name__ + ' ' + str(e)[:200].replace(chr(10), ' ')\n"
    "os.write(verdict, said.encode(errors='replace')[:1000] + b'\\n')\n"
    "os._exit(0)\n"
)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    how, verdict = map(int, sys.argv[1:])
    os.set_inheritable(how, False)  # the program shall not speak for those who watch it
    settings: dict[str, Any] = json.loads(sys.stdin.buffer.read()) | {"verdict": verdict}
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)
    try:
        _unshare(settings)
    except OSError as e:
        if not settings["allow_network"]:
            _end(how, f"refused: {e.strerror}")
        if _is_root_for_good(settings):
            _end(how, "refused: no limit of processes holds for root, and there is nobody else")
        _prctl(_SUBREAPER, 1)  # whatever loses its parent comes here
        _watch(settings, how, _start_program(settings, how, settings["folder"]))
    first = os.fork()
    if first == 0:
        _first_process(settings, how)
    os.waitpid(first, 0)


def _first_process(settings: dict[str, Any], how: int) -> NoReturn:
    """Number 1 of its namespace: it ends when the program or its time does, and takes all along."""
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)
    _prctl(_DUMPABLE, 0)
    try:
        folder = _close_file_system(settings["folder_mb"])
    except OSError as e:
        if not settings["allow_network"]:
            _end(how, f"refused: {e.strerror}")
        folder = settings["folder"]
    _watch(settings, how, _start_program(settings, how, folder))


def _unshare(settings: dict[str, Any]) -> None:
    flags = _NEW_NS | _NEW_IPC | _NEW_PID | _NEW_NET
    user, group = os.geteuid(), os.getegid()
    if _can_become_another(settings):
        _check(_libc.unshare(flags))
        return
    # In a user namespace this process has every right over the others it makes; a program that it
    # starts as anybody but number 0 has none of them.
    _check(_libc.unshare(flags | _NEW_USER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_user(settings)} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_user(settings)} {group} 1")


def _user(settings: dict[str, Any]) -> int:
    """Whom the program runs as: hardly anybody else's number, since its processes are counted."""
    return 61_000 + int(settings["nonce"], 16) % 4_000


def _can_become_another(settings: dict[str, Any]) -> bool:
    """Root is not enough: in a container of one user there is nobody else to become."""
    if os.geteuid() != 0:
        return False
    user = _user(settings)
    return any(first <= user < first + count for first, _, count in _known_users())


def _is_root_for_good(settings: dict[str, Any]) -> bool:
    """Root outside of the container as well: the kernel limits no processes of that one."""
    outside = any(first == beyond == 0 for first, beyond, _ in _known_users())
    return os.geteuid() == 0 and outside and not _can_become_another(settings)


def _known_users() -> list[tuple[int, ...]]:
    """(first number in here, the same one outside, how many) of each range that is known here."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def _close_file_system(folder_mb: int) -> str:
    """Everything read-only, private places hidden; returns the one folder that can be written."""
    _mount(None, "/", None, _REC | _PRIVATE)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID, 0, 0, 0)
    _call(_SYS_MOUNT_SETATTR, _AT_CWD, b"/", _AT_RECURSIVE, attributes, 32)
    # An interpreter under /root or /home is put back where it was, without what lies around it.
    homes = {str(Path(sys.base_prefix).resolve()), str(Path(_PYTHON).parents[1])}
    kept = {home: _clone(home) for home in homes if _hidden(home)}
    places = [place for place in _HIDDEN if Path(place).is_dir() and not Path(place).is_symlink()]
    for place in places:
        options = f"size={folder_mb}m,nr_inodes=10k,mode={1777 if place == _WORKPLACE else 755}"
        _mount("tmpfs", place, options, _NO_SUID | _NO_DEV)
    for home, tree in kept.items():
        Path(home).mkdir(parents=True, exist_ok=True)
        _call(_SYS_MOVE_MOUNT, tree, b"", _AT_CWD, home.encode(), _MOVE_EMPTY_PATH)
        os.close(tree)
    for place in places:
        if place != _WORKPLACE:
            _mount(None, place, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEV)
    try:
        _mount("proc", "/proc", None, _NO_SUID | _NO_DEV)
    except OSError:  # a container that masks parts of /proc permits no other
        _mount("tmpfs", "/proc", "size=4k,mode=755", _READ_ONLY)
    return _WORKPLACE


def _hidden(path: str) -> bool:
    return any(Path(path).is_relative_to(place) for place in _HIDDEN)


def _clone(path: str) -> int:
    """The mounts under a path, to be put elsewhere."""
    return _call(_SYS_OPEN_TREE, _AT_CWD, path.encode(), _OPEN_TREE_CLONE | _AT_RECURSIVE)


def _start_program(settings: dict[str, Any], how: int, folder: str) -> int:
    if folder == settings["folder"] and _can_become_another(settings):
        os.chown(folder, _user(settings), _user(settings))
    reader, writer = os.pipe()
    program = os.fork()
    if program == 0:
        os.close(writer)
        try:
            _become_program(settings, reader, folder)
        except OSError as e:
            os.write(how, f"refused: {_PYTHON}: {e.strerror}\n".encode())
            os._exit(1)
    os.close(reader)
    if os.fork() == 0:  # a program that never reads its text shall hold nothing up
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        text = f"{settings['nonce']}\n{settings['program']}".encode("utf-8", "surrogatepass")
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(writer)
    return program


def _become_program(settings: dict[str, Any], reader: int, folder: str) -> NoReturn:
    """Every right is given up here; the interpreter that follows has never been another's."""
    os.dup2(reader, 0)
    os.chdir(folder)
    os.setsid()
    _limit(settings)
    if _can_become_another(settings):
        user = _user(settings)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _prctl(_NO_NEW_PRIVILEGES, 1)
    verdict = settings["verdict"]
    os.set_inheritable(verdict, True)
    os.execve(_PYTHON, [_PYTHON, "-I", "-S", "-B", "-c", _RUN, str(verdict)], {"HOME": folder})


def _limit(settings: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, settings["memory_mb"] << 20),
        (resource.RLIMIT_FSIZE, settings["file_mb"] << 20),
        (resource.RLIMIT_CPU, int(settings["seconds"]) + 1),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _watch(settings: dict[str, Any], how: int, program: int) -> NoReturn:
    """Until the program ends; then nothing that it started is left."""
    late = f"timeout: it takes more than {settings['seconds']:g} s"
    signal.signal(signal.SIGALRM, lambda *_: _end(how, late))
    signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
    while (ended := os.wait())[0] != program:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    if os.WIFSIGNALED(ended[1]):
        _end(how, f"killed: {signal.Signals(os.WTERMSIG(ended[1])).name}")
    _end(how, "ended")


def _end(how: int, said: str) -> NoReturn:
    _kill_children()
    os.write(how, f"{said}\n".encode())
    os._exit(0)


def _kill_children() -> None:
    """Also grandchildren: those come here when their parents die. Number 1 needs none of this."""
    if os.getpid() == 1:
        return
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    while children := listed.read_text().split():
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _mount(kind: str | None, place: str, options: str | None, flags: int) -> None:
    named = kind.encode() if kind else None
    data = options.encode() if options else None
    _check(_libc.mount(named, place.encode(), named, ctypes.c_ulong(flags), data))


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def _call(number: int, *arguments: Any) -> int:
    return _check(_libc.syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
