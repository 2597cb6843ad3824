"""The page of all studies, from their configurations and tables alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from dydiff_dist.evaluation.colors import FORECASTERS
from dydiff_dist.evaluation.figures import save_figure
from dydiff_dist.evaluation.resampling import FEW_GROUPS
from dydiff_dist.files import write_text
from dydiff_dist.study.config import ComparisonConfig, StudyConfig
from dydiff_dist.study.intervals import Difference, Scored, compare
from dydiff_dist.study.plots import cost_figure, lead_figure
from dydiff_dist.study.records import read_case_rows, read_run_rows
from dydiff_dist.study.scored import CaseTable

BASELINES = ("persistence", "climatology", "seasonal_naive", "random_walk")
"""Forecasters without training, in the order of columns; each appears where it was scored."""
OVERHEAD_NAME = "overhead.csv"
"""Rows of tools/bench_overhead.py, beside the studies' tables."""
SCORE_NAMES = {
    "crps": "CRPS",
    "crps_fair": "fair CRPS",
    "mse": "MSE of the ensemble mean",
    "mae": "MAE of the ensemble mean",
    "variance": "ensemble variance",
    "crps_sum": "CRPS-sum",
    "crps_quantile": "quantile CRPS",
    "nd_sum": "ND-sum",
}


class StudySection:
    """One study's part of the page."""

    def __init__(self, name: str, study: StudyConfig, tables: Path):
        """``tables`` is the folder of NAME_runs.csv and NAME_cases.csv."""
        self.name, self.study = name, study
        self.run_rows = read_run_rows(tables / f"{name}_runs.csv")
        self.cases = CaseTable(read_case_rows(tables / f"{name}_cases.csv"), study.independent)
        self._baselines_shown: set[str] = set()

    def summary(self) -> list[str]:
        """Rows of the page's summary: the study's comparisons that belong there."""
        score, rows = self.study.scores[0], []
        for comparison in self.study.comparisons:
            there = [item for item in comparison.against if self._has(item)]
            if not comparison.summary or not there or not self._has(comparison.reference):
                continue
            differences = compare(
                [self._scored(item, score) for item in there], self._scored(comparison.reference, score)
            )
            for item, difference in zip(there, differences, strict=True):
                labels = [self.study.label(item), self.study.label(comparison.reference)]
                rows.append(_row([self.study.title, *labels, str(difference.num_seeds), *_verdict(difference)]))
        return rows

    def write(self, images: Path, tables_link: str, images_link: str) -> list[str]:
        """The section's lines; figures are written to ``images``. The links are how the page reaches the folders."""
        lines = [f"## {self.study.title}", ""]
        if self.study.text:
            lines += [self.study.text, ""]
        lines += [self._budget(tables_link), ""]
        for number, comparison in enumerate(self.study.comparisons, start=1):
            lines += self._comparison(comparison, images, images_link, number)
        return lines

    # -- parts --------------------------------------------------------------------------------------------------------

    def _comparison(self, comparison: ComparisonConfig, images: Path, link: str, number: int) -> list[str]:
        there = [item for item in comparison.against if self._has(item)]
        missing = [self.study.label(item) for item in comparison.against if not self._has(item)]
        lines = [f"### {comparison.title}", ""]
        if not self._has(comparison.reference) or not there:
            return [*lines, "Not run yet.", ""]
        lines += self._table(comparison, there)
        if comparison.note:
            lines += [comparison.note, ""]
        if missing:
            lines += [f"Not run: {'; '.join(missing)}.", ""]
        if comparison.curves:
            stem = f"study_{self.name}_{number}"
            save_figure(self._curves(comparison, there), images / f"{stem}.png", dpi=110)
            lines += [f"![{comparison.title}: curves]({link}/{stem}.png)", ""]
        return lines

    def _table(self, comparison: ComparisonConfig, items: Sequence[str]) -> list[str]:
        score = self.study.scores[0]
        reference = self._scored(comparison.reference, score)
        baselines = self._baselines(comparison.reference, score)
        arms = {item: self._scored(item, score) for item in items}
        differences = dict(zip(items, compare(list(arms.values()), reference), strict=True))
        extra = self.study.scores[1:2]
        header = ["setting", "seeds", SCORE_NAMES[score], *(f"of {FORECASTERS[name].label}'s" for name in baselines)]
        header += [f"{SCORE_NAMES[name]}" for name in extra]
        header += [f"{SCORE_NAMES[score]} against {self.study.label(comparison.reference)}", ""]
        lines = [_row(header), _row(["---"] * len(header))]
        for item in (comparison.reference, *items):
            scored = reference if item == comparison.reference else arms[item]
            cells = [self.study.label(item), str(len(scored.seeds)), f"{scored.mean():.4g}"]
            cells += [f"{scored.mean() / baseline.mean():.3f}" for baseline in baselines.values()]
            cells += [f"{self._scored(item, name).mean():.4g}" for name in extra]
            cells += _verdict(differences[item]) if item in differences else ["–", ""]
            lines.append(_row(cells))
        forecast = self.study.split_item(comparison.reference)[1]
        for name, baseline in baselines.items() if forecast not in self._baselines_shown else ():
            others = [f"{baseline.mean() / other.mean():.3f}" for other in baselines.values()]
            rest = [f"{self._baselines(comparison.reference, kept)[name].mean():.4g}" for kept in extra]
            lines.append(_row([f"*{FORECASTERS[name].label}*", "–", f"{baseline.mean():.4g}", *others, *rest, "", ""]))
        self._baselines_shown.add(forecast)
        same_seeds = all(arm.seeds == reference.seeds for arm in arms.values())
        return [*lines, "", self._footnote(list(differences.values()), same_seeds), ""]

    def _footnote(self, differences: Sequence[Difference], same_seeds: bool) -> str:
        """What the intervals of a table cover."""
        groups = differences[0].num_groups
        kind = "cases" if self.study.independent == "case" else "groups of cases (one event or trajectory each)"
        few = f"; {groups} are few, so take them as rough" if groups < FEW_GROUPS else ""
        shared = "" if same_seeds else " Scores are over all seeds, differences over those that both have."
        if not differences[0].covers_training:
            return (
                f"Intervals: 95 %, over {groups} {kind} only{few}; with one seed nothing is known of how another "
                f"training would have gone.{shared}"
            )
        single = any(difference.num_seeds == 1 for difference in differences)
        pooled = "; arms with one seed take the training luck of the others" if single else ""
        return f"Intervals: 95 %, over {groups} {kind} and over seeds{few}{pooled}.{shared}"

    def _curves(self, comparison: ComparisonConfig, items: Sequence[str]):
        score = self.study.scores[0]
        if comparison.curves == "cost":
            return cost_figure(SCORE_NAMES[score], self._cost_curves((comparison.reference, *items), score))
        reference = self._scored(comparison.reference, score)
        arms = {item: self._scored(item, score) for item in items}
        leads = range(reference.value.shape[-1])
        at_leads = [compare([arm.at_lead(lead) for arm in arms.values()], reference.at_lead(lead)) for lead in leads]
        by_lead = {self.study.label(item): [at[number] for at in at_leads] for number, item in enumerate(items)}
        return lead_figure(
            SCORE_NAMES[score],
            (self.study.label(comparison.reference), reference),
            {self.study.label(item): arm for item, arm in arms.items()},
            by_lead,
            self._baselines(comparison.reference, score),
        )

    def _cost_curves(self, items: Sequence[str], score: str) -> dict[str, list[tuple[int, float]]]:
        curves: dict[str, list[tuple[int, float]]] = {}
        for item in items:
            arm, forecast = self.study.split_item(item)
            row = next(row for row in self.run_rows if (row["arm"], row["forecast"]) == (arm, forecast))
            label = f"{self.study.arms[arm].label or arm}: {row['sampler']}"
            curves.setdefault(label, []).append((int(row["sampler_steps"]), self._scored(item, score).mean()))
        return {label: sorted(points) for label, points in curves.items()}

    def _budget(self, link: str) -> str:
        """What every training and forecast of the study took."""
        rows = self.run_rows
        if not rows:
            return "Nothing is run yet."
        main = next((row for row in rows if row["forecast"] == self.study.main_forecast), rows[0])
        return (
            f"Trainings: {self._trainings()} on {', '.join(sorted({row['device'] for row in rows}))}. Forecasts of "
            f"{main['cases']} test cases, {main['members']} members, {main['sampler']} in {main['sampler_steps']} "
            f"steps unless a row says otherwise. Rows: [runs]({link}/{self.name}_runs.csv), "
            f"[cases]({link}/{self.name}_cases.csv)."
        )

    def _trainings(self) -> str:
        """How many trainings there were of each length, and what one took."""
        by_length: dict[int, dict[str, Mapping[str, str]]] = {}
        for row in self.run_rows:
            by_length.setdefault(int(row["steps"]), {})[row["run_hash"]] = row
        parts = []
        for steps, trainings in sorted(by_length.items()):
            rows = list(trainings.values())
            whole = [row for row in rows if row.get("train_cpu_sec") and row.get("resumed") != "True"]
            minutes = [float(row["train_cpu_sec"]) / 60 for row in whole]
            took = f", {median(minutes):.1f} CPU minutes (median)" if minutes else ""
            parts.append(f"{len(rows)} of {steps:,} steps ({int(rows[0]['samples']):,} samples{took})")
        return ", ".join(parts)

    def _has(self, item: str) -> bool:
        return self.cases.has(*self.study.split_item(item), self.study.scores[0])

    def _scored(self, item: str, score: str) -> Scored:
        return self.cases.scored(*self.study.split_item(item), score)

    def _baselines(self, reference: str, score: str) -> dict[str, Scored]:
        """The baselines that were scored on the cases of the reference's forecast."""
        forecast = self.study.split_item(reference)[1]
        there = [name for name in BASELINES if self.cases.has(name, forecast, score)]
        return {name: self.cases.scored(name, forecast, score) for name in there}


