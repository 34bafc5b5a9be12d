"""The command line of `run.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from contenders import PEERS
from painting import DTYPES, SCHEDULERS

from carrara_services.bench.workloads import PRESETS

ROOT = Path(__file__).resolve().parents[3]


def read_arguments(
    arguments: Sequence[str] | None = None, *, description: str | None = None
) -> argparse.Namespace:
    """Reads the command line.

    Args:
        arguments: None for the process's own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--workload",
        action="append",
        type=workload_option,
        metavar="NAME [callers=N] [requests=N] [steps=N]",
        help=f"of {', '.join(PRESETS)}; may be repeated; default: uniform",
    )
    add("--peer", action="append", choices=PEERS, help="default: diffusers and fastapi")
    add(
        "--carrara",
        action="append",
        metavar="NAME [generators=N] [clients=N] [SETTING=VALUE ...]",
        help="its name, how many replicas its generator has, by how many clients of their own "
        "connections it is asked in turn, and flags of `carrara serve`; all are held against the "
        "first",
    )
    add("--rounds", type=int, default=3)
    add("--requests", type=int, help="of each run, in place of the workload's end")
    add("--rate", type=float, help="requests a second, of poisson and overload")
    add("--seed", type=int, default=0)
    add("--scheduler", choices=list(SCHEDULERS), help="in place of the checkpoint's own")
    add("--warm-up", type=int, default=8, help="requests before each run, not counted")
    add("--timeout-seconds", type=float, default=600)
    add("--in-time-seconds", type=float, help="default: the timeout")
    add("--checkpoint", default="drawn-latent")
    add("--num-threads", type=int, default=1, help="of each process that computes")
    add("--cpus", type=cpus_from, metavar="0,1", help="processors that servers may use")
    add("--device", default="cpu", help="of all: cpu, cuda, cuda:1")
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the peers; Carrara's is said by `--carrara`",
    )
    add(
        "--tolerance",
        type=float,
        metavar="LEVELS",
        help="of 255, by which pictures may differ from diffusers' on average; default 1. Networks "
        "of random weights make much of rounding",
    )
    add("--workers", type=int, default=1, help="of peers that have several")
    add("--max-batch-size", type=int, default=16, help="of peers that batch")
    add(
        "--compile",
        action="store_true",
        help="have peers that run diffusers compile its UNet, on a GPU with CUDA graphs",
    )
    add(
        "--environments",
        type=Path,
        default=ROOT / "runs" / "peers",
        help="where make_env.sh put them",
    )
    add(
        "--keep-running",
        action="store_true",
        help="start each contender once, and leave it while others are measured; for GPUs, which "
        "those that wait do not use",
    )
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def workload_option(text: str) -> tuple[str, dict[str, int]]:
    """Reads "NAME callers=N requests=N steps=N"; gives the name and the numbers."""
    name, *options = text.split()
    if name not in PRESETS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PRESETS)}")
    numbers = {}
    for option in options:
        key, _, number = option.partition("=")
        if key not in ("callers", "requests", "steps") or not number.isdigit():
            raise argparse.ArgumentTypeError(f"{option!r} is no callers=N, requests=N or steps=N")
        numbers[key] = int(number)
    return name, numbers


def cpus_from(text: str) -> tuple[int, ...]:
    """Reads numbers between commas."""
    return tuple(int(part) for part in text.split(","))
