"""Fit a model to the minutes: choose the size that a scaling law expects most of.

Real steps of two models say how fast this machine is, counting says how hard the text is, and a
scaling law says what a model of so many weights learns from so many tokens (scaling.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rung import distributed
from rung.compiler import compile_source
from rung.data.tokenizer import required_vocab_size
from rung.device import avoid_busy_cores, choose_device
from rung.evaluation.score import score_documents
from rung.generation.native import STEP_SOURCE
from rung.ladder import TRANSFORMER_RUNGS
from rung.models import (
    build_model,
    count_hidden_parameters,
    count_parameters,
    find_hidden_size,
    make_config,
)
from rung.models.base import CausalModel
from rung.models.fused import SOURCE as FUSED_SOURCE
from rung.models.ngram.teacher import MAX_VOCABULARY
from rung.progress import OnProgress, Progress
from rung.recipe import Recipe
from rung.training.clock import MIN_TRAINING_SHARE, now
from rung.training.distillation import NGRAM, READ_SHARE, list_runs
from rung.training.measure import measure_step
from rung.training.settings import TrainSettings
from rung.workflows.difficulty import Difficulty, find_difficulty
from rung.workflows.prepare import (
    CONTEXT,
    DEFAULT_MINUTES,
    PreparedText,
    choose_learning_rate,
    sample_validation,
)
from rung.workflows.scaling import SCALING_LAWS, SMALLEST_TEXT, RungLaws, Shape
from rung.workflows.training_plan import TrainingPlan

WIDTH_FIELDS = {"hidden_size", "n_embd"}
# A transformer has a layer for so much of its width, and no fewer than `LAYERS`.
WIDTH_OF_A_LAYER = 64
LAYERS = 2
# Sizes up to so many times larger or smaller than those measured may be chosen: further out the
# speed is not known.
NEAR = 8
# A machine that was busy when it was measured may turn out to be so many times faster.
FASTER = 8
# The least share of a step's time that grows with the weights, where a stray pause spoiled the
# measurement.
LEAST_SLOPE = 0.3
# The most of the time that measuring takes, unless a single step takes longer; and counting.
MEASURED = 0.1
COUNTED = 0.05
# The share of the time that is left for evaluations, checkpoints and samples.
HELD_BACK = 0.03
# Evaluations that a run of any length makes: before its first step, and after its last.
EVALUATIONS = 2
# An evaluation is timed on one part in so many of each document that is scored in one.
TIMED_PART = 4
# The time that a rung needs is found to within this factor, up to so many seconds.
PRECISION, LONGEST = 1.05, 86_400


def fit_budget(prepared: PreparedText, on_progress: OnProgress) -> PreparedText:
    """Choose the model's size and its learning rate, where open. All processes call this."""
    if prepared.recipe.entry.counts:
        return prepared
    avoid_busy_cores()
    on_progress(Progress(stage="measuring"))
    _compile_kernels(prepared.recipe.rung)
    recipe, plan = plan_model(prepared)
    if plan:
        on_progress(Progress(stage="planned", note=plan.describe()))
        recipe = choose_teacher(recipe, prepared, plan.tokens)
        if recipe.teacher == NGRAM:
            on_progress(Progress(stage="noted", note="an n-gram model of the unread text teaches"))
        if shortage := plan.describe_shortage():
            on_progress(Progress(stage="noted", note=shortage))
    recipe = choose_width(recipe, prepared.tokenizer, len(prepared.packed))
    recipe = choose_learning_rate(recipe)
    return replace(prepared, recipe=recipe, plan=plan)


def _compile_kernels(rung: str) -> None:
    """Compile the C that training and sampling call, once on a machine.

    It takes seconds. At its first use they would count as those of a step, and of each evaluation.
    """
    if choose_device().type != "cpu":
        return
    compile_source(FUSED_SOURCE)
    if rung in TRANSFORMER_RUNGS:
        compile_source(STEP_SOURCE)


