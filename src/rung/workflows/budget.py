"""The dial: minutes go in; a model, and the bits per byte to expect of it, come out.

Real steps of two models say how fast this machine is, counting how hard the text is, and the laws
below what a model of so many weights learns from so many tokens. They were fitted on small runs:
benchmarks/recipe/scaling.txt, made by benchmarks/recipe/scaling.py.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rung import distributed
from rung.data.packing import PackedTokens
from rung.device import choose_device
from rung.ladder import TRANSFORMER_RUNGS
from rung.models import build_model, count_parameters, make_config
from rung.models.base import CausalModel
from rung.recipe import Recipe
from rung.training.clock import MIN_TRAINING_SHARE, now
from rung.training.measure import measure_step
from rung.training.settings import TrainSettings
from rung.workflows.difficulty import Counted, count_text

logger = logging.getLogger(__name__)

WIDTHS = range(64, 2049, 32)
WIDTH_OF_A_LAYER = 64  # as many layers as these fit into the width, and no fewer than four
LAYERS = 4
# Times as many weights as are measured, or as few, may be chosen: further out the pace is not
# known.
NEAR = 8
LEAST_SLOPE = (
    0.3  # of a step's time grows with the weights, whatever a stray pause made of the measurement
)
MEASURED = 0.1  # of the time, at the most, goes into measuring, unless a single step takes longer
COUNTED = 0.05  # of the time, at the most, into counting
HELD_BACK = 0.03  # of the time: for evaluations, checkpoints, samples
OVERFITTING = 4.0  # epochs from which dropout is worth its noise
DROPOUT = 0.1


@dataclass(frozen=True)
class Law:
    """Bits per byte over those that counting finds: floor + size / (N / 1e6)^a + data / (D /
    1e6)^b.

    N are weights, D tokens (Hoffmann et al. 2022, section 3.3). Tokens read again count for less
    and less: `patience` epochs of them are worth as many new ones, however many follow (Muennighoff
    et al. 2023, section 5). Of what copying gains over an n-gram model, a share of `copying`
    counts.
    """

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float
    patience: float
    copying: float

    def begin(self, counted: Counted) -> float:
        """The bits per byte that the others are a multiple of."""
        return counted.plain ** (1 - self.copying) * counted.copying**self.copying

    def __call__(self, parameters: float, tokens: float, text: float) -> float:
        """For `tokens` read of a text of `text` tokens."""
        again = max(0.0, tokens / text - 1)
        worth = min(tokens, text) + text * self.patience * (1 - math.e ** (-again / self.patience))
        return (
            self.floor
            + self.size * (parameters / 1e6) ** -self.size_power
            + self.data * (worth / 1e6) ** -self.data_power
        )


# By whether there is dropout.
_PLAIN = Law(
    floor=0.703,
    size=0.0531,
    size_power=0.34,
    data=0.2077,
    data_power=0.28,
    patience=4.6644,
    copying=0.6296,
)
_NOISY = replace(_PLAIN, data=0.2129, patience=5.0909)
LAWS: dict[str, dict[bool, Law]] = {"llama3": {False: _PLAIN, True: _NOISY}}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be trained, and what to expect of it on the validation text that training
    watches.
    """

    parameters: int
    hidden_size: int
    layers: int | None
    tokens: int  # to be read
    tokens_per_second: float
    epochs: float
    dropout: float
    bits_per_byte: float
    ngram_bits_per_byte: float
    copying_bits_per_byte: float
    seconds: float = 0.0  # that it took to find out

    def describe(self) -> str:
        """In a line."""
        shape = f"{self.hidden_size} wide" + (f", {self.layers} layers" if self.layers else "")
        again = f", {self.epochs:.1f} epochs" if self.epochs > 1 else ""
        watch = (
            f"; the text is small for this time: dropout {self.dropout:g}" if self.dropout else ""
        )
        return (
            f"{self.parameters / 1e6:.2f} M weights ({shape}), {self.tokens / 1e6:,.2f} M tokens "
            f"of training at "
            f"{self.tokens_per_second:,.0f}/s{again}{watch}; expecting {self.bits_per_byte:.3f} "
            f"bits per byte"
        )


def turn_dial(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    folder: Path,
    watched: Sequence[str],
    began: float | None = None,
) -> tuple[Recipe, Plan | None]:
    """The recipe with the size that its minutes buy here, and the plan; None where there is nothing
    to choose.

    The minutes count from `began`, else from now; measuring takes a share of them, and where a step
    is too slow for that, what it takes is a guess. `watched` is the text that training watches. Of
    several processes all call this: they measure together; the main one, which alone has that text,
    counts and chooses.
    """
    given = recipe.base or "hidden_size" in recipe.model
    if recipe.minutes is None or recipe.rung not in LAWS or given:
        return recipe, None
    started, budget = now(), 60 * recipe.minutes
    ends = (started if began is None else began) + budget
    reach = recipe.model["max_position_embeddings"]
    counted = _try_to_count(tokenizer, packed, watched, reach, COUNTED * budget)
    if counted is None:
        return recipe, None
    guess = suggest_parameters(recipe.minutes)
    while True:
        shapes = list(_shapes(recipe, tokenizer, guess))
        pace = _find_pace(recipe, tokenizer, packed, folder, shapes, guess)
        left = distributed.broadcast(
            max((ends - now()) * (1 - HELD_BACK), MIN_TRAINING_SHARE * budget)
        )
        planned, plan = _choose(recipe, shapes, pace, left, counted, len(packed))
        spent = distributed.broadcast(now() - started)
        if (
            plan.parameters < shapes[-1][1]
            or plan.hidden_size == WIDTHS[-1]
            or spent > MEASURED * budget
        ):
            return planned, replace(plan, seconds=spent)
        guess = (
            plan.parameters
        )  # the largest of those near the guess: on so fast a machine, look further


