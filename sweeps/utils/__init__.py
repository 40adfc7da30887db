"""Small helpers of all packages of sweeps: clock, signals, processes, durations, addresses, YAML.

Must not import any other package of sweeps, nor torch or Ray when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.utils.bytecode import missing_bytecode as missing_bytecode
    from sweeps.utils.clock import PROCESS_START as PROCESS_START, Clock as Clock, monotonic_time as monotonic_time
    from sweeps.utils.duration import format_duration as format_duration
    from sweeps.utils.plain_names import check_plain_name as check_plain_name, is_plain_name as is_plain_name
    from sweeps.utils.plain_yaml import (
        MAX_BYTES as MAX_BYTES,
        YamlError as YamlError,
        dump_yaml as dump_yaml,
        load_yaml as load_yaml,
    )
    from sweeps.utils.process_ids import has_ended as has_ended, process_identity as process_identity
    from sweeps.utils.provenance import (
        code_fingerprints as code_fingerprints,
        command as command,
        hardware as hardware,
        versions as versions,
    )
    from sweeps.utils.signals import (
        exit_process as exit_process,
        handle_sigterm as handle_sigterm,
        install_signal_handlers as install_signal_handlers,
        raise_if_interrupted as raise_if_interrupted,
        sigterm_received as sigterm_received,
    )
    from sweeps.utils.uris import is_uri as is_uri

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "bytecode": "missing_bytecode",
        "clock": "Clock PROCESS_START monotonic_time",
        "duration": "format_duration",
        "plain_names": "check_plain_name is_plain_name",
        "plain_yaml": "MAX_BYTES YamlError dump_yaml load_yaml",
        "process_ids": "has_ended process_identity",
        "provenance": "code_fingerprints command hardware versions",
        "signals": "exit_process handle_sigterm install_signal_handlers raise_if_interrupted sigterm_received",
        "uris": "is_uri",
    },
)
