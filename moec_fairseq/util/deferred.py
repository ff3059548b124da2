"""Imports that wait until what they import is called."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A module, or a function in it, that is imported when it is called."""

    def __getattr__(self, name: str) -> "_Deferred":
        if name.startswith("__"):  # Python asks whether it is a package
            raise AttributeError(name)
        return _Deferred(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return resolve_name(self.__name__)(*args, **kwargs)


@contextmanager
def deferred(*modules: str) -> Iterator[None]:
    """Let whoever imports functions of these modules meanwhile get them when they are called; later all is as before.

    Args:
        modules: full names; those that are imported already are left alone.
    """
    waiting = {name: _Deferred(name) for name in modules if name not in sys.modules}
    sys.modules.update(waiting)
    try:
        yield
    finally:
        for name in waiting:
            del sys.modules[name]
