"""Makes the builders of this package known to `datasets.load_dataset` by name.

`datasets` has no public way to add builders, so this file alone touches its private tables. Where they have changed,
the builder classes still work: `SyntheticRooms(...).download_and_prepare()` and `.as_dataset()`.
"""

import hashlib
import inspect
import warnings
from collections.abc import Sequence
from types import ModuleType

import datasets

try:
    from datasets.load import DatasetModule, PackagedDatasetModuleFactory
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
except ImportError:
    _PACKAGED_DATASETS_MODULES = None

_BUILDERS_WITHOUT_FILES: set[str] = set()


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


def register_builder(name: str, module: ModuleType, code_hash: str, *, reads_files: bool = True) -> None:
    """Let `datasets.load_dataset(name, ...)` find a builder.

    Args:
        name: name of the dataset.
        module: the module that holds its one builder class.
        code_hash: see `source_hash`.
        reads_files: False for a builder that reads no files; then the working directory is not searched for any.
    """
    if _PACKAGED_DATASETS_MODULES is None:
        message = f"datasets {datasets.__version__} cannot load {name!r} by name; use the builder class instead"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return
    _PACKAGED_DATASETS_MODULES[name] = (module.__name__, code_hash)
    if not reads_files:
        _BUILDERS_WITHOUT_FILES.add(name)
        _skip_file_search()


def _skip_file_search() -> None:
    """Let `datasets` build what needs no files without listing the working directory, huge or empty as it may be."""
    if getattr(datasets.load.PackagedDatasetModuleFactory, "skips_file_search", False):
        return

    class ModuleFactory(PackagedDatasetModuleFactory):
        skips_file_search = True

        def get_module(self) -> DatasetModule:
            if self.name not in _BUILDERS_WITHOUT_FILES:
                return super().get_module()
            module_path, code_hash = _PACKAGED_DATASETS_MODULES[self.name]
            return DatasetModule(module_path, code_hash, {"data_files": {}, "dataset_name": self.name})

    datasets.load.PackagedDatasetModuleFactory = ModuleFactory
