"""How blocks are trained."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import field_validator

from shared_models.config.tables import Count, Table


class Plan(Table):
    """How blocks are trained; part of what makes two runs bit-equal."""

    trainer: Literal["auto", "loop", "reused", "fused", "low_rank", "vectorised"] = "auto"
    """`auto` measures the others before round 1 and keeps the fastest."""
    block_size: Count | None = None
    """Clients that are trained together; absent: chosen with the trainer."""
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    """Where clients train."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Lower precision inside the model's forward and backward pass; weights stay in `dtype`."""
    nodes: tuple[tuple[int, ...], ...] | None = None
    """For replays of a fleet: one list of client ids a node, whose clients share blocks; no other
    client takes part. Absent: any client may share a block with any."""
    compile: bool = False
    """Use compiled kernels: for `fused` an LSTM in C, for `vectorised` the whole step. Takes one
    second (`fused`) or twenty (`vectorised`) once, and needs a compiler."""

    @field_validator("nodes")
    @classmethod
    def _clients_are_there_once(
        cls, nodes: tuple[tuple[int, ...], ...] | None
    ) -> tuple[tuple[int, ...], ...] | None:
        ids = Counter(client_id for own in nodes or () for client_id in own)
        if nodes is not None and not (nodes and all(nodes)):
            raise ValueError(": expected lists of client ids, none of them empty")
        if (twice := next((k for k, times in ids.items() if times > 1), None)) is not None:
            raise ValueError(f": client {twice} is in it twice")
        return nodes

    @property
    def is_open(self) -> bool:
        """Whether something is left to be chosen before round 1."""
        return self.trainer == "auto" or self.block_size is None

    @property
    def clients_per_block(self) -> int:
        """Returns the block size, also of a plan that nobody settled."""
        return self.block_size or 10

    def settled(self, trainer: str, block_size: int | None = None) -> Plan:
        """Returns the plan with what is open filled in: by what was measured, or by these."""
        return self.model_copy(
            update={
                "trainer": trainer if self.trainer == "auto" else self.trainer,
                "block_size": self.block_size or block_size or self.clients_per_block,
            }
        )
