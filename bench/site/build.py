"""Build the documentation site from the Markdown of this repository: python3 dev.py docs.

`docs/` is copied to build/site-source, together with the pages outside it that it links to (README, CONTRIBUTING, CHANGELOG, model cards,
tutorials, findings). Two pages are filled in: the API reference from the docstrings, the command-line reference from the Typer app. Then
Zensical renders the copy into build/site, offline, and any broken link, missing anchor or unknown name of the API stops the build.
docs/decisions/0011-documentation-site.md says why it is done this way.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import tomli_w
from pages import api, canonical, command_line, public_names, tutorial

__all__ = ["command_line", "loads_from_outside", "main", "public_names", "stage"]

ROOT = Path(__file__).resolve().parents[2]
SOURCE, SITE = ROOT / "build/site-source", ROOT / "build/site"
SETTINGS = ROOT / "build/zensical.toml"
OUTSIDE = {"README.md": "project/readme.md", "CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md",
           "findings/README.md": "project/findings.md"}
"""page outside docs/ -> its place on the site"""
FILLED: dict[str, Callable[[], str]] = {"api": api, "command-line": command_line}
"""name in `<!-- generated: NAME -->` -> what stands there on the site"""
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
EXTERNAL = re.compile(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css|woff2?)["']|src=["']https?://[^"']+["']|@import\s+url\(["']?https?:""")
"""what a page would load from another machine"""
WORKER = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"[^>]*></script>')
"""Zensical's help for searching pages that were opened as files; it would be loaded from outside"""


def main(arguments: list[str]) -> int:
    """Copy, fill in, render; returns the exit code of Zensical, or 1 if a page would load something from outside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-copy", action="store_true", help="leave build/site-source and do not render it")
    options = parser.parse_args(arguments)
    stage(SOURCE)
    SETTINGS.write_text(tomli_w.dumps({"project": _settings()}), encoding="utf-8")
    if options.only_copy:
        return 0
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(SETTINGS)],
                          env=os.environ | {"NO_COLOR": "1"}, check=False, text=True, capture_output=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        return 1
    loading = loads_from_outside(SITE)
    print(*loading, sep="\n", end="\n" if loading else "", file=sys.stderr)
    print(f"docs: {sum(1 for _ in SITE.rglob('*.html'))} pages; open {SITE / 'index.html'}")
    return 1 if loading else 0


def stage(folder: Path) -> None:
    """The Markdown of the site and what it shows, in an empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    places = {path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").as_posix()
              for path in (ROOT / "docs").rglob("*") if path.is_file()}
    places |= OUTSIDE
    places |= {path.relative_to(ROOT).as_posix(): f"reference/cards/{path.name}" for path in (ROOT / "src/synthorax/zoo").glob("*.md")}
    places |= {path.relative_to(ROOT).as_posix(): f"getting-started/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")}
    wanted = dict(places)
    while wanted:  # a page may name files that no page has named before
        name, place = wanted.popitem()
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".md"):
            text = _text(ROOT / name)
            linked = [_linked(link, name) for link in _links(text)]
            new = {path: f"files/{path}" for path in linked if path and path not in places and (ROOT / path).is_file()}
            places |= new
            wanted |= new
            target.write_text(_relinked(text, name, place, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / name, target)


def loads_from_outside(site: Path) -> list[str]:
    """The pages that would load a script, style, font or image from another machine, after the one known script was taken out."""
    found = []
    for page in sorted(site.rglob("*.html")):
        text = WORKER.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        found += [f"{page.relative_to(site)}: {match[0]}" for match in EXTERNAL.finditer(text)]
    return found


def _text(path: Path) -> str:
    """The Markdown of a page: tutorials are rendered, cards lose their head of JSON, and marked places are filled in."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return tutorial(text)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- generated: ([\w-]+) -->", lambda match: FILLED[match[1]](), text)
    return _each_once(re.sub(r"(?m)^::: (\S+)$", lambda match: f"::: {canonical(match[1])}", text))


def _each_once(text: str) -> str:
    """The page without a second directive for the same name."""
    seen: set[str] = set()
    return re.sub(r"(?m)^::: \S+\n?", lambda match: "" if match[0].strip() in seen else seen.add(match[0].strip()) or match[0], text)


def _links(text: str) -> list[str]:
    return [match[2] for match in LINK.finditer(re.sub(r"(?ms)^```.*?^```", "", text))]


def _linked(link: str, page: str) -> str:
    """The file that a link of a page names, from the root of the repository; empty for addresses and for places on the page itself."""
    path = link.partition("#")[0]
    return "" if not path or re.match(r"https?:|mailto:", link) else posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def _relinked(text: str, page: str, place: str, places: dict[str, str]) -> str:
    def link(match: re.Match[str]) -> str:
        target = places.get(_linked(match[2], page))
        if target is None:
            return match[0]
        anchor = "".join(match[2].partition("#")[1:])
        return f"{match[1]}({posixpath.relpath(target, posixpath.dirname(place) or '.')}{anchor})"

    parts = re.split(r"(?ms)(^```.*?^```)", text)  # code stays as it is
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def _settings() -> dict[str, object]:
    """Settings of Zensical: nothing from other machines, pages that open from a folder, and docs/index.md as the table of contents."""
    options = {"show_root_heading": True, "show_root_full_path": False, "heading_level": 3, "show_source": False,
               "show_signature_annotations": True, "separate_signature": True, "signature_crossrefs": True, "show_bases": False,
               "show_if_no_docstring": True,  # fields without a comment are fields all the same
               "members_order": "source", "filters": ["!^_", "!^to_dict$", "!^from_dict$"],
               "extensions": [str(Path(__file__).with_name("examples_as_code.py"))]}
    return {"site_name": "Synthorax", "docs_dir": SOURCE.name, "site_dir": SITE.name, "use_directory_urls": False, "nav": _nav(),
            "theme": {"font": False, "language": "en",
                      "features": ["navigation.sections", "navigation.top", "toc.follow", "content.code.copy"],
                      "palette": [{"scheme": "default", "toggle": {"icon": "lucide/sun", "name": "Dark"}},
                                  {"scheme": "slate", "toggle": {"icon": "lucide/moon", "name": "Light"}}]},
            "plugins": {"search": {}, "offline": {},
                        "mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT / "src")], "options": options}}}}}


def _nav() -> list[dict[str, object]]:
    """The tables of docs/index.md: a section for each heading, a page for each row."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    nav: list[dict[str, object]] = [{"Documentation": "index.md"}]
    for heading, body in re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", index):
        rows = re.findall(r"(?m)^\| \[([^\]]+)\]\(([^)#]+)\) \| (.+?) \|$", body)
        pages = [{(f"{title} {about}" if title.isdigit() else title): _on_site(link)} for title, link, about in rows]
        if pages:
            nav.append({heading: pages})
    return nav


def _on_site(link: str) -> str:
    path = posixpath.normpath(posixpath.join("docs", link))
    if path.startswith("examples/"):
        return f"getting-started/{Path(path).stem}.md"
    return OUTSIDE.get(path, posixpath.relpath(path, "docs"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
