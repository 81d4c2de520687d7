"""Conversations encoded by chat templates: our own, published ones, and those without marks."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from rung.chat.template import (
    CHATML_FORMAT,
    LLAMA3_FORMAT,
    encode_conversations,
    encode_prompt,
    find_chat_stop_ids,
    set_up_chat_format,
)
from rung.errors import TokenizerError
from tests.chat.conftest import FORMATS, TALK, ask
from tests.conftest import NEURAL, SENTENCES, examples


def own_end(name):
    return LLAMA3_FORMAT.end if name == "llama3" else CHATML_FORMAT.end


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
    @settings(max_examples=examples(50), deadline=None)
    def test_nothing_in_a_message_becomes_a_special_token(self, tokenizer, make_tiny, parts):
        import copy

        model, own = copy.deepcopy(make_tiny("llama3")), copy.deepcopy(tokenizer)
        set_up_chat_format(model, own, LLAMA3_FORMAT)
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
        set_up_chat_format(model, tokenizer, LLAMA3_FORMAT)
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