def write_page(studies: Mapping[str, StudyConfig], tables: Path, page: Path, images: Path) -> None:
    """Writes the page of several studies, and its figures.

    Args:
        studies: by name, in the order of the page.
        tables: folder of the CSV files.
        page: the Markdown file.
        images: folder of the figures.

    Raises:
        FileNotFoundError: a study has no tables yet.
    """
    links = [Path(os.path.relpath(folder, page.parent)).as_posix() for folder in (tables, images)]
    page.parent.mkdir(parents=True, exist_ok=True)
    sections = [StudySection(name, study, tables) for name, study in studies.items()]
    lines = [*_HEADER, *_summary([row for section in sections for row in section.summary()])]
    for section in sections:
        lines += section.write(images, *links)
    if (tables / OVERHEAD_NAME).is_file():
        lines += _overhead(read_run_rows(tables / OVERHEAD_NAME), links[0])
    write_text(page, "\n".join(lines).rstrip("\n") + "\n")


_HEADER = (
    "# Does it forecast better?",
    "",
    "Dynamical Diffusion against standard diffusion, trained alike: the same network, data order, noise and budget,",
    "seed by seed. Lower scores are better everywhere. *Better* and *worse* stand where the 95 % interval of the",
    "difference leaves out zero; of twenty comparisons without any true difference about one would do so by chance.",
    "[Choosing γ](choosing_gamma.md) says what follows.",
    "",
    "`tools/study.py` ran what stands in `configs/studies/`, and wrote the tables in `docs/study/` and from them this",
    "page; do not edit it.",
    "",
)


