"""Shared ground for the tests: a cache of their own, a small corpus, tiny models of every rung."""

import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rung.device import configure_threads, count_cores

# A choice: no run takes fewer where others run beside it. Processes that run tests side by side
# share the cores; the one that starts them has made its own choice before, which they inherit.
THREADS = max(1, count_cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
if "OMP_NUM_THREADS" not in os.environ or "RUNG_TEST_THREADS" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["RUNG_TEST_THREADS"] = str(THREADS)
configure_threads()  # before torch is imported

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers import PreTrainedConfig  # noqa: E402

from tests.forks import Fork, start_server  # noqa: E402

# Under test, and only there, the shapes written in annotations are held to. Not the
# configurations': transformers builds those in its own way.
PreTrainedConfig.__no_type_check__ = True
CHECKED = [
    f"rung.generation.{name}"
    for name in ("decoder", "native", "quantize", "batching", "batch_cache", "speculative")
]
CHECKED += [
    "rung.models",
    "rung.evaluation.cache",
    "rung.evaluation.mixture",
    "rung.training.optimizer",
]
install_import_hook(CHECKED, "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"
SENTENCES = (
    "the cat sat on the mat",
    "the dog sat on the log",
    "a cat and a dog sat on a mat",
    "the mat is on the log",
    "a dog is not a cat",
)
WORDS = (
    *("the", "of", "and", "to", "in", "is", "was", "he"),
    *("for", "with", "as", "his", "on", "be", "by", "had", "not"),
)
TINY = {
    "bigram": {},
    "ngram": {"order": 3},
    "infini-gram": {},
    "rnn": {"hidden_size": 32},
    "rnn-attention": {"hidden_size": 32, "max_position_embeddings": 64},
    "gpt2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "llama3": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "swaps": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "swaps": ["rotary", "grouped"],
    },
}
VARIANTS = {  # switches of a rung that keep all its promises
    "rnn-attention as in the book": {
        "plain_attention": True,
        "head_bias": True,
        "cell": "elman",
        "tie_word_embeddings": False,
    },
}
NEURAL = [name for name in TINY if name not in ("bigram", "ngram", "infini-gram")]


def slow_but(names, *quick):
    """The names as parameters, all but the quick ones marked as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def examples(count):
    """How many examples a property is tried with: all of them in CI, a fifth where it is to be
    quick.
    """
    return count if "RUNG_ALL_EXAMPLES" in os.environ else max(count // 5, min(count, 5))


settings.register_profile("rung", max_examples=examples(100), deadline=None)
settings.load_profile("rung")


def write(path, data):
    """Write text or bytes to a file and its folders, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def make_text(paragraphs, seed=0, between="\n\n", words=60):
    """Make paragraphs of up to twice so many random words, the same for the same seed."""
    dice = random.Random(seed)
    return (
        between.join(
            " ".join(dice.choices(WORDS, k=dice.randint(1, 2 * words))) for _ in range(paragraphs)
        )
        + "\n"
    )


def shake(model):
    """A new model says nearly the same of any text, and its biases and norms are plain: make them
    matter.
    """
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def overflow(model):
    """Weights that are numbers, each of them, and too large for the head to sum up."""
    head = shake(model).get_output_embeddings().weight
    signs = torch.randint(0, 2, head.shape, generator=torch.Generator().manual_seed(3))
    head.data = torch.where(signs > 0, 3e38, -3e38)
    return model


def run_rung(*args, cwd=None, pipe=None):
    """Run the command in this process: its return code and output, without the seconds that a
    process of its own takes to begin.
    """
    from typer.testing import CliRunner

    from rung.cli.main import app

    words = [str(arg) for arg in args]
    with contextlib.chdir(cwd or "."):
        made = CliRunner().invoke(app, words, prog_name="rung", input=pipe)
    if made.exception and not isinstance(made.exception, SystemExit):
        raise made.exception
    return subprocess.CompletedProcess(args, made.exit_code, made.stdout, made.stderr)


def start_python(*words, **options):
    """A process of its own that does what a fork of the server would, after seconds."""
    words = ["-m", *words] if words[0] == "rung" else words
    return subprocess.Popen([sys.executable, *map(str, words)], text=True, **options)


def hear_ctrl_c():
    """Called in a process that a test starts: a suite in the background ignores Ctrl-C, and so
    would what it starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Largest(TorchDispatchMode):
    """A context in which the largest memory of any tensor made is noted, in bytes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        new = [t.untyped_storage() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.bytes = max(
            [self.bytes, *(memory.nbytes() for memory in new if memory.data_ptr() not in given)]
        )
        return made


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Every test keeps what it makes out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = {name: os.environ.get(name) for name in ("RUNG_CACHE", "HF_HOME")}
    os.environ["RUNG_CACHE"] = str(folder)
    yield folder
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Out of the collector's sight what was imported: the Trainer has it look through everything at
    each start, which is half of the time of a tiny training.
    """
    gc.collect()  # of what came after the last module alone
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_disks():
    """Nothing of a test is to survive a loss of power, and a disk takes milliseconds to make sure
    of a file.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-pair tokenizer that knows the sentences well."""
    from rung.data.tokenizer_training import build_tokenizer

    return build_tokenizer("bpe", SENTENCES * 20, 300)


@pytest.fixture(scope="session")
def make_tiny(tokenizer):
    """A function that makes a tiny model of a rung: random weights, or counts of the sentences."""
    import numpy
    import torch

    from rung.data.tokenizer import encode_documents
    from rung.models import build_model, find_rung, make_config

    def make(name, **settings):
        settings = VARIANTS.get(name, {}) | settings
        name = name.split()[0]
        config = make_config(name, tokenizer, {**TINY[name], **settings})
        if not find_rung(name).counts:
            torch.manual_seed(0)
            return build_model(name, config).eval()
        documents = list(encode_documents(SENTENCES, tokenizer))
        starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
        return find_rung(name).model_class.fit(config, numpy.concatenate(documents), starts).eval()

    return make


@pytest.fixture(scope="session")
def prose():
    """A file's worth of text that differs from paragraph to paragraph: 20 kB."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))[:20_000]


@pytest.fixture(scope="session")
def shared():
    """The folder of texts and golden figures that stands beside the repository here; a user has
    none.
    """
    if not SHARED.is_dir():
        pytest.skip(
            "needs the texts and golden figures that are kept beside the repository, not in it"
        )
    return SHARED


@pytest.fixture(scope="session")
def fork_server():
    """The socket of a process that has imported torch, and forks to do what is asked of it."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system with fork")
    with start_server() as path:
        yield path


@pytest.fixture(scope="session")
def start_fork(request):
    """A function that starts `rung ...`, `-c CODE ...` or a file of Python in a process of its own,
    and gives what `subprocess.Popen` does; it need not import torch anew.
    """
    if not hasattr(os, "fork"):
        return start_python
    server = request.getfixturevalue("fork_server")
    return lambda *words, **options: Fork(server, words, **options)


@pytest.fixture(scope="session")
def run_fork(start_fork):
    """A function that runs such a process to its end: its exit code, what it printed and said."""
    pipe = subprocess.PIPE

    def run(*words, text=None, **options):
        process = start_fork(*words, **{"stdin": pipe, "stdout": pipe, "stderr": pipe} | options)
        printed, said = process.communicate(text)
        return subprocess.CompletedProcess(words, process.returncode, printed, said)

    return run


@pytest.fixture
def watch_memory():
    """A function that begins to watch this process's memory, and gives one that says by how many
    bytes it grew at most.

    All of it is counted, with the pages of mapped files.
    """
    forget, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    trim = None if os.name == "nt" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not os.access(forget, os.W_OK):
        pytest.skip(
            "needs Linux to say how large a process has been, and glibc to give back what was "
            "freed before"
        )

    def read(name):
        return next(
            int(line.split()[1]) * 1024
            for line in status.read_text().splitlines()
            if line.startswith(name)
        )

    def begin():
        gc.collect()
        trim(0)
        forget.write_text("5")  # the peak so far
        before = read("VmRSS")
        return lambda: read("VmHWM") - before

    return begin


@pytest.fixture
def limit_files():
    """A context in which no file may grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="limits the size of a file as Unix does")

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
