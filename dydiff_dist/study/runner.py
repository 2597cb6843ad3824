"""Runs a study: trains, forecasts, scores, each once; a stopped study goes on where it stopped.

Training is the command line itself in a process of its own, so that a run that breaks takes nothing with it; forecasts
and scores are the functions behind tools/forecast.py and tools/evaluate.py.
"""

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

import dydiff_dist
from dydiff_dist.errors import USER_ERRORS, user_message
from dydiff_dist.evaluation.baselines import Baseline, RandomWalk, SeasonalNaive
from dydiff_dist.files import write_json
from dydiff_dist.forecasting.exported import find_model
from dydiff_dist.forecasting.run import ForecastRun
from dydiff_dist.forecasting.verification import Verification
from dydiff_dist.ranks.parents import STARTER
from dydiff_dist.study.arms import PlannedForecast, PlannedRun
from dydiff_dist.study.config import StudyConfig, TaskName
from dydiff_dist.study.records import CaseRow, case_rows, read_case_rows, write_case_rows

_POLL_SEC = 0.5
_TORCHRUN = "torch.distributed.run"
COST_COLUMNS = ("passes", "train_cpu_sec", "forecast_cpu_sec_per_member")
"""What rows by run say of cost: passes in training, with what it started from; CPU time of this training, without; CPU
time of each member."""
_CODE = ("dydiff_dist", "kernels", "tools", "configs", "setup.py", "constraints.txt")
"""What a training follows from, from the root of the checkout."""


class TrainingFailedError(RuntimeError):
    """A training process ended with an error; the message names the log."""


@dataclass
class StudyRunner:
    """Does what is missing of the runs it is given."""

    study: StudyConfig
    runs: list[PlannedRun]
    say: Callable[[str], None] = print
    processes: int = 1
    """Ranks of a training."""
    modules: Sequence[str] = ()
    """What ``--import`` named; imported by the trainings too."""
    failures: dict[str, str] = field(default_factory=dict)
    """Runs that broke, with the reason; the others go on."""
    _seconds: dict[str, list[float]] = field(default_factory=lambda: {"train": [], "forecast": []})

    def run(self) -> None:
        """Trains, forecasts and scores whatever is not there yet, run by run."""
        for number, run in enumerate(self.runs):
            try:
                self._train(run, number)
                for forecast in run.forecasts:
                    self._forecast(run, forecast, number)
            except (*USER_ERRORS, TrainingFailedError) as error:
                self.failures[run.name] = user_message(error) or str(error)
                self.say(f"FAILED {run.name}: {self.failures[run.name]}")

    def _train(self, run: PlannedRun, number: int) -> None:
        if run.record.is_file():
            return
        self.say(f"[{number + 1}/{len(self.runs)}] train {run.name} -> {run.folder}{self._time_left(number)}")
        run.folder.mkdir(parents=True, exist_ok=True)
        config = run.folder / "config.json"
        write_json(config, run.config.model_dump(mode="json", exclude_defaults=True))
        start, cpu_start, resumed = time.perf_counter(), _children_cpu_sec(), (run.folder / "checkpoints").is_dir()
        log = run.folder / "train.log"
        begin = log.stat().st_size if log.is_file() else 0
        status = _run_until_done(training_command(config, run.task, self.processes, self.modules), log)
        seconds = time.perf_counter() - start
        if status != 0:
            raise TrainingFailedError(f"exit status {status}: {reason_of_failure(log, begin)}")
        find_model(run.folder)  # a run that was told to stop ends with status 0, but without a model
        facts = {
            "train_sec": round(seconds, 1),
            "train_cpu_sec": round(_children_cpu_sec() - cpu_start, 1),
            "resumed": resumed,
            "processes": self.processes,
            **versions(),
        }
        write_json(run.record, facts)
        self._seconds["train"].append(seconds)

    def _forecast(self, run: PlannedRun, forecast: PlannedForecast, number: int) -> None:
        if forecast.record.is_file():
            return
        self.say(f"[{number + 1}/{len(self.runs)}] forecast {run.name}, {forecast.name}{self._time_left(number)}")
        start = time.perf_counter()
        forecaster = ForecastRun(
            run.folder,
            self.study.shards_of(forecast.name),
            forecast.folder,
            num_members=forecast.config.members,
            num_cases=forecast.config.cases,
            seed=forecast.config.noise_seed,
            sampling=forecast.sampling.model_dump(),  # whole: the run may be older than its section of the study
        )
        num_members, cpu_start = len(forecaster.missing) * forecast.config.members, time.process_time()
        forecaster.run()
        forecast_sec, cpu_sec = time.perf_counter() - start, time.process_time() - cpu_start
        rows, means, num_cases = self._score(run, forecast)
        write_case_rows(forecast.scores_by_case, rows)
        facts = {
            "forecast_sec": round(forecast_sec, 1),
            "cases": num_cases,
            "members": forecast.config.members,
            "sampler": forecaster.sampling.sampler,
            "sampler_steps": forecaster.sampling.num_steps,
            "forecast_cpu_sec_per_member": float(f"{cpu_sec / num_members:.3g}") if num_members else "",
            **means,
        }
        write_json(forecast.record, facts)
        self._seconds["forecast"].append(time.perf_counter() - start)
        self.say(f"    {', '.join(f'{name} {value:.5g}' for name, value in means.items())}")

    def _score(self, run: PlannedRun, forecast: PlannedForecast) -> tuple[list[CaseRow], dict[str, float], int]:
        verification = Verification.open(forecast.folder)
        is_series = verification.kind.is_series
        of_patches = ["blockiness"] if "blockiness" in self.study.scores else []
        baselines: list[Baseline] = [verification.climatology(self.study.climatology or run.config.data.train)]
        if self.study.season_frames is not None:
            baselines.append(SeasonalNaive(self.study.season_frames))
        if is_series:
            baselines.append(RandomWalk(forecast.config.members))
        more = [s.name for s in verification.choose_suites() if set(s.scores) & set(self.study.columns)]
        wanted = dict.fromkeys([*(["series"] if is_series else []), *of_patches, *more])
        suites = verification.choose_suites(list(wanted))
        evaluation = verification.evaluate(*baselines, suites=suites)
        if evaluation.errors:
            raise ValueError(f"{forecast.folder}: {next(iter(evaluation.errors.values()))}")
        rows = case_rows(evaluation, self.study.scores, arm=run.arm, seed=run.seed, forecast=forecast.name)
        overall = evaluation.overall("forecast")
        kept = dict.fromkeys((*self.study.scores, *self.study.columns))
        if unknown := [name for name in self.study.columns if name not in overall and name not in COST_COLUMNS]:
            raise ValueError(f"these data have no score {unknown[0]!r}; take it out of the study's columns")
        # undefined ones are left out: of 8 members no interval holds 80 %
        means = {name: float(overall[name]) for name in kept if name in overall and math.isfinite(overall[name])}
        return rows, means, evaluation.num_cases

    def _time_left(self, number: int) -> str:
        """What remains, by the mean time of what this command has done so far."""
        runs = self.runs[number:]
        missing = {
            "train": sum(not run.record.is_file() for run in runs),
            "forecast": sum(not forecast.record.is_file() for run in runs for forecast in run.forecasts),
        }
        if any(count and not self._seconds[kind] for kind, count in missing.items()):
            return ""
        total = sum(count * mean(self._seconds[kind]) for kind, count in missing.items() if count)
        return f" (about {tqdm.format_interval(total)} left)"