def _summary(rows: Sequence[str]) -> list[str]:
    """The comparisons that most readers come for, of all studies."""
    if not rows:
        return []
    header = ["data", "setting", "against", "seeds of both", "difference [95 %]", ""]
    return ["## Summary", "", _row(header), _row(["---"] * len(header)), *rows, ""]


def _overhead(rows: Sequence[Mapping[str, str]], link: str) -> list[str]:
    """What the dynamics cost in training, one line a measurement."""
    header = ["run", "device, threads", "step, standard", "step, DyDiff", "ratio (20 to 80 %)", "memory", "load"]
    lines = ["## What the dynamics cost", "", _row(header), _row(["---"] * len(header))]
    for row in rows:
        ratio = f"{float(row['ratio']):.3f} ({float(row['ratio_p20']):.3f} to {float(row['ratio_p80']):.3f})"
        steps = [f"{float(row[f'{name}_ms']):.1f} ms" for name in ("standard", "dydiff")]
        memory = f"{float(row['standard_mib']):.0f}, {float(row['dydiff_mib']):.0f} MiB"
        run = f"{row['config']} {row['overrides']}".strip()
        lines.append(_row([run, f"{row['device']}, {row['threads']}", *steps, ratio, memory, row["load_1min"]]))
    gpu = "" if any(not row["device"].startswith("cpu") for row in rows) else " Not measured on a GPU."
    return [
        *lines,
        "",
        "Training steps of both in turn, in one process on the same batch (`tools/bench_overhead.py`): median times "
        "(CPU time of the process, or a GPU's wall time), median and range of the ratios of neighbouring steps, peak "
        f"memory, and the load of the machine.{gpu} Rows: [overhead]({link}/{OVERHEAD_NAME}).",
        "",
    ]


def _verdict(difference: Difference) -> list[str]:
    """Two cells: the difference with its interval, and what may be said of it."""
    numbers = f"{100 * difference.relative:+.1f} % [{100 * difference.lower:+.1f}, {100 * difference.upper:+.1f}]"
    if not difference.is_significant:
        return [numbers, "no clear difference"]
    return [numbers, "**better**" if difference.upper < 0 else "**worse**"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
