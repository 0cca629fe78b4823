"""Modules that are called as functions."""

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(name: str, function: Callable) -> None:
    """Makes `module(...)` mean `function(...)`, for a room or a command of that name.

    Args:
      name: `__name__` of the module.
      function: that its call is.
    """

    class Called(types.ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return function(*args, **options)

    sys.modules[name].__class__ = Called
