from __future__ import annotations

import mmap
import os
import subprocess
import sys

from carrara_services.bench.memory import MetricsPeaks, peak_of_process, peaks_of_processes
from carrara_services.serving.metrics import Metrics, MetricsServer


def test_a_peak_stays_when_the_memory_is_given_back() -> None:
    before = peak_of_process()
    assert before is not None
    size = before + 64 * 2**20  # above any peak of this process so far
    with mmap.mmap(-1, size) as held:
        for page in range(0, size, mmap.PAGESIZE):
            held[page] = 1
    after = peak_of_process()
    assert after is not None
    assert after >= size


def test_a_process_that_is_gone_has_an_unknown_peak() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (alive,) = peaks_of_processes([("generator", child.pid)])
    assert alive.of == "generator"
    assert alive.peak_bytes
    child.communicate(b"\n")
    (gone,) = peaks_of_processes([("generator", child.pid)])
    assert gone.peak_bytes is None


async def test_metrics_tell_the_memory_of_the_process_that_serves_them() -> None:
    server = MetricsServer(Metrics(), bind="127.0.0.1:0")
    readings = MetricsPeaks([server.address, "127.0.0.1:1"])
    async with readings.polling():
        peaks = await readings.read()
    server.close()
    assert [each.of for each in peaks] == [f"stage {server.address}", "stage 127.0.0.1:1"]
    assert peaks[0].peak_bytes is not None
    assert 2**20 < peaks[0].peak_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert (peaks[1].peak_bytes, peaks[1].source) == (None, "no metrics")
