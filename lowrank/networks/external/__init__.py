"""Networks from outside the project: torchvision's, timm's, those of transformers, and the user's own functions.

Entry point: `lowrank.networks.registry.make_network`, whose table names them. Nothing here is imported before a
network of its kind is made.
Must not import: `lowrank.networks.registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.networks.external.heads import replace_head as replace_head
    from lowrank.networks.external.timm_models import timm_images as timm_images, timm_network as timm_network
    from lowrank.networks.external.torchvision_models import torchvision_network as torchvision_network
    from lowrank.networks.external.transformers_models import (
        transformers_images as transformers_images,
        transformers_network as transformers_network,
    )
    from lowrank.networks.external.user_code import (
        absolute_name as absolute_name,
        function_missing as function_missing,
        function_takes_width as function_takes_width,
        import_function as import_function,
        imported_network as imported_network,
        same_file_elsewhere as same_file_elsewhere,
        shipped_module as shipped_module,
        user_modules as user_modules,
        width_unsupported as width_unsupported,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "heads": "replace_head",
        "timm_models": "timm_images timm_network",
        "torchvision_models": "torchvision_network",
        "transformers_models": "transformers_images transformers_network",
        "user_code": (
            "absolute_name function_missing function_takes_width import_function imported_network "
            "same_file_elsewhere shipped_module user_modules width_unsupported"
        ),
    },
)