@distributed.on_main
def _choose(
    recipe: Recipe,
    shapes: list[tuple[int, int]],
    pace: Callable[[int], float],
    seconds: float,
    counted: Counted,
    text: int,
) -> tuple[Recipe, Plan]:
    """The shape from which the law expects most in the seconds that are left."""

    def find_dropout(parameters: int) -> float:
        return recipe.dropout or (
            DROPOUT if seconds / pace(parameters) > OVERFITTING * text else 0.0
        )

    def expect(shape: tuple[int, int]) -> float:
        law = LAWS[recipe.rung][find_dropout(shape[1]) > 0]
        return law(shape[1], seconds / pace(shape[1]), text) * law.begin(counted)

    width, parameters = min(shapes, key=expect)
    tokens = seconds / pace(parameters)
    planned = replace(_with_width(recipe, width), dropout=find_dropout(parameters))
    return planned, Plan(
        parameters=parameters,
        hidden_size=width,
        layers=planned.model.get("num_hidden_layers"),
        tokens=round(tokens),
        tokens_per_second=tokens / seconds,
        epochs=tokens / text,
        dropout=planned.dropout,
        bits_per_byte=expect((width, parameters)),
        ngram_bits_per_byte=counted.plain,
        copying_bits_per_byte=counted.copying,
    )


@distributed.on_main
def _try_to_count(
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    texts: Sequence[str],
    reach: int,
    seconds: float,
) -> Counted | None:
    try:
        return count_text(tokenizer, packed, texts, reach, seconds)
    except Exception as error:  # whatever it is, what to expect of a run must not cost the run
        logger.warning(
            "the text could not be counted (%s): the size follows from the minutes alone", error
        )
        return None


def _with_width(recipe: Recipe, width: int) -> Recipe:
    model = {**recipe.model, "hidden_size": width}
    if recipe.rung in TRANSFORMER_RUNGS and not {"num_hidden_layers", "n_layer"} & set(model):
        model["num_hidden_layers"] = max(LAYERS, width // WIDTH_OF_A_LAYER)
    return replace(recipe, model=model)


def _build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, width: int) -> CausalModel:
    return build_model(
        recipe.rung, make_config(recipe.rung, tokenizer, _with_width(recipe, width).model)
    )


def _shapes(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, guess: int
) -> Iterator[tuple[int, int]]:
    """Widths, and how many weights a model as wide has, not too far from those that are
    measured.
    """
    for width in WIDTHS:
        with torch.device("meta"):
            parameters = count_parameters(_build(recipe, tokenizer, width))
        if parameters >= guess * NEAR and width > WIDTHS.start:
            return
        if parameters > guess / NEAR:
            yield width, parameters


def _find_pace(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    folder: Path,
    shapes: list[tuple[int, int]],
    guess: int,
) -> Callable[[int], float]:
    """Seconds a token by the number of weights: a line through two that were measured, by all
    processes together.

    Where the small one takes too long to measure, the other is taken to be slower by its size.
    """
    began, most = now(), MEASURED / 2 * 60 * (recipe.minutes or math.inf)
    settings = TrainSettings(
        minutes=recipe.minutes,
        arguments=recipe.train,
        global_batch_size=recipe.global_batch_size,
        seed=recipe.seed,
    )
    tokens = (recipe.global_batch_size or 1) * recipe.model["max_position_embeddings"]  # a step
    measured = []
    for target in (guess / 2, guess * 2):
        width, parameters = min(shapes, key=lambda shape: abs(shape[1] - target))
        model = _build(recipe, tokenizer, width).to(choose_device())
        measured.append(
            (parameters, measure_step(model, tokenizer, packed, folder, settings) / tokens)
        )
        if distributed.broadcast(now() - began > most):
            break
    (small, fast), (large, slow) = measured[0], measured[-1]
    if len(measured) == 1:
        return lambda parameters: fast * parameters / small
    slope = max((slow - fast) / max(1, large - small), LEAST_SLOPE * fast / small)
    return lambda parameters: max(fast + slope * (parameters - small), fast / 4)


def suggest_parameters(minutes: float) -> int:
    """How many weights to train in so many minutes on a laptop, before anything is measured: 0.9
    million in 75 s.
    """
    return round(0.9e6 * math.sqrt(minutes / 1.25))
