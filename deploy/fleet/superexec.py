"""Flower's SuperExec that ends with us: `python -m deploy.fleet.superexec FLOWER'S OPTIONS`.

Flower's own `--parent-pid` asks it to end as Ctrl-C does, which it puts off while it waits for a
SuperNode that is gone.
"""

from __future__ import annotations

import os
import threading

from deploy.fleet.processes import PARENT_VARIABLE, end_with_parent


def main() -> None:
    """Runs the SuperExec with the options of the command line, which are Flower's own."""
    parent = int(os.environ[PARENT_VARIABLE])  # os.getppid() is another's if it died already
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    from flwr.supercore.cli import flower_superexec

    flower_superexec()


if __name__ == "__main__":
    main()
