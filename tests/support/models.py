"""Descriptions of models that tests build and write."""

from __future__ import annotations

from lowrank.data import ImageData
from lowrank.io import ModelSpecification
from lowrank.layers import Method
from lowrank.networks import NetworkSettings


def describe(network: NetworkSettings, method: Method, data: ImageData) -> ModelSpecification:
    """Describe a network with one method in its sites, for the images of a data set."""
    return ModelSpecification(
        network=network, method=method, image_shape=data.image_shape, classes=len(data.classes)
    )  # fmt: skip
