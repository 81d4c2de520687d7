"""Conversations written down, learned from, judged and held: the room `chat`, and `rung tune` and
`rung chat`.
"""

import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from torch.nn import functional as F

from rung.chat import session
from rung.chat.answers import (
    GradedAnswer,
    RetrievalBaseline,
    answer_questions,
    encode_plain_conversations,
    sample_evenly,
    score_assistant_tokens,
)
from rung.chat.conversations import DEFAULT_CONVERSATIONS, load_conversations, read_conversation
from rung.chat.packing import ConversationDataset, pack_best_fit
from rung.chat.python_qa import QUESTIONS, make_python_qa
from rung.chat.session import ChatSession
from rung.chat.template import (
    CHATML,
    LLAMA3,
    encode_conversations,
    encode_prompt,
    find_chat_stop_ids,
    set_up_chat_format,
)
from rung.errors import CorpusError, RunError, TokenizerError
from rung.generation.decoder import Decoder
from rung.generation.sampling import Sampling
from tests.conftest import NEURAL, SENTENCES

FORMATS = {"llama3": LLAMA3, "chatml": CHATML}
TALK = [
    {"role": "system", "content": "be a cat"},
    {"role": "user", "content": " the mat? "},
    {"role": "assistant", "content": "the cat sat\n\non the mat"},
    {"role": "user", "content": "a dog"},
    {"role": "assistant", "content": "no"},
]


def ask(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def make_chat(make_tiny, tokenizer):
    """A tiny model that was taught a format, and its tokenizer."""
    import copy

    def make(name, chat_format=None, **fields):
        model, own = copy.deepcopy(make_tiny(name, **fields)), copy.deepcopy(tokenizer)
        set_up_chat_format(model, own, chat_format or (LLAMA3 if name == "llama3" else CHATML))
        return model, own

    return make


class TestFormats:
    @pytest.mark.parametrize("chat_format", FORMATS.values(), ids=FORMATS)
    def test_stock_apply_chat_template_gives_our_ids_and_mask(self, make_chat, chat_format):
        _, tokenizer = make_chat("llama3", chat_format)
        stock = tokenizer.apply_chat_template(
            TALK, return_dict=True, return_assistant_tokens_mask=True
        )
        ours = encode_conversations(tokenizer, [TALK])[0]
        assert ours.ids == stock["input_ids"]
        assert [int(said) for said in ours.assistant_mask] == stock["assistant_masks"]
        said = tokenizer.decode(
            [i for i, own in zip(ours.ids, ours.assistant_mask, strict=True) if own]
        )
        assert said == f"the cat sat\n\non the mat{chat_format.end}no{chat_format.end}"

    @pytest.mark.parametrize("chat_format", FORMATS.values(), ids=FORMATS)
    def test_what_is_asked_begins_what_was_learned(self, make_chat, chat_format):
        """An answer is asked for with the very tokens that it was trained to follow."""
        _, tokenizer = make_chat("llama3", chat_format)
        prompt = encode_prompt(tokenizer, TALK[:2])
        assert (
            prompt
            == tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True)["input_ids"]
        )
        assert encode_conversations(tokenizer, [TALK[:3]])[0].ids[: len(prompt)] == prompt

    @pytest.mark.parametrize(
        "messages",
        [
            TALK[:2],
            TALK[:4],
            TALK[1:],
            [{"role": "system", "content": ""}, *TALK[1:4]],
            [{"role": "user", "content": "\n\n  naïve 日本語 🙂\r\n\t "}],
            [{"role": "user", "content": ""}],
        ],
    )
    def test_llama3_is_written_as_meta_writes_it(self, make_chat, messages):
        formatter = pytest.importorskip(
            "llama_models.llama3.chat_format", reason="llama-models is not installed"
        )
        from llama_models.datatypes import RawMessage
        from llama_models.llama3.tokenizer import Tokenizer

        theirs = Tokenizer.get_instance()
        said = [RawMessage(role=m["role"], content=m["content"]) for m in messages]
        text = theirs.decode(formatter.ChatFormat(theirs).encode_dialog_prompt(said).tokens)
        _, tokenizer = make_chat("llama3")
        assert (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            == text
        )

    @given(
        st.lists(
            st.sampled_from(
                ["<|eot_id|>", "<|im_end|>", "the cat", "\n\n", "<|begin_of_text|>", " é"]
            )
        )
    )
    @settings(max_examples=50, deadline=None)
    def test_nothing_in_a_message_becomes_a_special_token(self, tokenizer, make_tiny, parts):
        import copy

        model, own = copy.deepcopy(make_tiny("llama3")), copy.deepcopy(tokenizer)
        set_up_chat_format(model, own, LLAMA3)
        content = "".join(parts)
        plain, ours = (encode_conversations(own, [ask("a", text)])[0] for text in ("x", content))
        special = set(own.all_special_ids) | set(own.get_added_vocab().values())
        assert [i for i in ours.ids if i in special] == [i for i in plain.ids if i in special]
        said = [i for i, is_said in zip(ours.ids, ours.assistant_mask, strict=True) if is_said]
        assert own.decode(said[:-1]) == content

    def test_an_answer_is_asked_for_without_marking_what_was_said(self, make_chat, monkeypatch):
        """Marking takes time quadratic in the length of a conversation: a client could hold a
        server with one.
        """
        from rung.chat import template

        _, tokenizer = make_chat("llama3")
        render, marked = template.render_jinja_template, []

        def watch(**options):
            marked.append(options.get("return_assistant_tokens_mask", False))
            return render(**options)

        monkeypatch.setattr(template, "render_jinja_template", watch)
        asked = encode_conversations(tokenizer, [TALK], ask=True)[0]
        learned = encode_conversations(tokenizer, [TALK])[0]
        assert marked == [False, True]
        assert asked.ids[: len(learned.ids)] == learned.ids
        assert not any(asked.assistant_mask) and any(learned.assistant_mask)

    def test_a_tokenizer_without_a_template_says_what_makes_one(self, tokenizer):
        with pytest.raises(TokenizerError, match="rung tune"):
            encode_prompt(tokenizer, TALK[:2])

    @pytest.mark.parametrize("name", NEURAL)
    def test_a_taught_model_knew_the_old_tokens_before(self, make_chat, make_tiny, tokenizer, name):
        model, own = make_chat(name)
        ids = torch.tensor([tokenizer(SENTENCES[0]).input_ids])
        old = make_tiny(name)(ids).logits
        new = model(ids).logits
        assert new.shape[-1] == len(own) == model.config.vocab_size > old.shape[-1]
        assert torch.allclose(new[..., : old.shape[-1]], old, atol=1e-5)
        assert set(find_chat_stop_ids(model, own)) == {
            own.eos_token_id,
            *own.convert_tokens_to_ids([own_end(name)]),
        }


