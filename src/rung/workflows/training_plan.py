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
    bits_per_byte: float | None  # None for a text that is too small for the laws
    ngram_bits_per_byte: float
    copying_bits_per_byte: float
    whole_ngram_bits_per_byte: float  # of n-grams of all text, where there was time for them
    seconds: float = 0.0  # that planning took
    minutes: float = 0.0  # of the recipe
    ends_early: bool = False  # before its minutes, where more epochs would teach the text by heart
    # From so many minutes on the law expects less of the rung than of counting n-grams; None where
    # that takes more than a day, or more text.
    pays_from: float | None = 0.0

    def describe(self) -> str:
        """Write the plan in one line."""
        shape = f"{self.hidden_size} wide" + (f", {self.layers} layers" if self.layers else "")
        again = f", {self.epochs:.1f} epochs" if self.epochs > 1 else ""
        dropout = f", dropout {self.dropout:g}" if self.dropout else ""
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        expected = self.bits_per_byte
        expecting = "" if expected is None else f"; expecting {expected:.3f} bits per byte"
        return (
            f"{self.parameters / 1e6:.2f} M weights ({shape}), {self.tokens / 1e6:,.2f} M tokens "
            f"of training at {self.tokens_per_second:,.0f}/s{again}{dropout}{decay}{expecting}"
        )

    def describe_shortage(self) -> str:
        """Say of what there is too little: text, or time; empty where there is enough of both."""
        notes = []
        if self.ends_early:
            notes.append(
                f"training ends after {self.epochs:.3g} epochs and not after {self.minutes:.2g} "
                f"minutes: a longer one would learn this text by heart (more text helps)"
            )
        if self.bits_per_byte is None:
            return "; ".join(notes)
        ngram = f"the n-gram model ({self.whole_ngram_bits_per_byte:.3f} bits per byte)"
        if self.pays_from is None:
            notes.append(
                f"by its law this rung does not pass {ngram} here: that takes more text, or more "
                f"than a day"
            )
        elif self.pays_from > self.minutes:
            notes.append(
                f"too little time: by its law this rung passes {ngram} after "
                f"{self.pays_from:.2g} minutes here, and has {self.minutes:.2g}"
            )
        return "; ".join(notes)
