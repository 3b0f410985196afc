"""What the benchmarks share: figures and their table, the arguments, what they depend on."""

import argparse
import gc
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aloop

SEED = 1


@dataclass
class Figure:
    """One line of the table."""

    case: str
    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    """One a round."""
    budget: float | None = None
    at_least: bool = False
    """True when the budget must be reached, false when it must not be exceeded."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the rounds."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, method="inclusive")
        return low, high

    @property
    def is_met(self) -> bool | None:
        """Whether the budget is kept, None without one."""
        if self.budget is None:
            return None
        return self.median >= self.budget if self.at_least else self.median <= self.budget


def rounds_of(cases: Iterable[Any], rounds: int, seed: int = SEED) -> Iterator[Any]:
    """Give every case once a round, in an order shuffled anew, with the garbage collected."""
    shuffled, cases = random.Random(seed), list(cases)
    for _ in range(rounds):
        for case in shuffled.sample(cases, len(cases)):
            gc.collect()
            yield case


@contextmanager
def new_file() -> Iterator[Path]:
    """Give a path in a new directory."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "log.sqlite"


def memory_mb() -> tuple[float, float]:
    """Give the memory of this process, and the most it ever was."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        # Not on Linux, where a process begins with the peak of the one that started it.
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        return peak, peak
    found = dict(line.split(":", 1) for line in text.splitlines())
    now, peak = (int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def describe_environment() -> dict[str, str | int]:
    """Tell what the figures depend on besides the code."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "sqlite": sqlite3.sqlite_version,
        "aloop": aloop.__version__,
    }


def format_number(number: float) -> str:
    """Give a number with three digits that count, or all those before the point."""
    return f"{number:,.0f}" if abs(number) >= 100 or number == 0 else f"{number:.3g}"


def format_table(figures: list[Figure]) -> str:
    """Give the results as a Markdown table."""
    lines = ["| case | figure | median | quartiles | unit | budget |", "|---|---|--:|--:|---|--:|"]
    for figure in figures:
        low, high = map(format_number, figure.quartiles)
        cells = [figure.case, figure.name, format_number(figure.median), f"{low}-{high}"]
        cells.append(figure.unit)
        if figure.budget is None:
            cells.append("")
        else:
            sign = "≥" if figure.at_least else "≤"
            cells.append(f"{sign} {figure.budget:g} {'met' if figure.is_met else 'missed'}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_data(figures: list[Figure], sizes: Any) -> dict[str, Any]:
    """Give the results, every round of them, as plain data."""
    return {
        "environment": describe_environment(),
        "sizes": asdict(sizes),
        "figures": [
            asdict(figure) | {"median": figure.median, "is_met": figure.is_met}
            for figure in figures
        ],
    }


def positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Make what reads a number above 0 from the command line."""

    def read(text: str) -> Any:
        number = kind(text)
        if number <= 0:
            raise ValueError(f"{number} is not more than 0")
        return number

    read.__name__ = kind.__name__  # argparse says it
    return read


def make_parser(
    description: str, cases: Iterable[str], sizes: Any = None
) -> argparse.ArgumentParser:
    """Give a parser of the cases to run, where to write all figures, and the sizes, if given.

    Parameters:
        description: the docstring of the benchmark, of which the first line is shown.
        cases: the names of the cases.
        sizes: a dataclass of numbers, the defaults of an option each.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    names = list(cases)
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=names,
        default=names,
        metavar="CASE",
        help=f"of {', '.join(names)}; default: all",
    )
    for name, size in ({} if sizes is None else asdict(sizes)).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive(type(size)),
            default=size,
            help="default: %(default)s",
        )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    return parser


def sizes_in(arguments: argparse.Namespace, defaults: Any) -> Any:
    """Give the sizes that were asked for, as what the defaults are."""
    return type(defaults)(**{name: getattr(arguments, name) for name in asdict(defaults)})


def report(
    figures: list[Figure], sizes: Any, note: str, path: Path | None, **environment: str
) -> None:
    """Print the figures, and write them to a file if there is a path.

    Parameters:
        figures: the results.
        sizes: what they were measured with, a dataclass.
        note: of what they are the medians.
        path: of the file.
        environment: what they depend on besides what all benchmarks do.
    """
    print(format_table(figures))
    print(f"\n{note}; seed {SEED}.")
    described = describe_environment() | environment
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    if path is not None:
        data = as_data(figures, sizes)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
