"""Image data sets: splits that never mix, augmentation that replays exactly, batches made on the device.

Entry points: `load_data` gives the `ImageData` of a `DataSettings`; `train_batches` and `eval_batches` yield its
batches. `lowrank.data.reading` has one module for each kind of source.
Must not import: `lowrank.networks`, `lowrank.layers` and all that builds on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.data.augment import (
        apply_augmentations as apply_augmentations,
        augment_images as augment_images,
        draw_augmentations as draw_augmentations,
        normalise as normalise,
        normaliser as normaliser,
    )
    from lowrank.data.batches import (
        Batch as Batch,
        draw_training_images as draw_training_images,
        eval_batches as eval_batches,
        steps_per_epoch as steps_per_epoch,
        train_batches as train_batches,
    )
    from lowrank.data.counter_rng import (
        Stream as Stream,
        epoch_order as epoch_order,
        normal_numbers as normal_numbers,
    )
    from lowrank.data.dataset import ImageData as ImageData, clear_cache as clear_cache, load_data as load_data
    from lowrank.data.process_shard import UNSHARDED as UNSHARDED, ProcessShard as ProcessShard
    from lowrank.data.reading.builtin import BUILTIN_SETS as BUILTIN_SETS, BuiltinSet as BuiltinSet
    from lowrank.data.reading.image_codec import (
        Resize as Resize,
        decode_image as decode_image,
        pillow_warnings_ignored as pillow_warnings_ignored,
    )
    from lowrank.data.reading.image_folder import find_images as find_images
    from lowrank.data.reading.synthetic import DataOutline as DataOutline, synthetic_data as synthetic_data
    from lowrank.data.settings import (
        AugmentationSettings as AugmentationSettings,
        DataSettings as DataSettings,
        Interpolation as Interpolation,
        ResizeMode as ResizeMode,
        absolute_data_name as absolute_data_name,
        check_data_folder as check_data_folder,
        default_augmentation as default_augmentation,
        default_shift_share as default_shift_share,
        parse_data_name as parse_data_name,
    )
    from lowrank.data.watched_loader import DecoderPool as DecoderPool

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "augment": "apply_augmentations augment_images draw_augmentations normalise normaliser",
        "batches": "Batch draw_training_images eval_batches steps_per_epoch train_batches",
        "counter_rng": "Stream epoch_order normal_numbers",
        "dataset": "ImageData clear_cache load_data",
        "process_shard": "ProcessShard UNSHARDED",
        "reading.builtin": "BUILTIN_SETS BuiltinSet",
        "reading.image_codec": "Resize decode_image pillow_warnings_ignored",
        "reading.image_folder": "find_images",
        "reading.synthetic": "DataOutline synthetic_data",
        "settings": (
            "AugmentationSettings DataSettings Interpolation ResizeMode absolute_data_name check_data_folder "
            "default_augmentation default_shift_share parse_data_name"
        ),
        "watched_loader": "DecoderPool",
    },
)
