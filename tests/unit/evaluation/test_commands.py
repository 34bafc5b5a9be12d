import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.evaluation.commands import evaluate
from tiny_checkpoints import build_sd2

app = Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_sd2(tmp_path_factory.mktemp("sd2"))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_json_holds_score_floor_and_ceiling_of_every_attribute(checkpoint):
    result = run(
        *("--checkpoint", checkpoint, "--attributes", "--captions", 6, "--seed", 3, "--json"),
        *("--num-inference-steps", 2, "--scheduler", "euler", "--guidance-scale", 2),
        *("--language", "zh", "--max-objects", 3, "--paraphrases"),
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["checkpoint"] == str(checkpoint)
    assert (document["split"], document["captions"]) == ("heldout", 6)
    kind = {"language": "zh", "max_objects": 3, "paraphrases": True}
    assert document["caption_kind"] == kind
    assert document["settings"] == {
        "scheduler": "euler",
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "seed": 3,
        "batch_size": 16,
    }
    assert set(document["scores"]) == set(ATTRIBUTES)
    for score in document["scores"].values():
        assert set(score) == {"score", "floor", "ceiling"}
        assert all(0 <= share <= 1 for share in score.values())


def test_without_json_it_prints_a_table(checkpoint):
    result = run(
        "--checkpoint", checkpoint, "--attributes", "--captions", 4, "--num-inference-steps", 1
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["score", "floor", "ceiling"]
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(ATTRIBUTES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "drawn-latent"], "choose what to measure"),
        (["--attributes", "--checkpoint", "nowhere"], "nowhere"),
        (["--attributes", "--language", "la"], "'la'"),
        (["--attributes", "--max-objects", "4"], "less than or equal to 3"),
        (["--attributes", "--captions", "1"], "greater than or equal to 2"),
    ],
)
def test_bad_arguments_end_with_status_2_before_anything_is_painted(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_an_unknown_scheduler_is_answered_with_the_known_ones(checkpoint):
    result = run("--attributes", "--checkpoint", checkpoint, "--scheduler", "magic")
    assert result.exit_code == 2
    assert "dpm++2m-karras" in result.output
