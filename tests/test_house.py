"""The house: one direction of imports, a light command line, small documented files, and documents that say what is true."""

import ast
import importlib
import inspect
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
from importlinter.cli import lint_imports

import synthorax
from synthorax.cli.app import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "synthorax"
MODULES = sorted(SOURCE.rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DEV = runpy.run_path(str(ROOT / "dev.py"))


def where(path):
    return str(path.relative_to(ROOT))


def tracked_texts():
    """Path and text of every tracked file that is text; in an unpacked archive, of every file that an archive holds."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else [where(path) for path in [*MODULES, *PAGES]]
    for name in names:
        path = ROOT / name
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8")


# Imports


@pytest.fixture(autouse=True)
def loggers_stay_enabled():
    """import-linter configures logging for the whole process, which disables the loggers that exist by then."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled = [logger.disabled for logger in loggers]
    yield
    for logger, before in zip(loggers, disabled, strict=True):
        logger.disabled = before


def test_imports_run_one_way(capsys):
    code = lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True)
    assert code == 0, capsys.readouterr().out


BREACHES = {
    "losses/breach.py": ("import synthorax.nets.unet", "Rooms import downwards only"),
    "judges/breach.py": ("import synthorax.verbs.evidence", "Rooms import downwards only"),
    "families/breach.py": ("import synthorax.data.pixels", "Families know neither data nor training nor evaluation"),
    "evaluation/breach.py": ("import synthorax.families", "Training, evaluation and privacy know no family"),
    "data/breach.py": ("from torch import nn", "Data needs neither torch nor matplotlib"),
    "steps/breach.py": ("import pydicom", "Only data/dicom_* imports pydicom"),
}


def test_every_contract_notices_a_breach(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "synthorax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (line, _) in BREACHES.items():
        (tmp_path / "synthorax" / name).write_text(line + "\n")
    program = ("import sys, importlib.util; sys.path.insert(0, sys.argv[1]); from importlinter.cli import lint_imports; "
               "assert importlib.util.find_spec('synthorax').origin.startswith(sys.argv[1]); "
               "sys.exit(lint_imports(config_filename=sys.argv[2], no_cache=True))")
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(ROOT / ".importlinter")], cwd=tmp_path,
                            capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    for name, (_, contract) in BREACHES.items():
        assert f"{contract} BROKEN" in result.stdout
        assert f"synthorax.{name.removesuffix('.py').replace('/', '.')} " in result.stdout


def test_only_the_engine_knows_the_distributed_engine():
    knowing = [where(path) for path in MODULES
               if re.search(r"torch\.distributed|torch import distributed|DistributedDataParallel", path.read_text(encoding="utf-8"))]
    assert knowing == ["src/synthorax/engine.py"]


# The command line and the package


def test_help_answers_in_half_a_second():
    command = [sys.executable, "-m", "synthorax", "--help"]
    taken = []
    for _ in range(3):
        start, before = time.perf_counter(), os.times()
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wall, after = time.perf_counter() - start, os.times()
        # What else runs on this machine lengthens the wall time, not the processor time; Windows does not tell the latter.
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system or wall)
    assert "augment" in shown
    assert min(taken) < 0.5


HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "PIL", "pydicom", "rich", "synthorax.verbs.evidence",
         "synthorax.config", "pydantic", "importlib.metadata")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["generate", "--help"], ["benefit", "--help"], ["audit", "--help"],
                                   ["screen", "--help"], ["refine-loop", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    program = f"""
import atexit, sys
from synthorax.cli.app import main
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
sys.argv = ["synthorax", *{words}]
main()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_is_cheap():
    program = "import sys, synthorax; print(sorted({'torch', 'numpy', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_public_name_resolves():
    """Also once every room has been imported: no room may have the name of a verb, or it would hide it."""
    importlib.import_module("synthorax.verbs.augmentation")
    assert len(set(synthorax.__all__)) == len(synthorax.__all__)
    for name in synthorax.__all__:
        assert not isinstance(getattr(synthorax, name), ModuleType), name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        synthorax.nothing_of_the_kind  # noqa: B018


def test_every_verb_has_help_with_an_example():
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        assert f"Example: synthorax {name}" in (command.epilog or ""), name


# Files


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_every_module_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or (path.name == "__init__.py" and not text.strip())


def test_every_public_method_has_a_docstring_of_its_own_or_of_what_it_overrides():
    """Ruff asks for one of its own (D102), also where a network's `forward` or an objective's `losses` is described once and for all."""
    missing = []
    for path in MODULES:
        module = importlib.import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"))
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and not kind.__name__.startswith("_"):
                missing += [f"{where(path)}: {kind.__name__}.{name}" for name, method in vars(kind).items()
                            if inspect.isfunction(method) and not name.startswith("_") and not inspect.getdoc(getattr(kind, name))]
    assert sorted(missing) == []


def test_no_file_is_above_500_lines():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*"), ROOT / "dev.py"]
    assert [where(path) for path in files if path.is_file() and len(path.read_bytes().splitlines()) > 500] == []


PROBED = {"os": "a function that some systems lack", "cli/": "Typer's objects, and results of verbs", "config.py": "any config",
          "former_names.py": "any record",
          "data/dicom_read.py": "pydicom's objects", "data/image_files.py": "Pillow's objects",
          "families/denoising/diffusers.py": "classes of diffusers", "nets/text.py": "models of transformers"}
"""objects, files and folders of which attributes may be asked for that they may lack, and whose these are"""


def probes(path):
    """Calls of `hasattr`, and of `getattr` with a default, in a file: line and what they ask."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        asks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and (
            node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))
        if asks and ast.unparse(node.args[0]) not in PROBED:
            yield f"{where(path)}:{node.lineno}: {ast.unparse(node)}"


