"""Scripts that complete the command line in bash, zsh and fish, made from the options as they are declared (options.py).

What a flag takes is told by its metavar, such as `auto|ignore|DIR`: words in lower case are offered, FILE and the like stand for files.
"""

import ast
import inspect
import re
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

from .config import CHOICES, PRESETS, Config
from .errors import UsageError
from .options import flags

SHELLS = ("bash", "zsh", "fish")
FILES = re.compile(r"^(FILE|DIR|RUN|MESH|POINTS|SCENE|PHOTOS|VIDEO)")  # of a metavar


@dataclass(frozen=True)
class Word:
    """What can be typed after a verb.

    Attributes:
        flags: --name, and -o where there is one; () for an argument without a flag.
        takes: what follows it, as its help names it; '' for nothing.
        choices: those words among what follows that are known.
        says: its help, in one line.
    """

    flags: tuple[str, ...]
    takes: str
    choices: tuple[str, ...]
    says: str

    @property
    def is_file(self) -> bool:
        """Whether a file or a folder may follow."""
        return any(FILES.match(part) for part in self.takes.split("|"))


def script(shell: str, verbs: Mapping[str, type]) -> str:
    """The script for a shell, given the options of each verb.

    Raises:
        UsageError: no such shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"completion wants {', '.join(SHELLS)}; found {shell!r}")
    known = {verb: words(kind) for verb, kind in verbs.items()}
    about = {verb: _first_sentence(inspect.getdoc(kind) or "") for verb, kind in verbs.items()}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](known, about)


def words(kind: type) -> list[Word]:
    """Flags and arguments of a verb's dataclass, nested ones among them, and --help."""
    return [*_fields(kind), Word(("--help", "-h"), "", (), "show the options and an example")]


def _fields(kind: type) -> list[Word]:
    hints, says, found = typing.get_type_hints(kind, include_extras=True), _says(kind), []
    for f in fields(kind):
        plain, *extras = typing.get_args(hints[f.name]) or (hints[f.name],)
        if is_dataclass(plain):
            found += _fields(typing.cast(type, plain))
            continue
        metavar = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), "")
        aliases = next((extra.aliases for extra in extras if getattr(extra, "aliases", None)), ())
        flag = f"--{f.name.replace('_', '-')}"
        found.append(Word((flag, *aliases) if flag in flags(kind) else (), metavar, _choices(f.name, metavar), says.get(f.name, "")))
    return found


def _choices(name: str, metavar: str) -> tuple[str, ...]:
    if name == "config":
        return tuple(sorted({file.stem for file in PRESETS.glob("*.toml")} - set(CHOICES["method"])))
    if name == "set":
        return tuple(f"{key}=" for key in keys())
    return tuple(word for word in metavar.split("|") if re.fullmatch(r"[a-z][-a-z0-9_]*", word))


def keys() -> Iterator[str]:
    """Every setting, as --set names it."""
    for f in fields(Config):
        section = getattr(Config(), f.name)
        yield from (f"{f.name}.{key.name}" for key in fields(section)) if is_dataclass(section) else (f.name,)


