"""What a recipe may set of `TrainingArguments`: rung does it, or refuses it with the reason."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from rung.errors import RecipeError
from rung.models import RUNGS
from rung.recipe import make_recipe
from rung.training.argument_checks import (
    REFUSED_ARGUMENTS,
    check_arguments,
    check_gradient_checkpointing,
)
from rung.training.arguments import make_training_arguments
from rung.training.settings import TrainSettings

# What the Trainer, or rung in its place, does; a field that a new transformers brings is added here
# once that is seen, or refused with the reason.
DONE = {
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "average_tokens_across_devices",
        "num_train_epochs",
    ),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    *(
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
    ),
    *(
        "optim_target_modules",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
    ),
    *("bf16", "fp16", "tf32", "full_determinism", "use_cpu", "use_cache", "neftune_noise_alpha"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *(
        "gradient_checkpointing_kwargs",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ),
    *("use_liger_kernel", "liger_kernel_config", "torch_empty_cache_steps"),
    *(
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_on_each_node",
        "logging_nan_inf_filter",
    ),
    *(
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "debug",
        "skip_memory_metrics",
    ),
    *(
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
    ),
    *("save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
    *("accelerator_config", "parallelism_config", "train_sampling_strategy"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *(
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
    ),
    *("ddp_timeout", "fsdp", "fsdp_config", "deepspeed"),
}


def test_every_field_of_the_trainers_is_done_or_refused():
    assert {f.name for f in fields(TrainingArguments)} - DONE == set(REFUSED_ARGUMENTS) - {
        "warmup_ratio"
    }
    assert not DONE & set(REFUSED_ARGUMENTS)


@pytest.mark.parametrize("key", REFUSED_ARGUMENTS)
def test_what_is_refused_says_why(key):
    with pytest.raises(RecipeError, match=f"train.{key} cannot be set: [a-zA-Z`]"):
        make_recipe({"rung": "gpt2", "train": {key: 1}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": "fast"}, "train.learning_rate is 'fast': it must be a number"),
        ({"learning_rate": -1e-3}, "train.learning_rate is -0.001: it must be 0 or more"),
        ({"learning_rate": float("nan")}, "train.learning_rate is nan: it must be 0 or more"),
        ({"learning_rate": float("inf")}, "train.learning_rate is inf: it must be 0 or more"),
        ({"adam_beta2": 1}, "train.adam_beta2 is 1: it must be from 0 up to 1"),
        ({"per_device_train_batch_size": 1.5}, "it must be a whole number"),
        ({"per_device_train_batch_size": 0}, "it must be 1 or more"),
        ({"gradient_accumulation_steps": True}, "it must be a whole number"),
        ({"num_train_epochs": 0}, "train.num_train_epochs is 0: it must be above 0"),
        ({"save_total_limit": "two"}, "it must be a whole number"),
        ({"bf16": "maybe"}, "train.bf16 is 'maybe': it must be true or false"),
        (
            {"lr_scheduler_type": "cosin"},
            "train.lr_scheduler_type is 'cosin': did you mean 'cosine'?",
        ),
        ({"optim": "adamw_torh"}, "train.optim is 'adamw_torh': did you mean 'adamw_torch'?"),
        (
            {"torch_compile_mode": "fast"},
            "train.torch_compile_mode is 'fast': choose from default, reduce-overhead",
        ),
        ({"run_name": 7}, "train.run_name is 7: it must be a text"),
        ({"report_to": 7}, "train.report_to is 7: it must be a name, or a list of names"),
        ({"log_level": "loud"}, "train.log_level is 'loud': choose from detail, debug, info"),
        (
            {"dataloader_multiprocessing_context": "spwan"},
            "_context is 'spwan': did you mean 'spawn'?",
        ),
        ({"optim": "sgd", "optim_target_modules": "all-linear"}, "'all-linear': sgd takes none"),
        ({"optim_args": "a=1"}, "Muon takes embedding_lr_scale=NUMBER alone"),
        ({"optim_args": "embedding_lr_scale=0"}, "is 'embedding_lr_scale=0': Muon takes"),
        ({"optim_args": "embedding_lr_scale"}, "is 'embedding_lr_scale': Muon takes"),
        ({"optim_args": "embedding_lr_scale=nan"}, "is 'embedding_lr_scale=nan': Muon takes"),
        ({"optim": "muon", "optim_target_modules": "all"}, "Muon takes none"),
    ],
)
def test_values_that_no_training_can_have_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        check_arguments(arguments)


LATE = [  # what the Trainer makes only when training begins
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
        "kwargs.num_cycle: .* 'num_cycles'",
    ),
    (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 2}},
        "schedule constant takes no such .*; leave",
    ),
    (
        {"lr_scheduler_kwargs": {"num_decay_step": 2}},
        "warmup_stable_decay takes no such .* 'num_decay_steps'",
    ),
    ({"lr_scheduler_kwargs": 5}, "train.lr_scheduler_kwargs is 5: it must be a mapping"),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}},
        "is cosine, lr_scheduler_kwargs",
    ),
    (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "lr_scheduler_type is cosine_with_min_lr: One of",
    ),
    (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patient": 1}},
        "argument 'patient'",
    ),
    ({"optim": "sgd", "optim_args": "momentum"}, "train.optim_args is 'momentum': write key=value"),
    (
        {"optim": "sgd", "optim_args": {"momentum": 0.9}},
        "optim_args is {'momentum': 0.9}: it must be a text",
    ),
    (
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        "has momentun=0.9, which sgd does not read: leave it out",
    ),
    (
        {"optim": "sgd", "optim_args": "momentum=much"},
        "train.optim is sgd, optim_args momentum=much: could not conv",
    ),
    (
        {"optim": "sgd", "optim_args": "momentum=-1"},
        "train.optim is sgd, optim_args momentum=-1: Invalid momentum",
    ),
    (
        {"optim": "adamw_torch", "optim_args": "beta1=0.9"},
        "has beta1=0.9, which adamw_torch does not read",
    ),
    ({"optim": "galore_adamw"}, "train.optim is galore_adamw: You need"),
    (
        {"torch_compile_backend": "inductr"},
        "train.torch_compile_backend is 'inductr': did you mean 'inductor'?",
    ),
    ({"accelerator_config": {"split": True}}, "train: .*'split'"),
    ({"accelerator_config": "nowhere.json"}, "train: .*nowhere.json"),
]


@pytest.mark.parametrize(("arguments", "message"), LATE)
def test_what_would_fail_when_training_begins_is_refused_before(arguments, message, tmp_path):
    with pytest.raises(RecipeError, match=message) as caught:
        make_training_arguments(TrainSettings(steps=9, arguments=arguments), tmp_path, 9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"lr_scheduler_kwargs": {"num_decay_steps": 3, "decay_type": "linear"}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 1}},
        {"optim": "sgd", "optim_args": "momentum=0.1, nesterov=true,dampening=0"},
        {"optim": "rmsprop", "optim_args": "centered=false"},
        {"optim": "adafactor"},
    ],
)
def test_what_the_trainer_takes_is_taken(arguments, tmp_path):
    make_training_arguments(TrainSettings(steps=9, arguments=arguments), tmp_path, 9)


def test_what_a_field_may_leave_open_may_be_said_to_be_open():
    check_arguments(
        {"save_total_limit": None, "neftune_noise_alpha": None, "tf32": None, "eval_steps": 10}
    )


@pytest.mark.parametrize("value", [True, "full_shard auto_wrap"])
def test_sharding_is_asked_for_by_true_or_by_its_options(value):
    check_arguments({"fsdp": value})


@pytest.mark.parametrize("rung", ["bigram", "ngram"])
@pytest.mark.parametrize(
    "page",
    [{"train": {"learning_rate": 1e-3}}, {"steps": 5}, {"dropout": 0.1}, {"global_batch_size": 8}],
)
def test_what_only_training_heeds_is_refused_for_a_rung_that_counts(rung, page):
    with pytest.raises(
        RecipeError, match="is fitted by counting in one pass, without steps: leave it out"
    ):
        make_recipe({"rung": rung, **page})


@pytest.mark.parametrize("name", ["rnn", "rnn-attention"])
@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_a_recurrence_has_no_layers_to_compute_again(name, key):
    with pytest.raises(
        RecipeError, match=f"train.{key} is True: {name} cannot train so.* gpt2, llama3 can"
    ):
        make_recipe({"rung": name}, [f"{key}=true"])
    check_gradient_checkpointing("rnn", RUNGS["rnn"].model_class, {key: False})
