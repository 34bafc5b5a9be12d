"""Flags, then variables, then defaults; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrara_services.serving.app import check_bind
from carrara_services.serving.settings import Settings, SettingsError, read_settings


def test_a_flag_goes_before_its_variable_and_a_variable_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
):
    assert read_settings({"max_queue_jobs": None}).max_queue_jobs == 64
    monkeypatch.setenv("CARRARA_MAX_QUEUE_JOBS", "5")
    assert read_settings({"max_queue_jobs": None}).max_queue_jobs == 5
    assert read_settings({"max_queue_jobs": 9}).max_queue_jobs == 9


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_variable(monkeypatch: pytest.MonkeyPatch, name: str):
    values = {
        "checkpoint": "x",
        "stage": "prior",
        "also_accepts": ("0" * 64, "f" * 64),
        "bind": "127.0.0.1:1",
        "device": "cuda:3",
        "numerics": "fast",
        "engine": "compile",
        "dtype": "bfloat16",
        "cache_dir": Path("/somewhere"),
        "num_threads": 3,
        "max_queue_jobs": 3,
        "max_queue_seconds": 3.5,
        "max_batch_rows": 3,
        "insecure": True,
        "max_wait_ms": 5.0,
        "progress_interval_ms": 40.0,
        "tile_size": 512,
        "metrics_bind": "127.0.0.1:9464",
        "drain_pause_seconds": 2.5,
        "drain_grace_seconds": 30.0,
        "max_connection_age_seconds": 7.0,
        "log_level": "error",
    }
    value = values[name]
    written = json.dumps(value) if isinstance(value, tuple) else str(value)
    monkeypatch.setenv(f"CARRARA_{name.upper()}", written)
    assert getattr(read_settings({}), name) == values[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_threads", 0),
        ("max_queue_jobs", 0),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("numerics", "quick"),
        ("engine", "tensorrt"),
    ],
)
def test_a_refusal_names_flag_variable_and_value(name: str, value: object):
    with pytest.raises(SettingsError) as caught:
        read_settings({name: value})
    flag = f"--{name.replace('_', '-')}"
    for words in (flag, f"CARRARA_{name.upper()}", str(value)):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:0", "127.8.8.8:1", "localhost:5", "[::1]:7", "unix:/x"]
)
def test_what_only_this_machine_reaches_is_allowed(bind: str):
    check_bind(bind, insecure=False)


@pytest.mark.parametrize("bind", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1"])
def test_what_other_machines_reach_needs_insecure(bind: str):
    with pytest.raises(SettingsError, match="--insecure"):
        check_bind(bind, insecure=False)
    check_bind(bind, insecure=True)


@pytest.mark.parametrize("bind", ["", "localhost", ":1", "localhost:x", "localhost:65536"])
def test_what_is_no_address_is_refused(bind: str):
    with pytest.raises(SettingsError, match="HOST:PORT"):
        check_bind(bind, insecure=True)
