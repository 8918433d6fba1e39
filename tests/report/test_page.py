from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2
import pytest

from fcnopt.errors import UsageError
from fcnopt.report.page import check_writable, template


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


def test_a_page_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "page.html")
    for place in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(UsageError, match="cannot be written there") as error:
            check_writable(place)
        assert error.value.fix == "give a file in an existing folder"
