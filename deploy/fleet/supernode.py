"""Flower's SuperNode that ends with us: `python -m deploy.fleet.supernode FLOWER'S OPTIONS`."""

from __future__ import annotations

import os
import threading

from deploy.fleet.processes import end_with_parent


def main() -> None:
    """Runs the SuperNode with the options of the command line, which are Flower's own."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
