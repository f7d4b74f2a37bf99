"""`wildflower k8s`: manifests and keys for a cluster, to be piped into kubectl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_models.errors import InputError

app = typer.Typer(help="Manifests and keys for Kubernetes.", no_args_is_help=True)

_Namespace = Annotated[str, typer.Option(help="Where all of it goes.")]
_Clients = Annotated[
    int,
    typer.Option(help="So many gateways of one client each, gateway-0 and on.", min=0, max=1000),
]
_Gateway = Annotated[
    list[str] | None, typer.Option(help="NAME=HOSTS, like north=0-99; may be repeated.")
]


@app.command("render")
def render_(
    overlay: Annotated[
        str | None, typer.Option(help="laptop or production: the server and what it needs.")
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option(help="submit, simulation-data or simulation; may be repeated."),
    ] = None,
    clients: _Clients = 0,
    gateway: _Gateway = None,
    namespace: _Namespace = "wildflower",
    server_image: Annotated[str | None, typer.Option(help="NAME:TAG or NAME@DIGEST.")] = None,
    executor_image: Annotated[
        str | None, typer.Option(help="The same, the CUDA variant: of an executor with --gpu.")
    ] = None,
    client_image: Annotated[str | None, typer.Option(help="The same, of gateways.")] = None,
    simulation_image: Annotated[str | None, typer.Option(help="The same, of Ray's pods.")] = None,
    storage_class: Annotated[
        str | None, typer.Option(help="Of all volumes [default: the cluster's].")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="What devices call the server; external-dns publishes it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="What gateways train on, as `wildflower client` takes it.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="The server's executor has a GPU.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Serve metrics; with alert rules and a dashboard.")
    ] = False,
) -> None:
    """Print manifests. They are made of those in k8s/ by kubectl, which must be there.

    Example: wildflower k8s render --overlay laptop --clients 4 | kubectl apply -f -
    """
    from deploy.k8s.names import gateways
    from deploy.k8s.render import Rendering, names_of, render

    if overlay is None and not sample and not clients and not gateway:
        raise InputError("nothing to render: give --overlay laptop, or --sample submit")
    _require_server(overlay, gpu=gpu, metrics=metrics)
    _require_executor(gpu, server_image, executor_image)
    images = {
        "wildflower-server": server_image,
        "wildflower-server-cuda": executor_image,
        "wildflower-client": client_image,
        "wildflower-simulation": simulation_image,
    }
    rendering = Rendering(
        overlay=overlay,
        samples=names_of(sample or ()),
        gateways=tuple(gateways(clients, gateway or ())),
        namespace=namespace,
        images={name: image for name, image in images.items() if image is not None},
        storage_class=storage_class,
        host=host,
        data=data,
        gpu=gpu,
        metrics=metrics,
    )
    print(render(rendering), end="")


def _require_server(overlay: str | None, *, gpu: bool, metrics: bool) -> None:
    if gpu and overlay is None:
        raise InputError("--gpu: is for a server; give --overlay too")
    if metrics and overlay is None:
        raise InputError("--metrics: is for a server and its gateways; give --overlay too")


def _require_executor(gpu: bool, server: str | None, executor: str | None) -> None:
    if gpu and (server is None) != (executor is None):
        raise InputError(
            "--gpu: the server's pod has two images; give both --server-image and --executor-image "
            "(the CUDA variant), or neither"
        )
    if executor is not None and not gpu:
        raise InputError("--executor-image: is the CUDA variant of the server's; give --gpu too")


@app.command("keys")
def keys(
    state: Annotated[
        Path, typer.Option(help="Your own folder, where they are made and kept; never lose it.")
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(help="What devices outside call the server; may be repeated."),
    ] = None,
    clients: _Clients = 0,
    gateway: _Gateway = None,
    namespace: _Namespace = "wildflower",
    init: Annotated[
        bool, typer.Option("--init", help="The first time: make the folder, and a new CA in it.")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new server certificate, under the same CA.")
    ] = False,
) -> None:
    """Print the Secrets and ConfigMaps with certificates and keys; make keys of new gateways.

    Devices outside of the cluster are added by `wildflower server add-client NAME --state STATE`.

    Example: wildflower k8s keys --state keys --init --clients 4 | kubectl apply --server-side -f -
    """
    from deploy.k8s.keys import create_keys, make_keys
    from deploy.k8s.names import gateways

    if init and renew:
        raise InputError("--init: makes a new CA, --renew keeps the old one; give one of them")
    found = gateways(clients, gateway or ())
    if init:
        create_keys(state, namespace, host or ())
    print(make_keys(state, namespace, host or (), found, renew=renew), end="")
