"""The cards of samples and passages."""

import re

from tests.report.conftest import words_of


def test_broken_characters_are_explained(make_run, make_page):
    reason = "breaks characters of several"
    assert reason in words_of(
        make_page(make_run("a", rung="bigram", sample="\u2031\ufffdz\ufffdV"))
    )
    assert reason not in words_of(make_page(make_run("b", sample="whole")))


def test_the_bytes_of_one_character_are_one_token(make_run, make_page):
    page = make_page(
        make_run("a", passage=[["n", 1.0], ["ï", 2.0], ["", 3.0], ["ve", 4.0], ["", 0.5]])
    )
    shown = re.findall(r'title="([\d.]+) bits(?:, end of text)?"[^>]*>([^<]*)<', page)
    assert shown == [("1.0", "n"), ("5.0", "ï"), ("4.0", "ve"), ("0.5", "")]
