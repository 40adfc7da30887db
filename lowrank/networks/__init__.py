"""Dense networks as published, and the table that makes them by name.

Entry point: `lowrank.networks.registry.make_network`. A new network is one file here and one line in the table.
Must not import: `lowrank.layers`, `lowrank.compression` and all that builds on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.networks.base import (
        DropPath as DropPath,
        WholeAvgPool2d as WholeAvgPool2d,
        has_batch_norms as has_batch_norms,
    )
    from lowrank.networks.external.transformers_models import Logits as Logits
    from lowrank.networks.external.user_code import (
        absolute_name as absolute_name,
        same_file_elsewhere as same_file_elsewhere,
        user_modules as user_modules,
    )
    from lowrank.networks.images import ImageShape as ImageShape
    from lowrank.networks.own_networks import (
        copy_network as copy_network,
        take_logits as take_logits,
        unwrap_network as unwrap_network,
    )
    from lowrank.networks.registry import (
        CONVERTING_NETWORKS as CONVERTING_NETWORKS,
        NETWORK_FIELDS as NETWORK_FIELDS,
        NETWORK_NAMES as NETWORK_NAMES,
        NetworkSettings as NetworkSettings,
        add_network_options as add_network_options,
        check_own_code as check_own_code,
        default_images as default_images,
        for_counting as for_counting,
        is_own_code as is_own_code,
        make_network as make_network,
        network_from_options as network_from_options,
        takes_width as takes_width,
        without_weights as without_weights,
    )
    from lowrank.networks.vit import LearnedPositions as LearnedPositions

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base": "DropPath WholeAvgPool2d has_batch_norms",
        "external.transformers_models": "Logits",
        "external.user_code": "absolute_name same_file_elsewhere user_modules",
        "images": "ImageShape",
        "own_networks": "copy_network take_logits unwrap_network",
        "registry": (
            "CONVERTING_NETWORKS NETWORK_FIELDS NETWORK_NAMES NetworkSettings add_network_options check_own_code "
            "default_images for_counting is_own_code make_network network_from_options takes_width "
            "without_weights"
        ),
        "vit": "LearnedPositions",
    },
)
