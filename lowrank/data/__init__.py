"""Image data sets: splits that never mix, views that replay exactly, batches made on the device."""

from lowrank.data.augment import (
    Normaliser,
    ViewNumbers,
    apply_views,
    augment,
    draw_views,
    normalise,
    normaliser,
)
from lowrank.data.batches import Batch, eval_batches, steps_per_epoch, train_batches
from lowrank.data.counter_rng import epoch_order
from lowrank.data.dataset import ImageData, Split, clear_cache, load_data
from lowrank.data.process_shard import WHOLE, Slice
from lowrank.data.settings import DataSettings, ViewSettings, default_views

__all__ = [
    "WHOLE",
    "Batch",
    "DataSettings",
    "ImageData",
    "Normaliser",
    "Slice",
    "Split",
    "ViewNumbers",
    "ViewSettings",
    "apply_views",
    "augment",
    "clear_cache",
    "default_views",
    "draw_views",
    "epoch_order",
    "eval_batches",
    "load_data",
    "normalise",
    "normaliser",
    "steps_per_epoch",
    "train_batches",
]
