"""Jobs of a sweep beside each other: as processes of this machine, or as Ray tasks.

Hydra's joblib launcher ends all jobs where one process is killed, as for want of memory; its Ray launcher holds back cloudpickle.
"""

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from rlprune.errors import UserError
from rlprune.places import cores


class _Launcher(Launcher):
    """What both do alike."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before `launch`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def _shared(self) -> tuple[Any, ...]:
        """What every job is given."""
        setup_globals()
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        return self.hydra_context, self.task_function, self.config, Singleton.get_state(), os.getcwd()


def run_one(shared: tuple[Any, ...], overrides: list[str], number: int) -> JobReturn:
    """One job, in a process of its own, which may be on another machine with the same disks."""
    context, task, config, state, folder = shared
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    try:
        job = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
        HydraConfig.instance().set_config(job)
        with read_write(job.hydra.job_logging):
            job.hydra.job_logging.formatters.screen.format = f"{str(job.hydra.sweep.subdir).replace('%', '%%')}: %(message)s"
    except Exception as error:
        return _failed(error, overrides)
    return run_job(
        hydra_context=context, config=job, task_function=task, job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir"
    )


def _failed(error: Exception, overrides: Sequence[str]) -> JobReturn:
    failed = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    failed.return_value = error
    return failed


def _died(why: str, overrides: Sequence[str]) -> JobReturn:
    message = f"{' '.join(overrides)}: its process {why}; the same line with resume=true and this sweep's hydra.sweep.dir goes on"
    return _failed(UserError(message), overrides)


# -- processes of this machine ---------------------------------------------------------------------------------------------------------


class OneBoxLauncher(_Launcher):
    """Every job a process of its own, some at a time; one that fails, or is killed, leaves the others alone.

    Args:
        n_jobs: jobs at a time.
        threads: of a job; None: its share of the cores, or OMP_NUM_THREADS where that is fewer.
    """

    def __init__(self, *, n_jobs: int, threads: int | None) -> None:
        for key, value in (("n_jobs", n_jobs), ("threads", threads or 1)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.launcher.{key}={value}: must be an integer ≥ 1")
        self.n_jobs, self.threads = n_jobs, threads

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of the jobs, in their order."""
        shared = cloudpickle.dumps(self._shared())
        waiting = list(enumerate(job_overrides))[::-1]
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        results: dict[int, JobReturn] = {}
        alive, ours = get_context("spawn").Pipe(duplex=False)  # when this process ends, its side is closed
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    number, job = waiting.pop()
                    with _environment(self._threads(len(job_overrides))):
                        running.update(_started(number, (shared, list(job), initial_job_idx + number, alive)))
                for pipe in [connection for connection in wait(list(running)) if isinstance(connection, Connection)]:
                    number, process = running.pop(pipe)
                    results[number] = _received(pipe, process, job_overrides[number])
        finally:
            ours.close()
            for _, process in running.values():
                process.join()
        return [results[number] for number in range(len(job_overrides))]

    def _threads(self, jobs: int) -> int:
        told = os.environ.get("OMP_NUM_THREADS", "")
        share = max(1, cores() // min(self.n_jobs, jobs))
        return self.threads or min(share, int(told) if told.isdecimal() and int(told) else share)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What libraries read when they are loaded: few threads, and no progress bars, which would overwrite each other."""
    told = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _started(number: int, task: tuple[Any, ...]) -> dict[Connection, tuple[int, BaseProcess]]:
    context = get_context("spawn")
    result, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(*task, theirs))
    process.start()
    theirs.close()
    return {result: (number, process)}


def _child(shared: bytes, overrides: list[str], number: int, alive: Connection, answer: Connection) -> None:
    """A job's process; it stops, as after SIGTERM, where the one that started it is gone."""
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    try:
        result = run_one(cloudpickle.loads(shared), overrides, number)
    except KeyboardInterrupt:
        os._exit(130)
    try:
        told = cloudpickle.dumps(result)
        pickle.loads(told)
    except Exception:  # an exception that cannot be made again
        result._return_value = RuntimeError(f"{type(result._return_value).__name__}: {result._return_value}")
        told = cloudpickle.dumps(result)
    answer.send_bytes(told)


def _end_with(alive: Connection) -> None:
    with suppress(OSError):
        alive.poll(None)
    os.kill(os.getpid(), signal.SIGTERM)


def _received(pipe: Connection, process: BaseProcess, overrides: Sequence[str]) -> JobReturn:
    try:
        result = pickle.loads(pipe.recv_bytes())
    except EOFError:
        result = None
    process.join()
    code = process.exitcode or 0
    if result is None:
        killed = f"was killed by signal {-code}{' (out of memory?)' * (code == -signal.SIGKILL)}"
        return _died(killed if code < 0 else f"ended with {code}", overrides)
    return result


# -- Ray -------------------------------------------------------------------------------------------------------------------------------


class RayLauncher(_Launcher):
    """Every job a task; one that fails, or is killed, leaves the others alone.

    Args:
        address: of a running cluster, or `auto`; None starts one on this machine and ends it with the sweep.
        num_cpus: cores of a job; Ray gives it as many threads.
        num_gpus: GPUs of a job; None: one where the cluster has any.
    """

    def __init__(self, *, address: str | None, num_cpus: int, num_gpus: float | None) -> None:
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of the jobs, in their order.

        Raises:
            UserError: Ray is not installed, or the cluster cannot be reached or has no room for such jobs.
        """
        shared = self._shared()
        ray = _start(self.address)
        try:
            remote = ray.remote(run_one).options(num_cpus=self.num_cpus, num_gpus=self._gpus(ray.cluster_resources()), max_retries=0)
            given = ray.put(shared)
            tasks = [remote.remote(given, list(job), initial_job_idx + number) for number, job in enumerate(job_overrides)]
            return [_fetched(ray, task, job) for task, job in zip(tasks, job_overrides, strict=True)]
        finally:
            ray.shutdown()

    def _gpus(self, there: dict[str, float]) -> float:
        """GPUs of a job, where there is room for one."""
        wanted = (1 if there.get("GPU") else 0) if self.num_gpus is None else self.num_gpus
        for key, kind, asked in (("num_cpus", "CPU", self.num_cpus), ("num_gpus", "GPU", wanted)):
            if asked > there.get(kind, 0):
                raise UserError(f"hydra.launcher.{key}={asked}: the cluster has {there.get(kind, 0):g} {kind}s; ask for fewer")
        return wanted


def _start(address: str | None) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("hydra/launcher=ray_cluster: needs Ray; pip install 'rlprune[ray]'") from error
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two runs may well say the same
    environment = {"env_vars": {"TQDM_DISABLE": "1"}}  # bars would overwrite each other
    try:
        ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.ERROR, runtime_env=environment)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"hydra.launcher.address={address}: no cluster answers ({why}); start one, or null for this machine") from error
    return ray


def _fetched(ray: Any, task: Any, overrides: Sequence[str]) -> JobReturn:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return _died(f"died ({type(error).__name__})", overrides)
