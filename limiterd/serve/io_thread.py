"""One thread for every socket that is served, and two that do the work.

Rule: the thread `serve` reads, writes and waits, on an asyncio loop, and never for long at a stretch. What takes time, or may
wait for a disk or the user database, is done by a worker: `serve-admin` works for root and administrators alone;
`serve-worker` works for them first, then for everybody else in turn.

A worker that has worked for others rests in proportion to the processor time that it took (administrators' work it takes up
all the same), so that all of them together cost no more than a part of one core. Work that nobody waits for any more is not
begun; what has begun is told so by `Wanted`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from limiterd.core.errors import EnvironmentFault
from limiterd.serve.job_queue import JobQueue

T = TypeVar("T")

REST_PER_WORK: Final = 2
LEAST_REST_S: Final = 0.001
LONGEST_REST_S: Final = 0.5


class Wanted:
    """Whether somebody still waits for a piece of work; a worker may ask while it is at it."""

    def __init__(self, outcome: asyncio.Future[Any]) -> None:
        self._outcome = outcome

    def __bool__(self) -> bool:
        return not self._outcome.cancelled()


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    work: Callable[[Wanted], T]
    outcome: asyncio.Future[T]
    first: bool
    discard: Callable[[T], None]
    worked_s: float = 0.0

    def run(self) -> T:
        """In the worker."""
        began_s = time.thread_time()
        try:
            return self.work(Wanted(self.outcome))
        finally:
            self.worked_s = time.thread_time() - began_s

    def settle(self, done: asyncio.Future[T]) -> None:
        """In the loop: hand on what came of it; the result goes to `discard` where nobody waits."""
        error = done.exception()
        if not self.outcome.done():
            if error is None:
                self.outcome.set_result(done.result())
            else:
                self.outcome.set_exception(error)
        elif error is None:
            self.discard(done.result())


class _Worker:
    """A thread, and the task in the loop that gives it one job after the other."""

    def __init__(self, executor: ThreadPoolExecutor, jobs: JobQueue[_Job[Any]], *, first_only: bool) -> None:
        self.executor = executor
        self._jobs = jobs
        self._first_only = first_only
        self._more = asyncio.Event()

    def wake(self) -> None:
        """There is a job."""
        self._more.set()

    async def run(self) -> None:
        """Work, and rest, for ever."""
        rested_s = 0.0
        while True:
            self._more.clear()
            rest_s = rested_s - time.monotonic()
            job = self._jobs.pop(first_only=self._first_only or rest_s > 0)
            if job is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), rest_s if rest_s > 0 else None)
            elif not job.outcome.cancelled():
                done = asyncio.wrap_future(self.executor.submit(job.run))
                await asyncio.wait([done])
                job.settle(done)
                if not job.first:
                    rested_s = time.monotonic() + min(max(LEAST_REST_S, REST_PER_WORK * job.worked_s), LONGEST_REST_S)


class IoThread:
    """The thread, its loop and its workers. start, run, call and close may be called from any thread but this one."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._jobs: JobQueue[_Job[Any]] = JobQueue()
        self._workers: tuple[_Worker, ...] = ()

    def start(self) -> None:
        """Start the threads, if they are not yet. Raises EnvironmentFault(operation="control")."""
        if self._loop is not None:
            return
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as error:
            raise EnvironmentFault(f"clients cannot be served: {error.strerror}", operation="control") from error
        self._loop.set_exception_handler(lambda _, context: _tell(context))
        admin = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serve-admin")
        others = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serve-worker")
        self._workers = (_Worker(admin, self._jobs, first_only=True), _Worker(others, self._jobs, first_only=False))
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="serve", daemon=True)
        self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        tasks = [loop.create_task(worker.run()) for worker in self._workers]
        try:
            loop.run_forever()
            tasks = [*asyncio.all_tasks(loop)]
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
        finally:
            loop.close()

    def run(self, coroutine: Coroutine[object, object, T]) -> Future[T]:
        """Run a coroutine in the loop. Raises EnvironmentFault where there is none any more."""
        if self._loop is None or self._loop.is_closed():
            coroutine.close()
            raise EnvironmentFault("the thread that serves clients has ended", operation="control")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, soon; after the end not at all."""
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)

    def close(self, timeout_s: float = 0.5) -> None:
        """End the loop and the workers; work that has begun is waited for at most that long."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(loop.stop)
        ending = [threading.Thread(target=worker.executor.shutdown, name="serve", daemon=True) for worker in self._workers]
        for thread in ending:
            thread.start()
        deadline_s = time.monotonic() + timeout_s
        for thread in (*ending, self._thread):
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def do(
        self,
        work: Callable[[Wanted], T],
        who: Hashable,
        *,
        first: bool = False,
        discard: Callable[[T], None] = lambda _: None,
    ) -> asyncio.Future[T]:
        """In the loop: have a worker do something, first of all if so wanted; its outcome.

        Where the outcome is cancelled the work is not begun, or told by `Wanted`; `discard` gets what comes of it all the same.
        """
        job: _Job[T] = _Job(work, asyncio.get_running_loop().create_future(), first, discard)
        self._jobs.put(job, who, first=first)
        for worker in self._workers:
            worker.wake()
        return job.outcome


def tell_defect(error: BaseException, name: str) -> None:
    """Tell of an error that nobody foresaw as the end of a thread of this name is told, where the thread itself goes on."""
    threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.Thread(name=name))))


def _tell(context: dict[str, Any]) -> None:
    error = context.get("exception")
    tell_defect(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))), "serve")
