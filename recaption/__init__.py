"""Raw video to captions. Nothing is imported here: the decoding child starts without torch, ray or pyarrow.

from recaption import open_run          # recaption/run.py, imported when it is asked for
"""


def __getattr__(name: str) -> object:
    if name != "open_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("recaption.run").open_run
