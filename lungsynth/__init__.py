"""Labelled synthetic lung CT: `import lungsynth as ls`, then `ls.generate("out", count=64)`.

The names below are loaded when they are first used, so that reading a CT needs neither PyTorch nor MLflow.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungsynth.api import export, generate, insert, load_bundle, plan, prepare, pseudo_label, trial
    from lungsynth.cohort.reader import Cohort
    from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig, SelectionConfig, default_bundles
    from lungsynth.data.dataset import LayeredLungDataset
    from lungsynth.data.insert import RandInsertNodulesd
    from lungsynth.data.insert_scans import RandInsertNodules3Dd
    from lungsynth.errors import InputError

__all__ = [
    "Cohort",
    "EnhancementConfig",
    "GenerateConfig",
    "InputError",
    "LayeredLungDataset",
    "PlacementConfig",
    "RandInsertNodules3Dd",
    "RandInsertNodulesd",
    "SelectionConfig",
    "default_bundles",
    "export",
    "generate",
    "insert",
    "load_bundle",
    "plan",
    "prepare",
    "pseudo_label",
    "trial",
]
__version__ = version("lungsynth")

_HOMES = {
    **dict.fromkeys(("export", "generate", "insert", "load_bundle", "plan", "prepare", "pseudo_label", "trial"), "api"),
    **dict.fromkeys(
        ("EnhancementConfig", "GenerateConfig", "PlacementConfig", "SelectionConfig", "default_bundles"), "config"
    ),
    "Cohort": "cohort.reader",
    "InputError": "errors",
    "LayeredLungDataset": "data.dataset",
    "RandInsertNodules3Dd": "data.insert_scans",
    "RandInsertNodulesd": "data.insert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps `lungsynth.generate` and `lungsynth.export` functions when the modules of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