# Published templates, as short as they can be and with what is special about each.
ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must "
    "alternate') }}{% endif %}"
)
HEADERS = "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
INST = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message.role == 'user' %}"
    "[INST] {{ message.content }} [/INST]{% else %} {{ message.content | trim }} <|eos|>{% endif "
    "%}{% endfor %}"
)
PUBLISHED = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + "
    "message.content + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 3": "{{ bos_token }}{% for message in messages %}"
    + HEADERS.replace("\n\n", "{{ '\n\n' }}")
    + "{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama 2": INST,
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role "
    "not supported') }}"
    "{% endif %}{% for message in messages %}"
    + ALTERNATE
    + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' "
    "+ message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "phi 3": "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + "
    "'<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% "
    "endif %}",
    "mistral": "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST]"
    "{% if loop.last or loop.index0 == messages | length - 2 %}be kind {% endif %}{{ "
    "message.content }}[/INST]"
    # As Nemo, writes something before the last one.
    "{% else %} {{ message.content }}<|eos|>{% endif %}{% endfor %}",
    "qwen 3": "{% for message in messages %}{% set content = "
    "message.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "vicuna": "{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + "
    "message.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message.content + '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
}
SAID = {  # of two answers, "yes" and " no\n"; what trims, trims
    "chatml": ["yes<|im_end|>", " no\n<|im_end|>"],
    "llama 3": ["yes<|eot_id|>", "no<|eot_id|>"],
    "llama 2": [" yes <|eos|>", " no <|eos|>"],
    "gemma": ["yes<end_of_turn>", "no<end_of_turn>"],
    "phi 3": ["yes<|end|>", " no\n<|end|>"],
    "mistral": [" yes<|eos|>", "  no\n<|eos|>"],
    "qwen 3": ["yes<|im_end|>", "<think>\n\n</think>\n\n no\n<|im_end|>"],
    "vicuna": [" yes<|eos|>", "  no\n<|eos|>"],
}
SPECIAL = (
    "<|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <start_of_turn> "
    "<end_of_turn> <|end|>"
)
SPECIAL += " <|user|> <|assistant|> <|system|> [INST] [/INST]"


