"""Models that answer: how a conversation is written down, what they learn to answer from, and how they are judged.

formats         chat templates, and conversations as token ids
conversations   read from files and the Hub
questions       python-qa, made of the interpreter's own documentation
examples        conversations as rows to train on
answers         held-out questions answered and judged
talk            one conversation as it goes on
"""

from rung.chat.formats import encode_prompt, find_ends
from rung.chat.talk import drop_turns

__all__ = ["drop_turns", "encode_prompt", "find_ends"]
