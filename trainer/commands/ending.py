"""How a command ends: a deliberate error is one sentence and its exit code, never a traceback."""

from __future__ import annotations

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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output is gone: `longhaul ... | head`
        sys.stderr.close()
        return int(Exit.DONE)
