"""rung climbs the ladder of language models, from a bigram to Llama 3, on your own text.

>>> import rung
>>> model, tokenizer = rung.models.load("runs/my-run")    # any run, any rung

A module of rung is imported when it is first asked for: `import rung` alone takes no time. `import
rung.models` teaches transformers' `Auto*` classes the rungs that are rung's own. Threads are set up
then too, as the command does it (`rung.device.configure_threads`); where torch is imported before,
call that function first.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __dir__():
        if name != "device":
            import_module(f"{__name__}.device").configure_threads()
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [
        "__version__",
        *(module.name for module in iter_modules(__path__) if not module.name.startswith("_")),
    ]