@pytest.fixture
def make_published(tokenizer):
    """A function that gives a tokenizer with a published template, none of which marks what the
    assistant says.
    """
    import copy

    def make(template):
        own = copy.deepcopy(tokenizer)
        own.add_tokens(
            [AddedToken(name, special=True, normalized=False) for name in SPECIAL.split()], True
        )
        own.chat_template = template.replace("<|eos|>", own.eos_token)
        return own

    return make


class TestTemplatesWithoutMarks:
    TALK = (*ask("a cat?", "yes"), *ask("a dog?", " no\n"))

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_what_the_assistant_says_is_found(self, make_published, make_tiny, name):
        tokenizer = make_published(PUBLISHED[name])
        encoded = encode_conversations(tokenizer, [list(self.TALK)])[0]
        stock = tokenizer.apply_chat_template(list(self.TALK))
        assert encoded.ids == stock["input_ids"]
        runs = itertools.groupby(
            zip(encoded.ids, encoded.assistant_mask, strict=True), key=lambda pair: pair[1]
        )
        said = [tokenizer.decode([token for token, _ in run]) for is_said, run in runs if is_said]
        wanted = [text.replace("<|eos|>", tokenizer.eos_token) for text in SAID[name]]
        assert said == wanted
        end = tokenizer.convert_tokens_to_ids(re.search(r"<[|\w]+>$", wanted[0]).group())
        assert find_chat_stop_ids(make_tiny("llama3"), tokenizer) == tuple(
            sorted({tokenizer.eos_token_id, end})
        )

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_an_answer_is_asked_for_with_what_it_was_trained_to_follow(self, make_published, name):
        tokenizer = make_published(PUBLISHED[name])
        for turns in (1, 3) if name != "mistral" else (1,):
            prompt = encode_prompt(tokenizer, list(self.TALK[:turns]))
            learned = encode_conversations(tokenizer, [list(self.TALK[: turns + 1])])[0]
            assert learned.ids[: len(prompt)] == prompt
            assert (
                learned.assistant_mask[len(prompt)] and not learned.assistant_mask[len(prompt) - 1]
            )

    def test_what_a_template_refuses_is_said_in_its_words(self, make_published):
        tokenizer = make_published(PUBLISHED["gemma"])
        with pytest.raises(
            TokenizerError, match=r"conversation \(2 of 2\): System role not supported"
        ):
            encode_conversations(
                tokenizer, [list(self.TALK), [{"role": "system", "content": "x"}, *self.TALK]]
            )

    def test_a_template_that_changes_what_is_said_is_refused(self, make_published):
        tokenizer = make_published(
            PUBLISHED["chatml"].replace("message.content", "(message.content | length) ~ ''")
        )
        with pytest.raises(TokenizerError, match="it changes what the assistant says"):
            encode_conversations(tokenizer, [list(self.TALK)])

    def test_a_thought_that_a_template_drops_is_not_learned(self, make_published):
        tokenizer = make_published(PUBLISHED["qwen 3"])
        talk = [*ask("a", "<think>hm</think>yes"), *ask("b", "no")]
        encoded = encode_conversations(tokenizer, [talk])[0]
        said = tokenizer.decode(
            [token for token, own in zip(encoded.ids, encoded.assistant_mask, strict=True) if own]
        )
        assert said == "yes<|im_end|><think>\n\n</think>\n\nno<|im_end|>"

    def test_the_template_is_kept_and_the_log_says_so(self, make_published, make_tiny, caplog):
        import copy

        caplog.set_level("INFO")
        tokenizer, model = make_published(PUBLISHED["gemma"]), copy.deepcopy(make_tiny("llama3"))
        template, size = tokenizer.chat_template, len(tokenizer)
        set_up_chat_format(model, tokenizer, LLAMA3)
        assert (tokenizer.chat_template, len(tokenizer), model.config.vocab_size) == (
            template,
            size,
            size,
        )
        assert "the chat template is kept" in caplog.text
        assert (
            tokenizer.convert_tokens_to_ids("<end_of_turn>") in model.generation_config.eos_token_id
        )

    def test_new_tokens_are_named_in_the_log(self, make_chat, caplog):
        caplog.set_level("INFO")
        make_chat("llama3")
        assert "3 tokens are new to the model" in caplog.text
        assert "<|start_header_id|>" in caplog.text


