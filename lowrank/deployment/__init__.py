"""Takes trained models out of the project: exported formats, their latency, and compression of trained networks.

Entry points: `export_formats` writes a model in all formats and compares each with it; `measure_latency` times models.
Must not import a command (`lowrank.count`, `compress`, `predict`, `serving`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.deployment.card import (
        CARD_FILE as CARD_FILE,
        CardContent as CardContent,
        render_card as render_card,
        today as today,
    )
    from lowrank.deployment.compress_run import (
        RUN_FILE as RUN_FILE,
        CompressConfig as CompressConfig,
        run_compress as run_compress,
    )
    from lowrank.deployment.compressed import Compressed as Compressed, LayerReport as LayerReport
    from lowrank.deployment.compressor import Compressor as Compressor, compress_network as compress_network
    from lowrank.deployment.formats import (
        DEFAULT_OPSET as DEFAULT_OPSET,
        FACTORISED as FACTORISED,
        MERGED as MERGED,
        ONNX as ONNX,
        PREPROCESSING_FILE as PREPROCESSING_FILE,
        PROGRAM as PROGRAM,
        Batches as Batches,
        Export as Export,
        ExportedFile as ExportedFile,
        check_opset as check_opset,
        export_formats as export_formats,
        merged_network as merged_network,
        onnx_forward as onnx_forward,
        split_batches as split_batches,
        write_onnx as write_onnx,
    )
    from lowrank.deployment.given_images import check_exportable as check_exportable
    from lowrank.deployment.latency import (
        Latency as Latency,
        describe_machine as describe_machine,
        measure_latency as measure_latency,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "card": "CARD_FILE CardContent render_card today",
        "compress_run": "RUN_FILE CompressConfig run_compress",
        "compressed": "Compressed LayerReport",
        "compressor": "Compressor compress_network",
        "formats": (
            "Batches DEFAULT_OPSET Export ExportedFile FACTORISED MERGED ONNX PREPROCESSING_FILE PROGRAM check_opset "
            "export_formats merged_network onnx_forward split_batches write_onnx"
        ),
        "given_images": "check_exportable",
        "latency": "Latency describe_machine measure_latency",
    },
)
