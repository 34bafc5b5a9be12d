"""`carrara evaluate` against real services in this process, and at addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from carrara import Cascade
from carrara.cli import run as run_carrara
from carrara.exceptions import ContractError, InvalidArgumentError
from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.evaluation.reference import read_reference
from carrara_services import embedded
from carrara_services.evaluate.commands import evaluate
from carrara_services.evaluate.painter import open_painter
from families import unconditional
from tiny_checkpoints import build_sd2
from tiny_clip import build_clip

app = Typer()
app.command()(evaluate)
QUICK = ("--captions", 12, "--num-inference-steps", 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"drawn-clip:{build_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture(scope="module")
def addresses(checkpoint: Path) -> Iterator[list[str]]:
    stages = embedded.start(checkpoints=[str(checkpoint)], num_threads=1)
    yield [
        *("--text-encoder", stages.text_encoders[0], "--generator", stages.generators[0]),
        *("--decoder", stages.decoders[0]),
    ]
    stages.close()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_pictures_are_those_of_generate_each_with_its_seed_however_many_are_in_flight(
    checkpoint: Path,
) -> None:
    captions = ["large red circle", "small blue square", "circle on the white background"]
    settings = {"num_inference_steps": 2, "scheduler": "heun"}
    with Cascade.embedded(checkpoint) as cascade:
        expected = [
            np.asarray(cascade.generate(caption, seed=seed, **settings).images[0].image)
            for seed, caption in zip((2**64 - 2, 2**64 - 1, 0), captions, strict=True)
        ]
    for in_flight in (1, 3):
        with open_painter(
            checkpoints=[str(checkpoint)],
            manifest=None,
            addresses={},
            seed=2**64 - 2,
            in_flight=in_flight,
            timeout_seconds=60,
        ) as painter:
            painted = painter.paint(captions, settings)
            assert not painter.inexact
        np.testing.assert_array_equal(painted.pictures, np.stack(expected))
        assert painted.settings["scheduler"] == "heun"
        assert painted.network_calls == 3, "Heun calls twice but in its last step"


def test_json_holds_score_floor_and_ceiling_of_every_attribute(checkpoint: Path) -> None:
    document = printed(
        *("--checkpoint", checkpoint, "--attributes", "--captions", 6, "--seed", 3),
        *("--num-inference-steps", 2, "--scheduler", "euler", "--guidance-scale", 2),
        *("--language", "zh", "--max-objects", 3, "--paraphrases"),
    )
    assert document["checkpoint"] == str(checkpoint)
    assert (document["split"], document["captions"]) == ("heldout", 6)
    kind = {"language": "zh", "max_objects": 3, "paraphrases": True}
    assert document["caption_kind"] == kind
    expected = {"scheduler": "euler", "num_inference_steps": 2, "guidance_scale": 2.0, "seed": 3}
    assert expected.items() <= document["settings"].items()
    assert set(document["scores"]) == set(ATTRIBUTES)
    for score in document["scores"].values():
        assert set(score) == {"score", "floor", "ceiling"}
        assert all(0 <= share <= 1 for share in score.values())
    assert document["ceiling_of"] == "true pictures through the autoencoder"
    assert document["numerics"] == "exact"
    assert [stage["stage"] for stage in document["stages"]] == [
        "text-encoder",
        "generator",
        "decoder",
    ]


def test_a_sweep_is_a_table_a_report_and_a_figure(
    checkpoint: Path, clip: str, tmp_path: Path
) -> None:
    sweep = ("--guidance-scale", "1,4", "--scheduler", "ddim,heun", "--plot", tmp_path / "plot.png")
    measures = ("--attributes", "--fid", "--kid", "--clip-score", "--feature-network", clip)
    document = printed(
        *("--checkpoint", checkpoint, *measures, *sweep),
        *("--captions", 12, "--num-inference-steps", 2, "--resamples", 5),
    )
    points = document["points"]
    assert [(p["settings"]["guidance_scale"], p["network_calls"]) for p in points] == [
        (1, 2),
        (1, 3),
        (4, 2),
        (4, 3),
    ]
    keys = [*ATTRIBUTES, "fid_drawn_clip", "kid_drawn_clip", "clip_score_drawn_clip"]
    assert list(points[0]["measures"]) == keys
    assert points[0]["measures"]["fid_drawn_clip"]["ceiling"] is not None
    assert "12 pictures" in document["bases"]["fid_drawn_clip"]["against"]
    with Image.open(tmp_path / "plot.png") as figure:
        assert figure.width > 100

    stored = tmp_path / "report.json"
    stored.write_text(json.dumps(document))
    shown = run("--compare", stored, "--plot", tmp_path / "again.svg")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("| guidance_scale | scheduler | network_calls | background |")
    assert lines[5].startswith("| 4 | heun | 3 |")
    assert (tmp_path / "again.svg").exists()


def test_without_json_a_single_point_is_a_table_of_measures(checkpoint: Path) -> None:
    result = run("--checkpoint", checkpoint, "--attributes", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "| measure | score | 95 % interval | floor | ceiling |"
    names = [line.split("|")[1].strip() for line in lines[2 : 2 + len(ATTRIBUTES)]]
    assert names == list(ATTRIBUTES)
    assert "1 of 1, num_inference_steps 1: background" in result.stderr


def test_a_live_cascade_measures_what_its_checkpoint_does(
    checkpoint: Path, addresses: list[str], clip: str
) -> None:
    measures = ("--kid", "--clip-score", "--feature-network", clip, *QUICK)
    live = printed(*measures, *addresses)
    here = printed(*measures, "--checkpoint", checkpoint)
    assert live["checkpoint"] == str(checkpoint)
    assert live["points"][0]["measures"].keys() == here["points"][0]["measures"].keys()
    for key, measure in live["points"][0]["measures"].items():
        for name in ("value", "low", "high", "floor"):
            assert measure[name] == here["points"][0]["measures"][key][name]
    assert live["ceiling_of"] == "true pictures"


def test_a_stored_reference_is_compared_with_at_equal_counts_and_features_alone(
    checkpoint: Path, clip: str, tmp_path: Path
) -> None:
    fid = ("--checkpoint", checkpoint, "--fid", "--feature-network", clip, "--steps", 1)
    stored = tmp_path / "reference"
    first = printed(*fid, "--captions", 12, "--resamples", 2, "--save-reference", stored)
    assert read_reference(stored).count == 12
    second = printed(*fid, "--captions", 12, "--resamples", 2, "--reference", stored)
    assert second["bases"] == first["bases"]
    values = [document["points"][0]["measures"]["fid_drawn_clip"] for document in (first, second)]
    assert values[0]["value"] == pytest.approx(values[1]["value"])

    other = run(*fid, "--captions", 13, "--reference", stored)
    assert isinstance(other.exception, ContractError)
    assert "there are 13 pictures, and the reference" in str(other.exception)
    assert "is of 12" in str(other.exception)
    renamed = clip.removeprefix("drawn-")
    foreign = run(*fid, "--captions", 12, "--reference", stored, "--feature-network", renamed)
    assert isinstance(foreign.exception, ContractError)
    assert "name drawn_clip" in str(foreign.exception)
    twice = run(*fid, "--captions", 12, "--save-reference", stored)
    assert (twice.exit_code, "a new folder" in twice.output) == (2, True)


def test_statistics_alone_cost_one_picture(checkpoint: Path, clip: str, tmp_path: Path) -> None:
    result = run(
        *("--checkpoint", checkpoint, "--feature-network", clip, *QUICK),
        *("--save-reference", tmp_path / "reference"),
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'reference'}\n")
    made = read_reference(tmp_path / "reference")
    assert made.data == "drawn world, held-out scenes of up to 2 objects, seed 0, 32 x 32"


def test_a_folder_of_pictures_with_captions_is_painted_and_compared_with(
    checkpoint: Path, clip: str, tmp_path: Path
) -> None:
    for index in range(10):
        Image.new("RGB", (48, 40), (20 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"large red circle {index}")
    document = printed(
        *("--checkpoint", checkpoint, "--prompts", tmp_path, "--fid", "--clip-score"),
        *("--feature-network", clip, "--steps", 1, "--resamples", 2),
    )
    assert document["captions"] == 10
    assert document["bases"]["fid_drawn_clip"]["against"].startswith(f"{tmp_path.name}, seed 0, 32")
    assert document["points"][0]["measures"]["fid_drawn_clip"]["ceiling"] is None


def test_a_cascade_without_text_is_held_against_true_pictures_alone(clip: str) -> None:
    (folder,) = unconditional.DDPM.folders
    here = ("--checkpoint", folder, "--feature-network", clip, *QUICK)
    assert printed(*here, "--kid")["points"][0]["network_calls"] == 1
    refused = run(*here, "--clip-score")
    assert refused.exit_code == 2
    assert "this cascade reads no captions" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose what to measure"),
        (["--attributes", "--checkpoint", "nowhere"], "nowhere"),
        (["--attributes", "--language", "la"], "'la'"),
        (["--attributes", "--max-objects", "4"], "less than or equal to 3"),
        (["--attributes", "--captions", "1"], "greater than or equal to 2"),
        (["--attributes", "--guidance-scale", "1,high"], "'1,high'"),
        (["--attributes", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--attributes", "--prompts", "x", "--language", "zh"], "it excludes --prompts"),
        (["--attributes", "--plot", "plot.png"], "with several values of a setting"),
        (["--attributes", "--checkpoint", "a", "--cascade", "b"], "exclude one another"),
        (["--attributes", "--compare", "report.json"], "without a measure"),
        (["--compare", "nowhere.json"], "nowhere.json is missing"),
        (["--fid", "--feature-network", "vgg"], "drawn-clip, drawn-clip:FOLDER"),
        (["--fid", "--reference", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_end_with_status_2_before_anything_is_painted(
    arguments: list[str], message: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    if "--feature-network" not in arguments:
        arguments = [*arguments, "--feature-network", clip]
    result = run(*arguments)
    assert result.exit_code == 2, result.exception
    assert message in result.output


def test_too_few_captions_for_fid_are_refused_with_the_way_out(
    checkpoint: Path, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--checkpoint", checkpoint, "--fid", "--captions", 8]
    arguments += ["--feature-network", clip]
    assert run_carrara([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--captions: captions: 8 is not allowed; allowed: more than 8 for FID" in line
    assert "KID takes fewer" in line


def test_a_setting_that_a_later_point_would_be_refused_for_ends_all_at_once(
    addresses: list[str],
) -> None:
    for setting in (["--scheduler", "ddim,magic"], ["--steps", "1,100000"], ["--set", "height=33"]):
        result = run("--attributes", *addresses, *setting)
        assert isinstance(result.exception, InvalidArgumentError)
        assert "1 of 2" not in result.stderr
    assert "a multiple of" in str(result.exception)