def choose_teacher(recipe: Recipe, prepared: PreparedText, tokens: int) -> Recipe:
    """Give a run that is to read a small part of its text an n-gram model as teacher.

    That is where the recipe leaves it open, and on one CPU process alone.
    """
    is_part = max(tokens, _find_context(recipe)) < READ_SHARE * len(prepared.packed)
    is_small = required_vocab_size(prepared.tokenizer) <= MAX_VOCABULARY
    is_alone = distributed.world_size() == 1 and choose_device().type == "cpu"
    can_have_one = recipe.rung in TRANSFORMER_RUNGS and is_part and is_small and is_alone
    return replace(recipe, teacher=NGRAM) if can_have_one and not recipe.teacher else recipe


def choose_width(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Recipe:
    """Choose the width where it is still open: the one for the minutes, or for the default ones.

    A text of so few `tokens` that it cannot feed as many weights has a narrower one.
    """
    given = recipe.base or WIDTH_FIELDS & set(recipe.model)
    if recipe.entry.counts or given:
        return recipe
    target = suggest_parameters(recipe.minutes or DEFAULT_MINUTES)
    if recipe.rung in SCALING_LAWS:
        target = min(target, SCALING_LAWS[recipe.rung].count_most_parameters(tokens))
    width = find_hidden_size(recipe.rung, tokenizer, target, recipe.model)
    return replace(recipe, model={**recipe.model, "hidden_size": width})


def plan_model(prepared: PreparedText) -> tuple[Recipe, TrainingPlan | None]:
    """Choose the size that the recipe's minutes buy on this machine, and say what to expect of it.

    The plan is None where there is nothing to choose. The minutes count from `prepared.began`;
    measuring takes a share of them. All processes call this: they measure together, and the main
    one, which alone has the text, counts and chooses.
    """
    recipe = prepared.recipe
    given = recipe.base or WIDTH_FIELDS & set(recipe.model)
    if recipe.minutes is None or recipe.rung not in SCALING_LAWS or given:
        return recipe, None
    started, budget = now(), 60 * recipe.minutes
    difficulty = _find_difficulty(prepared, COUNTED * budget)
    if difficulty is None:
        return recipe, None
    guess = suggest_parameters(recipe.minutes)
    while True:
        forecast = measure_forecast(prepared, difficulty, guess)
        planned, plan, spent = _choose(prepared, forecast, started)
        is_inside = plan.parameters < forecast.shapes[-1].parameters or forecast.has_largest
        if is_inside or spent > MEASURED * budget:
            return planned, replace(plan, seconds=spent)
        # On so fast a machine the largest near the guess was chosen: look further.
        guess = plan.parameters


@dataclass(frozen=True)
class Speed:
    """What training was measured to take: seconds a token, and beside its steps.

    `seconds_per_token` is a function of the number of weights; `overhead` is the seconds that the
    Trainer's start, the first and last evaluation and the scoring take.
    """

    seconds_per_token: Callable[[int], float]
    overhead: float


@dataclass(frozen=True)
class Forecast:
    """What a rung's laws expect of its shapes on one machine and a text of `text` tokens.

    `has_largest` is whether the last of the shapes is the largest that the rung may have.
    """

    recipe: Recipe
    shapes: list[Shape]
    has_largest: bool
    speed: Speed
    difficulty: Difficulty
    text: int

    @property
    def laws(self) -> RungLaws:
        """The laws of the rung."""
        return SCALING_LAWS[self.recipe.rung]

    @property
    def has_law(self) -> bool:
        """Whether the text is as large as those that the laws are about."""
        return self.text >= SMALLEST_TEXT

    @property
    def most_tokens(self) -> float:
        """The tokens of all the epochs that a run may have, which end it before its minutes do."""
        return self.recipe.train.get("num_train_epochs", self.laws.most_epochs) * self.text

    def count_tokens(self, shape: Shape, seconds: float) -> float:
        """Count the tokens that are read in so many seconds of training, or in all epochs."""
        return min(self.most_tokens, seconds / self.speed.seconds_per_token(shape.parameters))

    def count_epochs(self, shape: Shape, seconds: float) -> float:
        """Count how often the text is read in so many seconds of training."""
        return self.count_tokens(shape, seconds) / self.text

    def find_dropout(self, shape: Shape, seconds: float) -> float:
        """Return the recipe's dropout, or one where text is read again and again."""
        return self.recipe.dropout or self.laws.find_dropout(self.count_epochs(shape, seconds))

    def find_arguments(self, shape: Shape, seconds: float) -> dict[str, Any]:
        """Return the recipe's `train`, with what a text wants that is read again and again."""
        epochs, most = self.count_epochs(shape, seconds), self.laws.most_epochs
        decay = self.laws.find_weight_decay(epochs)
        end = {"num_train_epochs": most} if epochs > most / FASTER else {}
        return ({"weight_decay": decay} if decay else {}) | end | self.recipe.train

    def expect(self, shape: Shape, seconds: float) -> float:
        """Return the bits per byte to expect after so many seconds of training."""
        law = self.laws.law
        multiple = law(law.count(shape), self.count_tokens(shape, seconds), self.text)
        return multiple * law.reference(self.difficulty)

    def choose(self, seconds: float) -> Shape:
        """Choose the shape of which most is expected."""
        return min(self.shapes, key=lambda shape: self.expect(shape, seconds))

    def find_minutes(self, bits_per_byte: float, overhead: float) -> float | None:
        """Find the minutes, `overhead` seconds among them, from which on less is expected.

        Returns None where that takes more than a day, or more text.
        """
        seconds = 1.0
        while self.expect(self.choose(seconds), seconds) > bits_per_byte:
            seconds *= PRECISION
            if seconds > LONGEST:
                return None
        return (seconds + overhead) / 60


def measure_forecast(prepared: PreparedText, difficulty: Difficulty, guess: int) -> Forecast:
    """Measure this machine on shapes near `guess` weights. All processes measure together."""
    text = len(prepared.packed)
    shapes, has_largest = _find_shapes(prepared, guess)
    speed = _measure_speed(prepared, shapes, guess)
    return Forecast(prepared.recipe, shapes, has_largest, speed, difficulty, text)


@distributed.on_main
def _choose(
    prepared: PreparedText, forecast: Forecast, started: float
) -> tuple[Recipe, TrainingPlan, float]:
    """Choose the shape of which the law expects most in the seconds that are left.

    Returns the recipe, the plan, and the seconds that planning has taken since `started`.
    """
    recipe, budget = prepared.recipe, 60 * (prepared.recipe.minutes or 0.0)
    left = prepared.began + budget - now() - forecast.speed.overhead
    seconds = max(left * (1 - HELD_BACK), MIN_TRAINING_SHARE * budget)
    shape = forecast.choose(seconds)
    tokens, dropout = forecast.count_tokens(shape, seconds), forecast.find_dropout(shape, seconds)
    train = forecast.find_arguments(shape, seconds)
    planned = replace(_with_width(recipe, shape.width), dropout=dropout, train=train)
    plan = TrainingPlan(
        parameters=shape.parameters,
        hidden_size=shape.width,
        layers=planned.model.get("num_hidden_layers") or planned.model.get("n_layer"),
        tokens=round(tokens),
        tokens_per_second=1 / forecast.speed.seconds_per_token(shape.parameters),
        epochs=forecast.count_epochs(shape, seconds),
        dropout=planned.dropout,
        weight_decay=planned.train.get("weight_decay"),
        bits_per_byte=forecast.expect(shape, seconds) if forecast.has_law else None,
        ngram_bits_per_byte=forecast.difficulty.ngram,
        copying_bits_per_byte=forecast.difficulty.copying,
        whole_ngram_bits_per_byte=forecast.difficulty.whole,
        minutes=budget / 60,
        ends_early="num_train_epochs" not in recipe.train and tokens >= forecast.most_tokens,
        pays_from=forecast.find_minutes(forecast.difficulty.whole, budget - seconds),
    )
    return planned, plan, now() - started


@distributed.on_main
def _find_difficulty(prepared: PreparedText, seconds: float) -> Difficulty | None:
    # The laws were fitted on what copying gains over a row of the default length, or a longer one.
    reach = max(CONTEXT, _find_context(prepared.recipe))
    return find_difficulty(prepared, reach, seconds)


def _find_context(recipe: Recipe) -> int:
    """Return the tokens of a training row, under either of the names that GPT-2 has for it."""
    return int(recipe.model.get("n_positions") or recipe.model["max_position_embeddings"])


def _with_width(recipe: Recipe, width: int) -> Recipe:
    model = {**recipe.model, "hidden_size": width}
    if recipe.rung in TRANSFORMER_RUNGS and not {"num_hidden_layers", "n_layer"} & set(model):
        model["num_hidden_layers"] = max(LAYERS, width // WIDTH_OF_A_LAYER)
    return replace(recipe, model=model)


def _build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, width: int) -> CausalModel:
    return build_model(
        recipe.rung, make_config(recipe.rung, tokenizer, _with_width(recipe, width).model)
    )


def _find_shapes(prepared: PreparedText, guess: int) -> tuple[list[Shape], bool]:
    """Find shapes of not too many more or fewer weights than the `guess`.

    Returns them, and whether the last one is the largest that the text can feed. There is always
    one.
    """
    laws, shapes = SCALING_LAWS[prepared.recipe.rung], list[Shape]()
    most = laws.count_most_parameters(len(prepared.packed))
    for width in laws.widths:
        with torch.device("meta"):
            model = _build(prepared.recipe, prepared.tokenizer, width)
        shape = Shape(width, count_parameters(model), count_hidden_parameters(model))
        if shapes and shape.parameters > min(most, guess * NEAR):
            return shapes, shape.parameters > most
        if shape.parameters > min(most, guess) / NEAR or width == laws.widths[-1]:
            shapes.append(shape)
    return shapes, True


def _measure_speed(prepared: PreparedText, shapes: list[Shape], guess: int) -> Speed:
    """Measure steps of two models, on all processes together.

    The seconds a token are a line through the two. Where the small one takes too long to measure,
    they are taken to grow in proportion to its weights.
    """
    recipe, began = prepared.recipe, now()
    most = MEASURED / 2 * 60 * (recipe.minutes or math.inf)
    tokens = (recipe.global_batch_size or 1) * _find_context(recipe)  # a step
    measured: list[tuple[int, float]] = []
    start = evaluating = 0.0
    for target in (guess / 2, guess * 2):
        shape = _find_nearest(shapes, target)
        model = _build(recipe, prepared.tokenizer, shape.width).to(choose_device())
        step, start = _measure_steps(prepared, model)
        # Once, on the smaller model: on the larger it takes four times as long.
        evaluating = evaluating or _measure_evaluation(prepared, model)
        measured.append((shape.parameters, step / tokens))
        if distributed.broadcast(now() - began > most):
            break
    overhead = start + evaluating
    (small, fast), (large, slow) = measured[0], measured[-1]
    if len(measured) == 1:
        return Speed(lambda parameters: fast * parameters / small, overhead)
    slope = max((slow - fast) / max(1, large - small), LEAST_SLOPE * fast / small)
    return Speed(lambda parameters: max(fast + slope * (parameters - small), fast / 4), overhead)


def _find_nearest(shapes: list[Shape], parameters: float) -> Shape:
    return min(shapes, key=lambda shape: abs(shape.parameters - parameters))


def _measure_steps(prepared: PreparedText, model: CausalModel) -> tuple[float, float]:
    """Return the seconds of a step, and those that the Trainer takes to start."""
    recipe, began = prepared.recipe, now()
    settings = TrainSettings(
        minutes=recipe.minutes,
        arguments=recipe.train,
        global_batch_size=recipe.global_batch_size,
        seed=recipe.seed,
        # Runs that teach are asked at every step. An n-gram model fades, and takes little time.
        teacher=recipe.teacher if list_runs(recipe.teacher) else None,
    )
    step = measure_step(model, prepared.tokenizer, prepared.packed, prepared.folder, settings)
    return step.seconds, max(0.0, now() - began - step.measuring)


@distributed.on_main
def _measure_evaluation(prepared: PreparedText, model: CausalModel) -> float:
    """Return the seconds of all evaluations that a run makes whatever its length, scoring too."""
    assert prepared.corpus is not None
    texts = sample_validation(prepared.corpus)
    scored = [text[: math.ceil(len(text) / TIMED_PART)] for text in map(str.strip, texts)]
    began = now()
    score_documents(model.eval(), prepared.tokenizer, scored)
    seconds = now() - began
    size, evaluated = (sum(len(text.encode()) for text in each) for each in (scored, texts))
    return (EVALUATIONS * evaluated + prepared.corpus.bytes["test"]) / max(1, size) * seconds


def suggest_parameters(minutes: float) -> int:
    """Return how many weights to train in so many minutes on a laptop: 0.9 million in 75 s."""
    return round(0.9e6 * math.sqrt(minutes / 1.25))
