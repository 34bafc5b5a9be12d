"""Trains what a study compares, makes checkpoints of it and measures them.

All of it lies in one folder. What is there already is neither trained nor measured again, and what
was interrupted goes on, so that a study can be ended at any time and started anew.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

# Relative to the root of the clone, where studies are started.
EMBEDDED = Path("services/carrara_models/embedded/drawn-latent")
GENERATOR_STEPS = 2500
# With two, a generator of so few steps paints no shapes yet, whatever is compared.
ONE_OBJECT = ("data.max_objects=1",)
ENCODER_STEPS = 800


@dataclass(frozen=True)
class Training:
    """One run of `carrara train`.

    Attributes:
        folder: Its name in the folder of the studies.
        changes: Settings that differ from the part's own, such as "shape.width=32".
    """

    folder: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One curve: a generator, and what it is trained behind.

    Attributes:
        text_encoder: None: the one that ships in `drawn-latent`.
    """

    generator: Training
    text_encoder: Training | None = None


ENCODERS = {
    "encoder-small": ("shape.width=32", "shape.layers=1"),
    "encoder-middle": ("shape.width=64", "shape.layers=2"),
    "encoder-large": ("shape.width=128", "shape.layers=3"),
}
UNETS = {
    "unet-small": "shape.widths=[16, 32, 64]",
    "unet-middle": "shape.widths=[32, 64, 128]",
    "unet-large": "shape.widths=[48, 96, 192]",
}
TARGETS = ("epsilon", "sample", "v_prediction", "flow")


def _behind(encoder: str, unet: str) -> Variant:
    return Variant(
        Training(f"{encoder}-{unet}", (UNETS[unet],)), Training(encoder, ENCODERS[encoder])
    )


def _target(target: str) -> Variant:
    # Flow does not know the generator's own way of drawing timesteps; evenly, each target does.
    changes = (f"objective.target={target}", "objective.times=uniform")
    return Variant(Training(f"target-{target}", changes))


# What each study compares, by the name of each curve.
STUDIES = {
    "text-encoder-size": {name: _behind(name, "unet-middle") for name in ENCODERS},
    "unet-size": {name: _behind("encoder-large", name) for name in UNETS},
    "targets": {target: _target(target) for target in TARGETS},
}
# All are measured alike, so that the points of all pages compare.
MEASURES = (
    *("--attributes", "--fid", "--clip-score", "--captions", "300", "--seed", "0"),
    *("--max-objects", "1"),
    *("--guidance-scale", "1,2,4"),
)


