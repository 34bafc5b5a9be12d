"""The denoising loop: one batch per device, whose rows differ and come and go between steps.

Each turn takes the jobs of one group, those that may share a network call, one step on; groups take
turns, the one with the most urgent job first. It knows nothing of gRPC, and of a job only what
`carrara_models.parts.Job` says.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence

import torch

from carrara_models.parts import Denoiser, Job
from carrara_services.admission.happenings import (
    Failed,
    Finished,
    Preview,
    Progress,
    Suspended,
    Usage,
)
from carrara_services.admission.line import Ticket, WaitingLine
from carrara_services.device_memory import is_out_of_memory, release_memory
from carrara_services.refusals import TooLargeError
from carrara_services.watch import TickWatch
from carrara_services.work import Work

logger = logging.getLogger(__name__)


class _Row:
    """One running job and what it has cost."""

    def __init__(self, ticket: Ticket, job: Job) -> None:
        self.ticket, self.job = ticket, job
        self.first_step, self.rows = job.step, 0
        self.steps = max(1, job.num_steps - job.step)  # to be done here
        self.preview_interval_steps = self.work.preview_interval_steps
        self.told = -math.inf  # when its caller has last been told of a step

    @property
    def work(self) -> Work:
        """What it was taken on with."""
        return self.ticket.payload  # type: ignore[no-any-return]

    @property
    def is_shown(self) -> bool:
        """Whether its caller wants to see what comes of its next step."""
        interval = self.preview_interval_steps
        return interval > 0 and (self.job.step + 1) % interval == 0

    def usage(self) -> Usage:
        """What it has cost here."""
        return self.ticket.usage(steps=self.job.step - self.first_step, rows=self.rows)


class DenoisingLoop:
    """Runs a denoiser's jobs in a thread of its own.

    The most urgent job starts as soon as `max_batch_rows` has room; a wide one is not overtaken by
    narrow ones. What a job raises is that job's alone.

    Args:
        progress_interval_seconds: Of a job's steps that follow one another more quickly, its caller
            is told of some: of the first, of the last and of what is shown.

    Attributes:
        line: Where its jobs wait.
        watch: Is told of each tick that begins from when it is set; None counts nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        max_queue_jobs: int,
        max_batch_rows: int,
        max_queue_seconds: float = math.inf,
        progress_interval_seconds: float = 0.0,
    ) -> None:
        self.line = WaitingLine(
            max_jobs=max_queue_jobs, max_seconds=max_queue_seconds, width=max_batch_rows
        )
        self.watch: TickWatch | None = None
        self._denoiser = denoiser
        self._progress_interval_seconds = progress_interval_seconds
        self._active: list[_Row] = []
        self._served: set[tuple[object, ...]] = set()  # in this round
        self._suspending = False
        self._thread = threading.Thread(target=self._run, name="denoising", daemon=True)
        self._thread.start()

    @property
    def max_batch_rows(self) -> int:
        """How many rows may run; fewer from when they were too many for the device's memory."""
        return self.line.width

    @property
    def rows(self) -> int:
        """Rows of the jobs that are running."""
        return sum(row.job.rows for row in tuple(self._active))

    def hand_back(self) -> None:
        """Refuses new jobs and hands back those that wait, and of those that run the resumable."""
        self._suspending = True
        self.line.close()

    def close(self) -> None:
        """Refuses new jobs, finishes those that run and waits for the thread's end."""
        self.line.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._admit():
                    self._turn()
        except BaseException:
            logger.critical("the denoising loop has ended", exc_info=True)
            self.line.abort()

    def _admit(self) -> bool:
        """Starts what has room, and waits for a job if none runs; false when closed and done."""
        while True:
            ticket = self.line.take(self._has_room, wait_seconds=0.0 if self._active else math.inf)
            if ticket is None:
                return bool(self._active) or not self.line.closed
            self._start(ticket)

    def _has_room(self, ticket: Ticket) -> bool:
        if not self._active:  # a job that is wider than the batch may be runs alone
            return True
        return self.rows + ticket.demand.rows <= self.max_batch_rows

    def _start(self, ticket: Ticket) -> None:
        began = time.perf_counter()
        work: Work = ticket.payload
        try:
            job = self._denoiser.start(work.request)
            if work.resume is not None:
                job.resume(work.resume)
        except Exception as error:
            self.line.leave(ticket, Failed(error))
            return
        ticket.compute_seconds += time.perf_counter() - began
        self._active.append(_Row(ticket, job))

    def _turn(self) -> None:
        """Takes the jobs of one group one step on: each group once, then each once again."""
        groups: dict[tuple[object, ...], list[_Row]] = {}
        for row in self._that_stay():
            groups.setdefault(row.job.group, []).append(row)
        if not groups:
            return
        if self._served.issuperset(groups):
            self._served.clear()
        group = min(
            groups.keys() - self._served,
            key=lambda each: min(row.ticket.urgency for row in groups[each]),
        )
        self._served.add(group)
        self._tick(groups[group])
        self.line.beat()

    def _that_stay(self) -> list[_Row]:
        """Lets go whom nobody waits for any more, and at the end who can go on elsewhere."""
        staying = []
        for row in tuple(self._active):
            end = None
            if not row.ticket.abandoned:
                state = row.job.state() if self._suspending and row.work.resumable else None
                if state is None:
                    staying.append(row)
                    continue
                end = Suspended(state, row.usage())
            self._active.remove(row)
            self.line.leave(row.ticket, end)
        return staying

    def _tick(self, rows: Sequence[_Row]) -> None:
        """Takes jobs of one group one step on, as many at a time as may be."""
        waiting = list(rows)
        while waiting:
            # Anew for each: a call may have shown that so many are too many.
            batch = self._first_batch(waiting)
            del waiting[: len(batch)]
            failure = self._step(batch)
            if failure is None:
                continue
            if is_out_of_memory(failure):
                self._step_in_less_memory(batch)
            elif len(batch) == 1:
                self._drop(batch[0], failure)
            else:
                logger.warning(
                    "a batch of %d jobs failed, trying each alone", len(batch), exc_info=failure
                )
                for row in batch:
                    self._tick([row])

    def _first_batch(self, rows: Sequence[_Row]) -> list[_Row]:
        """As many as may be in one call, and one in any case."""
        batch: list[_Row] = []
        for row in rows:
            if batch and _rows_of(batch) + row.job.rows > self.max_batch_rows:
                break
            batch.append(row)
        return batch

    def _step_in_less_memory(self, batch: Sequence[_Row]) -> None:
        """After a call for which memory was too small: half as many rows from now on."""
        release_memory()
        if len(batch) > 1:
            self.line.width = max(1, min(self.max_batch_rows, _rows_of(batch)) // 2)
            logger.warning(
                "out of memory with %d rows: at most %d from now on",
                _rows_of(batch),
                self.max_batch_rows,
            )
            self._tick(batch)
            return
        failure = self._step(batch)  # once more, in what has been released
        if failure is not None:
            row = batch[0]
            too_large = is_out_of_memory(failure)
            self._drop(row, TooLargeError(step=row.job.step) if too_large else failure)

    def _step(self, rows: Sequence[_Row]) -> Exception | None:
        """Takes jobs one step on by one call of the network; gives the error if that fails."""
        watch = self.watch  # now: a tick that began before anybody watched is not theirs
        began = time.perf_counter()
        try:
            outputs = self._denoiser.predict([row.job for row in rows])
        except Exception as error:
            # Without its traceback, which keeps the tensors of the call.
            return error.with_traceback(None) if is_out_of_memory(error) else error
        seconds = time.perf_counter() - began
        total = _rows_of(rows)
        for row in rows:
            row.ticket.compute_seconds += seconds * row.job.rows / total
            row.rows += row.job.rows
        previews = [self._preview(row, output) for row, output in zip(rows, outputs, strict=True)]
        began_advancing = time.perf_counter()
        errors = self._advance([row.job for row in rows], outputs)
        seconds = time.perf_counter() - began_advancing
        cost = sum(row.ticket.demand.cost / row.steps for row in rows)
        for row, problem, preview in zip(rows, errors, previews, strict=True):
            row.ticket.compute_seconds += seconds / len(rows)
            self._after_step(row, problem, preview)
        # After the schedulers: a GPU's call returns early, and they wait for what it makes.
        seconds = time.perf_counter() - began
        self.line.tell_pace(rows=total, cost=cost, seconds=seconds)
        if watch is not None:
            watch(seconds=seconds, jobs=len(rows), rows=total)
        return None

    def _preview(self, row: _Row, output: torch.Tensor) -> torch.Tensor | None:
        """What a job is taken for, from before its step, which therefore knows nothing of it."""
        if self._denoiser.preview is None or not row.is_shown:
            return None
        began = time.perf_counter()
        try:
            return self._denoiser.preview(row.job, output)
        except Exception:  # who would only have looked on loses no picture for it
            logger.exception("a job cannot be shown")
            row.preview_interval_steps = 0
            return None
        finally:
            row.ticket.compute_seconds += time.perf_counter() - began

    def _advance(
        self, jobs: Sequence[Job], outputs: Sequence[torch.Tensor]
    ) -> Sequence[Exception | None]:
        try:
            return self._denoiser.advance(jobs, outputs)
        except Exception as error:
            # Some of them may have moved on and others not: none can go on.
            logger.exception("a step of %d jobs failed", len(jobs))
            return [error] * len(jobs)

    def _after_step(self, row: _Row, error: Exception | None, preview: torch.Tensor | None) -> None:
        """Tells how a job's step went, and lets it go if it was its last."""
        job, ticket = row.job, row.ticket
        sample = None
        if error is None and job.step >= job.num_steps:
            began = time.perf_counter()
            try:
                sample = self._denoiser.finish(job)
            except Exception as failed:
                error = failed
            ticket.compute_seconds += time.perf_counter() - began
        if error is not None:
            self._drop(row, error)
            return
        ticket.share_done = (job.step - row.first_step) / row.steps
        ticket.progress = Progress(job.step, job.num_steps)
        now = time.monotonic()
        is_due = now - row.told >= self._progress_interval_seconds
        if is_due or sample is not None or preview is not None:
            ticket.tell(ticket.progress)
            row.told = now
        if preview is not None:
            # Read not before: the step has waited for the device, which has made this earlier.
            ticket.tell(Preview(job.step, preview.cpu().numpy()))
        if sample is not None:
            self._active.remove(row)
            self.line.leave(ticket, Finished(sample, row.usage()))

    def _drop(self, row: _Row, error: Exception) -> None:
        self._active.remove(row)
        self.line.leave(row.ticket, Failed(error))


def _rows_of(rows: Sequence[_Row]) -> int:
    return sum(row.job.rows for row in rows)
