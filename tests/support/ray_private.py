"""Private parts of Ray that tests need; what an upgrade changes is mended here alone."""

from __future__ import annotations

from typing import Any


def complete_cluster_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a cluster file with Ray's defaults, as `ray up` puts it on the head."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(config)


def check_cluster_config(config: dict[str, Any]) -> None:
    """Raise an error if Ray would not accept a cluster file."""
    from ray.autoscaler._private.util import validate_config

    validate_config(complete_cluster_config(config))


def dashboard_url() -> str | None:
    """Return the address of the dashboard of a Ray that this process has started; None if there is none."""
    import ray

    return ray._private.worker.global_worker.node.webui_url or None


def forget_default_cluster() -> None:
    """Keep other programs on this machine from joining the cluster that was started last."""
    from ray._common.utils import reset_ray_address

    reset_ray_address()
