"""Counts the parameters and mult-adds of a network, solves budgets, and substitutes its layers.

Entry points: `substitute` replaces the layers of any `nn.Module`; `network_plan` plans a named network; `solve` finds
the largest setting of a method within a `Budget`; `build_sized_student` builds a network from plain settings.
Must not import `lowrank.io`, `distillation`, `training`, `deployment` or a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.compression.allocation import (
        BY_ERROR as BY_ERROR,
        Allocation as Allocation,
        SizedMethod as SizedMethod,
        make_allocation as make_allocation,
    )
    from lowrank.compression.bayesian.bit_widths import (
        BitWidth as BitWidth,
        bit_width as bit_width,
        mixed_bytes as mixed_bytes,
        round_significand as round_significand,
    )
    from lowrank.compression.bayesian.removal import Remover as Remover, groups_below as groups_below
    from lowrank.compression.bayesian.threshold import (
        KEEP_ALL as KEEP_ALL,
        RemovedSizes as RemovedSizes,
        even_share as even_share,
        file_bytes as file_bytes,
        smallest_sizes as smallest_sizes,
        solve_threshold as solve_threshold,
    )
    from lowrank.compression.bayesian.variational_network import (
        VariationalSettings as VariationalSettings,
        make_variational as make_variational,
        posterior_mean as posterior_mean,
    )
    from lowrank.compression.budget import (
        Budget as Budget,
        solve as solve,
        solve_allocation as solve_allocation,
        solve_width as solve_width,
    )
    from lowrank.compression.count_report import (
        NetworkCount as NetworkCount,
        count_network as count_network,
        format_count as format_count,
    )
    from lowrank.compression.counting_conventions import CONVENTIONS as CONVENTIONS
    from lowrank.compression.file_size import (
        FileSizeCalculator as FileSizeCalculator,
        measure_file_size as measure_file_size,
        safetensors_size as safetensors_size,
    )
    from lowrank.compression.from_trained.allocation import (
        Candidate as Candidate,
        allocate as allocate,
        divergence as divergence,
        efficient as efficient,
        energy_candidates as energy_candidates,
        least_costs as least_costs,
        measured_candidates as measured_candidates,
        probe_places as probe_places,
    )
    from lowrank.compression.from_trained.batch_norm import (
        find_nearer_batch_norms as find_nearer_batch_norms,
        reestimate_batch_norms as reestimate_batch_norms,
    )
    from lowrank.compression.from_trained.calibration import (
        batches_of as batches_of,
        fitting_count as fitting_count,
        network_logits as network_logits,
    )
    from lowrank.compression.from_trained.fit import Problem as Problem, make_problems as make_problems
    from lowrank.compression.from_trained.in_order import (
        Choice as Choice,
        Layer as Layer,
        LayerFit as LayerFit,
        fit_in_order as fit_in_order,
        kernel_of as kernel_of,
        merged_layer as merged_layer,
        replace_module as replace_module,
    )
    from lowrank.compression.from_trained.layer_list import (
        LayerList as LayerList,
        build_chains as build_chains,
        count_mult_adds as count_mult_adds,
        layer_named as layer_named,
        list_layers as list_layers,
    )
    from lowrank.compression.from_trained.moments import (
        LayerOutputs as LayerOutputs,
        collect_all_moments as collect_all_moments,
    )
    from lowrank.compression.from_trained.replay import (
        Replay as Replay,
        count_calls as count_calls,
        storage_limit as storage_limit,
    )
    from lowrank.compression.from_trained.student_start import (
        StudentFit as StudentFit,
        fit_student as fit_student,
        output_errors as output_errors,
    )
    from lowrank.compression.init_from_dense import InitReport as InitReport, init_from_network as init_from_network
    from lowrank.compression.inspection.builder_weights import (
        find_builder_weights as find_builder_weights,
        find_trained_weights as find_trained_weights,
    )
    from lowrank.compression.inspection.counting_rules import register_counting_rule as register_counting_rule
    from lowrank.compression.inspection.network_pass import (
        check_classifier as check_classifier,
        check_unchanged as check_unchanged,
        run_order as run_order,
    )
    from lowrank.compression.inspection.plain_layers import register_equivalent as register_equivalent
    from lowrank.compression.merging import merge as merge
    from lowrank.compression.plan import NetworkPlan as NetworkPlan
    from lowrank.compression.substitution import (
        AUXILIARY as AUXILIARY,
        SizedStudent as SizedStudent,
        SubstitutionReport as SubstitutionReport,
        build_sized_student as build_sized_student,
        build_student as build_student,
        count_parameters as count_parameters,
        factor_parameters as factor_parameters,
        substitute as substitute,
    )
    from lowrank.compression.trace import (
        network_plan as network_plan,
        network_to_count as network_to_count,
        plan_sized_network as plan_sized_network,
        trace_plan as trace_plan,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "bayesian.bit_widths": "BitWidth bit_width mixed_bytes round_significand",
        "bayesian.removal": "Remover groups_below",
        "bayesian.threshold": "KEEP_ALL RemovedSizes even_share file_bytes smallest_sizes solve_threshold",
        "bayesian.variational_network": "VariationalSettings make_variational posterior_mean",
        "allocation": "Allocation BY_ERROR SizedMethod make_allocation",
        "budget": "Budget solve solve_allocation solve_width",
        "count_report": "NetworkCount count_network format_count",
        "counting_conventions": "CONVENTIONS",
        "file_size": "FileSizeCalculator measure_file_size safetensors_size",
        "from_trained.allocation": (
            "Candidate allocate divergence efficient energy_candidates least_costs measured_candidates probe_places"
        ),
        "from_trained.batch_norm": "find_nearer_batch_norms reestimate_batch_norms",
        "from_trained.calibration": "batches_of fitting_count network_logits",
        "from_trained.fit": "Problem make_problems",
        "from_trained.in_order": ("Choice Layer LayerFit fit_in_order kernel_of merged_layer replace_module"),
        "from_trained.layer_list": "LayerList build_chains count_mult_adds layer_named list_layers",
        "from_trained.moments": "LayerOutputs collect_all_moments",
        "from_trained.replay": "Replay count_calls storage_limit",
        "from_trained.student_start": "StudentFit fit_student output_errors",
        "init_from_dense": "InitReport init_from_network",
        "inspection.builder_weights": "find_builder_weights find_trained_weights",
        "inspection.counting_rules": "register_counting_rule",
        "inspection.network_pass": "check_classifier check_unchanged run_order",
        "inspection.plain_layers": "register_equivalent",
        "merging": "merge",
        "plan": "NetworkPlan",
        "substitution": (
            "AUXILIARY SizedStudent SubstitutionReport build_sized_student build_student count_parameters "
            "factor_parameters substitute"
        ),
        "trace": "network_plan network_to_count plan_sized_network trace_plan",
    },
)
