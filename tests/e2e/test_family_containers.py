"""Cascades of one and of several checkpoints, in containers, paint what diffusers paints.

One for each paper's framework, and each checkpoint that ships; each up once. All sides compute with
one thread.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.manifest import Manifest, read_manifest, write_manifest
from e2e.compose import ROLES, RUN, Compose
from families import CASES
from families.cascade_folders import SHIPPED
from families.case import FamilyCase, Settings

pytestmark = [pytest.mark.e2e, pytest.mark.containers, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Deployment:
    """How a family stands in containers.

    Attributes:
        checkpoints: The variable that names each of the case's checkpoints; none where the case's
            name stands for it, as it ships.
        stages: Which stage each service is, in the order of the image's way.
        overrides: Of the compose file.
    """

    case: FamilyCase
    checkpoints: Sequence[str]
    stages: Mapping[str, str]
    overrides: Sequence[str] = ()


DEPLOYMENTS = {
    "sdxl": Deployment(
        CASES["sdxl"],
        checkpoints=["CARRARA_CHECKPOINT"],
        stages={role: role for role in ROLES},
    ),
    "if": Deployment(
        CASES["if-three"],
        checkpoints=["CARRARA_IF_BASE", "CARRARA_IF_SUPER_RES", "CARRARA_IF_UPSCALER"],
        stages={
            "text-encoder": "text-encoder",
            "generator": "generator",
            "super-res": "super-res",
            "upscaler-text-encoder": "text-encoder",
            "upscaler": "upscaler",
            "decoder": "decoder",
        },
        overrides=["if"],
    ),
    "unclip": Deployment(
        CASES["unclip"],
        checkpoints=["CARRARA_CHECKPOINT"],
        stages={
            "text-encoder": "text-encoder",
            "prior": "prior",
            "generator": "generator",
            "decoder": "super-res",
        },
        overrides=["unclip"],
    ),
}

# The service of each stage that is not called as its service.
SERVICES = {"super-res": "decoder"}
DEPLOYMENTS |= {
    name: Deployment(
        case,
        checkpoints=[],
        stages={SERVICES.get(stage, stage): stage for stage in case.stages},
        overrides=["unclip"] if "prior" in case.stages else [],
    )
    for name, case in SHIPPED.items()
}


@dataclass(frozen=True)
class Deployed:
    """A family whose containers are healthy.

    Attributes:
        checkpoints: As the containers see them.
    """

    deployment: Deployment
    compose: Compose
    checkpoints: Sequence[str]

    @property
    def addresses(self) -> dict[str, str]:
        """By service."""
        return {service: f"dns:///{service}:50051" for service in self.deployment.stages}

    def expected(self, settings: Settings) -> np.ndarray:
        case = self.deployment.case
        return case.oracle(case.folders, settings)

    def paint(self, settings: Settings, *flags: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Paints through the client's container; returns the pixels and the client's report."""
        arguments = (*command_line(settings), *flags, "--json")
        done = self.compose.client("generate", *arguments, "--output", "/out/picture.png")
        assert done.returncode == 0, done.stderr
        with Image.open(self.compose.folder / "picture.png") as picture:
            return np.asarray(picture), json.loads(done.stdout)


@pytest.fixture(scope="module", params=DEPLOYMENTS)
def deployed(
    request: pytest.FixtureRequest, images: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    torch.set_num_threads(1)
    deployment = DEPLOYMENTS[request.param]
    mounted = tmp_path_factory.mktemp(request.param) / "checkpoints"
    mounted.mkdir()
    variables = {"CARRARA_CHECKPOINT_DIR": str(mounted), "CARRARA_NUM_THREADS": "1"}
    checkpoints = [request.param]
    if deployment.checkpoints:
        folders = deployment.case.folders
        for folder in folders:
            copytree(folder, mounted / folder.name)
        checkpoints = [f"/checkpoints/{folder.name}" for folder in folders]
    named = deployment.checkpoints or ["CARRARA_CHECKPOINT"]
    variables |= dict(zip(named, checkpoints, strict=True))
    # For the containers' user: safetensors writes files that only their owner can read.
    subprocess.run(["chmod", "-R", "a+rX", mounted], check=True)
    with Compose(
        tmp_path_factory.mktemp("out"),
        overrides=deployment.overrides,
        stages=tuple(deployment.stages),
        variables=variables,
    ) as compose:
        began = time.monotonic()
        compose.up()
        print(f"{len(deployment.stages)} stages healthy after {time.monotonic() - began:.1f} s")
        yield Deployed(deployment, compose, checkpoints)


def command_line(settings: Settings) -> list[str]:
    """A case's settings as a user types them."""
    texts = {
        name: "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in settings.items()
    }
    prompt, seed = texts.pop("prompt"), texts.pop("seed")
    others = [part for name in texts for part in ("--set", f"{name}={texts[name]}")]
    return [prompt, "--seed", seed, *others]


def test_each_container_is_shut_in_and_loads_only_its_own_components(deployed: Deployed) -> None:
    done = deployed.compose.client("info", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"]
    loaded = {
        stage["address"]: (stage["stage"], tuple(each["name"] for each in stage["components"]))
        for stage in told["stages"]
    }
    components = deployed.deployment.case.stages
    assert loaded == {
        deployed.addresses[service]: (stage, tuple(components[stage]))
        for service, stage in deployed.deployment.stages.items()
    }
    for service in deployed.deployment.stages:
        [container] = deployed.compose.containers(service)
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert min(host["Memory"], host["NanoCpus"]) > 0


def test_pictures_equal_diffusers(deployed: Deployed) -> None:
    for name, settings in deployed.deployment.case.settings.items():
        began = time.monotonic()
        picture, report = deployed.paint(settings)
        print(f"{name}: {report['total_ms']:.0f} ms, {time.monotonic() - began:.1f} s in all")
        np.testing.assert_array_equal(picture, deployed.expected(settings), err_msg=name)
        assert report["numerics"] == "exact"


def test_a_manifest_names_the_containers_and_their_weights(deployed: Deployed) -> None:
    path = deployed.compose.folder / "cascade.toml"
    path.write_text(
        deployed.compose.must(
            *(*RUN, "--entrypoint", "carrara", "decoder", "manifest", *deployed.checkpoints)
        )
    )
    stages = read_manifest(path).stages
    assert [stage.stage for stage in stages] == list(deployed.deployment.stages.values())
    fingerprints = [stage.fingerprint for stage in stages]
    assert all(fingerprints)
    placed = zip(stages, deployed.addresses.values(), strict=True)
    path.write_text(
        write_manifest(Manifest(tuple(replace(stage, address=at) for stage, at in placed)))
    )
    settings = next(iter(deployed.deployment.case.settings.values()))
    picture, report = deployed.paint(settings, "--cascade", "/out/cascade.toml")
    np.testing.assert_array_equal(picture, deployed.expected(settings))
    assert {stage["fingerprint"] for stage in report["stages"]} == set(fingerprints)
    assert report["warnings"] == []
