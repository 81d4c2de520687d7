"""The arithmetic of docs/distributed.md: run, it prints the tables; tools/update.py fills them
in.
"""

from dataclasses import dataclass

from rung.models.sizes import SIZES, Size

MODELS = ("llama3.2-1b", "llama3-8b")
CONTEXT = 8192  # tokens in a block
PEAK = 989e12  # FLOP a second of an H100 SXM in bfloat16, without sparsity, by its data sheet
UTILIZATION = 0.4  # of the peak: to be measured, not to be hoped for
GIGABYTE = 1e9


@dataclass(frozen=True)
class Llama:
    """The numbers that a size is computed from, by the names of docs/distributed.md."""

    N: int  # weights
    L: int  # layers
    D: int  # width
    F: int  # width inside the MLP
    H: int  # heads
    G: int  # key-value heads
    V: int  # vocabulary
    tied: bool

    @property
    def K(self) -> int:  # noqa: N802
        """Channels of a head."""
        return self.D // self.H

    @property
    def E(self) -> int:  # noqa: N802
        """Weights of the embedding, and of the head where it has its own."""
        return self.V * self.D * (1 if self.tied else 2)

    @property
    def P(self) -> int:  # noqa: N802
        """Weights of one layer: attention, SwiGLU, two norms."""
        return 2 * self.D * self.D + 2 * self.D * self.G * self.K + 3 * self.D * self.F + 2 * self.D


def read_size(size: Size) -> Llama:
    """The numbers of a size by name."""
    names = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return Llama(
        size.parameters,
        *(size.model[n] for n in names),
        size.vocab_size,
        size.model["tie_word_embeddings"],
    )


def count_state(model: Llama, optimizer: str) -> int:
    """Bytes of weights, gradients and the optimizer's state, all in float32."""
    matrices = model.L * (model.P - 2 * model.D)
    moments = 8 * model.N if optimizer == "adamw" else 4 * matrices + 8 * (model.N - matrices)
    return 4 * model.N + 4 * model.N + moments


def count_activations(model: Llama) -> int:
    """Bytes that one layer keeps of one token for the backward pass, in bfloat16."""
    return 20 * model.D + 8 * model.F + 4 * model.G * model.K + 4 * model.H + 8


def count_kept(model: Llama, tokens: int, checkpointing: bool) -> int:
    """Bytes that all layers keep of so many tokens; with checkpointing their inputs, and one
    layer's own at a time.
    """
    each = count_activations(model)
    return tokens * (model.L * 2 * model.D + each if checkpointing else model.L * each)


def count_logits(model: Llama, tokens: int) -> int:
    """Bytes of the logits where the backward pass is at its most: bfloat16, log-probabilities,
    gradients of both.
    """
    return (2 + 4 + 4 + 2) * tokens * model.V


def count_gathered(model: Llama) -> int:
    """Bytes of what FSDP2 has put together at a time, in bfloat16: two layers, the embedding, the
    head.
    """
    return 2 * (2 * model.P + model.V * model.D * (1 if model.tied else 2))


def count_flops(model: Llama, context: int = CONTEXT) -> float:
    """FLOP of a token, forward and backward; attention as it is counted, without the half that it
    leaves out.
    """
    multiplied = model.N - (0 if model.tied else model.V * model.D)  # the embedding is looked up
    return 6 * multiplied + 12 * model.L * model.D * context


def count_hours(model: Llama, tokens: float, gpus: int) -> float:
    """Hours at the stated utilization."""
    return tokens * count_flops(model) / (gpus * PEAK * UTILIZATION) / 3600


def draw(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; all but the first column are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_shapes() -> str:
    """The numbers behind the letters."""
    rows = []
    for name in MODELS:
        m = read_size(SIZES[name])
        rows.append([name, *(f"{n:,}" for n in (m.N, m.L, m.D, m.F, m.H, m.G, m.K, m.V, m.P, m.E))])
    return draw(["size", *"NLDFHGKVPE"], rows)


def show_memory() -> str:
    """Gigabytes on each GPU, for one sequence of a block at a time."""
    rows = []
    for name in MODELS:
        m = read_size(SIZES[name])
        for gpus in (1, 8):
            for checkpointing in (False, True):
                state = [count_state(m, optimizer) / gpus for optimizer in ("adamw", "muon")]
                kept, logits = count_kept(m, CONTEXT, checkpointing), count_logits(m, CONTEXT)
                gathered = (
                    count_gathered(m) if gpus > 1 else 2 * m.N
                )  # autocast's copy of the weights
                totals = [s + kept + logits + gathered for s in state]
                title = (
                    f"{name}, {gpus} GPU{'s' if gpus > 1 else ''}, "
                    f"{'with' if checkpointing else 'without'}"
                )
                rows.append(
                    [
                        title,
                        *(
                            f"{n / GIGABYTE:,.1f}"
                            for n in (*state, kept, logits, gathered, *totals)
                        ),
                    ]
                )
    head = [
        "size, GPUs, with or without checkpointing",
        "states, AdamW",
        "states, Muon",
        "activations",
        "logits",
    ]
    return draw([*head, "weights in bfloat16", "in all, AdamW", "in all, Muon"], rows)


def show_time() -> str:
    """Hours for 20 tokens a weight."""
    rows = []
    for name in MODELS:
        m = read_size(SIZES[name])
        tokens = 20 * m.N
        speed = PEAK * UTILIZATION / count_flops(m)
        hours = [count_hours(m, tokens, gpus) for gpus in (1, 8, 64)]
        flops = f"{count_flops(m) / GIGABYTE:,.2f}"
        rows.append(
            [name, flops, f"{speed:,.0f}", f"{tokens / 1e9:,.1f}", *(f"{h:,.0f}" for h in hours)]
        )
    head = [
        "size",
        "GFLOP a token",
        "tokens a second on a GPU",
        "tokens, in 10⁹",
        "hours on 1 GPU",
        "on 8",
        "on 64",
    ]
    return draw(head, rows)


TABLES = {"shapes": show_shapes, "memory": show_memory, "time": show_time}

if __name__ == "__main__":
    print("\n\n".join(show() for show in TABLES.values()))
