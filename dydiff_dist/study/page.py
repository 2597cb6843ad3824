"""The page of all studies, from their configurations and tables alone."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from dydiff_dist.evaluation.colors import FORECASTERS
from dydiff_dist.evaluation.figures import save_figure
from dydiff_dist.evaluation.resampling import FEW_GROUPS
from dydiff_dist.files import write_text
from dydiff_dist.study.config import ComparisonConfig, StudyConfig
from dydiff_dist.study.curves import cost_figure, lead_figure, learning_figure
from dydiff_dist.study.intervals import Difference, Scored, compare
from dydiff_dist.study.kept_scores import SCORES
from dydiff_dist.study.records import read_case_rows, read_run_rows
from dydiff_dist.study.scored import CaseTable

BASELINES = ("persistence", "climatology", "seasonal_naive", "random_walk")
"""Forecasters without training, in the order of columns; each appears where it was scored."""
COLUMN_TITLES = {
    "coverage_50": "50 % intervals hold",
    "coverage_80": "80 % intervals hold",
    "spread_skill_ratio": "spread over error",
    "log_spectral_distance_db": "log spectral distance [dB]",
    "passes": "passes in training",
    "train_cpu_sec": "training [CPU seconds]",
    "forecast_cpu_sec_per_member": "CPU seconds per member",
}
"""How tables call a study's columns; others go by their own names."""
OVERHEAD_NAME = "overhead.csv"
"""Rows of tools/bench.py overhead, beside the studies' tables."""


@dataclass(frozen=True)
class _Compared:
    """A comparison as far as it was run, on one score: what its table, its curves and the summary are made of."""

    reference: Scored
    arms: dict[str, Scored]
    """By item, in the comparison's order."""
    differences: dict[str, Difference]
    """Each arm's to the reference."""
    baselines: dict[str, Scored]
    """Those that were scored on the cases of the reference's forecast."""


