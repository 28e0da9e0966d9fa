"""Export of checkpoints to ONNX and torch.export files, with proof; `python -m transformers_ait.export` runs it."""

from .exporter import Report, export_checkpoint
from .programs import ExportError

__all__ = ["ExportError", "Report", "export_checkpoint"]
