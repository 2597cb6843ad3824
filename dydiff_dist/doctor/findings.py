"""A finding, and how findings are printed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from dydiff_dist.quoting import first_line

Level = Literal["ok", "warning", "problem"]
_MARKS = {"ok": "ok", "warning": "WARN", "problem": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    """What."""
    level: Level
    """ok; warning: it works, slowly or not everywhere; problem: something will fail."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do; empty where nothing has to be done."""


def guarded(subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of ``look``; one that fails is a finding itself, so that the others are still made."""
    try:
        return list(look())
    except Exception as error:
        text = f"could not be examined: {type(error).__name__}: {first_line(error)}"
        return [Finding(subject, "problem", text, "read the message; the rest of this report does not depend on it")]


def exit_status(findings: list[Finding]) -> int:
    """1 if anything will fail, 0 otherwise."""
    return int(any(finding.level == "problem" for finding in findings))


def as_text(findings: list[Finding], title: str = "") -> str:
    """One line for each finding, advice below it."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = [title] if title else []
    for finding in findings:
        lines.append(f"{_MARKS[finding.level]:<5}{finding.subject:<{width}}  {finding.text}")
        if finding.advice and finding.level != "ok":
            lines.append(f"{'':<5}{'':<{width}}  -> {finding.advice}")
    return "\n".join(lines)
