"""The command line `carrara train text-encoder|autoencoder|generator`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from carrara_models.drawn_world.captions import LANGUAGES
from carrara_models.drawn_world.scenes import MAX_OBJECTS
from carrara_models.evaluation.painting import PaintSettings
from carrara_models.training.autoencoder import (
    AutoencoderLoss,
    AutoencoderShape,
    train_autoencoder,
)
from carrara_models.training.curriculum import Curriculum
from carrara_models.training.export import DefaultSettings, export_checkpoint
from carrara_models.training.generator import GeneratorObjective, GeneratorShape, train_generator
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.text_encoder import (
    TextEncoderShape,
    TextModelKind,
    train_text_encoder,
)

app = typer.Typer(help="Train the parts of a text-to-image model, one by one.")

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the whole run.")]
BatchSize = Annotated[int, typer.Option(min=1)]
LearningRate = Annotated[float, typer.Option(min=0)]
Seed = Annotated[int, typer.Option(min=0)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's last snapshot.")]
StopAt = Annotated[int | None, typer.Option(min=1, help="Stop early, to be resumed later.")]
EmaDecay = Annotated[float, typer.Option(min=0, max=1)]
WarmupSteps = Annotated[int, typer.Option(min=0)]
DecayFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the steps in which the rate decays.")
]
BFloat16 = Annotated[bool, typer.Option(help="Autocast to bfloat16.")]
Device = Annotated[str, typer.Option(help="Where the network is trained, e.g. cpu or cuda:0.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")]
NumThreads = Annotated[int, typer.Option(min=1, help="Threads of the training process.")]
LogEvery = Annotated[int, typer.Option(min=1)]
SaveEvery = Annotated[int, typer.Option(min=1)]
SampleEvery = Annotated[int, typer.Option(min=1)]
MaxObjects = Annotated[
    int, typer.Option(min=1, max=MAX_OBJECTS, help="The most objects that a scene holds.")
]
Languages = Annotated[
    list[str],
    typer.Option("--language", help="Language of captions, en or zh; may be given twice."),
]


def _check_init(init: Path | None, *, resume: bool) -> None:
    if init is not None and resume:
        raise typer.BadParameter("a resumed run goes on from its own weights", param_hint="--init")


def _curriculum(max_objects: int, languages: list[str]) -> Curriculum:
    known = tuple(name for name in LANGUAGES if name in languages)
    if len(known) < len(languages):
        raise typer.BadParameter(
            f"{languages} are not each one of {list(LANGUAGES)}", param_hint="--language"
        )
    return Curriculum(max_objects=max_objects, languages=known)


@app.command("text-encoder")
def text_encoder(
    output: Output = Path("runs/text-encoder"),
    steps: Steps = 800,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 1e-3,
    max_objects: MaxObjects = 2,
    language: Languages = ["en"],  # noqa: B006
    kind: Annotated[
        TextModelKind, typer.Option(help="Stable Diffusion's text model, or Imagen's.")
    ] = "clip",
    layers: Annotated[int, typer.Option(min=1)] = TextEncoderShape.layers,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    init: Annotated[
        Path | None, typer.Option(help="Folder of an earlier run to begin with.")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    stop_at: StopAt = None,
    ema_decay: EmaDecay = 0.995,
    warmup_steps: WarmupSteps = 100,
    decay_fraction: DecayFraction = 0.5,
    bfloat16: BFloat16 = False,
    device: Device = "cpu",
    workers: Workers = 1,
    num_threads: NumThreads = 1,
    log_every: LogEvery = 50,
    save_every: SaveEvery = 500,
    sample_every: SampleEvery = 250,
) -> None:
    """Train a text model to read captions."""
    _check_init(init, resume=resume)
    if init is not None and kind != "clip":
        raise typer.BadParameter("only clip begins with an earlier run", param_hint="--init")
    torch.set_num_threads(num_threads)
    train_text_encoder(
        output,
        settings=LoopSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            ema_decay=ema_decay,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            bfloat16=bfloat16,
        ),
        pace=Pace(device, workers, log_every, save_every, sample_every, stop_at),
        shape=TextEncoderShape(layers=layers),
        kind=kind,
        curriculum=_curriculum(max_objects, language),
        label_smoothing=label_smoothing,
        init=init,
        resume=resume,
    )


@app.command("autoencoder")
def autoencoder(
    output: Output = Path("runs/autoencoder"),
    steps: Steps = 2500,
    batch_size: BatchSize = 12,
    learning_rate: LearningRate = 1.5e-3,
    freeze_encoder: Annotated[
        Path | None,
        typer.Option(help="Folder with a vae/ whose decoder alone is trained further."),
    ] = None,
    latent_noise: Annotated[
        float, typer.Option(min=0, help="Noise added to the latents, in units of theirs.")
    ] = 0.0,
    strokes: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the pictures that show strokes, in every colour."
        ),
    ] = 0.25,
    max_objects: MaxObjects = 2,
    seed: Seed = 0,
    resume: Resume = False,
    stop_at: StopAt = None,
    ema_decay: EmaDecay = 0.998,
    warmup_steps: WarmupSteps = 100,
    decay_fraction: DecayFraction = 0.4,
    bfloat16: BFloat16 = True,
    device: Device = "cpu",
    workers: Workers = 1,
    num_threads: NumThreads = 1,
    log_every: LogEvery = 50,
    save_every: SaveEvery = 200,
    sample_every: SampleEvery = 250,
) -> None:
    """Train an autoencoder, or the decoder half of one."""
    torch.set_num_threads(num_threads)
    train_autoencoder(
        output,
        settings=LoopSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            ema_decay=ema_decay,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            bfloat16=bfloat16,
        ),
        pace=Pace(device, workers, log_every, save_every, sample_every, stop_at),
        shape=AutoencoderShape(),
        loss=AutoencoderLoss(latent_noise=latent_noise),
        frozen_encoder=freeze_encoder,
        strokes=strokes,
        max_objects=max_objects,
        resume=resume,
    )


@app.command("generator")
def generator(
    output: Output = Path("runs/generator"),
    text_encoder: Annotated[
        Path, typer.Option(help="Folder with a tokenizer/ and a text_encoder/.")
    ] = Path("runs/text-encoder"),
    autoencoder: Annotated[Path, typer.Option(help="Folder with a vae/.")] = Path(
        "runs/autoencoder"
    ),
    steps: Steps = 8900,
    batch_size: BatchSize = 24,
    learning_rate: LearningRate = 1.6e-3,
    log_snr_mean: Annotated[
        float, typer.Option(help="Mean of the log signal-to-noise ratios to train on.")
    ] = -1.0,
    log_snr_deviation: Annotated[float, typer.Option(min=0, help="Their deviation.")] = 1.75,
    uniform_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of timesteps drawn evenly instead.")
    ] = 0.25,
    max_objects: MaxObjects = 2,
    language: Languages = ["en"],  # noqa: B006
    init: Annotated[Path | None, typer.Option(help="Folder with a unet/ to begin with.")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    stop_at: StopAt = None,
    ema_decay: EmaDecay = 0.999,
    warmup_steps: WarmupSteps = 200,
    decay_fraction: DecayFraction = 0.4,
    bfloat16: BFloat16 = True,
    device: Device = "cpu",
    workers: Workers = 1,
    num_threads: NumThreads = 1,
    log_every: LogEvery = 50,
    save_every: SaveEvery = 250,
    sample_every: SampleEvery = 500,
) -> None:
    """Train a latent diffusion UNet behind a frozen text encoder and autoencoder."""
    _check_init(init, resume=resume)
    torch.set_num_threads(num_threads)
    train_generator(
        output,
        text_encoder_folder=text_encoder,
        autoencoder_folder=autoencoder,
        settings=LoopSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            betas=(0.9, 0.98),
            ema_decay=ema_decay,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            bfloat16=bfloat16,
        ),
        pace=Pace(device, workers, log_every, save_every, sample_every, stop_at),
        shape=GeneratorShape(),
        objective=GeneratorObjective(
            log_snr_mean=log_snr_mean,
            log_snr_deviation=log_snr_deviation,
            uniform_share=uniform_share,
        ),
        painting=PaintSettings(),
        curriculum=_curriculum(max_objects, language),
        init=init,
        resume=resume,
    )


@app.command("export")
def export(
    output: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    text_encoder: Annotated[Path, typer.Option()] = Path("runs/text-encoder"),
    autoencoder: Annotated[Path, typer.Option()] = Path("runs/autoencoder"),
    generator: Annotated[Path, typer.Option()] = Path("runs/generator"),
    num_inference_steps: Annotated[int, typer.Option(min=1)] = DefaultSettings.num_inference_steps,
    guidance_scale: Annotated[float, typer.Option(min=0)] = DefaultSettings.guidance_scale,
) -> None:
    """Put trained parts together as one checkpoint in diffusers layout."""
    export_checkpoint(
        output,
        text_encoder_folder=text_encoder,
        autoencoder_folder=autoencoder,
        generator_folder=generator,
        defaults=DefaultSettings(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        ),
    )
