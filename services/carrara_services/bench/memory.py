"""How much memory processes have had at most: from /proc, or from stages' Prometheus metrics."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

POLL_SECONDS = 0.5
POLL_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a process had resident.

    Attributes:
        of: Whose: a stage, or "this process".
        peak_bytes: None where it is unknown.
        source: How it is known, or why it is not.
    """

    of: str
    peak_bytes: int | None
    source: str


def peak_of_process(pid: int | str = "self") -> int | None:
    """Bytes resident at most since the process began, its loading included.

    Returns:
        None where the system keeps no such account (it is Linux's) or the process is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    peak = fields.get("VmHWM", "").split()
    return 1024 * int(peak[0]) if peak else None


def peaks_of_processes(processes: Iterable[tuple[str, int]]) -> list[PeakMemory]:
    """Of processes on this machine, each with its stage's name; asked while they live."""
    source = "VmHWM of its process, since it began"
    return [PeakMemory(name, peak_of_process(pid), source) for name, pid in processes]


class MetricsPeaks:
    """The highest of the readings of stages' metrics; short peaks between two readings are missed.

    Args:
        addresses: HOST:PORT of each stage's metrics.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._peaks: dict[str, tuple[str, int | None]] = dict.fromkeys(addresses, ("stage", None))

    @contextlib.asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Reads all addresses again and again as long as the block runs."""
        task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def read(self) -> list[PeakMemory]:
        """Reads once more, and gives the highest; unknown of a stage that never answered."""
        await self._read_all()
        told = f"process_resident_memory_bytes, read every {POLL_SECONDS} s"
        return [
            PeakMemory(f"{role} {address}", peak, "no metrics" if peak is None else told)
            for address, (role, peak) in self._peaks.items()
        ]

    async def _poll(self) -> None:
        while True:
            await self._read_all()
            await asyncio.sleep(POLL_SECONDS)

    async def _read_all(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(self._read, address) for address in self._peaks))

    def _read(self, address: str) -> None:
        url = f"http://{address}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=POLL_TIMEOUT_SECONDS) as response:
                text = response.read().decode()
        except OSError:
            return
        role, peak = self._peaks[address]
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "process_resident_memory_bytes":
                    peak = max(peak or 0, int(sample.value))
                if sample.name == "carrara_stage_info":
                    role = sample.labels["role"]
        self._peaks[address] = (role, peak)
