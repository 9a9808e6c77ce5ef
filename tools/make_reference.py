"""docs/configuration.md from the dataclasses in fastsurf/config.py: every key with its type, default, range and the words beside it.

    python tools/make_reference.py            # write the file
    python tools/make_reference.py --check    # say whether it is what would be written
"""

import argparse
import dataclasses
import inspect
import io
import re
import sys
import tokenize
import tomllib
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the sources beside this file, whatever is installed

from fastsurf import config as c  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
METHODS = c.CHOICES["method"]
HEAD = """\
# Configuration

<!-- Written by tools/make_reference.py from fastsurf/config.py and configs/. -->

Defaults, then `--method`, then `--config`, then `--set`, then flags: the later wins. `--config` names a preset or your own TOML file, which
holds only what differs:

```toml
method = "unisurf"

[scene]
center = [0.1, 0.0, 0.3]
radius = 1.2

[train]
minutes = 10
```

`--set scene.radius=1.2` sets any one key, as often as you like; a value that is no TOML counts as a word, and `none` takes a setting back.
An unknown key is an error that names the nearest one. `RUN/config.toml` holds all settings of a run, as they were used.
`--resume` begins with those instead of the defaults, so that only what is to change needs to be said again.

A number without a range here takes any; a key that is `none` is found or chosen from the scene. Lengths are in scene units, in which the
scene box is [-1, 1]³, unless the table says otherwise.
"""


def page() -> str:
    """The whole text."""
    sections = [field for field in dataclasses.fields(c.Config) if dataclasses.is_dataclass(getattr(c.Config(), field.name))]
    text = [HEAD, *_table("Top level", "", c.Config, [f.name for f in dataclasses.fields(c.Config) if f not in sections])]
    for field in sections:
        kind = type(getattr(c.Config(), field.name))
        text += _table(f"[{field.name}]", f"{field.name}.", kind, [f.name for f in dataclasses.fields(kind)])
    return "\n".join([*text, *_presets()]).rstrip() + "\n"


def _table(title: str, prefix: str, kind: type, names: list[str]) -> list[str]:
    """The section as Markdown; `kind` is its dataclass."""
    about, says, hints = inspect.getdoc(kind), comments(kind), typing.get_type_hints(kind)
    lines = [f"## {title}", "", *([str(about), ""] if prefix else [])]
    lines += ["| key | type | default | range | what it does |", "|---|---|---|---|---|"]
    for name in names:
        row = (f"`{prefix}{name}`", _type(hints[name]), _value(getattr(kind(), name)), _range(prefix + name), says.get(name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return [*lines, ""]


def comments(kind: type) -> dict[str, str]:
    """What stands behind each field of a dataclass, after its #."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(kind)).readline):
        field = re.match(r" {4}(\w+):", token.line)
        if token.type == tokenize.COMMENT and field:
            found[field[1]] = token.string.removeprefix("#").strip()
    return found


def _type(hint: Any) -> str:
    words = [h for h in typing.get_args(hint) if h is not type(None)] if type(None) in typing.get_args(hint) else [hint]
    if typing.get_origin(words[0]) is tuple:
        return f"{len(typing.get_args(words[0]))} numbers"
    names = {int: "whole number", float: "number", str: "word", bool: "true, false"}
    return " or ".join(names[word] for word in words)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:.6g}' if isinstance(value, float) else value}`"


def _range(key: str) -> str:
    if key in c.CHOICES:
        return ", ".join(f"`{choice}`" for choice in c.CHOICES[key])
    if key not in c.RANGES:
        return ""
    least, most = c.RANGES[key]
    return f"{least:g} or more" if most == c.ANY else f"{least:g} to {most:g}"


def _presets() -> list[str]:
    """What each file in configs/ has different from the defaults, with the words on top of it."""
    files = sorted(c.CHECKOUT.glob("*.toml"), key=lambda file: (file.stem in METHODS, file.stem))
    lines = ["## Presets and methods", "", "A preset is for `--config`, a method for `--method`. What differs from the defaults:", ""]
    for file in files:
        text = file.read_text(encoding="utf-8")
        said = " ".join(line.removeprefix("#").strip() for line in text[: re.search(r"^[^#]", text, re.M).start()].splitlines())
        flag = "--method" if file.stem in METHODS else "--config"
        lines += [f"### {file.stem}", "", f"`{flag} {file.stem}`: {said}", "", "| key | value | default |", "|---|---|---|"]
        for key, value in _flat(tomllib.loads(text)):
            lines.append(f"| `{key}` | {_value(value)} | {_value(_default(key))} |")
        lines.append("")
    return lines


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        pair for key, value in tree.items()
        for pair in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)])
    ]  # fmt: skip


def _default(key: str) -> Any:
    value: Any = c.Config()
    for name in key.split("."):
        value = getattr(value, name)
    return value


def main() -> int:
    """Write the page, or compare; the exit code."""
    parser = argparse.ArgumentParser(description="docs/configuration.md from fastsurf/config.py and configs/")
    parser.add_argument("--check", action="store_true", help="only say whether the file is what would be written")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what config.py says: python tools/make_reference.py writes it anew", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
