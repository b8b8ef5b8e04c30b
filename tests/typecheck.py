"""The checker that `--jaxtyping-packages` applies: shapes and types, where an int may stand for a float (PEP 484)."""

import functools
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the calls of a function; the check is made at the first one, for most functions are never called."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        checked = checked or beartype(function, conf=_CONF)
        return checked(*args, **kwargs)

    return checking
