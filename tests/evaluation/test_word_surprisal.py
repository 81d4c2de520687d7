"""The surprisal of words: by brute force over all words of a tiny vocabulary, beside the package
`wordsprobability`, and on texts and tokenizers of every kind.
"""

import copy
import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rung.data.tokenizer_training import build_tokenizer
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.evaluation.word_surprisal import find_boundary_tokens, find_words, score_words
from rung.models import build_model, make_config
from tests.conftest import SENTENCES, TINY, shake
from tests.evaluation.conftest import LONG, count, wrap
from tests.models.foreign import build


def measure(model, tokenizer, *texts):
    return list(score_words(model, tokenizer, [(text, find_words(text)) for text in texts]))


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of the letters a and b and of white space, and a shaken model of it.

    The tokens are `a`, `b`, a space, a space with a letter, and three special ones.
    """
    vocabulary = ["<s>", "</s>", "a", "b", "Ġ", "Ġa", "Ġb"]
    backend = Tokenizer(
        models.BPE({token: id for id, token in enumerate(vocabulary)}, [("Ġ", "a"), ("Ġ", "b")])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = wrap(backend)
    torch.manual_seed(0)
    settings = {**TINY["gpt2"], "max_position_embeddings": 16}
    return shake(build_model("gpt2", make_config("gpt2", tokenizer, settings))).eval(), tokenizer


def test_the_words_after_a_word_and_the_end_sum_to_one(letters):
    """Every word of one to six letters after `ab`, each by its own probability; what is missing is
    the probability of a longer one, which the tokens themselves give.
    """
    model, tokenizer = letters
    longest = 6
    words = [
        "".join(letters)
        for length in range(1, longest + 1)
        for letters in itertools.product("ab", repeat=length)
    ]
    found = measure(model, tokenizer, *(f"ab {word}" for word in words))
    total = sum(2**-score.bits for score in found if score.position == 1)
    ids = tokenizer.convert_tokens_to_ids(["<s>", "a", "b"])
    ends = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "Ġ", "Ġa", "Ġb"])
    with torch.no_grad():
        after = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    mass = after[ends].sum().item()
    control = (after[0] + after[1]).item() / mass
    # Words that begin with a space of their own or with another one, and those beyond the longest:
    spaced = after[4].item() / mass
    longer = sum(
        math.exp(-compute_nll(model, [[*ids, *tokenizer(f" {word}").input_ids]])[0][2:].sum())
        * _stays(model, [*ids, *tokenizer(f" {word}").input_ids], ends)
        for word in words[-(2**longest) :]
    )
    assert total + control + spaced + longer / mass == pytest.approx(1, abs=1e-5)
    plain = sum(2**-score.uncorrected for score in found if score.position == 1)
    assert abs(plain - total) > 0.04


def _stays(model, ids, ends):
    """The probability that the next token is inside the word."""
    with torch.no_grad():
        return 1 - model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[ends].sum().item()


def test_the_first_words_and_the_end_sum_to_one(letters):
    """One of them follows nothing: its mass is that of the tokens without white space."""
    model, tokenizer = letters
    words = ["".join(w) for n in range(1, 7) for w in itertools.product("ab", repeat=n)]
    total = sum(2**-score.bits for score in measure(model, tokenizer, *words))
    begin, ends = [0], [0, 1, 4, 5, 6]
    with torch.no_grad():
        first = model(torch.tensor([begin])).logits[0, -1].double().softmax(-1)
    mass = first[[0, 1, 2, 3]].sum().item()
    longer = sum(
        math.exp(-compute_nll(model, [[0, *tokenizer(word).input_ids]])[0].sum())
        * _stays(model, [0, *tokenizer(word).input_ids], ends)
        for word in words[-64:]
    )
    assert total + (first[0] + first[1]).item() / mass + longer / mass == pytest.approx(1, abs=1e-5)


def test_the_figures_are_those_of_the_package_wordsprobability(monkeypatch):
    """On a small GPT-2 with a vocabulary of byte pairs, whose only white space is the space, the
    one that the package knows; and at all words but the first, where it counts the end twice.
    """
    pytest.importorskip("wordsprobability", reason="is the reference")
    from wordsprobability import main
    from wordsprobability.models.bow_lm import GPT2BaseModel

    end = "<|endoftext|>"  # the one special token, as in GPT-2
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = "a dog sat, and the catalogue; is not on that mat."
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=[end], show_progress=False)
    backend.train_from_iterator([*SENTENCES * 20, text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=1024,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    stock = shake(GPT2LMHeadModel(config)).eval()

    class Small(GPT2BaseModel):
        def _initialise_model(self):
            return stock, tokenizer

    monkeypatch.setattr(main, "get_model", lambda name: Small())
    monkeypatch.setattr(main, "get_bow_symbol", lambda name: "Ġ")
    from rung.models import RUNGS

    ours = RUNGS["gpt2"].model_class(config).eval()
    ours.load_state_dict(stock.state_dict())
    wanted = main._get_surprisal_per_word([text], "small", return_buggy_surprisals=True)
    found = measure(ours, tokenizer, text)
    assert [score.word for score in found] == list(wanted["word"])
    bits = [score.bits for score in found]
    plain = [score.uncorrected for score in found]
    assert plain == pytest.approx(list(wanted["surprisal_buggy"] / math.log(2)), rel=1e-4)
    assert bits[1:] == pytest.approx(list(wanted["surprisal"] / math.log(2))[1:], rel=1e-4)


@pytest.mark.parametrize("name", ["ngram", "rnn", "llama3"])
def test_the_words_add_up_to_the_score(name, make_tiny, tokenizer):
    """What is moved from word to word stays in the sum, but for the beginning and the end."""
    model = make_tiny(name)
    text = LONG[:600] + " the  mat\n\non a log\n"
    found = measure(model, tokenizer, text)
    assert [score.word for score in found] == text.split()
    assert [score.position for score in found] == list(range(len(found)))
    pieces = score_text(model, tokenizer, text)
    tail = sum(piece.bits for piece in pieces[-2:])  # the white space at the end, and the end
    assert pieces[-2].text.isspace()
    total = score_documents(model, tokenizer, [text]).nats / math.log(2)
    assert sum(score.uncorrected for score in found) + tail == pytest.approx(total, rel=1e-5)
    assert all(score.is_corrected for score in found)
    moved = sum(score.uncorrected - score.bits for score in found)
    assert abs(moved) < 20 and any(abs(s.bits - s.uncorrected) > 0.01 for s in found)
    assert sum(score.tokens for score in found) == sum(piece.tokens for piece in pieces[:-2])


def test_a_text_longer_than_the_window_is_read_through_it(make_tiny, tokenizer):
    model = make_tiny("llama3", max_position_embeddings=512)
    far = measure(model, tokenizer, LONG)
    model.config.max_position_embeddings = 16
    found = measure(model, tokenizer, LONG)
    contexts = [score.context for score in found]
    assert contexts[0] == 0 and max(contexts) == 16
    assert min(contexts[10:]) >= 8  # half the window at least
    assert [s.context for s in far] == [sum(s.tokens for s in far[:n]) for n in range(len(far))]
    first = [n for n, score in enumerate(far) if score.context + score.tokens < 15]
    assert [found[n].bits for n in first] == pytest.approx([far[n].bits for n in first], rel=1e-4)


def test_a_word_longer_than_the_window(make_tiny, tokenizer):
    model = make_tiny("llama3", max_position_embeddings=16)
    word = "catdogmat" * 20
    (alone,) = measure(model, tokenizer, word)
    assert alone.tokens > 32 and math.isfinite(alone.bits) and alone.context == 0
    before, long, after = measure(model, tokenizer, f"the {word} cat")
    assert (before.word, long.word, after.word) == ("the", word, "cat")
    assert after.context >= 8


def test_an_n_gram_says_what_it_found(make_tiny, tokenizer):
    model = make_tiny("ngram")
    found = measure(model, tokenizer, SENTENCES[0])
    assert all(1 <= score.order <= 3 and score.count is not None for score in found)
    assert all(score.context == score.order - 1 for score in found)


@pytest.mark.parametrize("kind", ["whitespace", "word-split"])
def test_words_that_are_tokens_need_no_correction(kind):
    """Their surprisal is that of `rung score`, and an unknown word is charged and marked."""
    words = build_tokenizer(kind, SENTENCES)
    model = count("ngram", words, SENTENCES, order=2)
    text = "the cat sat on the zebra"
    found, pieces = measure(model, words, text), score_text(model, words, text)
    assert [s.bits for s in found] == pytest.approx([piece.bits for piece in pieces[:-1]])
    assert [s.uncorrected for s in found] == [s.bits for s in found]
    assert [s.is_unknown for s in found] == [False] * 5 + [True]
    assert found[-1].bits > 6 * 8
    assert not any(s.is_corrected for s in found)


def test_characters_are_corrected_too():
    """A space is a token of its own: a word is told from its beginnings by the next space."""
    characters = build_tokenizer("char", SENTENCES)
    model = count("ngram", characters, SENTENCES, order=4)
    boundaries = find_boundary_tokens(characters, len(characters))
    vocabulary = characters.get_vocab()
    assert {t for t, id in vocabulary.items() if boundaries.spaces[id]} == {" "}
    cat, _ = measure(model, characters, "the cat", "the catalogue")[1::2]
    assert cat.tokens == 4 and cat.is_corrected
    after = -math.log2(compute_next(model, characters, "the cat", [" ", "<|end_of_text|>"]))
    before = -math.log2(compute_next(model, characters, "the", [" ", "<|end_of_text|>"]))
    assert cat.bits == pytest.approx(cat.uncorrected + after - before, abs=1e-4)


def compute_next(model, tokenizer, text, tokens):
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        shares = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    others = [tokenizer.bos_token_id, tokenizer.pad_token_id]
    return shares[[*tokenizer.convert_tokens_to_ids(tokens), *others]].sum().item()


def test_sentencepiece_marks_every_word_and_bytes_may_be_spaces():
    """A mark stands before the first word too, so that it is divided as the others are."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁cat", "s", "<0x0A>", "<0x20>", "<0x61>", "t"]
    backend = Tokenizer(models.Unigram([(p, -1.0) for p in pieces], unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = wrap(backend)
    boundaries = find_boundary_tokens(tokenizer, len(pieces))
    marked = {pieces[id] for id in boundaries.spaces.nonzero().flatten().tolist()}
    assert marked == {"▁", "▁the", "▁cat", "<0x0A>", "<0x20>"}
    assert boundaries.ends[1] and boundaries.ends[2] and not boundaries.ends[0]
    model = count("ngram", tokenizer, ["the cats", "the cat"], order=2)
    found = measure(model, tokenizer, "the cats")
    assert [score.tokens for score in found] == [1, 2]
    assert all(score.is_corrected for score in found)


def test_text_without_spaces_is_one_word_and_blank_text_none(make_tiny, tokenizer):
    model = make_tiny("llama3")
    (only,) = measure(model, tokenizer, "语言模型给每个词一个概率。")
    assert only.is_corrected and only.tokens > 10
    assert measure(model, tokenizer, "", " \n ") == []
    mixed = measure(model, tokenizer, "a cat", "", "the dog")
    assert [(s.document, s.word) for s in mixed] == [
        (0, "a"), (0, "cat"), (2, "the"), (2, "dog")
    ]  # fmt: skip


def test_a_boundary_that_no_token_marks_is_not_corrected(make_tiny, tokenizer):
    """An ideographic space is three tokens of one byte each, of which none is white space."""
    model = make_tiny("llama3")
    first, second = measure(model, tokenizer, "cat\u3000dog")
    assert not first.is_corrected and not second.is_corrected
    assert math.isfinite(first.bits) and second.tokens > 3


def test_a_model_of_another_architecture_without_a_beginning_and_an_end(tokenizer):
    """Its first token costs log2 V, of which tokens without white space have their share; after the
    last one the next token is asked for all the same.
    """
    from rung.models.foreign import ForeignForCausalLM

    plain = copy.deepcopy(tokenizer)
    plain.bos_token = plain.eos_token = None
    inner = build("gpt_neox", tokenizer)
    model, text = ForeignForCausalLM(inner), "the cat sat on a log"
    found = measure(model, plain, text)
    total = score_documents(model, plain, [text]).nats / math.log(2)
    assert sum(score.uncorrected for score in found) == pytest.approx(total, rel=1e-5)
    boundaries = find_boundary_tokens(plain, inner.config.vocab_size)
    ids = plain(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        shares = inner(torch.tensor([ids])).logits[0].double().softmax(-1)
    masses = shares[:, boundaries.ends].sum(dim=1).log2().tolist()
    starts = [sum(score.tokens for score in found[:n]) for n in range(len(found) + 1)]
    begin = (~boundaries.spaces).double().mean().log2().item()
    before = [begin, *(masses[start - 1] for start in starts[1:-1])]
    wanted = [
        score.uncorrected - masses[end - 1] + mass
        for score, end, mass in zip(found, starts[1:], before, strict=True)
    ]
    assert [score.bits for score in found] == pytest.approx(wanted, rel=1e-4)
    assert found[0].context == 0 and found[1].context == found[0].tokens
