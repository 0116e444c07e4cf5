"""Export models to other runtimes."""

from .export import ExportSettings, export

__all__ = ["ExportSettings", "export"]