def _says(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for line, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            found[line.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _bash(known: Mapping[str, Sequence[Word]], about: Mapping[str, str]) -> str:
    """Where nothing is offered, bash's own completion of files takes over."""
    cases = [
        f"        {_either(verb, word.flags)}) offered={shlex.quote(' '.join(word.choices))} ;;"
        for verb, options in known.items() for word in options if word.flags and word.choices
    ]  # fmt: skip
    listed = [f"        {verb}) flags={shlex.quote(' '.join(flag for word in options for flag in word.flags))} ;;"
              for verb, options in known.items()]  # fmt: skip
    alone = [f"        {verb}\\ *) offered={shlex.quote(' '.join(word.choices))} ;;"
             for verb, options in known.items() for word in options if not word.flags and word.choices]  # fmt: skip
    return "\n".join([
        "# bash completion of fastsurf: source <(fastsurf completion bash)",
        "_fastsurf() {",
        "    local typed=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} offered= flags=",
        "    COMPREPLY=()",
        '    if [[ $COMP_CWORD -eq 1 && $typed != -* ]]; then',
        f"        COMPREPLY=($(compgen -W {shlex.quote(' '.join(known))} -- \"$typed\"))",
        "        return",
        "    fi",
        '    case $verb in',
        *listed,
        f"        *) verb=reconstruct; flags={shlex.quote(' '.join(f for word in known['reconstruct'] for f in word.flags))} ;;",
        "    esac",
        '    case "$verb $before" in',
        *cases,
        *alone,
        "    esac",
        "    [[ $typed == -* ]] && offered=$flags",
        '    COMPREPLY=($(compgen -W "$offered" -- "$typed"))',
        "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null",
        "    return 0",
        "}",
        "complete -o default -o bashdefault -F _fastsurf fastsurf",
        "",
    ])  # fmt: skip


def _either(verb: str, flags: Sequence[str]) -> str:
    """A pattern of bash's case: the verb, and one of the flags just before."""
    return "|".join(f'"{verb} {flag}"' for flag in flags)


def _zsh(known: Mapping[str, Sequence[Word]], about: Mapping[str, str]) -> str:
    def spec(word: Word) -> str:
        says = re.sub(r"([\[\]:\\])", r"\\\1", word.says)
        what = word.takes.replace(":", "\\:")
        bare = "-S '' " if word.choices and word.choices[0].endswith("=") else ""  # the value follows without a blank
        offered = [f"compadd {bare}-- {' '.join(word.choices)}"] if word.choices else []
        actions = [*offered, *(["_files"] if word.is_file else [])]
        action = f"{{{'; '.join(actions)}}}" if actions else " "
        if not word.flags:
            return shlex.quote(f"*:{what}:{action}")
        head = f"({' '.join(word.flags)})" if len(word.flags) > 1 else ""
        rest = f"[{says}]" + (f":{what}:{action}" if word.takes else "")
        names = "{" + ",".join(word.flags) + "}" if len(word.flags) > 1 else word.flags[0]
        repeated = "*" if word.flags[0] == "--set" else ""
        return f"{shlex.quote(head + repeated) if head + repeated else ''}{names}{shlex.quote(rest)}"

    described = [shlex.quote(f"{verb}:{about[verb]}") for verb in known]
    arms = []
    for verb, options in known.items():
        arms += [f"        {verb})", "            _arguments -s \\", *(f"                {spec(word)} \\" for word in options)]
        arms.append("                ;;")
    return "\n".join([
        "#compdef fastsurf",
        "# zsh completion of fastsurf: fastsurf completion zsh > a folder of $fpath/_fastsurf",
        "_fastsurf() {",
        "    local curcontext=$curcontext verb=$words[2]",
        "    local -a verbs=(" + " ".join(described) + ")",
        "    if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then",
        "        _describe verb verbs",
        "        _files",
        "        return",
        "    fi",
        f"    if [[ ' {' '.join(known)} ' == *\" $verb \"* ]]; then",
        "        shift words",
        "        (( CURRENT-- ))",
        "    else",
        "        verb=reconstruct",
        "    fi",
        "    case $verb in",
        *arms,
        "    esac",
        "}",
        'if [[ $funcstack[1] == _fastsurf ]]; then _fastsurf "$@"; else compdef _fastsurf fastsurf; fi',
        "",
    ])  # fmt: skip


def _fish(known: Mapping[str, Sequence[Word]], about: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# fish completion of fastsurf: fastsurf completion fish > ~/.config/fish/completions/fastsurf.fish"]
    lines += [f"complete -c fastsurf -n __fish_use_subcommand -a {verb} -d {quoted(about[verb])}" for verb in known]
    for verb, options in known.items():
        for word in options:
            line = f"complete -c fastsurf -n '__fish_seen_subcommand_from {verb}'"
            line += "".join(f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in word.flags)
            line += " -r" if word.takes and word.flags else ""
            line += " -f" if word.takes and not word.is_file else " -F" if word.is_file and word.flags else ""
            line += f" -a {quoted(' '.join(word.choices))}" if word.choices else ""
            if word.flags or word.choices:
                lines.append(f"{line} -d {quoted(word.says)}")
    return "\n".join([*lines, ""])
