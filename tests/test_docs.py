"""The documents say what is: links lead somewhere, commands and settings exist, quoted messages are the program's own."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastsurf
from fastsurf import cli
from fastsurf.completion import keys
from fastsurf.config import PRESETS, Config, load_config
from fastsurf.errors import FastsurfError
from fastsurf.options import EXAMPLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
TROUBLE = DOCS / "troubleshooting.md"
VERBS = cli._kinds()
KEYS = set(keys())
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
FILES = {"py", "ply", "run", "glb", "obj", "stl", "json", "npz"}  # endings: `mesh.ply` is no setting
QUOTED = re.compile(r"\*\*`([^`]+)`\*\*")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are not beside the tests")
page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def text_of(page):
    return page.read_text(encoding="utf-8")


def names_a_function(module, name):
    file = Path(fastsurf.__file__).parent / f"{module}.py"
    return file.is_file() and f"\ndef {name}(" in file.read_text(encoding="utf-8")


def prose_of(page):
    return FENCED.sub("", text_of(page))


def anchors(page):
    """As GitHub makes them of headings."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


def commands(text):
    """Verb and words of each `fastsurf VERB ...`, in blocks and between backticks; placeholders for numbers become 1."""
    lines = [line for _, _, block in FENCED.findall(text) for line in block.splitlines()]
    spans = [*lines, *INLINE.findall(QUOTED.sub("", FENCED.sub("", text)))]
    for span in spans:
        for found in re.finditer(r"(?:^|[\s\"(=])(?<!from )fastsurf ([a-z][^\"`|>&;]*)", span):
            line = re.sub(r"\[(--[^\]]*)\]", r"\1", found[1])  # what may be left out
            line = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", line.split("  #")[0].replace("--method NAME", ""))
            words = [re.sub(r"^[NMRIS]$", "1", word) for word in shlex.split(line.split(")")[0] if "$" not in line else line)]
            words = [word for word in words if word not in ("...", "…", "\\")]
            yield words[0], words[1:]


def messages():
    """Texts that the sources hold, with \\0 where something is put in."""
    for path in Path(fastsurf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


@page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}: headings are {anchors(file)}"


@page
def test_commands_are_understood(page):
    for verb, words in commands(text_of(page)):
        assert verb in VERBS, f"{page.name}: fastsurf {verb}"
        if "--help" in words:
            continue
        try:
            cli._parse(verb, words)
        except (FastsurfError, SystemExit) as e:
            pytest.fail(f"{page.name}: fastsurf {verb} {' '.join(words)}: {e}")


def test_commands_are_found_and_refused():
    found = list(commands("```\nfastsurf info A  # words\nX=1 fastsurf mesh RUN -o m.ply &\n```\nor `fastsurf eval RUN --gt scan.ply`."))
    assert found == [("info", ["A"]), ("mesh", ["RUN", "-o", "m.ply"]), ("eval", ["RUN", "--gt", "scan.ply"])]
    with pytest.raises(FastsurfError):
        cli._parse("mesh", ["--no-such-flag"])


@page
def test_settings_and_presets_exist(page):
    text = text_of(page)
    for key in re.findall(r"--set '?([\w.]+)=", text):
        assert key in KEYS, f"{page.name}: --set {key}="
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    for section, name, value in re.findall(r"`(\w+)\.(\w+)(=[^`]*)?`", text):
        if section in sections and name not in FILES and not names_a_function(section, name):
            assert f"{section}.{name}" in KEYS, f"{page.name}: {section}.{name}{value}"
    for name in re.findall(r"--(?:config|method) ([a-z]\w*)\b(?!\.toml)", text):
        assert (PRESETS / f"{name}.toml").is_file() or name == Config().method, f"{page.name}: {name}"


@page
def test_python_in_blocks_compiles(page):
    for _, language, code in FENCED.findall(text_of(page)):
        if language == "python":
            compile(code, str(page), "exec")
        if language == "toml":
            load_config_text(code)


def load_config_text(code):
    import tomllib

    from fastsurf.config import from_dict

    assert from_dict(tomllib.loads(code), "the document") != Config()


def test_quoted_messages_are_the_programs_own():
    known, quoted = list(messages()), QUOTED.findall(text_of(TROUBLE))
    assert len(quoted) > 40
    for quote in (" ".join(quote.split()) for quote in quoted):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in quote.split("…") if part.strip()), re.S)
        assert any(pattern.search(text) for text in known), quote


@page
def test_functions_stand_where_they_are_said_to(page):
    """`name` behind `module.py:` in a table."""
    for module, names in re.findall(r"(?<![\w/])([\w/]+\.py): ((?:`\w+`(?:, )?)+)", text_of(page)):
        file = Path(fastsurf.__file__).parent / module
        for name in INLINE.findall(names):
            assert re.search(rf"^ *(?:def|class) {name}\b", file.read_text(encoding="utf-8"), re.M), f"{page.name}: {module}: {name}"


def test_every_document_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)\)", text_of(DOCS / "README.md")))
    assert linked == {file.name for file in DOCS.glob("*.md")} - {"README.md"}


def test_the_configuration_is_what_the_tool_writes():
    done = subprocess.run([sys.executable, ROOT / "tools" / "make_reference.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = text_of(DOCS / "configuration.md")
    assert all(f"\n| `{key}` |" in text for key in KEYS) and "|  |\n" not in text, "a key without a word on what it does"


def test_the_readmes_map_of_files_is_true():
    block = text_of(ROOT / "README.md").split("## Files")[1].split("```")[1]
    for name in re.findall(r"(?<!\S)([\w.]+(?:/|\.(?:py|sh|txt|toml)|/run))(?!\S)", block):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "fastsurf", ROOT / "tools")), name


def test_architecture_names_every_module():
    table = text_of(DOCS / "architecture.md").split("## Modules")[1].split("\n## ")[0]
    named = {name.rstrip("/") for row in table.splitlines() if row.startswith("|") for name in INLINE.findall(row.split("|")[1])}
    package = Path(fastsurf.__file__).parent
    there = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert named <= there and there - named <= {"__init__", "__main__", "methods"}, named ^ there


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_examples_that_are_understood(verb, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main([verb, "--help"])
    assert e.value.code == 0
    assert capsys.readouterr().out.endswith("examples:\n" + "".join(f"  {example}\n" for example in EXAMPLES[verb]))
    understood = list(commands("```\n" + "\n".join(EXAMPLES[verb]) + "\n```\n"))
    assert len(understood) == len(EXAMPLES[verb])
    for said, words in understood:
        assert said == verb
        cli._parse(verb, words)


def test_the_examples_settings_are_presets():
    for line in (line for lines in EXAMPLES.values() for line in lines):
        for name in re.findall(r"--config (\w+)", line):
            load_config(name)
