"""How a command ends: a deliberate error is one sentence and its exit code, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from trainer.errors import Exit, LonghaulError


def ended(act: Callable[[], Exit]) -> int:
    """Do the work; its exit code. Errors that nobody expected keep their traceback."""
    try:
        return int(act())
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    except BrokenPipeError:  # the reader of our output is gone: `longhaul ... | head`
        sys.stderr.close()
        return int(Exit.DONE)
    except OSError as e:
        return said_of_the_place(e)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return int(Exit.INTERRUPTED)


def said_of_the_place(error: OSError) -> int:
    """A folder that cannot be made or a disk that is full, in one sentence.

    Raises: the error itself where it names no file: that is nobody's typing mistake.
    """
    if error.filename is None:
        raise error
    print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return int(Exit.STOP if is_full else Exit.REFUSED)
