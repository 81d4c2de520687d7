"""rung climbs the ladder of language models, from a bigram to Llama 3, on your own text.

>>> import rung
>>> run = rung.train("bigram", "my.txt")        # rung.climb, rung.tune, rung.load
>>> run.generate("The", max_new_tokens=5).tokens   # run.scores, run.model, run.tokenizer
5

The functions and the modules of rung are imported when they are first asked for: `import rung`
alone takes no time. `import rung.models` teaches transformers' `Auto*` classes the rungs that are
rung's own. Threads are set up then too, as the command does it (`rung.device.configure_threads`);
where torch is imported before, call that function first.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

__version__ = "0.1.0"

FUNCTIONS = {  # where the functions and classes are that stand beside the modules
    "Comparison": "compare",
    "Ladder": "ladder",
    "Run": "run",
    "check_corpus": "corpora",
    "climb": "climb",
    "compare": "compare",
    "compress": "compress",
    "decompress": "compress",
    "evaluate": "run",
    "generate": "run",
    "load": "run",
    "surprisal": "surprisal",
    "novelty": "novelty",
    "train": "train",
    "tune": "tune",
}


def __getattr__(name: str) -> Any:
    if name not in __dir__():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "device":
        import_module(f"{__name__}.device").configure_threads()
    if name in FUNCTIONS:
        return getattr(import_module(f"{__name__}.api.{FUNCTIONS[name]}"), name)
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    modules = (module.name for module in iter_modules(__path__) if module.name[0] != "_")
    return ["__version__", *FUNCTIONS, *modules]
