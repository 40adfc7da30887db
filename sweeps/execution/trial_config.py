"""What a worker gets to train one trial: the specification and where things lie, in one typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.records import Role, TrialSpec
from sweeps.resources import PROCESSES
from sweeps.teachers import NO_CACHE, CacheOptions

KEY = "trial"  # of Tune's config, which must be a dictionary
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One attempt at a trial.

    Attributes:
        trial_id: of the trial.
        specification: what it trains.
        study_dir: folder of the study, in which its checkpoints lie.
        data_dir: folder of data sets; None for the default.
        role: why it is trained.
        stratum: of its size.
        cache: where caches of its teacher lie.
        relay: name of the actor that takes checkpoints; None where the worker sees the study's folder.
        processes: that train it together.
        decoding_cores: on which a streamed set is decoded, unless its settings say how many processes do; None for
            those that it trains on.
        sharing: how it shares its card, and the environment that this needs.
        card_share: of the card's memory that it may take, where that is not the share that Ray gave it.
        checkpoint_seconds: of training that a kill may lose.
        may_stop: whether a scheduler may stop it after any epoch.
    """

    trial_id: str
    specification: TrialSpec
    study_dir: str
    data_dir: str | None = None
    role: Role = Role.SEARCH
    stratum: str = ""
    cache: CacheOptions = NO_CACHE
    relay: str | None = None
    processes: int = 1
    decoding_cores: int | None = None
    sharing: tuple[str, Mapping[str, str]] = field(default_factory=lambda: (PROCESSES, {}))
    card_share: float | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    may_stop: bool = False

    def to_tune(self) -> dict[str, TrialConfig]:
        """Return Tune's config of the trial; the inverse is `trial_config`."""
        return {KEY: self}


def trial_config(config: dict[str, Any]) -> TrialConfig:
    """Read Tune's config of a trial.

    Args:
        config: as `TrialConfig.to_tune` gives it.

    Returns:
        What the worker needs.
    """
    content: TrialConfig = config[KEY]
    return content
