"""What the documents say exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fcnopt.cli import main

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "engines/README.md",
    "calib/README.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    assert "@@" not in text


@pytest.mark.parametrize("page", PAGES)
def test_files_and_commands_named_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for file in re.findall(r"`((?:fcnopt|benchmarks|tests|docker)/[\w/.]+)`", text):
        assert (ROOT / file).exists(), file
    for command in re.findall(r"(?:^    |`)fcnopt (\w+)", text, re.MULTILINE):
        assert command in main.commands, command
    for command, option in re.findall(r"fcnopt (export|build|bench)[^`\n]*?(--[a-z-]+)", text):
        assert option in CliRunner().invoke(main, [command, "--help"]).output, (command, option)
