"""Ray and the machines it runs on: connection, devices, watch over the head, and what spot machines cost.

Entry point: `ray_session.connect`. What is private or unstable in Ray is touched in `ray_adapter` alone.
Must not import resources, teachers, execution or study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.cluster.aws_prices import (
        ACCELERATORS as ACCELERATORS,
        Client as Client,
        Region as Region,
        find_accelerator as find_accelerator,
        find_offers as find_offers,
    )
    from sweeps.cluster.card_places import CardPlaces as CardPlaces, cards_are_free as cards_are_free
    from sweeps.cluster.cluster_file import (
        CLUSTER_FILE as CLUSTER_FILE,
        affordable_offers as affordable_offers,
        read_cluster_file as read_cluster_file,
        write_cluster_file as write_cluster_file,
    )
    from sweeps.cluster.devices import (
        assigned_device as assigned_device,
        device_lost as device_lost,
        limit_memory as limit_memory,
        out_of_memory as out_of_memory,
    )
    from sweeps.cluster.head_watchdog import HeadWatchdog as HeadWatchdog
    from sweeps.cluster.ray_adapter import (
        BOOTSTRAP_FILE as BOOTSTRAP_FILE,
        HEAD_RESOURCE as HEAD_RESOURCE,
        allow_pending_trials as allow_pending_trials,
        assigned_cards as assigned_cards,
        assigned_resources as assigned_resources,
        card_types as card_types,
        count_cards as count_cards,
        count_no_callbacks as count_no_callbacks,
        drop_metric_statistics as drop_metric_statistics,
        error_reason as error_reason,
        head_address as head_address,
        hide_failed_attempts as hide_failed_attempts,
        is_driver_on as is_driver_on,
        is_machine_lost as is_machine_lost,
        keep_trial_errors_in_memory as keep_trial_errors_in_memory,
        keep_workers as keep_workers,
        live_nodes as live_nodes,
        raylet_address as raylet_address,
        trial_error as trial_error,
        use_started_workers as use_started_workers,
    )
    from sweeps.cluster.ray_session import connect as connect, is_connected as is_connected
    from sweeps.cluster.spot_report import (
        capacity_message as capacity_message,
        cost_lines as cost_lines,
        machine_line as machine_line,
        offer_table as offer_table,
        quota_message as quota_message,
        torch_warning as torch_warning,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "aws_prices": "ACCELERATORS Client Region find_accelerator find_offers",
        "card_places": "CardPlaces cards_are_free",
        "cluster_file": "CLUSTER_FILE affordable_offers read_cluster_file write_cluster_file",
        "devices": "assigned_device device_lost limit_memory out_of_memory",
        "head_watchdog": "HeadWatchdog",
        "ray_adapter": (
            "BOOTSTRAP_FILE HEAD_RESOURCE allow_pending_trials assigned_cards assigned_resources card_types "
            "count_cards count_no_callbacks drop_metric_statistics error_reason head_address hide_failed_attempts "
            "is_driver_on is_machine_lost keep_trial_errors_in_memory keep_workers live_nodes raylet_address "
            "trial_error use_started_workers"
        ),
        "ray_session": "connect is_connected",
        "spot_report": "capacity_message cost_lines machine_line offer_table quota_message torch_warning",
    },
)
