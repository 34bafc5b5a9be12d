"""Runs studies and writes what they measure into their pages.

    python docs/studies/run.py guidance schedulers
    python docs/studies/run.py text-encoder-size unet-size targets
    python docs/studies/run.py checkpoints

Started in the root of the clone. Each page keeps its words; what stands between its two marks is
made anew, and the report and the figure beside it. Options that are not this file's go to
`carrara evaluate`, where they stand in place of a study's own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import shell, table, told, write_measured
from trainings import STUDIES as TRAININGS
from trainings import Workshop, merged, output_of, replaced, report_of

from carrara_models.embedded import embedded_names

HERE = Path(__file__).parent
# Of one or two objects, as the CLIP that measures saw no more.
SWEEPS = {
    "guidance": (
        *("--checkpoint", "drawn-latent", "--attributes", "--fid", "--kid", "--clip-score"),
        *("--captions", "500", "--seed", "0"),
        *("--guidance-scale", "1,1.5,2,2.5,3,4,6,9"),
    ),
    "schedulers": (
        *("--checkpoint", "drawn-latent", "--attributes", "--fid", "--clip-score"),
        *("--captions", "300", "--seed", "0"),
        *("--scheduler", "ddim,pndm,euler,heun,dpm++2m,unipc"),
        *("--num-inference-steps", "4,6,10,20,40"),
    ),
}
# As they ship, with their own settings; those that do not ship yet are left out.
CHECKPOINTS = ("drawn-latent", "drawn-pixel", "drawn-unclip")
# Scenes of one or two objects, which all of them know.
CHECKPOINT_MEASURES = (
    *("--attributes", "--fid", "--kid", "--clip-score", "--captions", "500", "--seed", "0"),
)


def main() -> None:
    """Reads the command line and runs what it names."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("studies", nargs="+", choices=[*SWEEPS, *TRAININGS, "checkpoints"])
    parser.add_argument("--folder", type=Path, default=HERE, help="of pages and reports")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="where studies train; kept"
    )
    parser.add_argument("--train-steps", type=int, help="of every training, for a try")
    known, passed_on = parser.parse_known_args()
    # `carrara` of the very environment that runs this, activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for study in known.studies:
        if study in SWEEPS:
            run_sweep(study, folder=known.folder, passed_on=passed_on)
        elif study in TRAININGS:
            workshop = Workshop(known.runs, known.train_steps, passed_on)
            run_training_study(study, workshop, folder=known.folder)
        else:
            run_checkpoints(folder=known.folder, runs=known.runs, passed_on=passed_on)


def run_sweep(study: str, *, folder: Path, passed_on: Sequence[str]) -> None:
    """Measures one checkpoint over settings.

    Args:
        folder: Has the page already.
        passed_on: Options that stand in place of the study's own.
    """
    command = ["carrara", "evaluate", *replaced(SWEEPS[study], passed_on)]
    report = json.loads(output_of([*command, "--json"]))
    _write(study, report, [report], folder=folder, before=[shell([shlex.join(command)])])


def run_training_study(study: str, workshop: Workshop, *, folder: Path) -> None:
    """Trains what a study compares, and measures it over guidance scales.

    Args:
        folder: Has the page already.
    """
    reports = workshop.measure(TRAININGS[study])
    before = [shell(workshop.commands), table(workshop.sizes(TRAININGS[study]))]
    whole = merged(reports.values())
    _write(study, whole, list(reports.values()), folder=folder, before=before)


def run_checkpoints(*, folder: Path, runs: Path, passed_on: Sequence[str]) -> None:
    """Measures the checkpoints that ship, for the tables of `evaluation.md`.

    One table for each: their pictures are of other sizes, and so are the true ones that FID and KID
    hold them against, which therefore do not compare.

    Args:
        folder: The page is in the one above.
        runs: Has what was measured before.
        passed_on: Options that stand in place of those here.
    """
    blocks = []
    for name in CHECKPOINTS:
        if name not in embedded_names():
            continue
        options = replaced(CHECKPOINT_MEASURES, passed_on)
        command = ["carrara", "evaluate", "--checkpoint", name, *options]
        report = report_of(command, file=runs / f"{name}.json")
        file = folder / f"{name}.json"
        _save(report, file)
        blocks += [
            f"**`{name}`**",
            shell([shlex.join(command)]),
            _told([report], f"{folder.name}/{file.name}"),
            output_of(["carrara", "evaluate", "--compare", str(file)]),
        ]
    write_measured(folder.parent / "evaluation.md", blocks)


def _write(
    study: str,
    report: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    *,
    folder: Path,
    before: Sequence[str],
) -> None:
    """Writes report, figure and page."""
    file, figure, page = (folder / f"{study}.{end}" for end in ("json", "png", "md"))
    _save(report, file)
    measured = output_of(["carrara", "evaluate", "--compare", str(file), "--plot", str(figure)])
    picture = f"![{study}]({figure.name})"
    write_measured(page, [*before, _told(reports, file.name), picture, measured])


def _told(reports: Sequence[Mapping[str, Any]], file: str) -> str:
    return told(
        reports[0],
        points=sum(len(report["points"]) for report in reports),
        seconds=sum(report["total_seconds"] for report in reports),
        file=file,
    )


def _save(report: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
