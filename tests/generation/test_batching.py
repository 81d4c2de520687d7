"""Texts that share a model's steps: what each gets is what it would get alone."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import RecipeError
from rung.generation import batch_cache, batching, native
from rung.generation.batching import ContinuousBatch
from rung.generation.decoder import Decoder, generate_tokens
from rung.generation.sampling import (
    RandomStream,
    Sampling,
    find_probabilities,
    sample_each,
    sample_tokens,
)
from rung.generation.thread_trials import ThreadTrials
from rung.models.kv_cache import KVCache
from tests.conftest import SENTENCES, TINY, examples, shake

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.3, "top_p": 1.0},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.3},
]


def make_prompts(tokenizer, count):
    """Of unequal lengths, some longer than a window of 64."""
    whole = [
        token
        for text in SENTENCES * 3
        for token in tokenizer(" " + text, add_special_tokens=False).input_ids
    ]
    return [
        [tokenizer.bos_token_id, *whole[7 * i : 7 * i + 3 + (i * 23) % 80]] for i in range(count)
    ]


def continue_texts(model, orders, count, late=0):
    """The tokens of each order; `count` slots, and from the second text on each joins `late` turns
    after the last.
    """
    with torch.inference_mode():
        pool, waiting, running, found = (
            ContinuousBatch(model, count),
            list(enumerate(orders)),
            {},
            {},
        )
        turn = 0
        while waiting or running:
            while waiting and pool.free_slots and (not running or turn >= late * waiting[0][0]):
                number, (ids, sampling) = waiting.pop(0)
                slot = pool.add(ids, sampling.max_new_tokens)
                running[slot] = number, sampling, RandomStream(sampling.seed)
                found[number] = []
            turn += 1
            ready, logits = pool.step(list(running))
            assert not pool.failed
            mine = [running[slot] for slot in ready]
            tokens = sample_each(
                logits, [sampling for _, sampling, _ in mine], [draws for _, _, draws in mine]
            )
            for slot, (number, sampling, _), token in zip(ready, mine, tokens, strict=True):
                found[number].append(token)
                if len(found[number]) == sampling.max_new_tokens:
                    del running[slot]
                    pool.remove(slot)
                else:
                    pool.append(slot, token)
        assert len(pool.free_slots) == count and not pool.texts
        return [found[number] for number in range(len(orders))]


def make_orders(tokenizer, count):
    return [
        (ids, Sampling(max_new_tokens=5 + (i * 13) % 25, seed=i, **SETTINGS[i % len(SETTINGS)]))
        for i, ids in enumerate(make_prompts(tokenizer, count))
    ]


@pytest.mark.parametrize(
    ("name", "native"), [*((name, True) for name in TINY), ("gpt2", False), ("llama3", False)]
)
def test_a_text_among_others_is_the_text_alone(name, native, make_tiny, tokenizer, monkeypatch):
    """Greedy and sampled, joining and leaving at any time, with windows that fill up."""
    model = shake(make_tiny(name))
    if not native:
        monkeypatch.setattr(batch_cache, "make_native_step", lambda model: None)
    orders = make_orders(tokenizer, 6)
    alone = [continue_texts(model, [order], 1)[0] for order in orders]
    assert continue_texts(model, orders, 6) == alone
    assert continue_texts(model, orders, 3, late=3) == alone
    with torch.inference_mode():
        steps = [generate_tokens(Decoder(model), [ids], sampling, ()) for ids, sampling in orders]
        assert [[token for (token,) in written] for written in steps] == alone


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8])
def test_in_c_a_row_is_the_same_to_the_bit_in_any_batch(name, weights, make_tiny, tokenizer):
    model = shake(make_tiny(name, hidden_size=44 if name == "gpt2" else 40))
    step = native.make_native_step(model, weights)
    pool = KVCache(9)
    pool.keys_values = [
        tuple(
            torch.zeros(
                12,
                layer.k.rows * heads_of(model) // layer.q.rows,
                9,
                layer.q.rows // heads_of(model),
            )
            for _ in "kv"
        )
        for layer in step.layers
    ]
    with torch.inference_mode():
        step.begin(pool, torch.zeros(12, dtype=torch.long))
        for pair in pool.keys_values:
            for part in pair:
                part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
        rows = [(7 * i, 9 * i, 9, i % 9) for i in range(12)]
        wanted = [step.step([row], wanted=1)[0].clone() for row in rows]
        for size in (2, 3, 4, 5, 8, 12):
            found = step.step(rows[:size], wanted=size)
            assert torch.equal(found, torch.stack(wanted[:size]))


def heads_of(model):
    return model.config.num_attention_heads


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_in_c_a_step_is_the_same_to_the_bit_with_any_threads(name, make_tiny, monkeypatch):
    model, found = shake(make_tiny(name)), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(ThreadTrials, "choose", lambda *_, threads=threads: threads)
        monkeypatch.setattr(ThreadTrials, "record", lambda *_: None)
        cache = batch_cache.BatchedKVCache(model)
        cache.native.spare_cores = 2
        with torch.inference_mode():
            read = cache.extend([0, 1], [[5, 6, 7], [8]], {0: 0, 1: 0}).clone()
            written = cache.decode([0, 1], torch.tensor([3, 4]))
        assert cache.native.buffers.described.threads == threads
        found.append(torch.cat([read, written]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_long_prompt_lets_the_others_go_on(make_tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(batching, "PREFILL_CHUNK", 8)
    for name in ("rnn", "ngram", "llama3"):
        model = shake(make_tiny(name))
        short, long = make_prompts(tokenizer, 1)[0], (make_prompts(tokenizer, 4)[3] * 3)[:60]
        wanted = [
            continue_texts(model, [(ids, Sampling(max_new_tokens=3))], 1)[0]
            for ids in (short, long)
        ]
        with torch.inference_mode():
            pool = ContinuousBatch(model, 2)
            first = pool.add(short, 20)
            pool.step([first])
            pool.append(first, 5)
            second = pool.add(long, 3)
            for _ in range(7):
                ready, _ = pool.step([first, second])
                assert ready == [first]
                pool.append(first, 5)
            ready, logits = pool.step([first, second])
            assert ready == [first, second]
            draws = RandomStream(0)
            assert sample_each(logits[1:], [Sampling()], [draws]) == wanted[1][:1]


@pytest.mark.parametrize("name", ["rnn", "gpt2", "llama3"])
def test_a_prompt_may_be_read_in_shorter_chunks_while_others_write(
    name, make_tiny, tokenizer, monkeypatch
):
    """Begun alone in long chunks, gone on with beside others in short ones, and ended alone."""
    monkeypatch.setattr(batching, "PREFILL_CHUNK", 33)
    monkeypatch.setattr(ContinuousBatch, "shared_chunk", 5)
    model = shake(make_tiny(name))
    long, short = (make_prompts(tokenizer, 4)[3] * 3)[:60], make_prompts(tokenizer, 1)[0]
    read = []
    step = ContinuousBatch._read_chunk

    def note(batch, text, slot, chunk):
        before = len(text.unread)
        found = step(batch, text, slot, chunk)
        read.append((slot, before - len(text.unread)))
        return found

    monkeypatch.setattr(ContinuousBatch, "_read_chunk", note)
    wanted = continue_texts(model, [(long, Sampling(max_new_tokens=3))], 1)[0]
    assert read == [(0, 33), (0, 27)]
    with torch.inference_mode():
        pool = ContinuousBatch(model, 2)
        first = pool.add(long, 3)
        pool.step([first])  # 33 tokens
        second = pool.add(short, 20)
        while second not in pool.step([first, second])[0]:
            pass
        del read[:]
        for _ in range(3):
            pool.append(second, 5)
            pool.step([first, second])
        assert read == [(first, 5)] * 3
        pool.remove(second)
        while not (found := pool.step([first]))[0]:
            pass
    assert sample_each(found[1], [Sampling()], [RandomStream(0)]) == wanted[:1]


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_texts_share_a_batch_in_shorter_chunks(name, make_tiny, tokenizer, monkeypatch):
    model = shake(make_tiny(name))
    orders = make_orders(tokenizer, 6)
    alone = [continue_texts(model, [order], 1)[0] for order in orders]
    monkeypatch.setattr(ContinuousBatch, "shared_chunk", 3)
    assert continue_texts(model, orders, 6) == alone
    assert continue_texts(model, orders, 3, late=3) == alone


class Clock:
    """Decoding takes so many seconds, and reading so many for each token and for each chunk."""

    def __init__(self, monkeypatch, decoding, token, chunk=0.0):
        self.now, self.decoding, self.token, self.chunk = 0.0, decoding, token, chunk
        self.read = []
        monkeypatch.setattr(batching.time, "perf_counter", lambda: self.now)
        decode, read = ContinuousBatch._decode, ContinuousBatch._read_chunk

        def decode_late(batch, slots):
            self.now += self.decoding
            return decode(batch, slots)

        def read_late(batch, text, slot, chunk):
            before = len(text.unread)
            found = read(batch, text, slot, chunk)
            self.read.append(before - len(text.unread))
            self.now += self.chunk + self.token * self.read[-1]
            return found

        monkeypatch.setattr(ContinuousBatch, "_decode", decode_late)
        monkeypatch.setattr(ContinuousBatch, "_read_chunk", read_late)


def read_beside_another(model, length):
    """Read a prompt of that length while another text is written."""
    batch = ContinuousBatch(model, 2)
    with torch.inference_mode():
        writes = batch.add([5], length)
        batch.step([writes])
        batch.append(writes, 5)
        reads = batch.add([5] * length, 1)
        while reads not in batch.step([writes, reads])[0]:
            batch.append(writes, 5)


@pytest.mark.parametrize("name", ["rnn", "llama3"])
def test_chunks_take_the_rest_of_a_step(name, long_model, make_tiny, monkeypatch):
    """They grow to what takes 50 ms beside 30 ms of decoding, whatever a chunk costs by itself."""
    monkeypatch.setattr(batching, "STEP_SECONDS", 0.08)
    model = long_model if name == "llama3" else make_tiny(name)
    clock = Clock(monkeypatch, decoding=0.03, token=0.001, chunk=0.01)
    read_beside_another(model, 400)
    _, *read, _ = clock.read
    assert read[0] == 2 * batching.MIN_SHARED_CHUNK
    assert all(38 <= tokens <= 40 for tokens in read[4:]), read
    assert sum(clock.read) == 401


def test_chunks_follow_the_machine(long_model, monkeypatch):
    """Where decoding alone takes all of a step, something is read yet."""
    monkeypatch.setattr(batching, "STEP_SECONDS", 0.08)
    batch = ContinuousBatch(long_model, 1)
    batch.last_chunk = 50, 0.05
    assert batch.shared_chunk == 80
    batch.decoding_seconds = 0.03
    assert batch.shared_chunk == 50
    batch.decoding_seconds = 0.2
    assert batch.shared_chunk == 20
    batch.last_chunk = 50, 0.5
    assert batch.shared_chunk == batching.MIN_SHARED_CHUNK
    batch.last_chunk = 200, 0.01
    assert batch.shared_chunk == batching.PREFILL_CHUNK


def test_a_bfloat16_model_writes_too(make_tiny, tokenizer):
    model = shake(make_tiny("llama3")).to(torch.bfloat16)
    orders = [
        (ids, Sampling(temperature=0, max_new_tokens=6)) for ids in make_prompts(tokenizer, 3)
    ]
    assert [len(tokens) for tokens in continue_texts(model, orders, 3)] == [6, 6, 6]


@settings(deadline=None, max_examples=examples(15))
@given(
    st.lists(st.sampled_from(range(len(SETTINGS))), min_size=1, max_size=8),
    st.integers(0, 2**63 - 1),
)
def test_each_row_is_chosen_as_if_it_were_alone(kinds, seed):
    logits = 2 * torch.randn(len(kinds), 40, generator=torch.Generator().manual_seed(seed % 2**32))
    rows = [
        Sampling(seed=seed - i if seed > 8 else seed + i, **SETTINGS[kind])
        for i, kind in enumerate(kinds)
    ]
    draws = [RandomStream(sampling.seed) for sampling in rows]
    generators = [torch.Generator().manual_seed(sampling.seed) for sampling in rows]
    for _ in range(30):
        wanted = [
            int(sample_tokens(logits[i, None], sampling, generator))
            for i, (sampling, generator) in enumerate(zip(rows, generators, strict=True))
        ]
        assert sample_each(logits, rows, draws) == wanted


def test_a_token_that_is_hard_to_draw_is_sorted_out():
    """Nearly alike, of which one makes up all of a tiny top_p: drawing again would take a thousand
    times.
    """
    logits = torch.zeros(3, 1000)
    logits[:, 17] = 0.001
    rows = [Sampling(temperature=1.0, top_p=1e-6, seed=seed) for seed in range(3)]
    draws = [RandomStream(seed) for seed in range(3)]
    assert sample_each(logits, rows, draws) == [17, 17, 17]


@pytest.mark.parametrize("top_p", [0.0, 5e-324, 1e-50, 1e-46, 1e-40, 1e-30, 5e-8, 1e-4])
@pytest.mark.parametrize("top_k", [0, 5])
def test_a_top_p_next_to_nothing_takes_the_likeliest(top_p, top_k):
    """As a float32 it was 0, and all tokens but the least likely lay outside; alone, a text was
    drawn for ever.
    """
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.0, top_p=top_p, top_k=top_k)
    likeliest = logits.argmax(-1)
    assert (
        sample_each(logits, [sampling] * 3, [RandomStream(seed) for seed in range(3)])
        == likeliest.tolist()
    )
    assert torch.equal(find_probabilities(logits, sampling).argmax(-1), likeliest)
    assert find_probabilities(logits, sampling).max(-1).values.tolist() == [1.0] * 3
    assert torch.equal(sample_tokens(logits, sampling, torch.Generator().manual_seed(0)), likeliest)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_top_k_of_one_takes_the_likeliest_and_one_of_all_leaves_all(top_p):
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    one = Sampling(temperature=1.5, top_k=1, top_p=top_p)
    draws = [RandomStream(seed) for seed in range(40)]
    assert sample_each(logits, [one] * 40, draws) == logits.argmax(-1).tolist()
    assert torch.equal(
        sample_tokens(logits, one, torch.Generator().manual_seed(0)), logits.argmax(-1)
    )
    assert torch.equal(
        find_probabilities(logits, one), torch.nn.functional.one_hot(logits.argmax(-1), 5).float()
    )
    every = [
        find_probabilities(logits, Sampling(temperature=1.5, top_k=k, top_p=top_p))
        for k in (0, 5, 9)
    ]
    torch.testing.assert_close(every[1:], every[:1] * 2)
    if top_p == 1:
        torch.testing.assert_close(every[0], (logits / 1.5).softmax(-1))


def test_the_ends_of_what_settings_may_be_are_allowed():
    least = Sampling(max_new_tokens=1, temperature=0, top_k=0, top_p=0, num_beams=1)
    assert least.is_greedy and not Sampling(temperature=1e-3, top_p=1).is_greedy
    with pytest.raises(RecipeError, match="top_p is 1.01"):
        Sampling(top_p=1.01)


def test_reading_a_text_leaves_what_the_others_got(make_tiny):
    """A short text is read by the same step in C, and here as many rows of it as the others are."""
    model = shake(make_tiny("llama3"))

    def advance(with_another):
        with torch.inference_mode():
            texts = batching.ContinuousBatch(model, 4)
            begun = [texts.add([1, 5 + number], 20) for number in range(3)]
            while any(text.unread for text in texts.texts.values()):
                for slot in texts.step(begun)[0]:
                    texts.append(slot, 7 + slot)
            if with_another:
                begun.append(texts.add([1, 9, 11], 20))
            ready, logits = texts.step(begun)
            return dict(zip(ready, logits.clone(), strict=True))

    alone, among = advance(False), advance(True)
    assert len(among) == len(alone) + 1
    assert all(torch.equal(alone[slot], among[slot]) for slot in alone)


def advance_all(texts, running, turns, token=5):
    """Who came to a token in each of so many turns."""
    came = []
    for _ in range(turns):
        came.append(texts.step(running)[0])
        for slot in came[-1]:
            texts.append(slot, token + slot)
    return came


@pytest.fixture(params=["native", "torch"])
def long_model(request, make_tiny, monkeypatch):
    """Looks far enough for its keys and values to grow many times."""
    if request.param == "torch":
        monkeypatch.setattr(batch_cache, "make_native_step", lambda model: None)
    return shake(make_tiny("llama3", max_position_embeddings=4096))


def test_memory_is_that_of_the_texts_and_is_given_back(long_model, monkeypatch):
    """A long text does not give each of the others as much, and what it had goes with it."""
    monkeypatch.setattr(ContinuousBatch, "shared_chunk", batching.PREFILL_CHUNK)
    with torch.inference_mode():
        texts = ContinuousBatch(long_model, 32)
        short = [texts.add([1, 5, number], 500) for number in range(31)]
        advance_all(texts, short, 40)
        long = texts.add([7] * 3900, 1)
        while long not in advance_all(texts, [*short, long], 1)[0]:
            pass
        assert 3900 < texts.cache.room < 2 * (3900 + 31 * batch_cache.MIN_SLOT_ROOM)
        assert texts.cache.rows[0][0].shape == (2 * texts.cache.room, 8)  # two groups
        texts.remove(long)
        assert texts.cache.room <= 2 * 32 * batch_cache.MIN_SLOT_ROOM
        for slot in short:
            texts.remove(slot)
        assert texts.cache.room <= 4 * batch_cache.MIN_SLOT_ROOM


def test_where_memory_is_short_nothing_is_changed(long_model, monkeypatch):
    """The text that needs it fails; the others go on as they would without it."""
    monkeypatch.setattr(ContinuousBatch, "shared_chunk", batching.PREFILL_CHUNK)

    def refuse(self, more):
        raise RuntimeError(f"there is no memory for {more} tokens")

    def run(with_another):
        texts, seen = ContinuousBatch(long_model, 4), []
        with torch.inference_mode():
            running = [texts.add([1, 5, number], 500) for number in range(3)]
            advance_all(texts, running, 6)
            if with_another:
                monkeypatch.setattr(batch_cache.BatchedKVCache, "_move", refuse)
                running.append(texts.add([9] * 40, 20))
            for _ in range(20):
                ready, logits = texts.step(running)
                assert set(texts.failed) == set(running[3:]) and 3 not in ready
                for slot in texts.failed:
                    texts.remove(slot)
                del running[3:]
                seen.append({slot: row.clone() for slot, row in zip(ready, logits, strict=True)})
                for slot in ready:
                    texts.append(slot, 7 + slot)
        return seen

    alone = run(with_another=False)

    for mine, wanted in zip(run(with_another=True), alone, strict=True):
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[slot], wanted[slot]) for slot in mine)


def test_an_id_that_the_model_has_not_is_the_fault_of_its_text_alone(make_tiny):
    for name in ("llama3", "gpt2", "rnn", "ngram"):
        texts = ContinuousBatch(shake(make_tiny(name)), 3)
        with torch.inference_mode():
            running = [texts.add(ids, 20) for ids in ([1, 5], [1, 100_000], [1, 7])]
            came = advance_all(texts, running, 2)
            assert running[0] in came[0] and running[1] in {*texts.failed, *came[1]}
            for slot in (
                slot
                for slot in running[::2]
                if slot in advance_all(texts, [running[0], running[2]], 2)[1]
            ):
                texts.texts[slot].next = 100_000 if slot else 9
            ready, _ = texts.step([running[0], running[2]])
            assert ready == [running[0]] and list(texts.failed) == [running[2]]


def test_a_short_text_is_read_before_long_ones_and_a_long_one_still(make_tiny, monkeypatch):
    monkeypatch.setattr(batching, "PREFILL_CHUNK", 4)
    texts = ContinuousBatch(shake(make_tiny("rnn")), 10)
    with torch.inference_mode():
        long = [texts.add([1, 5] * 20, 4) for _ in range(8)]
        short = texts.add([1, 5, 7], 4)
        assert any(short in came for came in advance_all(texts, [*long, short], 2))
        texts.remove(short)
        for _ in range(9):  # others keep coming
            slot = texts.add([1, 5, 7], 4)
            came = advance_all(texts, [*long, slot], 2)
            assert any(slot in turn for turn in came)
            texts.remove(slot)
        assert any(long[0] in turn for turn in came)


@pytest.mark.parametrize("name", ["ngram", "rnn", "gpt2", "llama3"])
def test_a_text_that_was_paused_goes_on_as_it_would_have(name, make_tiny, tokenizer):
    model = shake(make_tiny(name))
    ids = make_prompts(tokenizer, 4)[3]

    def write(paused_at):
        texts, found = ContinuousBatch(model, 2), []
        slot = texts.add(ids, 90)  # the window fills up meanwhile
        while len(found) < 90:
            ready, logits = texts.step([slot])
            if ready:
                found.append(int(logits[0].argmax()))
                texts.append(slot, found[-1])
            if len(found) in paused_at:
                kept = texts.pause(slot)
                assert len(texts.free_slots) == 2
                texts.add([1, 2, 3], 5)
                slot = texts.resume(kept)
                texts.remove(1 - slot)
                paused_at = paused_at - {len(found)}
        return found

    with torch.inference_mode():
        assert write({1, 30, 62, 63, 64}) == write(set())


@pytest.fixture
def held(make_tiny):
    """A step in C with memory for 12 tokens: of two texts, that have room for 8 and for 4."""
    step = native.make_native_step(make_tiny("llama3"))
    step.use_memory([(torch.zeros(24, 8), torch.zeros(24, 8)) for _ in step.layers], 8)
    return step


@pytest.mark.parametrize(
    ("first", "second", "wrong"),
    [
        ((5, 0, 8, 8), (6, 8, 4, 0), ValueError),  # behind its own room
        ((5, 0, 8, -1), (6, 8, 4, 0), ValueError),
        ((5, 0, 8, 0), (6, 8, 5, 4), ValueError),  # behind all memory
        ((5, -1, 8, 0), (6, 8, 4, 0), ValueError),
        ((5, 0, 8, 0), (6, 2**40, 4, 0), ValueError),
        ((5, 0, 12, 8), (6, 8, 4, 0), ValueError),  # longer than what there are rotations for
        ((5, 0, 8, 0), (10**6, 8, 4, 0), IndexError),
        ((5, 0, 8, 0), (-1, 8, 4, 0), IndexError),
    ],
)
def test_what_c_would_read_out_of_bounds_is_refused(first, second, wrong, held):
    with pytest.raises(wrong):
        held.step([first, second], wanted=2)
    assert held.step([(5, 0, 8, 7), (6, 8, 4, 3)], wanted=2).isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [
        (torch.zeros(24, 8), torch.zeros(16, 8)),
        (torch.zeros(24, 8), torch.zeros(24, 8, dtype=torch.bfloat16)),
        (torch.zeros(24, 8), torch.zeros(8, 24).T),
        (torch.zeros(3, 5), torch.zeros(3, 5)),
    ],
)
def test_memory_that_is_not_as_c_takes_it_changes_nothing(layer, held):
    row = (5, 0, 8, 0)
    before = held.step([row], wanted=1).clone()
    with pytest.raises(ValueError):
        held.use_memory([layer] * len(held.layers), 8)
    assert torch.equal(held.step([row], wanted=1), before)


def test_no_more_texts_are_appended_to_than_were_read(make_tiny):
    decoder = Decoder(make_tiny("gpt2"))
    with torch.inference_mode():
        decoder.prefill([[5, 6]], 3)
        with pytest.raises(
            ValueError, match="3 texts of 3 tokens, but there is room for 1 texts of 5"
        ):
            decoder.native.decode(torch.tensor([[5], [6], [7]]))


def test_layers_of_unequal_sizes_are_left_to_the_model(make_tiny):
    """The step in C has one set of buffers for all layers: it would write beyond it."""
    model = make_tiny("llama3")
    assert native.make_native_step(model) is not None
    for name, shape in (("gate_proj", (200, 32)), ("up_proj", (200, 32)), ("down_proj", (32, 200))):
        getattr(model.model.layers[1].mlp, name).weight = torch.nn.Parameter(torch.randn(shape))
    assert native.make_native_step(model) is None


def count_numbers():
    """All numbers in tensors that are alive."""
    gc.collect()
    alive = {
        t.untyped_storage().data_ptr(): t.numel()
        for t in gc.get_objects()
        if type(t) is torch.Tensor
    }
    return sum(alive.values())


def test_steps_of_every_size_share_one_set_of_buffers(make_tiny):
    step = native.make_native_step(make_tiny("llama3", vocab_size=5000))
    step.use_memory([(torch.zeros(1280, 8), torch.zeros(1280, 8)) for _ in step.layers], 16)
    rows = [(text, 16 * text, 16, 0) for text in range(40)]
    before = count_numbers()
    step.step(rows, wanted=40)
    one = count_numbers() - before
    assert one > 40 * 5000
    for count in [*range(1, 41), *range(40, 0, -1)]:
        step.step(rows[:count], wanted=count)
    assert count_numbers() - before < 1.1 * one
