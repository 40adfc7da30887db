"""Typed settings of a study that belong to no trial: how it is searched, what a trial holds, the budgets."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lowrank.errors import InputError
from sweeps.space.run_options import AUTO, GpuSharing


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
    sampler: Literal["tpe", "nsga2", "gp", "random", "qmc", "grid"] = "tpe"
    objectives: tuple[Literal["val_error", "params", "mult_adds"], ...] = ("val_error",)
    stop: Literal["none", "asha", "median", "hyperband"] = "asha"
    grace: float = Field(default=0.5, gt=0, le=1)  # share of the epochs before which nothing is stopped
    reduction: float = Field(default=3.0, gt=1)  # ASHA and HyperBand let the best 1 / reduction pass each rung
    brackets: int = Field(default=3, ge=1, le=16)  # of HyperBand: how many first rungs, each later than the one before
    repeats: int = Field(default=1, ge=1, le=1000)  # seeds of each point of a grid, or of the final front
    enqueue: tuple[dict[str, Any], ...] = ()  # known good points, tried first: dotted name -> value
    warm_start: tuple[str, ...] = ()  # earlier studies, by name or folder, whose trials the sampler begins with
    seed: int = Field(default=0, ge=0, lt=2**63)
    time: str | None = None  # e.g. 90s, 30m, 2h

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        parse_time(self.time)
        if self.sampler == "grid" and (self.enqueue or self.warm_start):
            what = "enqueue" if self.enqueue else "warm_start"
            raise ValueError(f"`{what}` means nothing on a grid, which trains every point whatever is known")
        return self


class ResourceSettings(BaseModel):
    """What one trial holds while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    cpus_per_trial: float = Field(default=1.0, ge=0.1)
    gpus_per_trial: float | Literal["auto"] = 0.25  # used only where the cluster has GPUs; auto: measured
    sharing: GpuSharing = "auto"  # of a card; auto: the better where shares are measured
    processes_per_trial: int | None = Field(default=None, ge=1)  # that share each batch; None: one, or one a whole card
    max_concurrent: int | None = Field(default=None, ge=1)
    checkpoint_seconds: float = Field(default=30.0, ge=0)  # of training, or an epoch where that is longer

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _share(cls, asked: Any) -> Any:
        if asked == AUTO or (isinstance(asked, int | float) and not isinstance(asked, bool) and asked >= 0):
            return asked
        raise ValueError("must be a number from 0, or auto")


LIMITS = ("params", "mult_adds", "bytes", "step_ms")  # what a budget may limit, in the order in which strata are made


class StartSettings(BaseModel):
    """What trials start from: drawn anew, or the dense network of a file (of this study's own reference without)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    how: Literal["scratch", "dense"] = "scratch"
    weights: str | None = None


class BudgetSettings(BaseModel):
    """Limits on the whole network; shares of `relative_to`'s counts where that is given, plain counts otherwise.

    `step_ms` is the time of one training step, measured on the driver's machine. `window` is the share of every upper
    limit that must be reached. `allocation` says among which groups of layers the budget is shared, `shares` how
    large they may be beside each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    params: float | None = Field(default=None, gt=0)
    mult_adds: float | None = Field(default=None, gt=0)
    bytes: float | None = Field(default=None, gt=0)
    step_ms: float | None = Field(default=None, gt=0)
    params_min: float | None = Field(default=None, ge=0)
    mult_adds_min: float | None = Field(default=None, ge=0)
    bytes_min: float | None = Field(default=None, ge=0)
    window: float = Field(default=0.0, ge=0, le=1)
    relative_to: Literal["dense", "separable"] | None = None
    allocation: Literal["even", "stage", "layer"] = "even"
    shares: float | None = Field(default=None, gt=0)  # always a domain in a space; checked at its ends

    @model_validator(mode="after")
    def _check(self) -> BudgetSettings:
        for name in LIMITS:
            value, least = getattr(self, name), getattr(self, f"{name}_min", None)
            if self.relative_to is not None and value is not None and value > 1:
                raise ValueError(
                    f"a budget relative to {self.relative_to} is a share of at most 1, but got {value:g}; "
                    "for plain counts leave `relative_to` out"
                )
            if least is not None and value is not None and least > value:
                raise ValueError(f"`{name}.min` must be at most `{name}.max`, but got {least:g} and {value:g}")
        return self
