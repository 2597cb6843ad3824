"""Where a run's numbers and pictures go: TensorBoard, Weights & Biases, MLflow; `training.loggers` names them.

Each is told the same names at the same steps. None of them ends a run once it has begun: `RunLog` leaves out one that
fails.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dydiff_dist.files import write_bytes
from dydiff_dist.quoting import first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "dydiff_dist"
"""What W&B calls the project and MLflow the experiment, where WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME don't say."""


class Logger(Protocol):
    """Takes what a run measures; on the main process only."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step by name, such as ``loss/train``."""

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        """A picture of a step."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoardLogger:
    """Files under ``tensorboard/`` of the run; a resumed run goes on in them, without the steps it does again."""

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        self._writer.add_figure(name, figure, step)

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, set up by its own variables: WANDB_MODE=offline keeps all under ``wandb/`` of the run,
    WANDB_PROJECT and WANDB_ENTITY say where it belongs. A resumed run goes on in the same one."""

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any]):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_kept_id(folder / "wandb_id", lambda: secrets.token_hex(8)),
            resume="allow",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True),
        )
        # a step of ours, as one of W&B can't go back when a run resumes from its last checkpoint
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        self._run.log({name: self._image(figure), "step": step})

    def close(self) -> None:
        self._run.finish()


class MlflowLogger:
    """A run of MLflow on the server that MLFLOW_TRACKING_URI names; without one, ``mlflow.db`` in the run's folder."""

    def __init__(self, folder: Path, first_step: int, config: dict[str, Any]):
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)

        def new_run() -> str:
            run = self._client.create_run(number, run_name=folder.name)
            for section, values in config.items():
                self._client.log_dict(run.info.run_id, {section: values}, f"config/{section}.json")
            return str(run.info.run_id)

        self._run_id = _kept_id(folder / "mlflow_id", new_run)
        self._client.update_run(self._run_id, status="RUNNING")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def figure(self, step: int, name: str, figure: "Figure") -> None:
        self._client.log_figure(self._run_id, figure, f"{name}/{step:08d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


LOGGERS: dict[str, Callable[[Path, int, dict[str, Any]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
"""By the name that `training.loggers` uses; each takes the run's folder, the steps done and the configuration."""


def check_loggers(names: Iterable[str]) -> None:
    """Whether the packages of these loggers are there.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"training.loggers names {name!r}, which is not installed: pip install 'dydiff_dist[{name}]', or leave "
                "it out"
            )


def open_loggers(names: Iterable[str], folder: Path, first_step: int, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run, on its main process.

    Args:
        names: in `LOGGERS`.
        folder: of the run.
        first_step: steps done so far.
        config: of the run, as JSON types.

    Raises:
        ValueError: a service does not take the run, as no server answers or no key is set.
        OSError: the folder can't be written.
    """
    opened: list[Logger] = []
    for name in names:
        try:
            opened.append(LOGGERS[name](folder, first_step, config))
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(
                f"training.loggers names {name!r}, which can't begin: {first_line(error)}; mend that, or leave it out"
            ) from error
    return opened


def _kept_id(path: Path, new: Callable[[], str]) -> str:
    """The identity that a service knows the run by, kept in the run's folder so that a resumed run is the same one."""
    if not path.is_file():
        write_bytes(path, new().encode())
    return path.read_text()
