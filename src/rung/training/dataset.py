"""The rows that a model is trained on: blocks of the packed text, or streams side by side."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rung.data.packing import BlockDataset, PackedTokens, TBPTTDataset, TokenDataset
from rung.models.base import CausalModel
from rung.training.arguments import count_rows, make_training_arguments
from rung.training.settings import TrainSettings
from rung.training.tbptt import check_carry_state

DEFAULT_BLOCK_LENGTH = 256


def make_dataset(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
) -> TokenDataset:
    """Cut packed text into blocks, or into as many streams as a step has rows.

    Blocks that are read in order are the same in each epoch. A data set is returned as it is.
    accelerate deals whole batches in turn to the processes, and then to the batches that a step
    accumulates, so each of these has streams of its own.
    """
    if not isinstance(text, PackedTokens):
        return text
    length = find_block_length(model)
    if not settings.carry_state:
        in_order = settings.arguments.get("train_sampling_strategy") == "sequential"
        seed = None if in_order else settings.seed
        return BlockDataset(text, length, tokenizer.pad_token_id, seed)
    check_carry_state(type(model), settings.arguments)
    rows = count_rows(make_training_arguments(settings, folder, 1))
    return TBPTTDataset(text, length, tokenizer.pad_token_id, rows)


def find_block_length(model: CausalModel) -> int:
    """Return the number of tokens in a row that the model is trained on."""
    return (
        model.context_length
        or getattr(model.config, "max_position_embeddings", None)
        or DEFAULT_BLOCK_LENGTH
    )
