"""Measurements of how trials share a card, kept beside the studies, so that the next study need not measure again.

A measurement holds for the same type of card, CPUs of a trial, modes of sharing, configurations (network, method,
batch, engine), shape of images and versions of torch and CUDA. All of these are hashed into the name of its file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from lowrank.utils import first_line, write_text
from sweeps.records import FIT_FOLDER, EventFields
from sweeps.resources.gpu_packing import Packing


class PackingRecords:
    """The measurements in one folder of studies.

    Args:
        root: folder of studies.
        conditions: all that a measurement depends on, as JSON can hold it.
    """

    def __init__(self, root: Path, conditions: EventFields):
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
        text = json.dumps({**conditions, **versions}, sort_keys=True)
        self.path = root / FIT_FOLDER / f"packing_{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def read(self) -> tuple[Packing, EventFields] | None:
        """Read an earlier measurement.

        Returns:
            The packing, and the other fields of its event; None without one. A damaged file counts as none, and a line
            says so.
        """
        if not self.path.exists():
            return None
        try:
            fields = json.loads(self.path.read_text())
            packing = Packing.from_event(fields)
            details = {name: fields[name] for name in ("measured", "card", "card_mb", "peak_from", "peak_mb")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{self.path} is damaged, so trials on a card are measured again: {first_line(error)}", flush=True)
            return None
        return packing, details

    def write(self, packing: Packing, details: EventFields) -> None:
        """Keep a measurement; where the disk does not take it, a line says so and the study goes on.

        Args:
            packing: what was chosen.
            details: the other fields of its event.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({**packing.to_event(), **details}, indent=1))
        except OSError as error:
            print(f"the next study measures trials on a card again: {error}", flush=True)
