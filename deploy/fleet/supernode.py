"""Flower's SuperNode that ends with us: `python -m deploy.fleet.supernode FLOWER'S OPTIONS`."""

from __future__ import annotations

import os
import threading

from deploy.fleet.processes import PARENT_VARIABLE, end_with_parent


def main() -> None:
    """Runs the SuperNode with the options of the command line, which are Flower's own."""
    parent = int(os.environ[PARENT_VARIABLE])  # os.getppid() is another's if it died already
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
