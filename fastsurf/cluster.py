"""Many scenes on a Ray cluster: one task a scene, its threads and GPU as resources. Scenes and results lie in a file system that all share.

A task whose machine or worker is lost is begun again elsewhere, and goes on from its checkpoint. How the scenes stand comes back through
an actor on the driver's machine, where the tasks also ask whether to finish early.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from .batch import FAILED, STOPPED, TICK, WAITING, Job, Place, Row, Runner, Told, make
from .child import Attended
from .errors import BackendError, UsageError

RETRIES = 5  # of a task whose machine was lost
LISTEN = 1.0  # seconds between two looks of a task at whether to finish early
ON_GPU = ("triton", "cuda")  # backends that want one


class Board:
    """The actor: news for the driver, and its wish to finish early."""

    def __init__(self) -> None:
        self._news: list[Told] = []
        self._finishing = False

    def tell(self, news: Told) -> None:
        """From a task."""
        self._news.append(news)

    def news(self) -> list[Told]:
        """What came since the last call."""
        news, self._news = self._news, []
        return news

    def finish(self) -> None:
        """From now on."""
        self._finishing = True

    def finishing(self) -> bool:
        """Whether to finish early."""
        return self._finishing


def on_ray(address: str, jobs: int = 1, threads: int = 0) -> Runner:
    """Makes scenes on a Ray cluster.

    Args:
        address: local starts one on this machine; auto finds the one that it belongs to; or HOST:PORT.
        jobs: scenes at a time on a machine without a GPU; where there are GPUs, each takes a scene.
        threads: of each scene; 0 shares out those of the smallest machine.
    """
    ray = load_ray()

    def run(todo: Sequence[Job], should_stop: Callable[[], bool]) -> Generator[Told, None, None]:
        if not todo:
            return
        with _connected(ray, address):
            cpus, gpus = share([node["Resources"] for node in ray.nodes() if node["Alive"]], todo, jobs, threads)
            node = ray.get_runtime_context().get_node_id()
            at_home = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=at_home).remote()
            task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_work)
            left = {task.options(name=f"fastsurf {job.name}").remote(job, cpus, board): job for job in todo}
            asked = False
            try:
                while left:
                    if should_stop() and not asked:
                        asked = True
                        board.finish.remote()
                    ready, _ = ray.wait(list(left), timeout=TICK)
                    yield from ray.get(board.news.remote())
                    for ref in ready:
                        yield _row(ray, ref, left.pop(ref))
            finally:
                for ref in left:
                    ray.cancel(ref, force=True)

    return run


def share(machines: Sequence[dict[str, float]], todo: Sequence[Job], jobs: int, threads: int) -> tuple[int, int]:
    """CPUs and GPUs of a scene.

    Args:
        machines: the resources of each, as Ray counts them.
        todo: at least one.

    Raises:
        BackendError: no machine can take one.
    """
    backend = todo[0].config.backend
    on_gpu = backend in ON_GPU or (backend == "auto" and any(m.get("GPU", 0) for m in machines))
    useful = [m for m in machines if m.get("CPU", 0) >= 1 and (m.get("GPU", 0) >= 1 or not on_gpu)]
    if not useful:
        raise BackendError(f"no machine of the cluster has {'a GPU' if on_gpu else 'a CPU'} to give: ray status shows what there is")
    each = min(int(m["CPU"]) // max(1, int(m["GPU"]) if on_gpu else jobs) for m in useful)
    if threads > max(m["CPU"] for m in useful):
        raise UsageError(f"--threads {threads}: no machine of the cluster has as many CPUs; at most {int(max(m['CPU'] for m in useful))}")
    return threads or max(1, each), int(on_gpu)


def load_ray() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'fastsurf[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """With the cluster for the length of a `with`, unless this process was before. Ctrl-C and SIGTERM stay whose they are."""
    if ray.is_initialized():
        yield
        return
    ours = threading.current_thread() is threading.main_thread()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if ours else {}
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there that a machine is lost, between our JSON lines
        try:
            ray.init(address, log_to_driver=False, logging_level="error", include_dashboard=False if address == "local" else None)
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise BackendError(f"no Ray cluster at {address}: {' '.join(str(e).split())}") from None
        try:
            for s, handler in before.items():
                signal.signal(s, handler)
            yield
        finally:
            ray.shutdown()


def _work(job: Job, threads: int, board: Any) -> Row:
    """The task, on a machine of the cluster."""
    if _finishing(board):
        return Row(job.name, str(job.scene), WAITING, job.identity)
    over = threading.Event()

    def attend(child: Attended) -> None:
        threading.Thread(target=_listen, args=(child, board, over), daemon=True).start()

    try:
        return make(job, Place(threads), board.tell.remote, attend)
    finally:
        over.set()


def _listen(child: Attended, board: Any, over: threading.Event) -> None:
    """Hand on the wish to finish early; without a driver to have it, there is nobody to work for."""
    ray = load_ray()
    while not over.wait(LISTEN):
        try:
            if _finishing(board):
                child.interrupt()
                return
        except ray.exceptions.RayError:
            child.end()
            return


def _finishing(board: Any) -> bool:
    """The driver's wish. While a task waits in `ray.get`, Ray lends its CPUs to another one; a future has no such effect."""
    return bool(board.finishing.remote().future().result())


def _row(ray: Any, ref: Any, job: Job) -> Row:
    """What a task returned, or why it didn't."""
    try:
        row: Row = ray.get(ref)
        return row
    except ray.exceptions.TaskCancelledError:
        return Row(job.name, str(job.scene), STOPPED, job.identity, "stopped; the same command goes on")
    except ray.exceptions.RayError as e:
        said = " ".join(str(e).split())[:300]
        return Row(job.name, str(job.scene), FAILED, job.identity, said, finished=time.strftime("%Y-%m-%d %H:%M:%S"))
