"""What decides over an enhanced sample beside its composite: weights and settings of the enhancer and of the
label check.

The settings of a bundle's component are its entry in `inference.json` with all that it refers to, as the file has them,
without what says only where and how fast it is computed. Two folders of bundles with one identity make the same pixels
on one kind of machine.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungsynth.enhancement.label_check import LABEL_CHECK_RULES

__all__ = ["enhancement_identity", "enhancement_key"]

_ENHANCER, _DETECTOR = ("cyclegan", "enhancer"), ("lung_seg", "detector")  # bundles and their components
_NO_SETTINGS = {"bundle_root", "device", "batch_size", "sw_batch_size", "_desc_", "_requires_"}  # they change no result


def enhancement_identity(bundles: Path | None, *, label_check: bool) -> dict[str, str | None]:
    """SHA-256 of weights (`enhancer`, `label_check`) and of settings (`enhancer_settings`, `label_check_settings`).

    Args:
        bundles: folder of the bundles; None where nothing is enhanced.
        label_check: whether the label check takes part.

    Returns:
        None for what takes no part.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    used = {"enhancer": _ENHANCER if bundles else None, "label_check": _DETECTOR if bundles and label_check else None}
    if bundles is None:
        return {key: None for part in used for key in (part, f"{part}_settings")}
    from lungsynth.bundles import read_weights

    identity: dict[str, str | None] = {}
    for part, place in used.items():
        rules = LABEL_CHECK_RULES if part == "label_check" else {}
        identity[part] = read_weights(bundles, place[0]).sha256 if place else None
        identity[f"{part}_settings"] = _digest([_settings(bundles, *place), dict(rules)]) if place else None
    return identity


def enhancement_key(identity: Mapping[str, str | None]) -> str:
    """A short name of an identity, for files."""
    return _digest(dict(identity))[:16]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _settings(bundles: Path, name: str, component: str) -> dict[str, Any]:
    """By id, the component's entry and those that it refers to, directly or through others."""
    from monai.bundle import ConfigParser

    from lungsynth.bundles import resolved_config

    parser = ConfigParser(resolved_config(bundles, name))
    parser.resolve_macro_and_relative_ids()
    reached: dict[str, Any] = {}
    waiting = {component}
    while waiting:
        reference = waiting.pop()
        if reference.split("::")[-1] not in _NO_SETTINGS:
            reached[reference] = _stripped(parser.get(reference))
            waiting |= _references(reached[reference]) - reached.keys()
    return reached


def _stripped(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _stripped(value) for key, value in content.items() if key not in _NO_SETTINGS}
    return [_stripped(value) for value in content] if isinstance(content, list) else content


def _references(content: Any) -> set[str]:
    from monai.bundle import ReferenceResolver

    if isinstance(content, str):
        return set(ReferenceResolver.match_refs_pattern(content))
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return set().union(*(_references(value) for value in values))
