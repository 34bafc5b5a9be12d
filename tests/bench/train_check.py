"""Does training still work? Trains each part for some minutes from nothing, and tells its score.

    python tests/bench/train_check.py            # an hour or two on two cores
    python tests/bench/train_check.py --part clip --part prior

Each stands behind the parts before it, as this check trained them; super-resolution behind the T5
that ships. A run that an earlier check ended in the same folder is not trained again. What a part
has to reach lies well below what it has reached once, as another machine rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

T5 = Path("services/carrara_models/embedded/drawn-pixel/base")
CARRARA = Path(sys.executable).with_name("carrara")


@dataclass(frozen=True)
class Check:
    """A part, how it is trained, and what it has to reach.

    Attributes:
        settings: As after `--set`; `{PART}` is the folder of that part's run.
        measure: A scalar that the run reports.
        target: What it has to reach: at least, or at most where it is a loss.
    """

    part: str
    settings: tuple[str, ...]
    measure: str
    target: float

    def holds(self, value: float) -> bool:
        """Whether `value` of the measure is good enough."""
        return value <= self.target if self.measure == "loss" else value >= self.target


CHECKS = (
    Check("text-encoder", ("loop.steps=1000",), "read_all_en", 0.9),
    Check("autoencoder", ("loop.steps=1000",), "all_right", 0.7),
    Check(
        "clip",
        ("text_encoder={text-encoder}", "shape.text_layers=2", "loop.steps=800"),
        "found_its_picture",
        0.7,
    ),
    Check(
        "generator",
        ("text_encoder={text-encoder}", "autoencoder={autoencoder}", "loop.steps=1600"),
        "background",
        0.8,
    ),
    Check("prior", ("clip={clip}", "loop.steps=1500"), "found_its_picture", 0.75),
    Check("super-resolution", (f"text_encoder={T5}", "loop.steps=1000"), "object_count", 0.8),
    Check("unconditional", ("loop.steps=1600",), "loss", 0.25),
)


def main() -> int:
    """Trains what the command line names; the exit status is 1 where a score is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [check.part for check in CHECKS]
    parser.add_argument("--part", action="append", choices=parts, help="one alone; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("runs/check"), help="of the runs")
    chosen = parser.parse_args()
    missed = []
    for check in CHECKS:
        if check.part in (chosen.part or parts):
            seconds = train(check, chosen.folder)
            value = last(chosen.folder / check.part / "scalars.jsonl", check.measure)
            verdict = "" if check.holds(value) else ": MISSED"
            print(
                f"{check.part}: {check.measure} {value:.3f}, wanted {check.target}{verdict} "
                f"({seconds / 60:.1f} min)",
                flush=True,
            )
            missed += [] if check.holds(value) else [check.part]
    return 1 if missed else 0


def train(check: Check, folder: Path) -> float:
    """Trains a part to its end, or goes on where it stopped; returns the seconds that it took."""
    begin, run = time.monotonic(), folder / check.part
    command = [str(CARRARA), "train", check.part, "-o", str(run), "--sample-every", "100000"]
    if (run / "snapshot").exists():
        command.append("--resume")
    else:
        folders = {each.part: folder / each.part for each in CHECKS}
        for setting in check.settings:
            command += ["--set", filled(setting, folders)]
    subprocess.run(command, check=True)
    return time.monotonic() - begin


def filled(setting: str, folders: dict[str, Path]) -> str:
    """A setting with the folders of the runs that it names."""
    for part, folder in folders.items():
        setting = setting.replace("{" + part + "}", str(folder))
    return setting


def last(file: Path, measure: str) -> float:
    """The last value that a run reported."""
    lines: Sequence[str] = file.read_text(encoding="utf-8").splitlines()
    values = [json.loads(line)[measure] for line in lines if measure in json.loads(line)]
    return float(values[-1])


if __name__ == "__main__":
    sys.exit(main())
