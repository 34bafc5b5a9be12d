from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import grpc
import pytest
import toy_stages
from PIL import Image
from toy_stages import Fault, ToyCascade

from carrara.cli import run
from carrara.cli.plug_ins import _SUMMARIES, GROUP
from carrara.exceptions import MissingExtraError
from carrara.manifest import Manifest, ManifestStage, write_manifest
from carrara.runtimes import start_embedded
from carrara.v1 import stage_pb2

REPORT_KEYS = {
    "prompt",
    "images",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "numerics",
    "stages",
    "total_ms",
    "warnings",
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.png"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = error.splitlines()
    assert line.startswith("carrara: ")
    return line


def test_generate_writes_the_picture_and_says_so(
    toys: ToyCascade, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a circle", "-o", str(output), "--seed", "7"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output} (seed 7)\n"
    for role in ("text-encoder", "generator", "decoder"):
        assert role in captured.err, "a bar for each stage"
    assert "3/3" in captured.err
    with Image.open(output) as picture:
        assert picture.text["seed"] == "7"  # type: ignore[attr-defined]


def test_every_option_reaches_the_stages(toys: ToyCascade, output: Path) -> None:
    arguments = ["generate", "a circle", "--output", str(output), "--negative-prompt", "a cat"]
    arguments += ["--num-images", "1", "--num-inference-steps", "2", "--guidance-scale", "6.5"]
    arguments += ["--seed", str(2**64 - 1), "--scheduler", "euler", "--height", "24"]
    arguments += ["--width", "32", "--timeout-seconds", "50"]
    assert run(arguments) == 0
    (encoded,), (painted,) = toys.text_encoder.requests, toys.generator.requests
    assert (encoded.prompt, encoded.negative_prompt) == ("a circle", "a cat")  # type: ignore[attr-defined]
    assert painted.job.random_state.seed == 2**64 - 1  # type: ignore[attr-defined]
    assert painted.job.arguments == stage_pb2.Arguments(  # type: ignore[attr-defined]
        num_inference_steps=2, guidance_scale=6.5, scheduler="euler", height=24, width=32
    )
    assert 40 < toys.generator.remaining_seconds[0] < 50


def test_json_is_one_object_with_exactly_these_keys(
    toys: ToyCascade, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = stage_pb2.Warning(
        code=stage_pb2.WARNING_CODE_PROMPT_TRUNCATED, message="the prompt was cut", detail="words"
    )
    toys.text_encoder.warnings = [cut]
    assert run(["generate", "a ⭕", "-o", str(output), "-n", "2", "--seed", "7", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert set(report) == REPORT_KEYS
    total_ms = report.pop("total_ms")
    encoding, generating, decoding = [stage.pop("call_ms") for stage in report["stages"]]
    assert 0 < encoding < total_ms
    assert 0 < generating < 2 * total_ms, "of two pictures at once"
    assert 0 < decoding < 2 * total_ms
    assert report == {
        "prompt": "a ⭕",
        "images": [
            {"path": str(output.with_name("out-0.png")), "seed": 7, "width": 16, "height": 16},
            {"path": str(output.with_name("out-1.png")), "seed": 8, "width": 16, "height": 16},
        ],
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "numerics": "exact",
        "stages": [
            {
                "role": toy.role,
                "stage": toy.role,
                "address": toy.address,
                "fingerprint": toy.description.fingerprint,
                "attempts": images,
                "queue_ms": 1.5 * images,
                "running_ms": 4 * images,
                "compute_ms": 2.5 * images,
            }
            for toy, images in (
                (toys.text_encoder, 1),
                (toys.generator, 2),
                (toys.decoder, 2),
            )
        ],
        "warnings": [{"code": "PROMPT_TRUNCATED", "message": "the prompt was cut"}],
    }


def test_several_pictures_are_numbered(toys: ToyCascade, output: Path) -> None:
    assert run(["generate", "a circle", "-o", str(output), "-n", "4"]) == 0
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "out-0.png",
        "out-1.png",
        "out-2.png",
        "out-3.png",
    ]


def test_warnings_are_shown(
    toys: ToyCascade, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a circle", "-o", str(output), "--negative-prompt", "a cat"]
    assert run([*arguments, "--guidance-scale", "1"]) == 0
    assert "carrara: warning: the negative prompt has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.png", "cannot be written"),
        (".", "no picture format"),
        ("out.unknown", "no picture format has the suffix '.unknown'"),
        ("folder.png", "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_an_error_before_any_compute(
    toys: ToyCascade,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert run(["generate", "a circle", "-o", str(tmp_path / name)]) == 2
    assert message in one_line(capsys)
    assert not toys.text_encoder.requests


def test_the_test_of_a_path_leaves_no_file_and_no_change(
    toys: ToyCascade, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.with_name("out-1.png").write_bytes(b"as it was")
    toys.generator.faults = [Fault(grpc.StatusCode.INTERNAL)] * 2
    assert run(["generate", "a circle", "-o", str(output), "-n", "2"]) == 1
    assert [path.name for path in output.parent.iterdir()] == ["out-1.png"]
    assert output.with_name("out-1.png").read_bytes() == b"as it was"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "num_inference_steps: 0 is not allowed; allowed: 1 to 1000"),
        (["--guidance-scale", "nan"], "guidance_scale: nan is not allowed; allowed: 0 to 30"),
        (["--scheduler", "magic"], "scheduler: 'magic' is not allowed; allowed: ddim, euler"),
        (["--height", "13"], "height: 13 is not allowed; allowed: 8 to 2048, a multiple of 8"),
        (["-n", "0"], "num_images: 0 is not allowed; allowed: 1 to 1024"),
        (["--seed", "-1"], "seed: -1 is not allowed"),
        (["--steps", "many"], "--num-inference-steps"),
        (["--no-such-option"], "--no-such-option"),
        (["--checkpoint", "x", "--generator", "g:1"], "--checkpoint and --generator exclude"),
    ],
)
def test_bad_arguments_give_2(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(["generate", "a circle", "-o", str(output), *arguments]) == 2
    assert message in one_line(capsys)
    assert not toys.text_encoder.requests


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.FAILED_PRECONDITION, 3),
        (grpc.StatusCode.UNAVAILABLE, 4),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 6),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNIMPLEMENTED, 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_failure_has_its_exit_status_and_one_line(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    code: grpc.StatusCode,
    status: int,
) -> None:
    toys.text_encoder.faults = [Fault(code, "first\nsecond")] * 30
    assert run(["generate", "a circle", "-o", str(output)]) == status
    line = one_line(capsys)
    assert f"text-encoder {toys.text_encoder.address}" in line
    assert "first second" in line


def test_stages_that_do_not_fit_give_3(
    monkeypatch: pytest.MonkeyPatch, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with toy_stages.serving_in_a_thread(toy_stages.decoder(vae="c" * 64)) as toys:
        arguments = ["generate", "a circle", "-o", str(output)]
        for stage in (toys.text_encoder, toys.generator, toys.decoder):
            arguments += [f"--{stage.role}", stage.address]
        assert run(arguments) == 3
    assert "decoder" in one_line(capsys)


def test_a_dead_stage_gives_4(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carrara.connections.CONNECT_TIMEOUT_SECONDS", 0.3)
    arguments = ["generate", "a circle", "-o", str(output), "--decoder", "127.0.0.1:1"]
    assert run(arguments) == 4
    assert "decoder 127.0.0.1:1: no stage answered" in one_line(capsys)


def test_a_deadline_gives_5(
    toys: ToyCascade, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.generator.step_seconds = 0.2
    arguments = ["generate", "a circle", "-o", str(output), "--timeout-seconds", "0.5"]
    assert run([*arguments, "--steps", "100"]) == 5
    assert "after step" in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_gives_130_and_cancels_the_job(toys: ToyCascade, output: Path) -> None:
    toys.generator.step_seconds = 0.1
    arguments = ["generate", "a circle", "-o", str(output), "--steps", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from carrara.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    deadline = threading.Event()
    while not toys.generator.running:
        assert process.poll() is None
        deadline.wait(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in out + error
    while not toys.generator.cancelled:
        deadline.wait(0.02)


def test_a_fault_of_our_own_is_one_line_too(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(self: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("carrara.results.GeneratedImage.save", full_disk)
    assert run(["generate", "a circle", "-o", str(output)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("carrara: OSError: ")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    for name in ("generate", "info", "health", "version", "serve", "up", "prune", "train", "bench"):
        assert name in shown


def test_every_command_that_services_add_has_a_summary() -> None:
    assert {each.name for each in entry_points(group=GROUP)} == set(_SUMMARIES)


def test_an_unknown_command_gives_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["paint"]) == 2
    assert "No such command 'paint'" in one_line(capsys)


def test_version_prints_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"carrara {importlib.metadata.version('carrara')}\n"


@pytest.mark.parametrize(
    ("command", "extra"),
    [("serve", "services"), ("evaluate", "services"), ("bench", "services"), ("train", "train")],
)
def test_a_command_whose_extra_is_missing_names_the_pip_command(
    command: str,
    extra: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: EntryPoint) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(EntryPoint, "load", missing)
    assert run([command, "--help"]) == 1
    line = one_line(capsys)
    assert f"`carrara {command}` needs torch: pip install 'carrara[{extra}]'" in line


def test_an_embedded_checkpoint_without_the_services_names_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carrara.runtimes.entry_points", lambda **_: ())
    with pytest.raises(MissingExtraError, match=r"pip install 'carrara\[services\]'"):
        start_embedded()


def test_health_tells_by_its_exit_status(
    toys: ToyCascade, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["health", toys.generator.address]) == 0
    assert capsys.readouterr().out == f"{toys.generator.address} SERVING\n"
    toys.generator.serving = False
    assert run(["health", toys.generator.address]) == 1
    assert "NOT_SERVING" in capsys.readouterr().out
    assert run(["health", "127.0.0.1:1"]) == 1
    assert "127.0.0.1:1: UNAVAILABLE" in one_line(capsys)


def test_info_describes_running_stages(
    toys: ToyCascade, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["fits"] is True
    assert [stage["role"] for stage in described["stages"]] == [
        "text-encoder",
        "generator",
        "decoder",
    ]
    assert [stage["previews"] for stage in described["stages"]] == [False, True, False]
    settings = described["stages"][1]["settings"]
    assert settings["scheduler"] == {"default": "ddim", "allowed": "ddim, euler"}
    assert settings["height"]["allowed"] == "8 to 2048, a multiple of 8"
    assert run(["info"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("shows its jobs under way") == 1
    assert toys.decoder.address in shown
    assert "Safety checkers are not loaded" in shown


def test_info_describes_a_stage_that_drains(
    toys: ToyCascade, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.generator.serving = False
    toys.generator.description.load.draining = True
    assert run(["info", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [stage["draining"] for stage in described["stages"]] == [False, True, False]
    assert run(["info"]) == 0
    assert capsys.readouterr().out.count("takes no new work") == 1


def test_info_describes_stages_that_do_not_fit_and_gives_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with toy_stages.serving_in_a_thread(toy_stages.decoder(vae="c" * 64)) as toys:
        arguments = ["info", "--json"]
        for stage in (toys.text_encoder, toys.generator, toys.decoder):
            arguments += [f"--{stage.role}", stage.address]
        assert run(arguments) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert "consumes the space cccccccccccc" in captured.err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    files = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": [None, None],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "requires_safety_checker": True,
        },
        "carrara.json": {
            "format": 1,
            "defaults": {"num_inference_steps": 20},
            "fingerprints": {"unet": "a" * 64},
        },
        "unet/config.json": {"sample_size": 16, "in_channels": 4},
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
    }
    for name, content in files.items():
        path = tmp_path / "checkpoint" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    weights = tmp_path / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(bytes(1000))
    return tmp_path / "checkpoint"


def test_info_reads_a_checkpoint_s_json_files(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(checkpoint), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["class_name"] == "StableDiffusionPipeline"
    assert described["defaults"] == {"num_inference_steps": 20}
    components = {component["name"]: component for component in described["components"]}
    assert set(components) == {"safety_checker", "unet", "scheduler"}
    assert components["unet"]["bytes"] == 1000
    assert components["unet"]["fingerprint"] == "a" * 64
    assert components["unet"]["settings"] == {"sample_size": 16, "in_channels": 4}
    assert components["scheduler"]["settings"] == {"prediction_type": "epsilon"}
    assert [name for name, c in components.items() if not c["loaded"]] == ["safety_checker"]


def test_info_reads_a_cascade_folder_and_the_checkpoints_in_it(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.parent / "cascade"
    shutil.copytree(checkpoint, folder / "base")
    stages = [
        ManifestStage(role="generator", stage=name, checkpoint="base", fingerprint="b" * 64)
        for name in ("prior", "generator")
    ]
    (folder / "cascade.toml").write_text(write_manifest(Manifest(tuple(stages))))
    assert run(["info", str(folder), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in described["stages"]] == ["prior", "generator"]
    (base,) = described["checkpoints"]
    assert base["path"] == str(folder / "base")
    assert base["class_name"] == "StableDiffusionPipeline"
    assert run(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    for words in ("prior", "bbbbbbbbbbbb", "UNet2DConditionModel", "num_inference_steps"):
        assert words in shown


def test_info_says_that_safety_checkers_are_not_loaded(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "not loaded" in shown
    assert "Safety checkers are not loaded: pictures are neither filtered nor marked." in shown


def test_info_of_a_broken_or_missing_checkpoint_gives_2(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", "no-such-checkpoint"]) == 2
    assert "checkpoint: 'no-such-checkpoint'" in one_line(capsys)
    (checkpoint / "model_index.json").write_text("{")
    assert run(["info", str(checkpoint)]) == 2
    assert "model_index.json cannot be read" in one_line(capsys)


def test_a_checkpoint_is_described_without_torch(checkpoint: Path) -> None:
    code = (
        "import sys; from carrara.cli import run; "
        f"run(['info', {str(checkpoint)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def manifest_of(toys: ToyCascade, folder: Path) -> Path:
    stages = [
        ManifestStage(role=toy.role, stage=toy.role, address=toy.address)
        for toy in (toys.text_encoder, toys.generator, toys.decoder)
    ]
    file = folder / "cascade.toml"
    file.write_text(write_manifest(Manifest(tuple(stages))))
    return file


def test_any_setting_can_be_set_by_its_name(toys: ToyCascade, output: Path) -> None:
    toys.generator.description.arguments.add(name="eta", minimum=0, maximum=1)
    toys.generator.description.arguments.add(name="target_size", length=2)
    command = ["generate", "a circle", "-o", str(output), "--set", "eta=0.5"]
    assert run([*command, "--set", "target_size=64x48"]) == 0
    (painted,) = toys.generator.requests
    assert painted.job.arguments == stage_pb2.Arguments(eta=0.5, target_size=[64, 48])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("eta", ["eta", "NAME=VALUE"]),
        ("eta=much", ["eta=much"]),
        ("magic=1", ["magic", "noise_level"]),
        ("noise_level=3", ["noise_level", "num_inference_steps"]),
    ],
)
def test_a_setting_that_cannot_be_set_is_refused_in_one_line(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    words: list[str],
) -> None:
    assert run(["generate", "a circle", "-o", str(output), "--set", option]) == 2
    line = one_line(capsys)
    for word in words:
        assert word in line


def test_a_manifest_stands_for_addresses(
    toys: ToyCascade, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TEXT_ENCODER", "GENERATOR", "DECODER"):
        monkeypatch.setenv(f"CARRARA_{name}", "127.0.0.1:1")
    file = manifest_of(toys, tmp_path)
    assert run(["generate", "a circle", "-o", str(output), "--cascade", str(file)]) == 0
    assert len(toys.decoder.requests) == 1
    assert run(["info", "--cascade", str(file), "--json"]) == 0


@pytest.mark.parametrize("other", [["--checkpoint", "x"], ["--decoder", "a:1"]])
def test_a_manifest_excludes_other_ways_of_naming_stages(
    toys: ToyCascade,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    other: list[str],
) -> None:
    file = str(manifest_of(toys, tmp_path))
    assert run(["generate", "a circle", "-o", str(output), "--cascade", file, *other]) == 2
    line = one_line(capsys)
    assert "--cascade" in line
    assert other[0] in line


def test_info_tells_that_a_manifests_weights_are_others(
    toys: ToyCascade, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = manifest_of(toys, tmp_path)
    file.write_text(
        file.read_text().replace(
            toys.decoder.address, toys.decoder.address + '"\nfingerprint = "' + "9" * 64
        )
    )
    assert run(["info", "--cascade", str(file), "--json"]) == 3
    captured = capsys.readouterr()
    assert not json.loads(captured.out)["fits"]
    assert "9" * 64 in captured.err


def test_info_of_a_stage_that_does_not_run_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cascade.toml"
    stage = ManifestStage(role="decoder", stage="decoder", checkpoint="drawn-latent")
    file.write_text(write_manifest(Manifest((stage,))))
    assert run(["info", "--cascade", str(file)]) == 2
    assert "has no address" in one_line(capsys)
