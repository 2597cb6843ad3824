"""Forecasts: ensembles from a trained network, exported models, and folders of forecasts with their scores.

load_forecaster(run_or_model)               -> Forecaster, whose forecast(history, …) gives ensembles
from_pretrained(folder_or_hub_name)         -> the same, from the Hugging Face hub too
save_model(folder, state_dict, config, …)   exports a model
ForecastRun(model, shards, out).run()       a whole set of cases into a folder
Verification.open(folder).evaluate()        scores of such a folder; write_evaluation writes them with pictures
"""

from dydiff_dist.forecasting.cases import Case, CaseReader, forecast_case
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.evaluation_files import write_evaluation
from dydiff_dist.forecasting.exported import find_model, load_forecaster, save_model
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.forecasting.hub import from_pretrained, push_to_hub, save_pretrained
from dydiff_dist.forecasting.run import ForecastRun
from dydiff_dist.forecasting.store import ForecastStore
from dydiff_dist.forecasting.verification import Verification

__all__ = [
    "Case",
    "CaseReader",
    "ForecastRun",
    "ForecastStore",
    "Forecaster",
    "SamplingConfig",
    "Verification",
    "find_model",
    "forecast_case",
    "from_pretrained",
    "load_forecaster",
    "push_to_hub",
    "save_model",
    "save_pretrained",
    "write_evaluation",
]