class StudySection:
    """One study's part of the page."""

    def __init__(self, name: str, study: StudyConfig, tables: Path):
        """``tables`` is the folder of NAME_runs.csv and NAME_cases.csv."""
        self.name, self.study = name, study
        self.run_rows = read_run_rows(tables / f"{name}_runs.csv")
        self.cases = CaseTable(read_case_rows(tables / f"{name}_cases.csv"), study.independent)
        self.score = study.scores[0]
        self.compared = [self._compare(comparison) for comparison in study.comparisons]
        """By comparison; None where nothing of it was run."""
        self._baselines_shown: set[str] = set()

    def _compare(self, comparison: ComparisonConfig) -> _Compared | None:
        there = [item for item in comparison.against if self._has(item)]
        if not there or not self._has(comparison.reference):
            return None
        reference = self._scored(comparison.reference, self.score)
        arms = {item: self._scored(item, self.score) for item in there}
        differences = dict(zip(arms, compare(list(arms.values()), reference), strict=True))
        return _Compared(reference, arms, differences, self._baselines(comparison.reference, self.score))

    def summary(self) -> list[str]:
        """Rows of the page's summary: the study's comparisons that belong there."""
        rows = []
        for comparison, compared in zip(self.study.comparisons, self.compared, strict=True):
            for item, difference in compared.differences.items() if comparison.summary and compared else ():
                labels = [self.study.label(item), self.study.label(comparison.reference)]
                rows.append(_row([self.study.title, *labels, str(difference.num_seeds), *_verdict(difference)]))
        return rows

    def learning_curves(self) -> dict[str, list[tuple[int, np.ndarray]]]:
        """Label -> (passes, scores of all seeds) of the arms that were run; nothing where no curve has two points."""
        passes = {row["arm"]: int(row["passes"]) for row in self.run_rows}
        curves = {
            label: sorted(
                ((passes[arm], self._scored(arm, self.score).by_seed()) for arm in arms if self._has(arm)),
                key=itemgetter(0),
            )
            for label, arms in self.study.learning_curves.items()
        }
        return {k: points for k, points in curves.items() if points} if any(len(p) > 1 for p in curves.values()) else {}

    def write(self, images: Path, tables_link: str, images_link: str) -> list[str]:
        """The section's lines; figures are written to ``images``. The links are how the page reaches the folders."""
        lines = [f"## {self.study.title}", ""]
        if self.study.text:
            lines += [self.study.text, ""]
        lines += [self._budget(tables_link), ""]
        for number, (comparison, compared) in enumerate(zip(self.study.comparisons, self.compared, strict=True), 1):
            lines += [f"### {comparison.title}", ""]
            if compared is None:
                lines += ["Not run yet.", ""]
                continue
            lines += self._table(comparison.reference, compared)
            if comparison.note:
                lines += [comparison.note, ""]
            missing = [self.study.label(item) for item in comparison.against if item not in compared.arms]
            if missing:
                lines += [f"Not run: {'; '.join(missing)}.", ""]
            if comparison.curves:
                name = f"study_{self.name}_{number}.png"
                save_figure(self._curves(comparison, compared), images / name, dpi=110)
                lines += [f"![{comparison.title}: curves]({images_link}/{name})", ""]
        return lines

    def _table(self, reference: str, compared: _Compared) -> list[str]:
        title, extra = SCORES[self.score].title, self.study.scores[1:2]
        header = ["setting", "seeds", title, *(f"of {FORECASTERS[name].label}'s" for name in compared.baselines)]
        items = {reference: compared.reference, **compared.arms}
        columns = {name: [self._mean_of_runs(item, name) for item in items] for name in self.study.columns}
        columns = {name: cells for name, cells in columns.items() if any(cells)}
        header += [SCORES[name].title for name in extra] + [COLUMN_TITLES.get(name, name) for name in columns]
        header += [f"{title} against {self.study.label(reference)}", ""]
        lines = [_row(header), _row(["---"] * len(header))]
        for number, (item, scored) in enumerate(items.items()):
            cells = [self.study.label(item), str(len(scored.seeds)), f"{scored.mean():.4g}"]
            cells += [f"{scored.mean() / baseline.mean():.3f}" for baseline in compared.baselines.values()]
            cells += [f"{self._scored(item, name).mean():.4g}" for name in extra]
            cells += [of_items[number] or "–" for of_items in columns.values()]
            cells += _verdict(compared.differences[item]) if item in compared.differences else ["–", ""]
            lines.append(_row(cells))
        rows = self._baseline_rows(reference, compared, extra, len(columns))
        return [*lines, *rows, "", self._footnote(compared), ""]

    def _mean_of_runs(self, item: str, column: str) -> str:
        """Over the seeds of an item; empty where a run lacks it."""
        rows = [row for row in self.run_rows if (row["arm"], row["forecast"]) == self.study.split_item(item)]
        values = [row.get(column) for row in rows]
        if not all(values):
            return ""
        mean = float(np.mean([float(value) for value in values if value]))
        if column == "passes":
            return f"{mean:,.0f}"
        return f"{100 * mean:.0f} %" if column.startswith("coverage_") else f"{mean:.3g}"

    def _baseline_rows(self, reference: str, compared: _Compared, extra: Sequence[str], num_columns: int) -> list[str]:
        """A row per baseline, where those of the forecast's cases don't stand in a table above."""
        forecast = self.study.split_item(reference)[1]
        if forecast in self._baselines_shown:
            return []
        self._baselines_shown.add(forecast)
        rows = []
        for name, baseline in compared.baselines.items():
            others = [f"{baseline.mean() / other.mean():.3f}" for other in compared.baselines.values()]
            rest = [f"{self._baselines(reference, score)[name].mean():.4g}" for score in extra]
            rest += [""] * (num_columns + 2)
            rows.append(_row([f"*{FORECASTERS[name].label}*", "–", f"{baseline.mean():.4g}", *others, *rest]))
        return rows

    def _footnote(self, compared: _Compared) -> str:
        """What the intervals of a table cover."""
        differences = list(compared.differences.values())
        groups = differences[0].num_groups
        kind = "cases" if self.study.independent == "case" else "groups of cases (one event or trajectory each)"
        few = f"; {groups} are few, so take them as rough" if groups < FEW_GROUPS else ""
        same_seeds = all(arm.seeds == compared.reference.seeds for arm in compared.arms.values())
        shared = "" if same_seeds else " Scores are over all seeds, differences over those that both have."
        if not differences[0].covers_training:
            return (
                f"Intervals: 95 %, over {groups} {kind} only{few}; with one seed nothing is known of how another "
                f"training would have gone.{shared}"
            )
        single = any(difference.num_seeds == 1 for difference in differences)
        pooled = "; arms with one seed take the training luck of the others" if single else ""
        return f"Intervals: 95 %, over {groups} {kind} and over seeds{few}{pooled}.{shared}"

    def _curves(self, comparison: ComparisonConfig, compared: _Compared) -> Figure:
        title, reference, label = SCORES[self.score].title, compared.reference, self.study.label
        if comparison.curves == "cost":
            return cost_figure(title, self._cost_curves((comparison.reference, *compared.arms)))
        arms = {label(item): arm for item, arm in compared.arms.items()}
        at_leads = [
            compare([arm.at_lead(lead) for arm in arms.values()], reference.at_lead(lead))
            for lead in range(reference.value.shape[-1])
        ]
        by_lead = dict(zip(arms, zip(*at_leads, strict=True), strict=True))
        return lead_figure(title, (label(comparison.reference), reference), arms, by_lead, compared.baselines)

    def _cost_curves(self, items: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        curves: dict[str, list[tuple[int, float]]] = {}
        for item in items:
            arm, forecast = self.study.split_item(item)
            row = next(row for row in self.run_rows if (row["arm"], row["forecast"]) == (arm, forecast))
            label = f"{self.study.label(arm)}: {row['sampler']}"
            curves.setdefault(label, []).append((int(row["sampler_steps"]), self._scored(item, self.score).mean()))
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
        return self.cases.has(*self.study.split_item(item), self.score)

    def _scored(self, item: str, score: str) -> Scored:
        return self.cases.scored(*self.study.split_item(item), score)

    def _baselines(self, reference: str, score: str) -> dict[str, Scored]:
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
    lines = [*_HEADER, *_learning_curves(sections, images, links[1])]
    lines += _summary([row for section in sections for row in section.summary()])
    for section in sections:
        lines += section.write(images, *links)
    if (tables / OVERHEAD_NAME).is_file():
        lines += _overhead(read_run_rows(tables / OVERHEAD_NAME), links[0])
    write_text(page, "\n".join(lines).rstrip("\n") + "\n")


_HEADER = (
    "# Does it forecast better?",
    "",
    "Dynamical Diffusion, other processes, and training on the score of ensembles, against standard diffusion trained",
    "alike: the same network, data order, noise and budget, seed by seed. Lower scores are better everywhere. *Better*",
    "and *worse* stand where the 95 % interval of the difference leaves out zero; of twenty comparisons without any",
    "true difference about one would do so by chance. Training luck is estimated from all arms of a table, so the same",
    "difference may have another interval in another table. Where all have one seed the interval is over cases alone,",
    f"and decides nothing: *one seed*. Below {FEW_GROUPS} independent groups of cases nothing is said.",
    "[Choosing γ](choosing_gamma.md) says what follows, [the log](study_log.md) what was expected and learnt.",
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


def _learning_curves(sections: Sequence[StudySection], images: Path, link: str) -> list[str]:
    """The figure of all studies that have learning curves."""
    panels = {
        f"{section.study.title}: {SCORES[section.score].title}": curves
        for section in sections
        if (curves := section.learning_curves())
    }
    if not panels:
        return []
    save_figure(learning_figure(panels), images / "study_learning.png", dpi=110)
    caption = (
        "By what training costs, in forward and backward passes of one sample through the network: one a sample of "
        "diffusion, one for each member and step of few-step training, with those of the model that it starts from. "
        "Lines are means over seeds, bands go from the best seed to the worst."
    )
    return ["## Learning curves", "", f"![Scores by passes in training]({link}/study_learning.png)", "", caption, ""]


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
        "Training steps of both in turn, in one process on the same batch (`tools/bench.py overhead`): median times "
        "(CPU time of the process, or a GPU's wall time), median and range of the ratios of neighbouring steps, peak "
        f"memory, and the load of the machine.{gpu} Rows: [overhead]({link}/{OVERHEAD_NAME}).",
        "",
    ]


def _verdict(difference: Difference) -> list[str]:
    """Two cells: the difference with its interval, and what may be said of it."""
    numbers = f"{100 * difference.relative:+.1f} % [{100 * difference.lower:+.1f}, {100 * difference.upper:+.1f}]"
    if difference.num_groups < FEW_GROUPS:
        return [numbers, f"{difference.num_groups} groups: nothing can be said"]
    if not difference.covers_training:
        return [numbers, "one seed"]
    if not difference.is_significant:
        return [numbers, "no clear difference"]
    return [numbers, "**better**" if difference.upper < 0 else "**worse**"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
