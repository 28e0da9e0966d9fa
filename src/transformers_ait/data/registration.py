"""Makes the builders of this package known to `datasets.load_dataset` by name.

`datasets` has no public way to add builders, so this file alone touches its private tables. Where they have changed,
the builder classes still work: `SyntheticRooms(...).download_and_prepare()` and `.as_dataset()`.
"""

import hashlib
import inspect
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import datasets

try:
    from datasets.load import DatasetModule, PackagedDatasetModuleFactory
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
except ImportError:
    _PACKAGED_DATASETS_MODULES = None

_OWN_BUILDERS: set[str] = set()


def source_hash(modules: Sequence[ModuleType]) -> str:
    """Hash of the modules' source code, which keeps rows cached by older code from being taken for new ones.

    Args:
        modules: every module that decides what the rows hold.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def register_builder(name: str, module: ModuleType, code_hash: str) -> None:
    """Let `datasets.load_dataset(name, ...)` find a builder, which finds its files, if any, by its own options.

    Args:
        name: name of the dataset.
        module: the module that holds its one builder class.
        code_hash: see `source_hash`.
    """
    if _PACKAGED_DATASETS_MODULES is None:
        message = f"datasets {datasets.__version__} cannot load {name!r} by name; use the builder class instead"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return
    _PACKAGED_DATASETS_MODULES[name] = (module.__name__, code_hash)
    _OWN_BUILDERS.add(name)
    _skip_file_search()


def _skip_file_search() -> None:
    """Let `datasets` reach these builders without a request to count the download, and without listing all files of
    `data_dir` or the working directory, huge or empty as they may be."""
    if getattr(datasets.load.PackagedDatasetModuleFactory, "skips_file_search", False):
        return

    class ModuleFactory(PackagedDatasetModuleFactory):
        skips_file_search = True

        def __init__(self, name: str, data_files: Any = None, **kwargs: Any) -> None:
            self.name, self.data_files = name, data_files
            if name not in _OWN_BUILDERS:
                super().__init__(name, data_files=data_files, **kwargs)

        def get_module(self) -> DatasetModule:
            if self.name not in _OWN_BUILDERS:
                return super().get_module()
            module_path, code_hash = _PACKAGED_DATASETS_MODULES[self.name]
            # None would make `datasets` ask for files.
            return DatasetModule(
                module_path, code_hash, {"data_files": self.data_files or {}, "dataset_name": self.name}
            )

    datasets.load.PackagedDatasetModuleFactory = ModuleFactory
