"""Crowns of trees seen from the air, at three sites of the NEON network.

Weinstein et al., "Individual tree-crown detection in RGB imagery using semi-supervised deep
learning neural networks", Remote Sensing 2019: 4 images of 10 cm a pixel with 951 boxes come with
the package. A licence of the images is not stated: they are fetched, never shipped. A client is an
image.
"""

from __future__ import annotations

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.voc import Scene, boxes_in, decode_image, patches

SCENES = (
    "OSBS_029",
    "SOAP_061",
    "2019_YELL_2_541000_4977000_image_crop",
    "2019_YELL_2_528000_4978000_image_crop2",
)


def read_trees(archive: Archive) -> Dataset:
    """Reads patches `(n, 3, 64, 64)` of 20 cm a pixel, and the boxes of crowns in each."""
    return patches("trees", [_scene(archive, name) for name in SCENES])


def _scene(archive: Archive, name: str) -> Scene:
    folder = f"deepforest/data/{name}"
    image = decode_image(archive.read(f"{folder}.png"), name)
    return Scene(name, image, boxes_in(archive.read(f"{folder}.xml"), name))
