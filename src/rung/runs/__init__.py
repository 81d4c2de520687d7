"""A run is a folder: a Hugging Face model, and the record of how it was made."""

from rung.model_files import CHECKPOINTS, METRICS, RECORD
from rung.runs.doubts import (
    MIN_TRAINING_STEPS,
    describe_busy_machine,
    explain_doubtful_score,
    explain_doubtful_scores,
)
from rung.runs.folder import (
    HOLDER,
    LOCK,
    RESUME_PATTERNS,
    explain_missing_model,
    explain_missing_weights,
    explain_unfinished,
    holds_only_failure,
    list_contents,
    make_folder,
    remove_failed_start,
    save_model,
)
from rung.runs.lock import (
    check_unlocked,
    lock_folder,
)
from rung.runs.metrics import (
    SAMPLES,
    append_metrics,
    read_metrics,
    rewind_logs,
)
from rung.runs.record import (
    MAX_PROMPT_CHARACTERS,
    find_record,
    find_run_folder,
    find_runs,
    find_training_record,
    is_finished,
    read_passage,
    read_prompt,
    read_record,
    read_record_or_failure,
    write_record,
)

__all__ = [
    "CHECKPOINTS",
    "HOLDER",
    "LOCK",
    "MAX_PROMPT_CHARACTERS",
    "METRICS",
    "MIN_TRAINING_STEPS",
    "RECORD",
    "RESUME_PATTERNS",
    "SAMPLES",
    "append_metrics",
    "check_unlocked",
    "describe_busy_machine",
    "explain_doubtful_score",
    "explain_doubtful_scores",
    "explain_missing_model",
    "explain_missing_weights",
    "explain_unfinished",
    "find_record",
    "find_run_folder",
    "find_runs",
    "find_training_record",
    "holds_only_failure",
    "is_finished",
    "list_contents",
    "lock_folder",
    "make_folder",
    "read_metrics",
    "read_passage",
    "read_prompt",
    "read_record",
    "read_record_or_failure",
    "remove_failed_start",
    "rewind_logs",
    "save_model",
    "write_record",
]
