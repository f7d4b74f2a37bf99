"""A model is traced in one thread while another uses models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch
from torch import Tensor, nn

from shared_models.tracing import graph_of


class Slow(nn.Module):
    """A model whose tracing takes until somebody else has used a model."""

    def __init__(self, begun: Event, done: Event) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self._begun, self._done = begun, done

    def forward(self, x: Tensor) -> Tensor:
        self._begun.set()
        self._done.wait(10)
        own: Tensor = self.dense(x)
        return own


def test_who_uses_a_model_meanwhile_is_not_caught_in_the_graph() -> None:
    begun, done = Event(), Event()
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x = torch.ones(1, 3)
    expected = other(x)
    with ThreadPoolExecutor(1) as threads:
        tracing = threads.submit(graph_of, Slow(begun, done))
        assert begun.wait(10)
        try:
            assert torch.equal(other(x), expected)
        finally:
            done.set()
        graph = tracing.result().graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]
