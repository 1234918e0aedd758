"""The documentation site: generated pages have everything that they are generated from, and a broken link stops the build."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import synthorax
from synthorax.cli.app import app

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """bench/site/build.py, which is a script and imports its neighbour."""
    folder = str(ROOT / "bench" / "site")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("site_build", ROOT / "bench/site/build.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def test_the_command_line_page_has_every_command_panel_and_option(site: ModuleType) -> None:
    sections = dict(re.findall(r"(?ms)^## (\S+)\n(.*?)(?=^## |\Z)", site.command_line()))
    assert list(sections) == list(COMMANDS)
    for name, command in COMMANDS.items():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" and not parameter.hidden else ():
                assert f"`{option}`" in sections[name], (name, option)
            if getattr(parameter, "rich_help_panel", None):
                assert parameter.rich_help_panel in sections[name], (name, parameter.rich_help_panel)
        assert command.epilog.removeprefix("Example: ") in sections[name]
        assert "object at 0x" not in sections[name].lower()
        assert not re.search(r"`[^`\n]*\\\|[^`\n]*`", sections[name]), "a backslash within code is shown"
    assert "| `--seed` `INTEGER` | `0` |" in sections["generate"] and "`--device` `auto` or `cpu` or `cuda`" in sections["generate"]


def test_the_api_page_shows_fields_without_a_comment(site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed; python3 dev.py setup installs it")

    def stage(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "index.md").write_text("# Start\n\n::: synthorax.types.Study\n\n::: synthorax.steps.planning.row.PlanRow\n")

    monkeypatch.setattr(site, "stage", stage)
    monkeypatch.setattr(site, "_nav", lambda: [{"Start": "index.md"}])
    for name, path in (("SOURCE", tmp_path / "site-source"), ("SITE", tmp_path / "site"), ("SETTINGS", tmp_path / "zensical.toml")):
        monkeypatch.setattr(site, name, path)
    assert site.main([]) == 0
    page = (tmp_path / "site/index.html").read_text("utf-8")
    for field in ("types.Study.patient_id", "types.Study.site", "steps.planning.row.PlanRow.seed", "steps.planning.row.PlanRow.labels"):
        assert f'id="synthorax.{field}"' in page, field


def test_the_api_page_has_every_public_name(site: ModuleType) -> None:
    assert sorted(name for names in site.public_names().values() for name, _ in names) == sorted(set(synthorax.__all__) - {"__version__"})


def test_every_name_on_the_api_page_is_documented(site: ModuleType) -> None:
    page = site._text(ROOT / "docs/reference/api.md")
    paths = re.findall(r"(?m)^::: (\S+)$", page)
    assert len(paths) == len(set(paths)) and "synthorax.protocols.Model" in paths
    for path in paths:
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        assert thing.__doc__, path


def test_a_copy_keeps_no_link_to_a_file_that_it_lacks(site: ModuleType, tmp_path: Path) -> None:
    site.stage(tmp_path)
    broken = [f"{page.relative_to(tmp_path)}: {link}" for page in tmp_path.rglob("*.md") for link in site._links(page.read_text("utf-8"))
              if not re.match(r"https?:|mailto:|#", link) and not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []
    assert (tmp_path / "getting-started/augmentation.md").exists() and (tmp_path / "reference/cards/cxr-256.md").exists()


def test_a_page_that_loads_something_from_outside_is_found(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<script src="https://unpkg.com/iframe-worker/shim" type="text/javascript"></script><a href="https://doi.org/1">paper</a>')
    assert site.loads_from_outside(tmp_path) == []
    (tmp_path / "page.html").write_text('<img src="https://example.org/a.png"><link href="https://example.org/a.css" rel="stylesheet">')
    assert len(site.loads_from_outside(tmp_path)) == 2


@pytest.mark.parametrize(("link", "code"), [("data.md#labels", 0), ("data.md#nothing-of-the-kind", 1), ("nothing.md", 1)])
def test_a_broken_link_stops_the_build(site: ModuleType, link: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed; python3 dev.py setup installs it")
    pages = tmp_path / "site-source"

    def stage(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "index.md").write_text(f"# Start\n\n[here]({link})\n")
        (folder / "data.md").write_text("# Data\n\n## Labels\n\nText.\n")

    monkeypatch.setattr(site, "stage", stage)
    monkeypatch.setattr(site, "_nav", lambda: [{"Start": "index.md"}, {"Data": "data.md"}])
    for name, path in (("SOURCE", pages), ("SITE", tmp_path / "site"), ("SETTINGS", tmp_path / "zensical.toml")):
        monkeypatch.setattr(site, name, path)
    assert site.main([]) == code
    assert (tmp_path / "site/index.html").exists() or code