def test_models_and_recipes_declare_what_they_can_do_and_are_not_probed():
    """See `capabilities` and `Family.needs`."""
    ours = [path for path in MODULES if not path.relative_to(SOURCE).as_posix().startswith(tuple(PROBED))]
    assert [probe for path in ours for probe in probes(path)] == []


def test_a_probe_is_noticed():
    path = SOURCE / "families" / "denoising" / "diffusers.py"
    assert any("hasattr(kind, 'from_pretrained')" in probe for probe in probes(path))


# One letter in brackets each, so that this file does not find itself.
UNWANTED = {
    "package index": r"https?://\S*(p[y]pi|p[y]thonhosted|/s[i]mple\b|/w[h]l\b|a[n]aconda\.org)|--(extra-)?i[n]dex-url[ =]\S*/",
    "path of one machine": r"(?<![\w.~$/}])/(w[o]rk|r[o]ot|h[o]me|U[s]ers)/|[A-Z]:\\U[s]ers\\",
    "unfinished work": r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b|raise N[o]tImplementedError",
    "merge conflict": r"(?m)^(<{7}|>{7}) ",
    "private key": r"BEGIN [A-Z ]*PRI[V]ATE KEY",
}


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_contains(what):
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in re.finditer(UNWANTED[what], text)]
    assert found == []


def test_lock_is_hashed_and_leaves_torch_out():
    entries = re.findall(r"(?m)^([\w.-]+)==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", DEV["LOCK"].read_text())
    names = {name for name, _ in entries}
    assert len(entries) == len(re.findall(r"(?m)^[^#\s]", DEV["LOCK"].read_text())) == len(names)
    assert {"numpy", "pytest", "setuptools", "filelock"} <= names
    assert not any(DEV["NOT_LOCKED"].match(f"{name}==") for name in names)


# Documents


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_links_to_files_resolve(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|mailto:|#", link)]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_commands_of_dev_in_documents_exist(page):
    assert set(re.findall(r"python3 dev\.py (\w+)", page.read_text(encoding="utf-8"))) <= set(DEV["COMMANDS"])


def test_readme_gives_the_two_commands():
    assert "```sh\npython3 dev.py demo\npython3 dev.py test\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)", index)}
    assert [where(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page.name != "index.md"
            and page.resolve() not in listed] == []


def test_the_table_of_rooms_names_every_room():
    rooms = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Rooms")[2].partition("\n## ")[0]
    names = {path.stem for path in SOURCE.iterdir() if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")}
    assert sorted(name for name in names - {"recipes"} if f"`{name}`" not in rooms) == []


def test_the_index_begins_with_four_links():
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert len(re.findall(r"(?m)^- \[", start)) == 4


def test_every_page_is_on_a_shelf():
    shelves = {"getting-started", "how-to", "reference", "explanation", "studies", "decisions"}
    assert {page.parent.name for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md"} == shelves


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_no_line_of_prose_is_above_160_characters(page):
    prose = re.sub(r"(?ms)^```.*?^```|^<!--.*?-->$|^---\n.*?^---$", "", page.read_text(encoding="utf-8"))
    assert [line for line in prose.splitlines() if len(line) > 160 and not line.startswith("|")] == []


ROOMS = "|".join(path.name for path in SOURCE.iterdir() if path.is_dir() and not path.name.startswith("_") and path.name != "recipes")


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_files_and_dotted_names_that_a_page_gives_exist(page):
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")))
    files = [name for span in spans for name in re.findall(r"(?<![\w/.{-])(?:[\w-]+/)+[\w-]+\.(?:py|sh|toml)\b", span)]
    assert [name for name in files if not any((folder / name).exists() for folder in (ROOT, SOURCE))] == []
    dotted = [name for span in spans for name in re.findall(rf"^(?:synthorax\.|(?:{ROOMS})\.)[\w.]+", span)
              if not re.search(r"\.(json|csv|md|html|toml|py)$", name)]
    assert [name for name in dotted if not names_something(name.removeprefix("synthorax."))] == []


def names_something(dotted):
    """Whether this is a module of the package, or something in one."""
    parts = dotted.split(".")
    for number in range(len(parts), -1, -1):
        try:
            thing = importlib.import_module(".".join(["synthorax", *parts[:number]]))
        except ImportError:
            continue
        for name in parts[number:]:
            thing = getattr(thing, name, None)
        return thing is not None
    return False


def test_version_is_the_same_everywhere():
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())[1]
    assert synthorax.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


# dev.py


def dev(*arguments):
    return subprocess.run([sys.executable, str(ROOT / "dev.py"), *arguments], capture_output=True, text=True)


def test_dev_lists_its_commands_and_refuses_others():
    shown, refused = dev("--help"), dev("nonsense")
    assert (shown.returncode, refused.returncode) == (0, 2)
    for name in DEV["COMMANDS"]:
        assert f"dev.py {name}" in shown.stdout
        assert f"dev.py {name}" in refused.stderr


def test_dev_needs_the_standard_library_only():
    imported = {alias.name.partition(".")[0] for node in ast.walk(ast.parse((ROOT / "dev.py").read_text()))
                if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.partition(".")[0] for node in ast.walk(ast.parse((ROOT / "dev.py").read_text()))
                 if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_dev_keeps_what_leads_pip_astray_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    environment = DEV["_environment"]()
    assert "PYTHONPATH" not in environment
    assert environment["PIP_USER"] == "0"
