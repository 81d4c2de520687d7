"""Chats that go on: turns dropped, saved and continued."""

import pytest

from rung.chat import session
from rung.chat.session import ChatSession
from rung.errors import CorpusError, RunError
from rung.generation.decoder import Decoder
from rung.generation.sampling import Sampling
from tests.chat.conftest import ask


class TestChatSession:
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
