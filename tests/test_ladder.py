"""The ladder: its names have one home, and it is the models that they name."""

import subprocess
import sys

from rung.ladder import COUNTING_RUNGS, IDEAS, LADDER, OFF_LADDER, TRANSFORMER_RUNGS, is_counting
from rung.models import RUNGS


def test_the_rungs_are_six_in_order():
    assert LADDER == ("bigram", "ngram", "rnn", "rnn-attention", "gpt2", "llama3")
    assert set(LADDER) | set(OFF_LADDER) == set(IDEAS)
    assert not set(LADDER) & set(OFF_LADDER)


def test_every_name_is_a_model_and_every_model_has_a_name():
    assert tuple(RUNGS) == (*LADDER, *OFF_LADDER)
    assert {name: rung.idea for name, rung in RUNGS.items()} == {n: IDEAS[n] for n in RUNGS}


def test_the_models_that_can_be_fitted_are_those_that_count():
    able = {name for name, rung in RUNGS.items() if hasattr(rung.model_class, "fit")}
    assert able == set(COUNTING_RUNGS) == {name for name in RUNGS if is_counting(name)}
    assert able == {name for name, rung in RUNGS.items() if rung.counts}
    assert not is_counting("llama3-8b")


def test_a_transformer_has_heads_and_no_state_to_carry():
    configs = {name: rung.config_class() for name, rung in RUNGS.items()}
    heads = {name for name, config in configs.items() if hasattr(config, "num_attention_heads")}
    recurrent = {name for name, rung in RUNGS.items() if rung.model_class.can_carry_state}
    assert set(TRANSFORMER_RUNGS) == heads - recurrent - {"rnn-attention"}


def test_importing_it_imports_no_torch():
    code = "import sys, rung.ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
