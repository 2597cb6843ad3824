"""Forecasts: ensembles from a trained network, exported models, and folders of forecasts with their scores."""

from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.exported import find_model, load_forecaster, save_model
from dydiff_dist.forecasting.forecaster import Forecaster

__all__ = ["Forecaster", "SamplingConfig", "find_model", "load_forecaster", "save_model"]
