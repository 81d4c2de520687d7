"""Conversations read from files and data sets, and what is refused."""

import json

import pytest

from rung.chat.conversations import load_conversations, read_conversation
from rung.errors import CorpusError
from tests.chat.conftest import ask


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
