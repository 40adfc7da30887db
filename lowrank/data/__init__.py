"""Image data sets: splits that never mix, augmentation that replays exactly, batches made on the device.

Entry points: `load_data` gives the `ImageData` of a `DataSettings`; `train_batches` and `eval_batches` yield its
batches. `lowrank.data.reading` has one module for each kind of source.
Must not import: `lowrank.networks`, `lowrank.layers` and all that builds on them.
"""

from lowrank.data.augment import (
    AugmentationDraws,
    Normaliser,
    apply_augmentations,
    augment_images,
    draw_augmentations,
    normalise,
    normaliser,
)
from lowrank.data.batches import Batch, eval_batches, steps_per_epoch, train_batches
from lowrank.data.counter_rng import epoch_order
from lowrank.data.dataset import ImageData, Split, clear_cache, load_data
from lowrank.data.process_shard import UNSHARDED, ProcessShard
from lowrank.data.settings import AugmentationSettings, DataSettings, default_augmentation

__all__ = [
    "UNSHARDED",
    "AugmentationDraws",
    "AugmentationSettings",
    "Batch",
    "DataSettings",
    "ImageData",
    "Normaliser",
    "ProcessShard",
    "Split",
    "apply_augmentations",
    "augment_images",
    "clear_cache",
    "default_augmentation",
    "draw_augmentations",
    "epoch_order",
    "eval_batches",
    "load_data",
    "normalise",
    "normaliser",
    "steps_per_epoch",
    "train_batches",
]
