"""Where the `wildflower` command begins: interruptible from its very first import."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), _interrupt)
    try:
        from deploy.cli import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ends politely asked processes the way Ctrl-C does: cleanly, and saying how to go on."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
