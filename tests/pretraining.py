"""Small runs with a stage without labels, for several tests."""

from __future__ import annotations

from tests.conftest import DIGITS

PRETRAIN = """
[[stages]]
kind = "pretrain"
rounds = 3
clients_per_round = 8
batch_size = 32
local_optimizer = "adam"
local_learning_rate = 0.002
"""
FINETUNE = """
[[stages]]
kind = "finetune"
rounds = 3
clients_per_round = 10
local_learning_rate = 0.1
"""
HEAD, _TRAIN = DIGITS.replace("rounds = 4", "rounds = 2").split("[[stages]]")
HEAD = HEAD.replace("clients = 12", "clients = 12\nlabelled_fraction = 0.1")
TRAIN = f"\n[[stages]]{_TRAIN}"
