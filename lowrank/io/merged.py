"""A merged model in one safetensors file: plain convolutions, and beside them which structured model they were.

The specification is that of the structured model (lowrank.io.model_file), so that the file says what it stands for;
reading builds that model, merges it and takes up the stored tensors. No code of the file is run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lowrank.compression.merging import merge
from lowrank.errors import InputError
from lowrank.io.model_file import ModelSpecification, read_specification
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.utils.text import last_line

FORM = "lowrank_merged"  # a key of the metadata beside the specification
COMBINED, APART = "combined", "apart"  # K x K convolutions, or depthwise and pointwise ones


def save_merged(path: Path, model: nn.Module, specification: ModelSpecification, *, combined: bool) -> None:
    """Write `model`, which was merged with the same `combined`, atomically; raises OSError when that cannot be."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_tensors(Path(path), tensors, {**specification.metadata(), FORM: COMBINED if combined else APART})


def load_merged(path: Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The merged model of a file, in evaluation mode.

    Raises:
        InputError: the file is missing, damaged, no merged model, or its tensors do not fit its settings.
    """
    specification = read_specification(path)
    tensors, metadata = load_tensors(path)
    if metadata.get(FORM) not in (COMBINED, APART):
        raise InputError(f"{path} holds a structured model, which `load_model` reads, and no merged one")
    model = merge(specification.build(), combined=metadata[FORM] == COMBINED)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its settings: {last_line(error)}") from error
    return model.to(device).eval()
