"""The engines by the name that the run configuration's ``engine`` gives."""

from dydiff_dist.engine.deepspeed.engine import DeepSpeedEngine
from dydiff_dist.engine.protocol import Engine

ENGINES: dict[str, type[Engine]] = {"deepspeed": DeepSpeedEngine}
