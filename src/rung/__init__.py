"""rung climbs the ladder of language models, from a bigram to Llama 3, on your own text.

>>> import rung.models                                    # teaches Auto* the rungs of rung
>>> model, tokenizer = rung.models.load("runs/my-run")    # any run, any rung
"""

__version__ = "0.1.0"
