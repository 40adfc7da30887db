"""Typed settings of a study that belong to no trial: how it is searched, what a trial holds, the budgets."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lowrank.errors import InputError


def parse_time(text: str | None) -> float | None:
    """Seconds in "90s", "30m", "2h"; None for None; raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"a time must be a number above 0 with s, m or h (such as 30m), but got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class SearchSettings(BaseModel):
    """How the space is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    trials: int = Field(default=24, ge=1)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    objectives: tuple[Literal["val_error", "params", "mult_adds"], ...] = ("val_error",)
    stop: Literal["none", "asha"] = "asha"
    grace: float = Field(default=0.5, gt=0, le=1)  # share of the epochs before which nothing is stopped
    reduction: float = Field(default=3.0, gt=1)  # ASHA lets the best 1 / reduction pass each rung
    seed: int = Field(default=0, ge=0, lt=2**63)
    time: str | None = None  # e.g. 90s, 30m, 2h

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        parse_time(self.time)
        return self


class ResourceSettings(BaseModel):
    """What one trial holds while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    cpus_per_trial: float = Field(default=1.0, ge=0.1)
    gpus_per_trial: float = Field(default=0.25, ge=0)  # used only where the cluster has GPUs
    max_concurrent: int | None = Field(default=None, ge=1)


class BudgetSettings(BaseModel):
    """Limits on the whole network; shares of `relative_to`'s counts where that is given, plain counts otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    params: float | None = Field(default=None, gt=0)
    mult_adds: float | None = Field(default=None, gt=0)
    relative_to: Literal["dense", "separable"] | None = None

    @model_validator(mode="after")
    def _check(self) -> BudgetSettings:
        for value in (self.params, self.mult_adds):
            if self.relative_to is not None and value is not None and value > 1:
                raise ValueError(
                    f"a budget relative to {self.relative_to} is a share of at most 1, but got {value:g}; "
                    "for plain counts leave `relative_to` out"
                )
        return self
