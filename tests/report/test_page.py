from __future__ import annotations

from importlib import resources

import jinja2
import pytest

from fcnopt.report.page import template


def test_a_value_that_a_page_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        template("search.html").render(name="net")


def test_every_page_extends_the_base_and_repeats_nothing_of_its_style() -> None:
    files = [path for path in resources.files("fcnopt.report").iterdir() if path.name.endswith(".html")]
    texts = {path.name: path.read_text("utf-8") for path in files}
    base = texts.pop("base.html")
    shared = {line for line in base.split("<style>")[1].splitlines() if line.endswith("}") and ":" in line}
    assert len(texts) == 3
    assert len(shared) > 10
    for name, text in texts.items():
        assert text.startswith('{% extends "base.html" %}'), name
        assert not shared & set(text.splitlines()), name
