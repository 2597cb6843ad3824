"""Optical-flow extrapolation through pysteps: the motion of the given frames, carried on.

Pulkkinen et al. 2019 (pysteps): sparse Lucas-Kanade motion vectors of the last given frames, interpolated to every
pixel, then backward semi-Lagrangian advection of the last frame with that motion held still. It is what a model for
radar must beat, and works on any field with an extent. Letters: S frames, C channels, H W height and width.
"""

import contextlib
import io
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from dydiff_dist.evaluation.baselines import Baseline
from dydiff_dist.evaluation.case import ForecastCase

Tracer = Callable[[np.ndarray], np.ndarray]
"""Frames (S, C, H, W) -> the scalar (S, H, W) that the motion is read from."""

MAX_MOTION_FRAMES = 4
"""Given frames that the motion is read from, the last ones."""


class OpticalFlow(Baseline):
    """Lagrangian persistence: every channel of the last given frame moves on with the motion of a tracer."""

    name = "optical_flow"

    def __init__(self, tracer: Tracer, periodic: bool):
        """
        Args:
            tracer: the scalar whose motion is followed, e.g. rain, vorticity, brightness.
            periodic: whether frames wrap around.

        Raises:
            ValueError: pysteps or OpenCV is not installed.
        """
        self.tracer, self.periodic = tracer, periodic
        self._estimate, self._extrapolate = _pysteps()

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        """(1, S, C, H, W) in the units of the frames.

        Raises:
            ValueError: fewer than two given frames.
        """
        if len(case.history) < 2:
            raise ValueError("optical flow needs at least 2 given frames; leave it out")
        given = case.history[-MAX_MOTION_FRAMES:].astype(np.float64)
        last = given[-1]
        height, width = last.shape[-2:]
        # periodic fields get half of themselves around them, so that motion passes over the edge
        top, left = (height // 2, width // 2) if self.periodic else (0, 0)

        def padded(fields: np.ndarray) -> np.ndarray:
            return np.pad(fields, [(0, 0)] * (fields.ndim - 2) + [(top, top), (left, left)], mode="wrap")

        with contextlib.redirect_stdout(io.StringIO()):
            motion = self._estimate(padded(self.tracer(given)))
            moved = [self._extrapolate(padded(channel), motion, case.num_leads) for channel in last]
        forecast = np.stack(moved, axis=1)[..., top : top + height, left : left + width]
        # what comes in over the edge is not known: the last given frame stays there
        return np.where(np.isfinite(forecast), forecast, last)[None]

    def protocol(self) -> dict:
        """Library, method and treatment of edges."""
        return {
            "motion": f"pysteps dense Lucas-Kanade, defaults, of the last {MAX_MOTION_FRAMES} given frames or all",
            "extrapolation": "pysteps semi-Lagrangian, linear interpolation, motion constant in time",
            "edges": "periodic" if self.periodic else "pixels that come in from outside keep their last given value",
            "pysteps": version("pysteps"),
        }


def _pysteps() -> tuple[Callable, Callable]:
    """Motion estimate and extrapolation of pysteps, which prints on import and needs OpenCV for the first."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import cv2  # noqa: F401
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.lucaskanade import dense_lucaskanade
    except ImportError as error:
        raise ValueError(
            f"the optical-flow baseline needs pysteps and OpenCV ({error}); pip install 'dydiff_dist[nowcast]', or "
            "leave it out"
        ) from None
    return dense_lucaskanade, extrapolate
