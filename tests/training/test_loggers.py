"""Weights & Biases and MLflow without a server: what a run measures is there, once resumed too."""

import json
import sys

import pytest
from run_commands import TRAIN, run

from dydiff_dist.training.loggers import LOGGERS, check_loggers, open_loggers
from dydiff_dist.training.progress import RunLog


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.slow
def test_a_run_logs_to_all_three_and_goes_on_in_the_same(tiny_config, tmp_path, offline):
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    pytest.importorskip("wandb")
    tree = json.loads(tiny_config.read_text())
    folder = tmp_path / "run"
    tree["output_dir"] = str(folder)
    tree["training"] |= {"loggers": ["tensorboard", "wandb", "mlflow"], "log_every_steps": 1}
    tiny_config.write_text(json.dumps(tree))
    for steps in (3, 6):
        done = run([sys.executable, TRAIN, tiny_config, f"training.steps={steps}"])
        assert done.returncode == 0, done.stderr
    client = client(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    run_id = (folder / "mlflow_id").read_text()
    (experiment,) = [found for found in client.search_experiments() if found.name == "dydiff_dist"]
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id])] == [run_id]
    losses = client.get_metric_history(run_id, "loss/train")
    assert [point.step for point in losses] == list(range(1, 7))
    assert all(0 < point.value < 100 for point in losses)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.list_artifacts(run_id, "config") and client.list_artifacts(run_id, "forecast")
    wandb_id = (folder / "wandb_id").read_text()
    assert len(list((folder / "wandb").glob(f"offline-run-*-{wandb_id}/run-{wandb_id}.wandb"))) == 2
    assert any((folder / "tensorboard").iterdir())


def test_a_logger_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_loggers(["tensorboard"])
    for name in set(LOGGERS) - {"tensorboard"}:
        with pytest.raises(
            ValueError, match=rf"names '{name}', which is not installed: pip install 'dydiff_dist\[{name}\]'"
        ):
            check_loggers([name])


class Recorder:
    """A logger that keeps the steps it was told."""

    def __init__(self):
        self.steps = []

    def scalars(self, step, values):
        self.steps.append(step)

    def figure(self, step, name, figure):
        self.steps.append(step)

    def close(self):
        self.steps.append("closed")


class Fails(Recorder):
    """Its server is gone from step 2 on."""

    def scalars(self, step, values):
        if step >= 2:
            raise ConnectionError("https://user:secret@host/api does not answer")
        super().scalars(step, values)


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(capsys):
    fails, kept = Fails(), Recorder()
    log = RunLog([fails, kept], first_step=0, num_steps=3, enabled=True)
    for step in (1, 2, 3):
        log.scalars(step, {"loss/train": 0.5})
    log.close()
    assert fails.steps == [1] and kept.steps == [1, 2, 3, "closed"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "Fails fails and is left out from now on: https://***@host/api does not answer"


def test_a_server_that_does_not_answer_at_the_start_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"loggers names 'mlflow', which can't begin: .*leave it out") as caught:
        open_loggers(["mlflow"], tmp_path, 0, {})
    assert "\n" not in str(caught.value)
