"""Charts hold what they draw."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.report import axes, charts
from tests.report.conftest import CURVE


@pytest.mark.parametrize(
    "metrics", [[], CURVE[:1], CURVE[:2], [{"step": 1, "tokens": 0, "bits_per_byte": 3.0}]]
)
def test_short_learning_curves(metrics, make_run, make_page):
    page = make_page(
        make_run("a", metrics=metrics), make_run("b", rung="ngram", metrics=metrics[-1:])
    )
    drawn = any("bits_per_byte" in line for line in metrics)
    assert ("training tokens read" in page) == drawn
    assert ('class="level"' in page) == drawn
    assert "NaN" not in page


@given(
    st.dictionaries(
        st.sampled_from(["zlib", "bz2", "lzma", "lzma after train"]), st.floats(0.1, 9), min_size=1
    ),
    st.floats(0.1, 9),
    st.sampled_from(axes.CHART_WIDTHS),
)
def test_every_flag_stays_on_the_chart(marks, value, width):
    bar = charts.Bar(label="llama3", note="", value=value, low=None, high=None, shade=0)
    drawing = charts.draw_ladder([bar], marks, width)
    for x, text in re.findall(r'<text x="([\d.-]+)"[^>]*class="flag">(.*?)</text>', drawing):
        assert float(x) + axes.text_width(re.sub("<[^>]+>", "", text), axes.LABEL_SIZE) <= width
