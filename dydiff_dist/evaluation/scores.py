"""Scores of one case: an ensemble forecast against what happened.

Letters: M members, S lead times (forecast frames), C channels, H W height and width. Every function takes one case, so
no score depends on what it was batched with; all arithmetic is float64. ``table.py`` aggregates over cases.
"""

import numpy as np
import scoringrules

Array = np.ndarray


def crps(members_MSCHW: Array, truth_SCHW: Array) -> tuple[Array, Array]:
    """Continuous ranked probability score at every lead time, mean over channels and pixels.

    Ensemble CRPS: E|X - y| - ½ E|X - X'| with X, X' drawn from the M members (Gneiting & Raftery 2007, eq. 20), the
    score of the ensemble's empirical distribution. The fair one (Ferro 2014) divides by M (M - 1) in the second term:
    the score that an infinite ensemble of the same kind would have on average. One member: both are the absolute error.

    Args:
        members_MSCHW: forecasts, any real dtype.
        truth_SCHW: observations, same units.

    Returns:
        (ensemble, fair), each (S,) float64, in the units of the data.

    Examples:
        >>> members, truth = np.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1), np.full((1, 1, 1, 1), 2.0)
        >>> ensemble, fair = crps(members, truth)
        >>> ensemble.tolist(), fair.tolist()
        ([0.5], [0.0])
    """
    if len(members_MSCHW) == 1:
        absolute_error = _over_pixels(np.abs(members_MSCHW[0].astype(np.float64) - truth_SCHW))
        return absolute_error, absolute_error
    ensemble, fair = np.empty(len(truth_SCHW)), np.empty(len(truth_SCHW))
    for lead, truth in enumerate(truth_SCHW):  # lead by lead, so that memory stays at one frame's sorted members
        members = np.sort(members_MSCHW[:, lead].astype(np.float64), axis=0)
        observed = truth.astype(np.float64)
        for scores, estimator in ((ensemble, "qd"), (fair, "pwm")):
            scores[lead] = scoringrules.crps_ensemble(
                observed, members, m_axis=0, estimator=estimator, sorted_ensemble=True
            ).mean()
    return ensemble, fair


def row_scores(members_MSCHW: Array, truth_SCHW: Array) -> tuple[Array, Array]:
    """Ensemble CRPS (as ``crps``) and squared error of the ensemble mean, each a mean along every row: (S, C, H)
    float64, for scores that weight rows.

    Examples:
        >>> members, truth = np.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1), np.zeros((1, 1, 1, 1))
        >>> [score.item() for score in row_scores(members, truth)]
        [1.5, 4.0]
    """
    crps_SCH = np.empty(truth_SCHW.shape[:3])
    for lead, truth in enumerate(truth_SCHW):  # lead by lead, as in crps
        members, observed = members_MSCHW[:, lead].astype(np.float64), truth.astype(np.float64)
        of_pixels = scoringrules.crps_ensemble(observed, members, m_axis=0, estimator="qd")
        crps_SCH[lead] = of_pixels.mean(axis=-1)
    mean = members_MSCHW.mean(axis=0, dtype=np.float64)
    return crps_SCH, np.square(mean - truth_SCHW).mean(axis=-1)


def mse_of_mean(members_MSCHW: Array, truth_SCHW: Array) -> Array:
    """Squared error of the ensemble mean at every lead time, (S,) float64, in squared units.

    Examples:
        >>> mse_of_mean(np.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1), np.full((1, 1, 1, 1), 1.0)).tolist()
        [1.0]
    """
    mean = members_MSCHW.mean(axis=0, dtype=np.float64)
    return _over_pixels(np.square(mean - truth_SCHW))


def mae_of_mean(members_MSCHW: Array, truth_SCHW: Array) -> Array:
    """Absolute error of the ensemble mean at every lead time, (S,) float64."""
    mean = members_MSCHW.mean(axis=0, dtype=np.float64)
    return _over_pixels(np.abs(mean - truth_SCHW))


def ensemble_variance(members_MSCHW: Array) -> Array:
    """Variance between the members (divided by M - 1) at every lead time, (S,) float64; NaN for one member."""
    if len(members_MSCHW) == 1:
        return np.full(members_MSCHW.shape[1], np.nan)
    return _over_pixels(members_MSCHW.var(axis=0, dtype=np.float64, ddof=1))


def rank_counts(members_MSCHW: Array, truth_SCHW: Array) -> Array:
    """How often the truth has r members below it, (S, M + 1) float64 counts; ties are shared among their ranks.

    Flat for an ensemble from which the truth can't be told apart (Hamill 2001). Sharing ties in equal parts keeps zero
    rain, where everything ties, from piling up at one end.
    """
    return binned_rank_counts(members_MSCHW, truth_SCHW, np.zeros(truth_SCHW.shape, np.int64), 1)[:, 0]


def binned_rank_counts(members_MSCHW: Array, truth_SCHW: Array, bins_SCHW: Array, num_bins: int) -> Array:
    """``rank_counts`` of the pixels in each bin, (S, num_bins, M + 1) float64; ``bins_SCHW`` are int64 from 0 on."""
    num_members, num_leads = members_MSCHW.shape[:2]
    below = (members_MSCHW < truth_SCHW).sum(axis=0).reshape(num_leads, -1)
    ties = (members_MSCHW == truth_SCHW).sum(axis=0).reshape(num_leads, -1)
    counts = np.zeros((num_leads, num_bins, num_members + 1))
    shape, size = (num_bins, num_members + 2), num_bins * (num_members + 2)
    for lead, bins in enumerate(bins_SCHW.reshape(num_leads, -1)):
        share = 1.0 / (ties[lead] + 1)
        first = bins * shape[1] + below[lead]
        edges = np.bincount(first, share, size) - np.bincount(first + ties[lead] + 1, share, size)
        counts[lead] = np.cumsum(edges.reshape(shape), axis=1)[:, :-1]
    return counts


def energy_score(members_MSCHW: Array, truth_SCHW: Array) -> Array:
    """Energy score of whole frames (Gneiting & Raftery 2007, eq. 22), the fair estimator, (S,) float64.

    E‖X - y‖ - ½ E‖X - X'‖ with the norm √(mean of squares over channels and pixels), so that it is in the units of the
    data and does not grow with the frame.
    """
    num_members, num_leads = members_MSCHW.shape[:2]
    scores = np.empty(num_leads)
    for lead in range(num_leads):
        members = members_MSCHW[:, lead].reshape(num_members, -1).astype(np.float64)
        distance = np.sqrt(np.square(members - truth_SCHW[lead].reshape(-1)).mean(axis=1))
        between = [np.sqrt(np.square(members[:m] - members[m]).mean(axis=1)).sum() for m in range(1, num_members)]
        pairs = num_members * (num_members - 1)
        scores[lead] = distance.mean() - (sum(between) / pairs if pairs else 0.0)
    return scores


def case_scores(members_MSCHW: Array, truth_SCHW: Array) -> dict[str, Array]:
    """The scores that every evaluation has, by lead time: crps, crps_fair, mse, mae, variance; each (S,) float64."""
    ensemble, fair = crps(members_MSCHW, truth_SCHW)
    return {
        "crps": ensemble,
        "crps_fair": fair,
        "mse": mse_of_mean(members_MSCHW, truth_SCHW),
        "mae": mae_of_mean(members_MSCHW, truth_SCHW),
        "variance": ensemble_variance(members_MSCHW),
    }


def _over_pixels(values_SCHW: Array) -> Array:
    """Mean over channels and pixels, (S,)."""
    return values_SCHW.reshape(len(values_SCHW), -1).mean(axis=1)
