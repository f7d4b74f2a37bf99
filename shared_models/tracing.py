"""A model's graph, traced while other threads use models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import GraphModule, Tracer


class CalmTracer(Tracer):
    """torch.fx's tracer, which catches the calls of every module there is, of its own thread only.

    The server evaluates in a thread beside the one that trains: without this it would find itself
    in somebody else's graph ("module is not installed as a submodule").
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Notes a call in the graph; one from elsewhere is only made."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Gives what stands for an attribute in the graph; to others the attribute."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def graph_of(model: nn.Module) -> GraphModule:
    """Returns a model as its graph; raises whatever tracing raises."""
    return GraphModule(model, CalmTracer().trace(model), type(model).__name__)
