"""The values that the method's options take: one place for constructor, configuration and error messages."""

from typing import Literal, get_args

BetaSchedule = Literal["cosine", "linear", "scaled_linear"]
GammaSchedule = Literal["cosine", "linear_cumprod", "none"]
Prediction = Literal["eps", "v", "x0"]
NetworkSpace = Literal["mixed", "unmixed"]
LossSpace = Literal["target", "mixed", "unmixed"]
LossFrames = Literal["all", "future"]
Sampler = Literal["ddim", "ancestral", "dpmpp_2m"]
Spacing = Literal["uniform", "quadratic", "log_snr", "trailing"]


def check_name(argument: str, value: str, choices: object) -> None:
    """Raises ``ValueError`` unless ``value`` is one of the literals ``choices``."""
    if value not in get_args(choices):
        raise ValueError(f"{argument} is {value!r}; choose one of {', '.join(get_args(choices))}")
