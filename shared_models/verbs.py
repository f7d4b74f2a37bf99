"""What a message asks of a node, in Flower's form `type.action`."""

from __future__ import annotations

HELLO = "query.hello"
LEFT_OUT = "query.left_out"
TRAIN_BLOCK = "train.block"
EVALUATE_BLOCK = "evaluate.block"
CALIBRATE_BLOCK = "query.calibrate"
