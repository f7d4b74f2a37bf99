"""The inline engine: server and clients in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.app import Message
from flwr.clientapp import ClientApp

from deploy.engines.grid import LocalGrid, RunConfig, call_app


class InlineGrid(LocalGrid):
    """Calls the ClientApp for each message; there is nobody else to wait for."""

    engine = "inline"

    def __init__(self, client_app: ClientApp, run_config: RunConfig) -> None:
        super().__init__(run_config)
        self._client_app = client_app

    def _answer(self, messages: Iterator[Message]) -> Iterator[Message]:
        return (call_app(self._client_app, message, self.context) for message in messages)
