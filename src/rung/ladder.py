"""The ladder: the names of the rungs in order, the idea of each, and which of them count."""

# In the order of tables: what is off the ladder stands behind the rung that it is nearest to.
IDEAS = {
    "bigram": "count pairs",
    "ngram": "count longer, back off well",
    "infini-gram": "count any length",
    "rnn": "remember",
    "rnn-attention": "look back",
    "gpt2": "drop recurrence",
    "llama3": "modernise",
    "swaps": "modernise by parts",
}
FOREIGN_IDEA = "no rung: a model as it is"  # in the place of an idea, of any other causal model
# Models that are made and measured like rungs, and are no steps of the ladder.
OFF_LADDER = ("infini-gram", "swaps")
LADDER = tuple(name for name in IDEAS if name not in OFF_LADDER)
COUNTING_RUNGS = ("bigram", "ngram", "infini-gram")
TRANSFORMER_RUNGS = ("gpt2", "llama3", "swaps")


def is_counting(rung: str) -> bool:
    """Whether a rung is fitted by counting, in one pass, instead of being trained by gradients."""
    return rung in COUNTING_RUNGS
