"""Configuration of how ranks watch each other."""

from pydantic import Field, model_validator

from dydiff_dist.strict_config import StrictConfig

_LONGEST_SEC = 10_000_000
"""A wait of four months is none of a program; clocks of the system overflow far beyond."""


class FaultsConfig(StrictConfig):
    """How long the ranks wait for each other, and for a save after a signal."""

    join_timeout_sec: float = Field(default=300, gt=0, le=_LONGEST_SEC)
    """Within which all ranks must have started and met."""
    exchange_timeout_sec: float = Field(default=600, gt=0, le=_LONGEST_SEC)
    """Within which every rank must take part in an exchange that one of them has begun; then the run ends."""
    heartbeat_sec: float = Field(default=2, gt=0, le=_LONGEST_SEC)
    """Between a rank's signs of life."""
    slow_after_sec: float = Field(default=60, gt=0, le=_LONGEST_SEC)
    """After which a rank that makes no progress is named in the log, with what it is doing."""
    dead_after_sec: float = Field(default=120, gt=0, le=_LONGEST_SEC)
    """Without a sign of life, after which a rank counts as dead and the others end the run."""
    grace_sec: float = Field(default=120, gt=0, le=_LONGEST_SEC)
    """After SIGTERM or SIGUSR1, for finishing the step and saving; what isn't complete by then is given up. Set it
    below what the scheduler grants before it kills."""

    @model_validator(mode="after")
    def _check_order(self) -> "FaultsConfig":
        if self.dead_after_sec < 5 * self.heartbeat_sec:
            raise ValueError(
                f"dead_after_sec {self.dead_after_sec} must be at least 5 x heartbeat_sec {self.heartbeat_sec}; change "
                "either"
            )
        return self
