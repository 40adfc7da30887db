"""Takes trained models out of the project: exported formats, their latency, and compression of trained networks.

Entry points: `export_formats` writes a model in all formats and compares each with it; `measure_latency` times models.
Must not import a command (`lowrank.count`, `compress`, `predict`, `serving`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.deployment.compress_run import CompressConfig as CompressConfig, run_compress as run_compress
    from lowrank.deployment.compressed import Compressed as Compressed, LayerReport as LayerReport
    from lowrank.deployment.compressor import Compressor as Compressor, compress_network as compress_network
    from lowrank.deployment.formats import (
        FACTORISED as FACTORISED,
        MERGED as MERGED,
        ComparisonImages as ComparisonImages,
        ExportedFile as ExportedFile,
        export_formats as export_formats,
        merged_network as merged_network,
        onnx_forward as onnx_forward,
    )
    from lowrank.deployment.latency import (
        Latency as Latency,
        describe_machine as describe_machine,
        measure_latency as measure_latency,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compress_run": "CompressConfig run_compress",
        "compressed": "Compressed LayerReport",
        "compressor": "Compressor compress_network",
        "formats": "ComparisonImages ExportedFile FACTORISED MERGED export_formats merged_network onnx_forward",
        "latency": "Latency describe_machine measure_latency",
    },
)
