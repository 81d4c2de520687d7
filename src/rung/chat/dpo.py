"""Direct preference optimization: train on pairs of a better and a worse answer.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model".
"""

import functools
import itertools
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rung.chat.conversations import read_json_lines, read_turns
from rung.chat.template import Conversation, EncodedConversation, encode_conversations
from rung.data.files import hash_to_unit_interval
from rung.data.packing import IGNORE_INDEX
from rung.device import has_fast_bfloat16
from rung.errors import CorpusError
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress, ignore_progress

logger = logging.getLogger(__name__)

PAIRS_PER_STEP = 8
MIN_PREFERENCES = 2
HELD_OUT_PREFERENCES = 0.1  # of the pairs


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with its chosen answer and its rejected one."""

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True, kw_only=True)
class DPOSettings:
    """Settings of DPO; a larger `beta` keeps the model closer to what it was."""

    epochs: float = 1.0
    learning_rate: float = 1e-4
    beta: float = 0.1
    seed: int = 0


def read_preferences(path: Path) -> list[Preference]:
    """Read JSON lines of `prompt`, `chosen` and `rejected`: texts, or messages as in TRL's data.

    Without a `prompt`, the messages that `chosen` and `rejected` begin with in common are the
    prompt. Pairs of equal answers are left out, and the log says how many. Raises `CorpusError`
    where a line is no preference, or there are too few.
    """
    rows = read_json_lines(path, "preferences")
    read = [_read(row, f"{path}, preference {number}") for number, row in enumerate(rows, 1)]
    found = [preference for preference in read if preference.chosen != preference.rejected]
    if equal := len(read) - len(found):
        logger.warning(
            "%d preferences are left out: `chosen` and `rejected` are the same answer", equal
        )
    different = len(set(map(_name, found)))
    if different < MIN_PREFERENCES:
        raise CorpusError(
            f"{path} has {different} different preferences: at least {MIN_PREFERENCES} are needed"
        )
    return found


def split_preferences(
    preferences: Sequence[Preference],
) -> tuple[list[Preference], list[Preference]]:
    """Split the pairs for training from those held out, at least one of each."""
    places = [hash_to_unit_interval(_name(preference)) for preference in preferences]
    border = (
        HELD_OUT_PREFERENCES if min(places) <= HELD_OUT_PREFERENCES < max(places) else min(places)
    )
    kept = [p for p, place in zip(preferences, places, strict=True) if place > border]
    return kept, [p for p, place in zip(preferences, places, strict=True) if place <= border]


def _name(preference: Preference) -> str:
    """Return a key that preferences share which must be held out together."""
    return f"{preference.prompt} {preference.chosen}"


def _read(row: Any, where: str) -> Preference:
    fields = row if isinstance(row, dict) else {}
    if not {"chosen", "rejected"} <= fields.keys():
        raise CorpusError(f"{where}: it needs `prompt`, `chosen` and `rejected`, texts or messages")
    sides = [read_turns(fields[name], "assistant", where) for name in ("chosen", "rejected")]
    if "prompt" in fields:
        prompt = read_turns(fields["prompt"], "user", where)
        sides = [side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in sides]
    else:
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(*(side[:-1] for side in sides), strict=False)
        )
        prompt = [message for message, _ in pairs]
        sides = [side[len(prompt) :] for side in sides]
    if not prompt:
        raise CorpusError(
            f"{where}: it has no `prompt`, and `chosen` and `rejected` begin with no message in "
            "common"
        )
    if any([message["role"] for message in side] != ["assistant"] for side in sides):
        raise CorpusError(
            f"{where}: `chosen` and `rejected` must each be one answer of the assistant to the "
            "prompt"
        )
    return Preference(prompt=prompt, chosen=sides[0][0]["content"], rejected=sides[1][0]["content"])


def filter_by_length(
    tokenizer: PreTrainedTokenizerBase, preferences: Sequence[Preference], window: int | None
) -> list[Preference]:
    """Keep the pairs whose answers both begin within the context; the log counts the others.

    Raises `CorpusError` where there are too few.
    """
    if window is None:
        return list(preferences)
    kept, cuts = [], []
    for preference in preferences:
        sides = _write(tokenizer, preference)
        if all(any(said[1 : window + 1]) for _, said in sides):
            kept.append(preference)
            cuts.append(sum(len(ids) > window + 1 for ids, _ in sides))
    if len(set(map(_name, kept))) < MIN_PREFERENCES:
        raise CorpusError(
            f"of {len(preferences)} preferences {len(kept)} have answers that both begin within "
            f"the {window} tokens that the model looks at: at least {MIN_PREFERENCES} different "
            f"ones are needed; shorten what is asked"
        )
    if left_out := len(preferences) - len(kept):
        logger.warning(
            "%d preferences are left out: an answer begins beyond %d tokens", left_out, window
        )
    if cut := sum(map(bool, cuts)):
        one = cuts.count(1)
        logger.warning(
            "%d preferences are cut off after %d tokens, %d of them on one side", cut, window, one
        )
    return kept


def train_dpo(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Sequence[Preference],
    settings: DPOSettings,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Train `model` in place to make chosen answers likelier, and rejected ones less likely.

    The reference log probabilities are computed once before, so that no second model is in memory.
    """
    rows = [_encode(tokenizer, preference, model.context_length) for preference in preferences]
    collate = functools.partial(_collate, pad=tokenizer.pad_token_id)
    with torch.no_grad():
        for at in range(0, len(rows), PAIRS_PER_STEP):
            scores = answer_log_probs(model.eval(), collate(rows[at : at + PAIRS_PER_STEP]))
            for row, reference in zip(rows[at : at + PAIRS_PER_STEP], scores, strict=True):
                row["reference"] = reference.cpu()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=PAIRS_PER_STEP,
            bf16=has_fast_bfloat16(model.device),
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=model.device.type == "cuda",
            use_cache=True,  # as `make_training_arguments`
            seed=settings.seed,
        )
        trainer = _DPOTrainer(
            beta=settings.beta,
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            callbacks=[_ProgressCallback(on_progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def answer_log_probs(model: CausalModel, batch: dict[str, torch.Tensor]) -> Float[Tensor, "B 2"]:
    """Return the log probabilities of each pair's chosen and rejected answer."""
    ids, targets = (
        batch[name].flatten(0, 1).to(model.device) for name in ("input_ids", "targets")
    )  # 2B T
    logits = model(input_ids=ids, use_cache=False).logits.float()
    nats = F.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE_INDEX
    )
    return -nats.sum(-1).view(-1, 2)


def dpo_loss(
    scores: Float[Tensor, "B 2"], reference: Float[Tensor, "B 2"], beta: float
) -> Float[Tensor, ""]:
    """Return -log sigmoid(beta · (gain of the chosen - gain of the rejected)), equation 7."""
    gained = scores - reference
    return -F.logsigmoid(beta * (gained[:, 0] - gained[:, 1])).mean()


def preference_accuracy(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, preferences: Sequence[Preference]
) -> float:
    """Return the share of pairs whose chosen answer is likelier, per token."""
    better = 0
    for preference in preferences:
        batch = _collate(
            [_encode(tokenizer, preference, model.context_length)], tokenizer.pad_token_id
        )
        with torch.no_grad():
            scores = answer_log_probs(model, batch)[0] / (batch["targets"][0] != IGNORE_INDEX).sum(
                -1
            ).to(model.device)
        better += int(scores[0] > scores[1])
    return better / len(preferences)


class _DPOTrainer(Trainer):
    def __init__(self, *, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        return dpo_loss(answer_log_probs(model, inputs), inputs["reference"], self.beta)


class _ProgressCallback(TrainerCallback):
    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_progress(Progress("preferring", state.global_step, state.max_steps))


def _encode(
    tokenizer: PreTrainedTokenizerBase, preference: Preference, window: int | None
) -> dict[str, Any]:
    """Encode both answers after the prompt, cut at the end of the window."""
    end = window and window + 1
    return {"pair": [(ids[:end], said[:end]) for ids, said in _write(tokenizer, preference)]}


def _write(
    tokenizer: PreTrainedTokenizerBase, preference: Preference
) -> list[tuple[list[int], list[bool]]]:
    answers = (preference.chosen, preference.rejected)
    said = [[*preference.prompt, {"role": "assistant", "content": answer}] for answer in answers]
    return [
        (encoded.ids, _mask_prompt(encoded)) for encoded in encode_conversations(tokenizer, said)
    ]


def _mask_prompt(encoded: EncodedConversation) -> list[bool]:
    """Return a mask of the last answer only."""
    start = max(
        (
            i
            for i, said in enumerate(encoded.assistant_mask)
            if said and not encoded.assistant_mask[i - 1]
        ),
        default=0,
    )
    return [said and i >= start for i, said in enumerate(encoded.assistant_mask)]


def _collate(rows: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Batch `input_ids` and `targets` (B, 2, T), padded on the right, and `reference` (B, 2)."""
    width = max(len(ids) for row in rows for ids, _ in row["pair"]) - 1
    batch = torch.full((2, len(rows), 2, width), IGNORE_INDEX)
    batch[0] = pad
    for number, row in enumerate(rows):
        for side, (ids, said) in enumerate(row["pair"]):
            tokens = torch.tensor(ids)
            batch[0, number, side, : len(ids) - 1] = tokens[:-1]
            batch[1, number, side, : len(ids) - 1] = torch.where(
                torch.tensor(said)[1:], tokens[1:], IGNORE_INDEX
            )
    known = (
        {"reference": torch.stack([row["reference"] for row in rows])}
        if "reference" in rows[0]
        else {}
    )
    return {"input_ids": batch[0], "targets": batch[1], **known}
