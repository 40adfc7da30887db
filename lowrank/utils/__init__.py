"""Helpers without a subject of their own: files, locks, texts, command lines, processes.

Entry points: the modules, among them `atomic_write`, `locks`, `text`, `cli` and `validation`.
Must not import: anything of the project except `lowrank.errors`; only `hooks` and `torchvision_compat` import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.utils.atomic_files import (
        TEMPORARY_SUFFIX as TEMPORARY_SUFFIX,
        absolute_path as absolute_path,
        atomic_folder as atomic_folder,
        atomic_path as atomic_path,
        atomic_write as atomic_write,
        check_output_folder as check_output_folder,
        file_hash as file_hash,
        free_name as free_name,
        make_output_parents as make_output_parents,
        nearest_existing as nearest_existing,
        relative_path as relative_path,
        remove_leftovers as remove_leftovers,
        sync as sync,
        temporary_path as temporary_path,
        write_bytes as write_bytes,
        write_text as write_text,
    )
    from lowrank.utils.cli import (
        ExitCode as ExitCode,
        OneLineParser as OneLineParser,
        print_result as print_result,
        report_error as report_error,
        results_alone as results_alone,
        run_command as run_command,
    )
    from lowrank.utils.countdown import INTERVAL as INTERVAL, Countdown as Countdown, print_progress as print_progress
    from lowrank.utils.hooks import (
        ForwardHooks as ForwardHooks,
        keep_modes as keep_modes,
        modules_with_hooks as modules_with_hooks,
    )
    from lowrank.utils.linalg import factor_matrix as factor_matrix, robust_eigh as robust_eigh
    from lowrank.utils.locks import IdleWatch as IdleWatch, LockedError as LockedError, hold_lock as hold_lock
    from lowrank.utils.pareto import non_dominated as non_dominated
    from lowrank.utils.processes import (
        ProcessorWatch as ProcessorWatch,
        available_mb as available_mb,
        child_processes as child_processes,
        commit as commit,
        ensure_compiler_cache as ensure_compiler_cache,
        ensure_home as ensure_home,
        exit_with_parent as exit_with_parent,
        make_private as make_private,
        module_command as module_command,
        module_environment as module_environment,
        usable_cores as usable_cores,
    )
    from lowrank.utils.templates import (
        Markdown as Markdown,
        read_resource as read_resource,
        render_template as render_template,
    )
    from lowrank.utils.text import (
        HIDDEN as HIDDEN,
        describe_error as describe_error,
        first_line as first_line,
        format_bytes as format_bytes,
        format_count as format_count,
        format_counted as format_counted,
        format_round_count as format_round_count,
        format_times as format_times,
        installed_folders as installed_folders,
        is_raised_in_forward as is_raised_in_forward,
        last_line as last_line,
        one_line as one_line,
        redact as redact,
        redact_arguments as redact_arguments,
    )
    from lowrank.utils.torchvision_compat import (
        prepare_torchvision as prepare_torchvision,
        torchvision as torchvision,
    )
    from lowrank.utils.validation import read_module_names as read_module_names, validate_model as validate_model

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "atomic_files": (
            "TEMPORARY_SUFFIX absolute_path atomic_folder atomic_path atomic_write check_output_folder file_hash "
            "free_name make_output_parents nearest_existing relative_path remove_leftovers sync temporary_path "
            "write_bytes write_text"
        ),
        "cli": "ExitCode OneLineParser print_result report_error results_alone run_command",
        "countdown": "Countdown INTERVAL print_progress",
        "hooks": "ForwardHooks keep_modes modules_with_hooks",
        "linalg": "factor_matrix robust_eigh",
        "locks": "IdleWatch LockedError hold_lock",
        "pareto": "non_dominated",
        "processes": (
            "ProcessorWatch available_mb child_processes commit ensure_compiler_cache ensure_home exit_with_parent "
            "make_private module_command module_environment usable_cores"
        ),
        "templates": "Markdown read_resource render_template",
        "text": (
            "HIDDEN describe_error first_line format_bytes format_count format_counted format_round_count format_times "
            "installed_folders is_raised_in_forward last_line one_line redact redact_arguments"
        ),
        "torchvision_compat": "prepare_torchvision torchvision",
        "validation": "read_module_names validate_model",
    },
)