@dataclass
class Workshop:
    """The folder where studies train, and every command that they needed.

    Args:
        folder: Relative to the root of the clone.
        train_steps: In place of every training's own, for a try.
        passed_on: Options of `carrara evaluate` that stand in place of those here.
    """

    folder: Path
    train_steps: int | None = None
    passed_on: Sequence[str] = ()
    commands: list[str] = field(default_factory=list)

    def measure(self, study: Mapping[str, Variant]) -> dict[str, dict[str, Any]]:
        """Reports of `carrara evaluate` by the name of each curve, which their points bear."""
        if not EMBEDDED.is_dir():
            raise SystemExit(f"there is no {EMBEDDED}: start studies in the root of the clone")
        reports = {}
        for name, variant in study.items():
            checkpoint = self._checkpoint(variant)
            report = self._report(checkpoint, replaced(MEASURES, self.passed_on))
            for point in report["points"]:
                point["checkpoint"] = name
            reports[name] = report
        return reports

    def sizes(self, study: Mapping[str, Variant]) -> list[dict[str, str]]:
        """Rows of a table: what each curve is, and its parameters in millions."""
        rows = []
        for name, variant in study.items():
            checkpoint = self.folder / variant.generator.folder / "checkpoint"
            encoder = variant.text_encoder.changes if variant.text_encoder else ()
            rows.append(
                {
                    "": name,
                    "text encoder": ", ".join(encoder) or "of drawn-latent",
                    "its million parameters": _millions(checkpoint / "text_encoder"),
                    "generator": ", ".join(variant.generator.changes),
                    "its UNet's": _millions(checkpoint / "unet"),
                }
            )
        return rows

    def _checkpoint(self, variant: Variant) -> Path:
        behind = EMBEDDED
        if variant.text_encoder is not None:
            behind = self._train(
                "text-encoder", variant.text_encoder, steps=ENCODER_STEPS, made="text_encoder"
            )
        run = self._train(
            "generator",
            variant.generator,
            f"text_encoder={behind}",
            f"autoencoder={EMBEDDED}",
            *ONE_OBJECT,
            steps=GENERATOR_STEPS,
            made="scheduler",
        )
        checkpoint = run / "checkpoint"
        # `carrara.json` is written last.
        self._run(
            ["carrara", "train", "export", "-o", str(checkpoint), str(run)],
            done=(checkpoint / "carrara.json").is_file(),
        )
        return checkpoint

    def _train(self, part: str, training: Training, *behind: str, steps: int, made: str) -> Path:
        """Trains, goes on or lets be.

        Args:
            behind: Settings that name what it is trained behind.
            made: The component that a run writes at its end.

        Raises:
            SystemExit: The folder holds a run with other settings.
        """
        folder, steps = self.folder / training.folder, self.train_steps or steps
        changes = (*behind, *training.changes, f"loop.steps={steps}")
        options = [part for change in changes for part in ("--set", change)]
        command = ["carrara", "train", part, "-o", str(folder), *options]
        recipe, state = folder / "run.toml", folder / "snapshot" / "state.json"
        if recipe.is_file():
            wanted = tomllib.loads(output_of(["carrara", "train", part, *options, "--show"]))
            if tomllib.loads(recipe.read_text(encoding="utf-8")) != wanted:
                raise SystemExit(f"{folder} was trained with other settings: delete or rename it")
        step = json.loads(state.read_text(encoding="utf-8"))["step"] if state.is_file() else 0
        resumed = ["--resume"] if step else []
        self._run(command, *resumed, done=step == steps and (folder / made).is_dir())
        return folder

    def _report(self, checkpoint: Path, options: Sequence[str]) -> dict[str, Any]:
        command = ["carrara", "evaluate", "--checkpoint", str(checkpoint), *options]
        self._note(command)
        return report_of(command, file=checkpoint.parent / "report.json")

    def _run(self, command: Sequence[str], *more: str, done: bool) -> None:
        self._note(command)
        if not done:
            print(f"$ {shlex.join([*command, *more])}", flush=True)
            subprocess.run([*command, *more], check=True)

    def _note(self, command: Sequence[str]) -> None:
        line = shlex.join(command)
        if line not in self.commands:
            self.commands.append(line)


def replaced(options: Sequence[str], others: Sequence[str]) -> list[str]:
    """Options of a command line, without those that others stand in place of, and the others."""
    kept: list[str] = []
    keeps = True
    for part in options:
        if part.startswith("--"):
            keeps = part not in others
        if keeps:
            kept.append(part)
    return [*kept, *others]


def report_of(command: Sequence[str], *, file: Path) -> dict[str, Any]:
    """What `carrara evaluate` reports, measured anew where the command is not that of before.

    Args:
        file: Where it is kept.
    """
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["command"] == list(command):
            return dict(stored["report"])
    report = json.loads(output_of([*command, "--json"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"command": list(command), "report": report}), encoding="utf-8")
    return dict(report)


def output_of(command: Sequence[str]) -> str:
    """What a command prints; what it tells on stderr is passed on."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def merged(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports of several checkpoints as one that `carrara evaluate --compare` reads.

    It refuses there what does not compare; here the bases of one key must be equal.
    """
    whole: dict[str, Any] = {"bases": {}, "points": []}
    for report in reports:
        for key, basis in report["bases"].items():
            if whole["bases"].setdefault(key, basis) != basis:
                raise SystemExit(f"{key} was measured in two ways, which do not compare")
        whole["points"] += report["points"]
    return whole


def _millions(component: Path) -> str:
    parameters = 0
    for file in component.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return f"{parameters / 1e6:.2f}"
