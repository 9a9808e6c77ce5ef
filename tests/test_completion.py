"""Completion in a shell: what bash, zsh and fish offer, asked of the shells themselves where they are installed."""

import json
import shutil
import subprocess
import sys

import pytest

from fastsurf import cli, formats
from fastsurf.completion import SHELLS, script, words
from fastsurf.config import CHOICES
from fastsurf.options import FORMATS, flags

VERBS = cli._kinds()
ASKED = {  # what is typed, and all that may be offered for it
    "fastsurf rec": {"reconstruct"},
    "fastsurf reconstruct --method ": set(CHOICES["method"]),
    "fastsurf reconstruct photos --method w": {"wild"},
    "fastsurf poses --pairs ": set(CHOICES["poses.pairs"]),
    "fastsurf info --format str": {"strecha"},
    "fastsurf batch --config un": {"unisurf_paper"},
    "fastsurf render --vi": {"--views"},
    "fastsurf completion ": set(SHELLS),
}


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def in_shell(shell, code, *words):
    return subprocess.run([shell, *words, "-c", code], input=script(shell, VERBS), capture_output=True, text=True, check=True, timeout=60)


def test_each_verb_has_its_flags_and_what_they_take():
    for kind in VERBS.values():
        found = words(kind)
        assert [word.flags[0] for word in found if word.flags] == [*flags(kind), "--help"]
        assert all(word.says for word in found)
    by_flag = {flag: word for word in words(VERBS["reconstruct"]) for flag in word.flags}
    assert by_flag["-o"] is by_flag["--out"] and by_flag["-o"].is_file and not by_flag["--minutes"].is_file
    assert by_flag["--resume"].takes == "" and by_flag["--masks"].choices == ("auto", "ignore") and by_flag["--masks"].is_file
    assert {"scene.radius=", "threads="} <= set(by_flag["--set"].choices)


def test_the_formats_on_offer_are_those_there_are():
    assert tuple(formats.FORMATS) == FORMATS


@needs("bash")
@pytest.mark.parametrize("typed", ASKED)
def test_bash_offers_them(typed):
    line = typed.split(" ")
    code = f"source /dev/stdin; COMP_WORDS=({' '.join(json.dumps(word) for word in line)}); COMP_CWORD={len(line) - 1}; _fastsurf; "
    assert set(in_shell("bash", code + 'printf "%s\\n" "${COMPREPLY[@]}"').stdout.split()) == ASKED[typed]


@needs("bash")
def test_bash_leaves_files_to_its_own_completion():
    for line in ("mesh mesh.run -o ./", "./photos"):
        words = ["fastsurf", *line.split()]
        code = f"source /dev/stdin; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _fastsurf; echo ${{#COMPREPLY[@]}}"
        assert in_shell("bash", code).stdout.strip() == "0"
    assert "-o default" in in_shell("bash", "source /dev/stdin; complete -p fastsurf").stdout


@needs("zsh")
def test_zsh_can_read_its_script(tmp_path):
    (tmp_path / "_fastsurf").write_text(script("zsh", VERBS))
    assert subprocess.run(["zsh", "-n", tmp_path / "_fastsurf"], capture_output=True, text=True, check=True).stderr == ""


@needs("fish")
def test_fish_offers_them(tmp_path):
    (tmp_path / "fastsurf.fish").write_text(script("fish", VERBS))
    for typed, offered in ASKED.items():
        code = f"source {tmp_path}/fastsurf.fish; complete -C '{typed}'"
        out = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert {line.split("\t")[0] for line in out.splitlines()} - {"fastsurf.fish"} == offered


def test_an_unknown_shell_is_one_line(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "fastsurf: completion wants bash, zsh, fish; found 'tcsh'\n"
    assert cli.main(["completion"]) == 2 and "completion wants a shell" in capsys.readouterr().err


def test_it_imports_nothing_heavy():
    code = "import sys; from fastsurf import cli; cli.main(['completion', 'bash']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == script("bash", VERBS) and not {"torch", "numpy", "rich", "PIL"} & set(done.stderr.split())
