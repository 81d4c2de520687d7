"""Models that answer: chat templates, conversations to learn from, and how answers are judged."""
