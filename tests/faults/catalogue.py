"""Every fault that can be injected."""

from __future__ import annotations

from tests.faults.injections import FAULTS
from tests.faults.storage_injections import STORAGE_FAULTS

ALL_FAULTS = (*FAULTS, *STORAGE_FAULTS)