def collect(runs: list[PlannedRun]) -> tuple[list[dict], list[CaseRow]]:
    """Rows of everything that is finished: by run and forecast, and by case."""
    run_rows: list[dict] = []
    case_rows: list[CaseRow] = []
    for run in (run for run in runs if run.record.is_file()):
        training, trained = run.config.training, json.loads(run.record.read_text())
        for forecast in (forecast for forecast in run.forecasts if forecast.record.is_file()):
            row = {
                "arm": run.arm,
                "seed": run.seed,
                "forecast": forecast.name,
                "run_hash": run.hash,
                "forecast_hash": forecast.hash,
                "steps": training.steps,
                "samples": training.steps * training.global_batch_size,
                "passes": run.passes,
            }
            run_rows.append({**row, **trained, **json.loads(forecast.record.read_text())})
            case_rows += read_case_rows(forecast.scores_by_case)
    return run_rows, case_rows


def training_command(config: Path, task: TaskName, processes: int, modules: Sequence[str] = ()) -> list[str]:
    """The argument list of a training; several ranks start under torchrun, which finds a free port."""
    package = Path(dydiff_dist.__file__).parent
    program = package / "train.py"
    if task == "fewstep":
        tools = ("tools", "dydiff_tools")  # of a checkout; installed beside the package
        program = next(file for name in tools if (file := package.parent / name / "train_fewstep.py").is_file())
    script = [str(program), str(config)]
    script += [word for module in modules for word in ("--import", module)]
    if processes == 1:
        return [sys.executable, *script]
    launcher = [sys.executable, "-m", _TORCHRUN, "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, *script]


def _run_until_done(command: list[str], log: Path) -> int:
    """Runs a command with its output appended to ``log``; an interruption is passed on and waited for. A training ends
    with this process, also where that is killed."""
    # torchrun sets one OpenMP thread for each of several ranks too, with a warning
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if _TORCHRUN in command else {}
    environment = os.environ | threads | {STARTER: str(os.getpid())}
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    progress = tqdm(bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())
    try:
        while (status := process.poll()) is None:
            progress.set_description_str(f"    {_last_line(log)[:120]}")
            time.sleep(_POLL_SEC)
        return status
    except BaseException:  # Ctrl-C or SIGTERM: the run writes a checkpoint, and the next start of the study resumes it
        process.terminate()  # not SIGINT, which a process started in the background may be ignoring
        process.wait()
        raise
    finally:
        progress.close()


def _children_cpu_sec() -> float:
    """CPU time of all processes that this one has started and waited for: what a training took, whatever else ran."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def versions() -> dict[str, str | int]:
    """What a number depends on beyond its configuration."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit of the code that runs, with ``-dirty`` where code or configurations differ; empty outside a checkout.

    Other files do not count: the study itself writes tables that are under version control.
    """
    root = Path(dydiff_dist.__file__).parents[1]

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
    except FileNotFoundError:  # git is not installed
        return ""
    if head.returncode:
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE).stdout.strip()
    return head.stdout.strip() + ("-dirty" if changed else "")


def _last_line(log: Path) -> str:
    """The last line that says something."""
    return (_last_lines(log) or ["no output"])[-1]


def reason_of_failure(log: Path, begin: int = 0) -> str:
    """The last error that a training named, else its last line: launchers print a page of their own after it.

    Args:
        log: of the training.
        begin: byte at which its output begins, after that of earlier starts.
    """
    lines = _last_lines(log, max(begin, log.stat().st_size - 2**16))
    return next((line for line in reversed(lines) if line.startswith("error:")), _last_line(log))


def _last_lines(log: Path, begin: int | None = None) -> list[str]:
    """Those that say something, from byte ``begin`` on, or from the last 4096."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096) if begin is None else begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]
