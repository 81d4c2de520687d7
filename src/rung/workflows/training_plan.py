"""What a run of minutes is planned to be, what is expected of it, and how both are said."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A model to train, and the bits per byte to expect of it on the validation text."""

    parameters: int
    hidden_size: int
    layers: int | None
    tokens: int  # to be read
    tokens_per_second: float
    epochs: float
    dropout: float
    weight_decay: float | None  # where it is not the default
    bits_per_byte: float
    ngram_bits_per_byte: float
    copying_bits_per_byte: float
    whole_ngram_bits_per_byte: float  # of n-grams of all text, where there was time for them
    seconds: float = 0.0  # that planning took
    minutes: float = 0.0  # of the recipe
    # From so many minutes on the law expects less of the rung than of counting n-grams; None where
    # that takes more than a day.
    pays_from: float | None = 0.0

    def describe(self) -> str:
        """Write the plan in one line."""
        shape = f"{self.hidden_size} wide" + (f", {self.layers} layers" if self.layers else "")
        again = f", {self.epochs:.1f} epochs" if self.epochs > 1 else ""
        dropout = f", dropout {self.dropout:g}" if self.dropout else ""
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return (
            f"{self.parameters / 1e6:.2f} M weights ({shape}), {self.tokens / 1e6:,.2f} M tokens "
            f"of training at {self.tokens_per_second:,.0f}/s{again}{dropout}{decay}; expecting "
            f"{self.bits_per_byte:.3f} bits per byte"
        )

    def describe_shortage(self) -> str:
        """Say how much more time the rung needs to pass counting; empty where it has enough."""
        if self.pays_from is not None and self.pays_from <= self.minutes:
            return ""
        needed = "more than a day" if self.pays_from is None else f"{self.pays_from:.2g} minutes"
        return (
            f"too little time: by its law this rung passes the n-gram model "
            f"({self.whole_ngram_bits_per_byte:.3f} bits per byte) after {needed} here, "
            f"and has {self.minutes:.2g}"
        )
