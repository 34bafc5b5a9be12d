"""The command line `carrara train PART` and `carrara train export`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import diffusers
import torch
import transformers
import typer
from accelerate import PartialState

from carrara_models.errors import CheckpointError
from carrara_models.training.data.records import DataError
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import SNAPSHOT, Pace
from carrara_models.training.run_files import (
    RUN_FILE,
    build_settings,
    change,
    read_recipe,
    to_toml,
    write_recipe,
)

Device = Literal["cpu", "auto"]

app = typer.Typer(help="Train the parts of a text-to-image model, one by one.")


@dataclass(frozen=True)
class Part:
    """A part that can be trained.

    Attributes:
        module: Where its settings and its function are.
        settings: The name of the class of its settings.
        train: The name of the function, called with folder, settings, `pace` and `resume`.
    """

    help: str
    module: str
    settings: str
    train: str


PARTS = {
    "text-encoder": Part(
        "Train a text model, CLIP's or T5's, to read captions of the drawn world.",
        "text_encoder",
        "TextEncoderSettings",
        "train_text_encoder",
    ),
    "clip": Part(
        "Train a CLIP: a text and an image tower that meet.", "clip", "ClipSettings", "train_clip"
    ),
    "autoencoder": Part(
        "Train an autoencoder, or the decoder half of one.",
        "autoencoder",
        "AutoencoderSettings",
        "train_autoencoder",
    ),
    "generator": Part(
        "Train a denoiser of latents or pixels behind a text encoder, or behind a CLIP.",
        "generator",
        "GeneratorSettings",
        "train_generator",
    ),
    "prior": Part(
        "Train a diffusion prior: a caption's CLIP embedding to its picture's.",
        "prior",
        "PriorSettings",
        "train_prior",
    ),
    "super-resolution": Part(
        "Train the denoiser that makes a small picture large.",
        "super_resolution",
        "SuperResolutionSettings",
        "train_super_resolution",
    ),
    "unconditional": Part(
        "Train plain DDPM, which is told nothing.",
        "unconditional",
        "UnconditionalSettings",
        "train_unconditional",
    ),
}


def train_part(
    name: str,
    *,
    output: Path | None = None,
    config: Path | None = None,
    changes: Sequence[str] = (),
    pace: Pace = Pace(),
    resume: bool = False,
) -> None:
    """Trains a part in a folder, whose `run.toml` tells with what and repeats it.

    Args:
        name: Of the part.
        output: The run's folder; `runs/NAME` where None.
        config: A recipe, or the folder of a run.
        changes: Such as "loop.steps=100".
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in the folder, with the run's own recipe.

    Raises:
        RecipeError: The recipe cannot be taken.
        FileExistsError: There is a run in the folder, and `resume` is false.
        FileNotFoundError: Something that it is trained behind is not there.
        DataError: The data hold nothing to train on.
    """
    part, folder = PARTS[name], output or Path("runs") / name
    _quieten()
    if resume and config is not None:
        raise RecipeError("a resumed run goes on with its own recipe: leave --config out")
    file = folder if resume else config
    module = import_module(f"carrara_models.training.{part.module}")
    settings = settings_of(name, file, changes)
    if not resume and (folder / SNAPSHOT).exists():
        raise FileExistsError(f"{folder} holds a run: resume it, or choose another folder")
    if PartialState(cpu=pace.device == "cpu").is_main_process:
        write_recipe(folder / RUN_FILE, settings, part=name)
    train: Callable[..., None] = getattr(module, part.train)
    train(folder, settings, pace=pace, resume=resume)


def settings_of(name: str, config: Path | None, changes: Sequence[str]) -> Any:
    """A part's settings: its defaults, then what a recipe says, then changes.

    Raises:
        RecipeError: One of them cannot be taken.
    """
    module = import_module(f"carrara_models.training.{PARTS[name].module}")
    given = {} if config is None else read_recipe(config, part=name)
    return build_settings(getattr(module, PARTS[name].settings), change(given, changes))


def _quieten() -> None:
    """Leaves stderr to the run: they tell of each file, and of packages that nothing here needs."""
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def _command(name: str) -> Callable[..., None]:
    def command(
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help=f"Folder of the run; runs/{name}.")
        ] = None,
        config: Annotated[
            Path | None, typer.Option(help="A recipe in TOML, or the folder of a run to repeat.")
        ] = None,
        changes: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="NAME=VALUE", help="A setting, such as loop.steps=100."),
        ] = None,
        show: Annotated[
            bool, typer.Option("--show", help="Print the recipe, defaults and all, and end.")
        ] = False,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on from the run's last snapshot.")
        ] = False,
        stop_at: Annotated[
            int | None, typer.Option(min=1, help="Stop early, to be resumed later.")
        ] = None,
        device: Annotated[
            Device, typer.Option(help="cpu, or auto for the best that is here.")
        ] = "cpu",
        workers: Annotated[
            int, typer.Option(min=0, help="Processes that prepare batches.")
        ] = Pace.workers,
        num_threads: Annotated[
            int, typer.Option(min=1, help="Threads of the training process.")
        ] = 1,
        log_every: Annotated[int, typer.Option(min=1)] = Pace.log_every,
        save_every: Annotated[int, typer.Option(min=1)] = Pace.save_every,
        sample_every: Annotated[int, typer.Option(min=1)] = Pace.sample_every,
    ) -> None:
        torch.set_num_threads(num_threads)
        pace = Pace(device, workers, log_every, save_every, sample_every, stop_at)
        try:
            if show:
                settings = settings_of(name, config, changes or [])
                typer.echo(to_toml(settings, part=name), nl=False)
                return
            train_part(
                name,
                output=output,
                config=config,
                changes=changes or [],
                pace=pace,
                resume=resume,
            )
        except (RecipeError, DataError, FileExistsError, FileNotFoundError) as error:
            raise typer.BadParameter(str(error)) from error

    return command


for _name, _part in PARTS.items():
    app.command(_name, help=_part.help)(_command(_name))


@app.command("previews")
def previews(
    checkpoint: Annotated[
        str, typer.Argument(help="One with an autoencoder: folder, embedded name or hub id.")
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures like those that it paints; else the drawn world."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Of their sides, in pixels; as it paints.")
    ] = None,
    num_pictures: Annotated[int, typer.Option(min=1, help="How many are looked at.")] = 512,
) -> None:
    """Fit what previews of latents are made with, and write it into carrara.json."""
    _quieten()
    from carrara_models.training.previews import fit_previews

    try:
        file, fit = fit_previews(
            checkpoint, pictures=pictures, size=size, num_pictures=num_pictures
        )
    except (CheckpointError, DataError, FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{file}: R^2 {fit.r_squared:.3f} over {fit.cells} latent cells")


@app.command("export")
def export(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A generator's; with it super-resolution's where it denoises pixels, a prior's "
            "where it stands behind a CLIP.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="A folder with a vae/ in place of the generator's, its decoder better."),
    ] = None,
    defaults: Annotated[
        list[str] | None,
        typer.Option(
            "--default",
            metavar="NAME=VALUE",
            help="What a picture is painted with where a request does not say, such as "
            "guidance_scale=3.",
        ),
    ] = None,
    scheduler: Annotated[str, typer.Option(help="The sampler of a pixel cascade.")] = "dpm++2m",
) -> None:
    """Make a checkpoint of finished runs, which diffusers loads and Carrara serves."""
    _quieten()
    from carrara_models.training.export_runs import export_runs

    try:
        export_runs(
            output,
            runs,
            autoencoder=autoencoder,
            defaults=defaults or [],
            scheduler=scheduler,
        )
    except (RecipeError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
