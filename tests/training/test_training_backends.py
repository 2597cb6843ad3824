"""The C++ kernels and the reference train the same model: a mini run's loss is compared at each of its 50 steps.

Triton's curve is compared in tests/kernels, in the interpreter and without the trainer around it, which would be slow.
"""

import sys

import numpy as np
import pytest
from run_commands import TRAIN, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 50


def losses(folder) -> np.ndarray:
    """The training loss of each step, as TensorBoard has it (float32)."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return np.array([event.value for event in events.Scalars("loss/train")])


@pytest.mark.slow
def test_kernels_and_reference_give_the_same_training_curve(tiny_config, tmp_path):
    curves = {}
    for backend in ("reference", "cpp"):
        folder = tmp_path / backend
        changes = f"training.steps={STEPS} training.validate_every_steps=0 training.checkpoint_every_steps={STEPS}"
        result = run(
            [
                sys.executable,
                TRAIN,
                tiny_config,
                f"kernels.backend={backend}",
                "diffusion.prediction=v",
                f"output_dir={folder}",
                *changes.split(),
            ],
        )
        assert result.returncode == 0, result.stderr
        assert f"runs on the {backend} backend" in result.stdout + result.stderr
        curves[backend] = losses(folder)
    assert len(curves["reference"]) == STEPS
    assert curves["reference"][-5:].mean() < 0.8 * curves["reference"][:5].mean(), "the mini model does not learn"
    # the same noise to 1e-6; 50 steps of Adam at a high rate let rounding grow, by less than a tenth of a percent
    np.testing.assert_allclose(curves["cpp"], curves["reference"], rtol=1e-3)
