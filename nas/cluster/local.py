"""Ray on this machine alone, or a connection to a cluster that runs elsewhere."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable

from nas.errors import RunError, first_line

ANSWER_SECONDS = 5.0

LOCAL_ENVIRONMENT = {
    # Bind to loopback only. Ray reads this when it is imported; it was meant for other systems.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A token of our own: Ray would write one to the home folder, and other clusters then refuse us.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # one a process: Ray reads it once
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often a task is tried again that was ended for want of memory: Ray's own way is for ever.
    "RAY_task_oom_retries": "2",
    # Tasks that ask for no accelerator leave the user's choice of one alone (Ray's coming default).
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect(workers: int, address: str | None) -> Callable[[], None]:
    """Makes Ray ready in this process: joins `address`, else starts `workers` local processes.

    Returns:
        A function that ends what this call began: nothing, where Ray was ready already.
    """
    imported, unset = "ray" in sys.modules, not LOCAL_ENVIRONMENT.keys() <= os.environ.keys()
    if address is None:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    import ray  # only now: it reads the environment on import

    if ray.is_initialized():
        return lambda: None
    if address is None and imported and unset:
        _read_environment_again()
    return _start(workers) if address is None else _join(address)


def _read_environment_again() -> None:
    """Where the user's code imported Ray, that has read its environment before: without this, processes that
    it starts would ask for a token that this one does not know, and listen on all networks."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def of_a_training(device: str, at_once: int) -> dict[str, float]:
    """What a training that runs beside others asks Ray for, which must be ready: a CPU, and where there are
    GPUs, one of them, or, if more trainings than that run at once, a share of one.

    Args:
        device: of the recipe; one with a number is the user's own choice, and left alone.
        at_once: trainings.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0)
    if not gpus or device not in ("auto", "cuda"):
        return {"cpu": 1}
    return {"cpu": 1, "gpu": min(1.0, int(1000 * gpus / at_once) / 1000)}


def require_cluster(address: str) -> None:
    """Raises RunError unless a Ray cluster answers at `address`; before work is spent, not after."""
    if address == "local":
        raise _no_cluster(address, ValueError("it would start one; leave --address out for that"))
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            raise _no_cluster(address, error) from None
    else:
        _join(address)()


def _join(address: str) -> Callable[[], None]:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
        raise _no_cluster(address, error) from error
    return lambda: ray.shutdown()


def _no_cluster(address: str, error: Exception) -> RunError:
    return RunError(
        f"`--address` must be that of a running Ray cluster, auto, HOST:PORT or ray://HOST:PORT: {address!r} "
        f"does not answer ({first_line(error)}). Start one with `ray start --head`, or leave it out."
    )


def _start(workers: int) -> Callable[[], None]:
    import ray

    folder = tempfile.mkdtemp(prefix="nas-ray-")

    def stop() -> None:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=folder,
        )
    except BaseException as error:
        stop()
        if not isinstance(error, Exception):
            raise
        raise RunError(
            f"Ray must start on this machine, but: {first_line(error)} A busy one may be too slow for it: "
            f"call again (`--resume` goes on), or join a cluster that runs with `--address`."
        ) from error
    return stop
