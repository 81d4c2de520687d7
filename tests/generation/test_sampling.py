"""How the next token is chosen, beside a second writing of the same definitions in numpy."""

import dataclasses
import inspect
import itertools

import numpy
import pytest
import torch

from rung.cli.generate import generate_command as command
from rung.errors import RecipeError
from rung.generation.sampling import (
    MAX_REDRAWS,
    MIN_TEMPERATURE,
    MIN_TOP_P,
    RandomStream,
    Sampling,
    find_probabilities,
    sample_each,
    sample_tokens,
)

KINDS = [
    {"temperature": 1.3, "top_p": 1.0},
    {"temperature": 0.7, "top_p": 0.6},
    {"temperature": 0.9, "top_p": 0.05},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 5, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.3},
    {"temperature": 2.0, "top_k": 99, "top_p": 0.3},
    {"temperature": 0.0},
    {"temperature": MIN_TEMPERATURE * 0.9},
    {"temperature": 5.0, "top_p": MIN_TOP_P / 2},
]


def split_likely(shares, sampling):
    """Tokens and their weights by hand, the likeliest first, of those that top-k and then top-p
    leave.
    """
    likely = sorted(range(len(shares)), key=lambda token: -shares[token])
    if 0 < sampling.top_k < len(shares):
        likely = likely[: sampling.top_k]
    weights = shares[likely] / shares[likely].sum()
    before = weights.cumsum() - weights
    return [(likely[i], weight) for i, weight in enumerate(weights) if before[i] < sampling.top_p]


def pick(weights, number):
    """The place that a number from 0 to 1 falls on."""
    ends = numpy.cumsum(weights, dtype=float)
    return int((ends <= number * ends[-1]).sum())


def choose_by_hand(logits, sampling, numbers):
    """Sample with these numbers: from all tokens until one is within top-p, then from the top."""
    if sampling.temperature < MIN_TEMPERATURE or sampling.top_p < MIN_TOP_P:
        return int(logits.argmax())
    shares = (logits / sampling.temperature).softmax(-1).numpy()
    if not 0 < sampling.top_k < len(shares):
        for _ in range(MAX_REDRAWS + 1):
            token = pick(shares, next(numbers))
            if sampling.top_p == 1 or shares[shares > shares[token]].sum() < sampling.top_p:
                return token
    likely = split_likely(shares, sampling)
    return likely[pick([weight for _, weight in likely], next(numbers))][0]


def count_numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(1, dtype=torch.double, generator=generator).item()


def test_random_numbers_are_those_of_the_seed_in_order():
    draws = RandomStream(7)
    assert [draws.draw() for _ in range(150)] == list(itertools.islice(count_numbers(7), 150))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_token_is_the_one_that_its_random_numbers_choose(kind):
    logits = 2 * torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    for seed, row in enumerate(logits):
        sampling, generator = Sampling(**kind), torch.Generator().manual_seed(seed)
        numbers = count_numbers(seed)
        for _ in range(3):
            assert int(sample_tokens(row[None], sampling, generator)) == choose_by_hand(
                row, sampling, numbers
            )


def test_rows_of_all_kinds_are_each_chosen_by_their_own_numbers():
    logits = 2 * torch.randn(len(KINDS) * 3, 40, generator=torch.Generator().manual_seed(2))
    settings = [Sampling(**kind) for kind in KINDS] * 3
    draws, numbers = (
        [RandomStream(seed) for seed in range(30)],
        [count_numbers(seed) for seed in range(30)],
    )
    for _ in range(10):
        found = sample_each(logits, settings, draws)
        assert found == [
            choose_by_hand(*each) for each in zip(logits, settings, numbers, strict=True)
        ]


def test_rows_that_are_drawn_again_in_vain_are_each_sorted_out():
    """Two or three nearly equal tokens of a thousand make up all of top_p; others are drawn at
    once.
    """
    logits = torch.zeros(24, 1000)
    for row in range(24):
        logits[row, 7 * row : 7 * row + 3] = torch.tensor([0.003, 0.002, 0.001])
    tops = [1.5e-3, 2.5e-3, 0.999]
    settings = [Sampling(temperature=1.0, top_p=tops[row % 3]) for row in range(24)]
    numbers = [count_numbers(seed) for seed in range(24)]
    found = sample_each(logits, settings, [RandomStream(seed) for seed in range(24)])
    assert found == [choose_by_hand(*each) for each in zip(logits, settings, numbers, strict=True)]
    patient = [token - 7 * row for row, token in enumerate(found) if row % 3 < 2]
    assert {0, 1, 2} >= set(patient) >= {0, 1}


