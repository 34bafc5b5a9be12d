"""Every command of `docs/training.md` runs as it stands there, but for few steps.

What it runs as `carrara` is a wrapper that shortens the work and changes nothing else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from carrara_models.embedded import embedded_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")

SHORTENED = f"""#!{sys.executable}
import sys

from carrara.cli import main

FEW = ["loop.steps=2", "loop.batch_size=2", "loop.warmup_steps=1"]
PAINTED = ["samples.count=1", "samples.num_inference_steps=2"]
MORE = {{"generator": PAINTED, "super-resolution": PAINTED, "unconditional": ["sample_count=1"]}}

command, *rest = sys.argv[1:]
if command == "train" and rest[0] not in ("export", "previews"):
    settings = [*FEW, *MORE.get(rest[0], ())]
    sys.argv += [part for setting in settings for part in ("--set", setting)]
    sys.argv += ["--workers", "0"]
elif command == "evaluate":
    sys.argv += ["--captions", "2", "--set", "num_inference_steps=2"]
main()
"""


def blocks(heading: str, language: str) -> list[str]:
    """The code of one language under a heading, in its order."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"^( *```{language}\n.*?)^ *```$", section, flags=re.MULTILINE | re.DOTALL)
    return [dedent(block).partition("\n")[2] for block in found]


def run(script: list[str], folder: Path) -> None:
    """Runs shell commands in a folder that looks like a clone."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "carrara").write_text(SHORTENED)
    (commands / "carrara").chmod(0o755)
    services = folder / "services" / "carrara_models"
    services.mkdir(parents=True)
    (services / "embedded").symlink_to(embedded_folder("drawn-latent").parent)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", "-euxc", "\n".join(script)],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_comes_from_a_folder_of_pictures_to_a_picture(tmp_path: Path) -> None:
    (draw,) = blocks("Your own pictures, step by step", "python")
    subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, check=True)
    run(blocks("Your own pictures, step by step", "sh"), tmp_path)
    assert (tmp_path / "red.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_ships_can_be_made_and_its_recipes_repeated(tmp_path: Path) -> None:
    shown, in_processes = blocks("Recipes", "sh")
    made = blocks("The checkpoints that ship", "sh")
    assert made
    run([*made, shown, "rm -r runs/prior", in_processes], tmp_path)
    assert (tmp_path / "runs" / "drawn-unclip" / "cascade.toml").is_file()
