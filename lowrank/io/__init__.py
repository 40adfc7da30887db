"""Files of tensors and models, from which no code is run, and what weights expect of an image.

Entry points: `save_model` and `load_model` of `model_file`; `load_weights` of `weight_files`;
`find_preprocessing` of `preprocessing`; `save_tensors` and `load_tensors` of `tensor_file`.
Must not import: `lowrank.distillation`, `lowrank.training` and all that builds on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.io.image_preprocessing import (
        PREPROCESSING_KEY as PREPROCESSING_KEY,
        ImagePreprocessing as ImagePreprocessing,
        data_preprocessing as data_preprocessing,
        override_preprocessing as override_preprocessing,
        parse_preprocessing as parse_preprocessing,
    )
    from lowrank.io.model_file import (
        ModelSpecification as ModelSpecification,
        load_any_model as load_any_model,
        load_merged as load_merged,
        load_model as load_model,
        parse_specification as parse_specification,
        read_specification as read_specification,
        save_merged as save_merged,
        save_model as save_model,
        write_model as write_model,
    )
    from lowrank.io.preprocessing import (
        CLASSIFIER_FILE as CLASSIFIER_FILE,
        find_preprocessing as find_preprocessing,
        published_preprocessing as published_preprocessing,
        read_class_names as read_class_names,
    )
    from lowrank.io.tensor_file import (
        load_tensors as load_tensors,
        read_metadata as read_metadata,
        remove_set_aside as remove_set_aside,
        save_tensors as save_tensors,
        saved_versions as saved_versions,
        set_aside as set_aside,
        shift_versions as shift_versions,
    )
    from lowrank.io.weight_files import (
        WeightReport as WeightReport,
        load_weights as load_weights,
        read_weights as read_weights,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "image_preprocessing": (
            "ImagePreprocessing PREPROCESSING_KEY data_preprocessing override_preprocessing parse_preprocessing"
        ),
        "model_file": (
            "ModelSpecification load_any_model load_merged load_model parse_specification read_specification "
            "save_merged save_model write_model"
        ),
        "preprocessing": "CLASSIFIER_FILE find_preprocessing published_preprocessing read_class_names",
        "tensor_file": (
            "load_tensors read_metadata remove_set_aside save_tensors saved_versions set_aside shift_versions"
        ),
        "weight_files": "WeightReport load_weights read_weights",
    },
)