def test_rows_of_a_batch_are_drawn_again_together():
    logits = 2 * torch.randn(12, 40, generator=torch.Generator().manual_seed(3))
    sampling = Sampling(temperature=1.5, top_p=0.4)
    shares = (logits / 1.5).softmax(-1).numpy()
    generator = torch.Generator().manual_seed(5)

    def draw():
        numbers = torch.rand(12, 1, dtype=torch.double, generator=generator)[:, 0].tolist()
        return [pick(*each) for each in zip(shares, numbers, strict=True)]

    wanted = draw()
    while outside := [i for i, row in enumerate(shares) if row[row > row[wanted[i]]].sum() >= 0.4]:
        again = draw()
        wanted = [again[i] if i in outside else token for i, token in enumerate(wanted)]
    assert sample_tokens(logits, sampling, torch.Generator().manual_seed(5)).tolist() == wanted


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 8, 20])
@pytest.mark.parametrize("top_p", [0.05, 0.45, 0.83, 1.0])
def test_of_equally_likely_tokens_top_p_takes_all_or_none_and_top_k_its_number(top_p, top_k):
    logits = torch.randint(0, 4, (40, 8), generator=torch.Generator().manual_seed(4)).float()
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    drawn = sample_tokens(logits.repeat(20, 1), sampling, torch.Generator().manual_seed(0)).view(
        20, 40
    )
    draws = [RandomStream(seed) for seed in range(40)]
    each = [sample_each(logits, [sampling] * 40, draws) for _ in range(3)]
    for place, (row, told) in enumerate(
        zip(logits, find_probabilities(logits, sampling), strict=True)
    ):
        shares = (row / 0.7).softmax(-1).numpy()
        kept = [share for share in shares if top_p == 1 or shares[shares > share].sum() < top_p]
        if 0 < top_k < 8:
            kept = [shares[token] for token, _ in split_likely(shares, sampling)]
        wanted = numpy.sort(kept)[::-1] / numpy.sum(kept)
        assert (told > 0).sum() == len(wanted)
        assert told.sort(descending=True).values[: len(wanted)].tolist() == pytest.approx(
            wanted.tolist(), rel=1e-4
        )
        least = row[told > 0].min()
        assert (row[told == 0] <= least).all()
        assert (row[drawn[:, place]] >= least).all()
        assert all(row[tokens[place]] >= least for tokens in each)


def drawn_of(logits, sampling):
    """Which tokens are ever drawn, one by one and among others, and which are told."""
    one = sample_tokens(logits.repeat(60, 1), sampling, torch.Generator().manual_seed(0)).tolist()
    each = sample_each(
        logits.repeat(60, 1), [sampling] * 60, [RandomStream(seed) for seed in range(60)]
    )
    return (
        set(one),
        set(each),
        set(find_probabilities(logits, sampling)[0].nonzero()[:, 0].tolist()),
    )


def test_a_token_is_left_out_where_the_likelier_ones_make_up_just_top_p():
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    top = logits.softmax(-1)[0, 0]
    more = torch.nextafter(top, torch.tensor(1.0))
    assert drawn_of(logits, Sampling(temperature=1.0, top_p=top.item())) == ({0}, {0}, {0})
    assert drawn_of(logits, Sampling(temperature=1.0, top_p=more.item())) == (
        {0, 1},
        {0, 1},
        {0, 1},
    )
    alike = torch.tensor([[0.0, 0.0, -9.0, -9.0]])
    assert [
        len(them) for them in drawn_of(alike, Sampling(temperature=1.0, top_k=2, top_p=0.5))
    ] == [1, 1, 1]
    assert drawn_of(alike, Sampling(temperature=1.0, top_k=2, top_p=0.51)) == (
        {0, 1},
        {0, 1},
        {0, 1},
    )
    assert drawn_of(alike, Sampling(temperature=1.0, top_p=0.5)) == ({0, 1}, {0, 1}, {0, 1})


def test_a_random_number_of_zero_draws_no_impossible_token(monkeypatch):
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]])
    sampling, draws = Sampling(temperature=1.0, top_p=1.0), RandomStream(0)
    draws.block = [0.0]
    assert sample_each(logits, [sampling], [draws]) == [1]
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.zeros(size, dtype=dtype))
    assert sample_tokens(logits, sampling, torch.Generator()).tolist() == [1]


def test_greed_begins_below_its_bounds():
    for bounds, is_greedy in (
        ({"temperature": MIN_TEMPERATURE}, False),
        ({"temperature": MIN_TEMPERATURE * 0.99}, True),
        ({"top_p": MIN_TOP_P}, False),
        ({"top_p": MIN_TOP_P * 0.99}, True),
        ({"top_k": 1}, False),
        ({}, False),
    ):
        assert Sampling(**bounds).is_greedy is is_greedy
    # Above, people ask for it; below, logits that differ by 1 differ by e^10,000.
    assert 1e-4 < MIN_TEMPERATURE < 0.01
    assert MIN_TOP_P == 1 / 16_777_216


def test_the_command_and_the_library_have_the_same_defaults():
    options = inspect.signature(command).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Sampling)}
    shared = {name: fields[name] for name in fields.keys() & options.keys() - {"stop"}}
    assert len(shared) == 6
    assert {name: options[name].default for name in shared} == shared
    assert (fields["stop"], fields["max_time"]) == ((), None)
    assert len({Sampling(), Sampling(), Sampling(seed=1)}) == 2
    ends = -(2**63), 2**64 - 1
    assert [Sampling(seed=seed).seed for seed in ends] == list(ends)
    with pytest.raises(
        RecipeError,
        match="must be a whole number from -9223372036854775808 to 18446744073709551615$",
    ):
        Sampling(seed=ends[0] - 1)
    with pytest.raises(TypeError, match="positional"):
        Sampling(5)