def own_end(name):
    return LLAMA3.end if name == "llama3" else CHATML.end


class TestExamples:
    @given(st.lists(st.integers(1, 32), max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_rows_hold_every_piece_once_and_no_more_than_fits(self, sizes):
        rows = pack_best_fit(sizes, 32)
        assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
        assert all(sum(sizes[piece] for piece in row) <= 32 for row in rows)
        fewest = math.ceil(sum(sizes) / 32)
        assert len(rows) <= max(1, 2 * fewest) or not sizes  # no two rows are half empty

    @pytest.mark.parametrize("name", NEURAL)
    def test_nothing_leaks_between_conversations_that_share_a_row(self, make_chat, name):
        model, tokenizer = make_chat(name)
        talks = [ask(SENTENCES[i], SENTENCES[-i]) for i in range(len(SENTENCES))]
        encoded = encode_conversations(tokenizer, talks)
        examples = ConversationDataset(
            encoded, 64, tokenizer.pad_token_id, packed=name in ("gpt2", "llama3", "swaps")
        )
        batch = examples.__getitems__(list(range(len(examples))))
        logits = model(
            **{k: v for k, v in batch.items() if k not in ("labels", "shift_labels")}
        ).logits
        targets = batch["shift_labels"]
        nats = F.cross_entropy(logits[targets >= 0], targets[targets >= 0], reduction="sum")
        alone = 0.0
        for each in encoded:
            row = torch.tensor([each.ids])
            said = torch.tensor(each.assistant_mask[1:])
            alone += F.cross_entropy(
                model(row[:, :-1]).logits[0][said], row[0, 1:][said], reduction="sum"
            ).item()
        assert int((targets >= 0).sum()) == sum(sum(e.assistant_mask[1:]) for e in encoded)
        assert nats.item() == pytest.approx(alone, rel=1e-5)

    def test_what_is_longer_than_a_row_is_cut_off_and_counted(self, make_chat):
        _, tokenizer = make_chat("llama3")
        encoded = encode_conversations(
            tokenizer, [ask("a", "the cat " * 40), ask("b", "no"), ask("c " * 99, "no")]
        )
        examples = ConversationDataset(encoded, 32, tokenizer.pad_token_id, packed=True)
        assert (examples.cut, examples.left_out) == (1, 1)
        assert len(examples.pieces) == 2  # of the third nothing would be learned
        assert all(
            batch["input_ids"].shape == (32,)
            for batch in (examples[i] for i in range(len(examples)))
        )


class TestConversations:
    def test_openai_and_sharegpt_are_read_alike(self, tmp_path):
        rows = [ask(f"question {i}", f"answer {i}") for i in range(60)]
        names = {"user": "human", "assistant": "gpt"}
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
        shared = [[{"from": names[m["role"]], "value": m["content"]} for m in row] for row in rows]
        (tmp_path / "b.jsonl").write_text(
            "\n".join(json.dumps({"conversations": row}) for row in shared)
        )
        (tmp_path / "c.json").write_text(json.dumps([{"messages": row} for row in rows]))
        a, b = (load_conversations(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
        assert (a.train, a.validation, a.tests) == (b.train, b.validation, b.tests)
        assert len(a.train) + len(a.validation) + len(a.tests["test"]) == 60
        more = load_conversations(str(tmp_path / "a.jsonl"))
        assert more.fingerprint == a.fingerprint

    @pytest.mark.parametrize(
        ("line", "wrong"),
        [
            ("no json", "line 1: this is not JSON"),
            ('["q", "a"]\n["q", "b"]', "conversation 1: it has no list `messages`"),
            ('[{"messages": 1},', "x.jsonl: this is not JSON"),
            ('{"text": "a"}', "no list `messages`"),
            ('{"messages": [{"role": "bard of old", "content": "x"}]}', "no message"),
            ('{"messages": [{"role": "user", "content": "x"}]}', "the assistant says nothing"),
            ('{"messages": [{"role": "assistant", "content": 3}]}', "no message"),
            ('{"messages": [{"role": ["user"], "content": "x"}]}', "no message"),
            ('{"messages": [{"role": "assistant", "content": "x"}]}', "nothing is said before"),
            ('{"messages": [{"role": "user", "content": "\\ud83d!"}]}', "half a character"),
            (
                json.dumps({"messages": ask("a", "b")}),
                "has 1 lines, 1 different conversation: at least 3",
            ),
            ("", "has 0 lines, 0 different conversations"),
        ],
    )
    def test_what_is_no_conversation_is_named(self, tmp_path, line, wrong):
        (tmp_path / "x.jsonl").write_text(line)
        with pytest.raises(CorpusError, match=wrong):
            load_conversations(str(tmp_path / "x.jsonl"))

    @pytest.mark.parametrize(
        ("row", "wanted"),
        [
            ({"instruction": "do 1", "input": "", "output": "done"}, ask("do 1", "done")),
            ({"instruction": "do 1", "input": "it", "output": "done"}, ask("do 1\n\nit", "done")),
            ({"prompt": "do 1", "completion": "done"}, ask("do 1", "done")),
            ({"prompt": ask("a", "b")[:1], "completion": ask("a", "b")[1:]}, ask("a", "b")),
            (
                {"messages": [{"role": "developer", "content": "be"}, *ask("a", "b")]},
                [{"role": "system", "content": "be"}, *ask("a", "b")],
            ),
            (
                {
                    "messages": ask(
                        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "c"
                    )
                },
                ask("ab", "c"),
            ),
            (
                {"messages": ask(" a\n", "    return 1\n")},
                ask(" a\n", "    return 1\n"),
            ),  # a template may trim
        ],
        ids=str,
    )
    def test_other_forms_are_read(self, row, wanted):
        assert read_conversation(row, "x") == wanted

    @pytest.mark.parametrize(
        "row",
        [
            {"messages": ask(None, "b")},
            {"messages": ask([{"type": "image_url", "image_url": {"url": "x"}}], "b")},
            {"messages": ask([{"type": "text", "text": None}], "b")},
            {"prompt": "a", "completion": None},
            {"instruction": 3, "output": "b"},
            {"prompt": "a", "completion": "\ud83d"},
        ],
        ids=str,
    )
    def test_what_is_no_text_is_refused_by_its_place(self, row):
        with pytest.raises(CorpusError, match="x, conversation 3: "):
            read_conversation(row, "x, conversation 3")

    def test_equal_conversations_are_dropped_and_counted(self, tmp_path, caplog):
        caplog.set_level("INFO")
        lines = [json.dumps({"messages": ask("hello", "world")})] * 100
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        with pytest.raises(
            CorpusError, match="100 lines, 1 different conversation: at least 3 are needed"
        ):
            load_conversations(str(tmp_path / "x.jsonl"))
        more = [json.dumps({"messages": ask(f"hello {i}", "world")}) for i in range(9)]
        (tmp_path / "x.jsonl").write_text("\n".join(lines + more))
        load_conversations(str(tmp_path / "x.jsonl"))
        assert "109 lines, 10 different conversations: of equal ones one is kept" in caplog.text

    def test_lines_end_where_json_lines_do(self, tmp_path):
        rows = [ask(f"one\u2028two\x85three {i}", "yes") for i in range(9)]
        text = "\r\n".join(json.dumps({"messages": row}, ensure_ascii=False) for row in rows)
        (tmp_path / "x.jsonl").write_text(text, encoding="utf-8-sig")
        found = load_conversations(str(tmp_path / "x.jsonl"))
        assert sorted([*found.train, *found.validation, *found.tests["test"]], key=str) == rows

    def test_a_missing_or_binary_file_is_named(self, tmp_path):
        with pytest.raises(CorpusError, match="no conversations at"):
            load_conversations(str(tmp_path / "none.jsonl"))
        (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(CorpusError, match="not UTF-8"):
            load_conversations(str(tmp_path / "x.bin"))

    def test_a_hub_data_set_keeps_its_splits(self, tmp_path, monkeypatch):
        import pandas

        folder = tmp_path / "ORG" / "chats" / "data"
        folder.mkdir(parents=True)
        for split, count in (("train", 9), ("test", 2)):
            rows = [{"messages": ask(f"{split} {i}", "yes")} for i in range(count)]
            pandas.DataFrame(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        monkeypatch.setenv("RUNG_HUB_MIRROR", str(tmp_path))
        found = load_conversations("hf:ORG/chats")
        assert [c[0]["content"] for c in found.tests["test"]] == ["test 0", "test 1"]
        assert len(found.train) + len(found.validation) == 9


@pytest.fixture(scope="module")
def parts():
    return make_python_qa()


class TestQuestions:
    def test_held_out_objects_and_phrasings_were_never_learned(self, parts):
        learned = {c[0]["content"] for c in parts["train"]}
        named = {name_in(c) for c in parts["train"]}
        for part in ("phrasings", "validation"):
            assert not learned & {c[0]["content"] for c in parts[part]}
            assert {name_in(c) for c in parts[part]} <= named
        assert not named & {name_in(c) for c in parts["objects"]}
        assert min(map(len, parts.values())) >= 50

    def test_the_answer_is_the_interpreters_own(self, parts):
        import os.path
        import statistics

        answers = {c[0]["content"]: c[1]["content"] for part in parts.values() for c in part}
        first = statistics.geometric_mean.__doc__.split("\n\n")[0]
        assert " ".join(first.split()) in {
            answers.get(way.format(name="statistics.geometric_mean")) for way in QUESTIONS["does"]
        }
        assert "join(a, *p)" in {
            answers.get(way.format(name="os.path.join")) for way in QUESTIONS["takes"]
        }
        assert os.path.join

    def test_it_is_the_same_every_time(self, parts):
        assert make_python_qa() == parts
        assert load_conversations(DEFAULT_CONVERSATIONS).name == DEFAULT_CONVERSATIONS


def name_in(conversation):
    return conversation[0]["content"].split("`")[1]


class TestAnswers:
    @pytest.mark.parametrize(
        ("expected", "given", "f1", "exact"),
        [
            ("Return the number of items.", "return number of items", 1.0, True),
            ("the cat sat", "a cat ran", 0.5, False),
            ("cat cat dog", "cat", 0.5, False),
            ("join(x, *p)", "join(x, b)", 2 / 3, False),
            ("the", "", 1.0, True),
            ("cat", "", 0.0, False),
        ],
    )
    def test_token_f1(self, expected, given, f1, exact):
        answer = GradedAnswer(question="", expected=expected, given=given)
        assert answer.f1 == pytest.approx(f1)
        assert answer.is_exact == exact

    def test_questions_are_taken_from_all_over(self):
        assert sample_evenly(list(range(250)), 100)[::50] == [0, 100]
        assert sample_evenly(list(range(399)), 100) == list(range(0, 300, 3))
        assert sample_evenly([1, 2], 100) == [1, 2]

    def test_retrieval_finds_the_question_that_is_most_alike(self):
        known = [
            ask("What does `len` do?", "length"),
            ask("What does `max` do?", "largest"),
            ask("Explain `len`.", "L"),
        ]
        assert RetrievalBaseline(known, rare=False).answer("What does `max` do, pray?") == "largest"
        assert RetrievalBaseline(known, rare=False).answer("zebra") == ""
        assert RetrievalBaseline(known, rare=True).answer("`max`") == "largest"

    def test_a_model_without_chat_is_asked_in_plain_text(self, make_tiny, tokenizer):
        model = make_tiny("llama3")
        talks = [ask("the cat", "sat on the mat"), ask("a dog", "is not a cat")]
        assert len(answer_questions(model, tokenizer, talks)) == 2
        plain = encode_plain_conversations(tokenizer, talks)
        text = [
            tokenizer.decode(
                [i for i, own in zip(e.ids, e.assistant_mask, strict=True) if own][:-1]
            )
            for e in plain
        ]
        assert text == ["sat on the mat", "is not a cat"]
        costs = score_assistant_tokens(model, plain, 26)
        assert costs["token_perplexity"] == pytest.approx(model.config.vocab_size, rel=0.2)


class TestTalk:
    def make(self, make_chat, name="llama3", **fields):
        model, tokenizer = make_chat(name, **fields)
        return ChatSession(decoder=Decoder(model), tokenizer=tokenizer)

    def test_the_oldest_turns_are_dropped_whole_and_the_system_never(self, make_chat):
        talk = self.make(make_chat)
        talk.system = "cat"
        for number in range(9):
            talk.answer(f"the mat {number}", Sampling(max_new_tokens=4, temperature=0))
            assert [m["role"] for m in talk.messages] == ["user", "assistant"] * (
                len(talk.messages) // 2
            )
        assert talk.dropped
        assert len(talk.messages) < 18
        assert len(talk.build_prompt(4)) + 4 <= 64
        assert "cat" in talk.tokenizer.decode(talk.build_prompt(4))

    def test_a_question_that_leaves_no_room_is_refused_and_forgotten(self, make_chat):
        talk = self.make(make_chat)
        with pytest.raises(RunError, match="the question has .* fewer words"):
            talk.answer("the cat " * 100, Sampling(max_new_tokens=4))
        talk.system = "the cat " * 100
        with pytest.raises(
            RunError, match="the question and what stands before it have .* fewer words"
        ):
            talk.answer("the cat", Sampling(max_new_tokens=4))
        assert talk.messages == []

    def test_a_long_conversation_is_written_down_a_few_times(self, make_chat, monkeypatch):
        _, tokenizer = make_chat("llama3")
        written = []
        write = session.encode_prompt
        monkeypatch.setattr(
            session, "encode_prompt", lambda *args: written.append(len(args[1])) or write(*args)
        )
        said = (
            [{"role": "system", "content": "cat"}]
            + ask("the mat", "on the log") * 300
            + ask("a dog", "")[:1]
        )
        kept, dropped, ids = session.drop_oldest_turns(tokenizer, said, 64, 16)
        assert len(written) < 15
        assert sum(written) < 120  # messages: what is far beyond the window is never looked at
        assert (kept[0], kept[-1], len(kept)) == (said[0], said[-1], len(said) - 2 * dropped)
        assert len(ids) + 16 <= 64 < len(write(tokenizer, [said[0], *said[2 * dropped - 1 :]])) + 16

    @pytest.mark.parametrize("most", [0, 1, 2, 3, 10, 100])
    def test_the_fewest_turns_are_dropped(self, most):
        for needed in range(most + 2):
            assert (
                session._find_fewest(most, lambda turns, needed=needed: turns >= needed) == needed
            )

    def test_a_recurrent_model_drops_nothing(self, make_chat):
        talk = self.make(make_chat, "rnn")
        talk.answer("the cat " * 100, Sampling(max_new_tokens=4, temperature=0))
        assert len(talk.messages) == 2

    def test_an_answer_stopped_in_the_middle_is_kept_so_far(self, make_chat):
        talk = self.make(make_chat)
        heard = []

        def hear(text):
            heard.append(text)
            if len(heard) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            talk.answer("the cat", Sampling(max_new_tokens=30, temperature=1.0, top_p=1.0), hear)
        assert talk.messages[-1] == {"role": "assistant", "content": "".join(heard)}

    def test_what_is_saved_is_gone_on_from(self, make_chat, tmp_path):
        talk = self.make(make_chat)
        talk.system = "be a cat"
        talk.answer("the mat", Sampling(max_new_tokens=4, temperature=0))
        talk.save(tmp_path / "talk.jsonl")
        other = self.make(make_chat)
        other.load(tmp_path / "talk.jsonl")
        assert (other.system, other.messages) == (talk.system, talk.messages)
        (tmp_path / "bad.jsonl").write_text("{")
        with pytest.raises(CorpusError, match="bad.jsonl"):
            other.load(tmp_path / "bad.jsonl")
        assert other.messages == talk.messages
