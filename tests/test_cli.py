"""What is typed and what comes of it: precedence, one line for each error, exit codes, and Ctrl-C."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_events import fake_step
from test_checkpoint import SMALL

import fastsurf
from fastsurf import batch, cli, reconstruction, runs
from fastsurf.config import PRESETS, load_config
from fastsurf.errors import BackendError, CheckpointError, ConfigError, FastsurfError, MeshError, SceneError, UsageError
from fastsurf.hooks import PhaseDone, PhaseStarted, Saved
from fastsurf.methods import METHODS
from fastsurf.options import Photographs, Reconstruct, Settings, configure, flags

PACKAGE = str(Path(fastsurf.__file__).parents[1])
VERBS = ("info", "poses", "reconstruct", "mesh", "render", "eval", "view", "compare", "batch", "demo", "completion")
TINY = [word for setting in SMALL for word in ("--set", setting)] + ["--threads", "1"]


def run(capsys, *words):
    """Exit code, stdout and stderr of one command line."""
    code = cli.main([str(w) for w in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, code, pattern, *words):
    """The command ends with this code and one line on stderr."""
    found, out, err = run(capsys, *words)
    assert found == code and out == ""
    assert err.startswith("fastsurf: ") and err.count("\n") == 1 and re.search(pattern, err), err
    return err


def process(words, **kwargs):
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=os.environ | {"PYTHONPATH": PACKAGE}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True, **kwargs,
    )


def test_help_answers_in_half_a_second():
    took = []
    for _ in range(3):
        start = time.perf_counter()
        out, err = process(["-m", "fastsurf", "--help"]).communicate()
        took.append(time.perf_counter() - start)
        assert err == "" and all(f"  {verb} " in out for verb in VERBS)
    assert min(took) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main([verb, "--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0 and f"fastsurf {verb}" in out


def test_reconstruct_has_the_flags_of_the_manual():
    wanted = "out method config minutes steps backend precision resolution masks holdout seed threads run resume set json quiet format"
    wanted += " force faces watertight texture points scale tensorboard"
    assert set(flags(Reconstruct)) == {f"--{name}" for name in wanted.split()}


def test_help_names_every_preset(capsys):
    with pytest.raises(SystemExit):
        cli.main(["reconstruct", "--help"])
    named = re.search(r"a preset \((.*?)\)", " ".join(capsys.readouterr().out.replace("│", " ").split()))
    assert named is not None and set(named[1].split(", ")) == {path.stem for path in PRESETS.glob("*.toml")} - set(METHODS)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"fastsurf {fastsurf.__version__}\n", "")


def test_no_words_at_all_is_a_question(capsys):
    code, out, _ = run(capsys)
    assert code == 2 and "usage: fastsurf" in out


@pytest.mark.parametrize("words, pattern", [
    (["recontruct", "x"], "did you mean reconstruct"),
    (["reconstruct"], "wants a SCENE"),
    (["reconstruct", "x", "--minuts", "3"], "no --minuts; did you mean --minutes"),
    (["reconstruct", "x", "y"], "can't do anything with 'y'"),
    (["reconstruct", "x", "--minutes", "1", "--steps", "9"], "one dial"),
    (["reconstruct", "x", "--minutes", "-1"], "--minutes wants more than 0"),
    (["reconstruct", "x", "--minutes", "0"], "--minutes wants more than 0"),
    (["reconstruct", "x", "-r", "y"], "reconstruct has no -r"),
    (["reconstruct", "x", "--steps", "0"], "--steps wants 1 or more"),
    (["reconstruct", "x", "--resolution", "2"], "--resolution wants 8 or more"),
    (["reconstruct", "x", "--holdout", "1"], "--holdout wants 0"),
    (["reconstruct", "x", "--masks", "no-such-folder"], "--masks wants auto, ignore or a folder"),
    (["reconstruct", "x", "--set", "train.stepz=3"], "did you mean train.steps"),
    (["reconstruct", "x", "--set", "train.steps=many"], "want int or none, found 'many'"),
    (["reconstruct", "x", "--config", "nosuch"], "no configuration 'nosuch'"),
    (["reconstruct", "x", "--backend", "foo"], "--backend wants auto, triton, cuda, native, reference; found 'foo'"),
    (["mesh", "x", "-o", "m.ply", "--backend", "tritn"], "found 'tritn': did you mean triton?"),
    (["demo", "--precision", "half"], "--precision wants exact, fast; found 'half'"),
    (["info", "x", "--backends"], "give one of them"),
    (["info", "--backend"], "info has no --backend; did you mean --backends?"),
    (["mesh"], "wants a RUN"),
    (["mesh", "x"], "wants -o FILE"),
    (["mesh", "x", "-o", "x.foo"], "want a file ending in .ply"),
    (["render"], "wants a RUN"),
    (["eval"], "wants a RUN"),
    (["compare"], "wants a SCENE"),
    (["compare", "x", "--methods", "unisrf"], "unknown method 'unisrf'; did you mean unisurf?"),
    (["compare", "x", "--methods", "colmap,colmap"], "names colmap twice"),
    (["compare", "x", "--methods", ""], "unknown method ''; known: unisurf"),
    (["compare", "x", "--method", "unisurf"], "several methods: --methods unisurf"),
    (["compare", "x", "--mesh", "none.ply"], "--mesh none.ply: no such file"),
    (["compare", "x", "--thresholds", "far"], "want lengths"),
])  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(words, pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, re.escape(pattern), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_value_of_the_wrong_kind_is_refused(capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["reconstruct", "x", "--steps", "many"])
    assert e.value.code == 2 and "--steps" in capsys.readouterr().err


@pytest.mark.parametrize("verb, extra", [("info", []), ("reconstruct", ["-o", "m.ply"])])
def test_a_folder_without_cameras_is_unusable_and_leaves_nothing(verb, extra, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    fails(capsys, 3, "looked for", verb, "empty", *extra, *(["--quiet"] if verb == "reconstruct" else []))
    fails(capsys, 3, "no such", verb, "nowhere/at/all", *extra, *(["--quiet"] if verb == "reconstruct" else []))
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("verb", ["mesh", "render", "eval"])
def test_a_run_that_is_not_there(verb, capsys, tmp_path):
    extra = ["-o", tmp_path / "m.ply"] if verb == "mesh" else ["-o", tmp_path / "d"] if verb == "render" else []
    fails(capsys, 3, "no checkpoint", verb, tmp_path / "r", *extra, "--quiet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["reconstruct", "SCENE"], ["mesh", "SCENE"]])
def test_an_existing_mesh_is_not_overwritten(words, capsys, tmp_path):
    mesh = tmp_path / "m.ply"
    mesh.write_text("mine")
    fails(capsys, 2, "exists: --force overwrites it", *words, "-o", mesh)
    assert mesh.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_existing_json_file_is_not_overwritten(capsys, tmp_path, tiny_folder):
    path = tmp_path / "log.jsonl"
    path.write_text("mine")
    fails(capsys, 2, "exists", "reconstruct", tiny_folder, "--run", tmp_path / "r", "--json", path, "--quiet")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("error, code", [
    (UsageError("a"), 2), (ConfigError("a"), 2), (SceneError("a"), 3), (CheckpointError("a"), 3), (MeshError("a"), 3),
    (BackendError("a"), 4), (FastsurfError("a"), 1), (OSError(errno.EACCES, "Permission denied", "a"), 1), (MemoryError(), 1),
])  # fmt: skip
def test_every_error_has_its_code(error, code, capsys, monkeypatch):
    def raises(*_):
        raise error

    monkeypatch.setattr(cli, "info", raises)
    fails(capsys, code, "a", "info", "x")


def test_an_error_nobody_raised_on_purpose_is_not_hidden(monkeypatch):
    def raises(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "info", raises)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "x"])


def test_debug_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(SceneError):
        cli.main(["--debug", "info", str(tmp_path)])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_json_lines_that_find_no_room_are_a_note(capsys, tmp_path, tiny_folder):
    words = ("reconstruct", tiny_folder, "--run", tmp_path / "r", "--json", "/dev/full", "--force", "--quiet", *TINY)
    code, out, err = run(capsys, *words)
    assert code == 0 and out == "" and err == "note   /dev/full can't be written (No space left on device): the work goes on without it\n"


def test_a_reader_that_leaves_early_is_no_error(tiny_folder):
    p = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m fastsurf info "{tiny_folder}" --json | head -1'], env=os.environ | {"PYTHONPATH": PACKAGE},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert p.stdout == "{\n" and p.stderr == ""


@pytest.mark.parametrize("verb", ["info", "compare", "reconstruct"])
def test_settings_that_cannot_work_are_refused_before_anything_is_read(verb, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, r"scene\.convention: want one of format, auto", verb, tiny_folder, "--set", "scene.convention=openvc")
    fails(capsys, 2, r"scene\.holdout: want 0 or more, found -3", verb, tiny_folder, "--set", "scene.holdout=-3")
    assert not list(tmp_path.iterdir())


def test_defaults_then_config_then_set_then_flags(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("threads = 1\n[train]\nsteps = 10\nseed = 1\nrays = 11\n[mesh]\nresolution = 100\n[scene]\nholdout = 4\n")
    config = configure(Settings(config=str(file)))
    assert (config.train.steps, config.train.seed, config.mesh.resolution, config.threads) == (10, 1, 100, 1)
    assert config.train.rate_mlp == load_config().train.rate_mlp
    config = configure(Settings(config=str(file), set=("train.seed=2", "mesh.resolution=200")))
    assert (config.train.steps, config.train.seed, config.mesh.resolution, config.train.rays) == (10, 2, 200, 11)
    settings = Settings(config=str(file), set=("train.seed=2", "mesh.resolution=200"), seed=3, resolution=300, minutes=5.0, threads=0)
    config = configure(settings, Photographs(holdout=8, masks="ignore"))
    assert (config.train.seed, config.mesh.resolution, config.threads) == (3, 300, 0)
    assert (config.train.minutes, config.train.steps) == (5.0, None)  # the flag is the dial, whatever the file says
    assert (config.scene.holdout, config.scene.masks) == (8, "ignore")


def test_a_resumed_run_keeps_what_nobody_said_again(tiny_folder, tmp_path, capsys):
    """With a configuration of one's own too, whose settings count as said."""
    go_on = (tiny_folder, "--run", tmp_path / "r", "--quiet", "--resume")
    words = (tiny_folder, "--run", tmp_path / "r", "--quiet", *TINY, "--steps", "2", "--seed", "3", "--method", "wild", "--holdout", "7")
    assert run(capsys, *words, "--set", "loss.smooth=0.02") == (0, "", "")
    before = load_config(str(tmp_path / "r" / "config.toml"))
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nsteps = 3\nrays = 70\n")
    assert run(capsys, *go_on, "--config", file, "--method", "wild") == (0, "", "")
    after = load_config(str(tmp_path / "r" / "config.toml"))
    assert after == replace(before, train=replace(before.train, steps=3, rays=70)) and (after.train.seed, after.loss.smooth) == (3, 0.02)
    file.write_text("[train]\nsteps = 4\nseed = 0\n")
    fails(capsys, 2, r"made with train\.seed 3, now it is 0", *go_on, "--config", file)
    fails(capsys, 2, r"made with the method wild, now it is nerf", *go_on, "--method", "nerf")


def test_a_folder_alone_means_reconstruct(monkeypatch, tmp_path):
    got = []
    monkeypatch.setattr(cli, "reconstruct", lambda o, *_: got.append(o) or 0)
    assert cli.main([str(tmp_path), "-o", "m.ply", "--set", "a=1", "--set", "b=2"]) == 0
    assert cli.main(["-o", "m.ply", str(tmp_path)]) == 0
    assert cli.main(["reconstruct", str(tmp_path), "--out", "m.ply", "--backend", "reference", "--quiet"]) == 0
    assert [o.scene for o in got] == [tmp_path] * 3 and [o.out for o in got] == [Path("m.ply")] * 3
    assert got[0].settings.set == ("a=1", "b=2") and got[2].settings.backend == "reference" and got[2].quiet


def test_info_says_what_was_found(capsys, tiny_folder):
    code, out, err = run(capsys, "info", tiny_folder)
    assert code == 0 and err == "" and "14 of 48x48: 12 to learn from, 2 held out" in out and "fastsurf reconstruct" in out
    code, out, err = run(capsys, "info", tiny_folder, "--json", "--holdout", "0", "--masks", "ignore")
    facts = json.loads(out)
    assert code == 0 and facts["images"] == 14 and facts["masks"] is None and facts["usable"] is True


def test_info_says_what_can_compute_here(capsys, monkeypatch):
    from fastsurf import backends
    from fastsurf.backends import choose_backend

    real = backends.survey()
    code, out, err = run(capsys, "info", "--backends")
    lines = out.splitlines()
    assert code == 0 and err == "" and [line.split()[0] for line in lines] == [f.name for f in real]
    assert [f.name for f, line in zip(real, lines, strict=True) if "auto takes it" in line] == [backends.choose_backend().name]
    assert {f["name"]: f["usable"] for f in json.loads(run(capsys, "info", "--backends", "--json")[1])} == {f.name: f.usable for f in real}
    known = [backends.Found("cuda", False, "no tinycudann:\n pip install it"), backends.Found("reference", True, "PyTorch")]
    monkeypatch.setattr(backends, "survey", lambda: known)
    monkeypatch.setattr(backends, "choose_backend", lambda: choose_backend("reference"))
    assert run(capsys, "info", "--backends")[1].splitlines() == [
        "cuda       not here       no tinycudann: pip install it", "reference  auto takes it  PyTorch"
    ]
    assert json.loads(run(capsys, "info", "--backends", "--json")[1])[1] == {
        "name": "reference", "usable": True, "auto": True, "detail": "PyTorch"
    }


def test_flags_choose_backend_and_precision():
    config = configure(Settings(set=("backend=native", "precision=fast")))
    assert (config.backend, config.precision) == ("native", "fast")
    config = configure(Settings(set=("backend=native", "precision=fast"), backend="triton", precision="exact"))
    assert (config.backend, config.precision) == ("triton", "exact")


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run made by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("cli")
    p = process(["-m", "fastsurf", tiny_folder, "-o", folder / "m.ply", "--json", folder / "log.jsonl", *TINY], cwd=folder)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0 and err == "", err
    return folder, out


def test_the_main_job_from_the_command_line(finished):
    folder, out = finished
    assert {p.name for p in folder.iterdir()} == {"m.ply", "m.run", "log.jsonl"}
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[-6:]] == ["mesh", "faces", "size", "solid", "time", "next"]
    assert str(folder / "m.ply") in lines[-6]
    assert any(line.startswith("train  done in") for line in lines) and "\x1b" not in out
    steps = [r for r in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if r["event"] == "step"]
    assert steps[-1]["step"] == 24


def test_mesh_render_and_eval_of_a_run(finished, tiny_folder, capsys, tmp_path):
    run_folder = finished[0] / "m.run"
    code, out, err = run(capsys, "mesh", run_folder, "-o", tmp_path / "b.glb", "--resolution", "32")
    assert code == 0 and err == "" and (tmp_path / "b.glb").stat().st_size > 1000 and "faces" in out
    code, out, err = run(capsys, "render", run_folder, "--views", "test", "-o", tmp_path / "pictures")
    assert code == 0 and err == "" and len(list((tmp_path / "pictures" / "normal").iterdir())) == 2
    fails(capsys, 2, "is not empty", "render", run_folder, "--views", "test", "-o", tmp_path / "pictures")
    code, out, err = run(capsys, "eval", run_folder, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert code == 0 and err == "" and 0 < scores["ssim"] <= 1 and f"psnr                 {scores['psnr']:.4g}" in out
    truth = ("--gt", tiny_folder / "gt" / "mesh.ply", "--thresholds", "1%,0.5")
    code, out, err = run(capsys, "eval", run_folder, "--json", tmp_path / "swept.json", *truth)
    first, second = json.loads((tmp_path / "swept.json").read_text())["mesh"]["sweep"]
    assert code == 0 and first["percent"] == pytest.approx(1) and second["threshold"] == 0.5 and second["recall"] > first["recall"]
    numbers = [f"{second[key]:.4g}" for key in ("threshold", "percent", "precision", "recall", "f1")]
    assert numbers in [line.split() for line in out.splitlines()] and max(map(len, out.splitlines())) <= 80
    fails(capsys, 2, "want a true surface", "eval", run_folder, "--thresholds", "1%", "--quiet")
    fails(capsys, 2, "want lengths", "eval", run_folder, "--thresholds", "wide", *truth[:2])
    code, out, err = run(capsys, "eval", run_folder, "--json", "-")
    assert code == 0 and json.loads(out)["psnr"] == scores["psnr"] and "psnr" in err


def stopping_at(n):
    """A hook: Ctrl-C when the n-th picture is saved."""
    saved = []

    def hook(event):
        if isinstance(event, Saved) and event.what == "picture":
            saved.append(event)
            if len(saved) == n:
                raise KeyboardInterrupt

    return hook


def test_pictures_go_on_where_they_were_stopped(finished, capsys, tmp_path, monkeypatch):
    """The same bytes as without the Ctrl-C, and nothing is made twice; nothing goes on from pictures of something else."""
    monkeypatch.setattr(runs, "ORBIT_FRAMES", 5)
    monkeypatch.setattr(runs, "ORBIT_SIZE", 16)
    run_folder, whole, out = finished[0] / "m.run", tmp_path / "whole", tmp_path / "out"
    words = ("render", run_folder, "--json", tmp_path / "log.jsonl", "-o")
    assert run(capsys, *words, whole)[0] == 0
    (tmp_path / "log.jsonl").unlink()
    render_run = runs.render_run
    with monkeypatch.context() as patched:
        patched.setattr(runs, "render_run", lambda *args, hooks, **kwargs: render_run(*args, hooks=[*hooks, stopping_at(2)], **kwargs))
        code, _, err = run(capsys, *words, out)
    assert code == 130 and err == f"fastsurf: stopped; the pictures made so far are in {out}: the same command goes on from there\n"
    fails(capsys, 2, "is not empty", "render", run_folder, "-o", out, "--views", "test")
    code, said, err = run(capsys, *words, out)
    assert code == 0 and err == "" and said.splitlines()[-1] == f"21 files in {out}"
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")} == {
        p.relative_to(whole): p.read_bytes() for p in whole.rglob("*.*")
    }
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    saved = [e["path"] for e in log if e["event"] == "saved" and e["what"] == "picture"]
    assert saved == [str(out / f"orbit_{k:03d}.png") for k in range(5)]
    fails(capsys, 2, "is not empty", *words, out)


def test_a_finished_run_is_neither_overwritten_nor_forgotten(finished, tiny_folder, capsys, tmp_path):
    run_folder = finished[0] / "m.run"
    before = (run_folder / "checkpoint.safetensors").read_bytes()
    log = (run_folder / "log.jsonl").read_text()
    fails(capsys, 2, "--resume", tiny_folder, "-o", tmp_path / "n.ply", "--run", run_folder, "--quiet", *TINY)
    assert (run_folder / "checkpoint.safetensors").read_bytes() == before and (run_folder / "log.jsonl").read_text() == log
    assert list(tmp_path.iterdir()) == []


def test_json_on_stdout_leaves_words_to_stderr(tiny_folder, tmp_path, capsys):
    code, out, err = run(capsys, "reconstruct", tiny_folder, "--run", tmp_path / "r", "--json", "-", *TINY)
    assert code == 0 and all(json.loads(line)["event"] for line in out.splitlines()) and "train  done in" in err and "next" in err
    assert (tmp_path / "r" / "mesh.ply").exists()


def test_quiet_is_silent(tiny_folder, tmp_path, capsys):
    assert run(capsys, "reconstruct", tiny_folder, "--run", tmp_path / "r", "--quiet", *TINY) == (0, "", "")


def test_one_ctrl_c_ends_early_saves_and_meshes(tiny_folder, tmp_path):
    for sent, name in ((signal.SIGINT, "int"), (signal.SIGTERM, "term")):
        run_folder = tmp_path / name
        words = ["-m", "fastsurf", tiny_folder, "--run", run_folder, "-o", tmp_path / f"{name}.ply", *TINY, "--steps", "100000"]
        p = process(words, cwd=tmp_path)
        assert p.stdout is not None
        line = ""
        while "step " not in line:  # training is under way
            line = p.stdout.readline()
            assert line, p.communicate()
        p.send_signal(sent)
        out, err = p.communicate(timeout=120)
        assert p.returncode == 130 and "Traceback" not in err, err
        assert (run_folder / "checkpoint.safetensors").exists() and (tmp_path / f"{name}.ply").exists()
        assert "(stopped early)" in out and out.splitlines()[-1].endswith("--resume")


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_the_mesh_is_made(tiny_folder, tmp_path, capsys, monkeypatch, presses):
    """Once changes nothing, since all is trained: what is made is whole, and the exit code says so. Twice stops."""
    make_mesh, made = reconstruction.make_mesh, []

    def pressed(*args, **kwargs):
        made.append(args)
        for _ in range(presses if len(made) == 2 else 0):  # the first is half-way
            os.kill(os.getpid(), signal.SIGINT)
        return make_mesh(*args, **kwargs)

    monkeypatch.setattr(reconstruction, "make_mesh", pressed)
    code, out, err = run(capsys, tiny_folder, "--run", tmp_path / "r", *TINY)
    assert len(made) == 2
    if presses == 1:
        assert code == 0 and err == "" and "(stopped early)" not in out and "next   fastsurf render" in out
        assert out.count("mesh   is being made whole; Ctrl-C again stops at once") == 1 and (tmp_path / "r" / "mesh.ply").exists()
    else:
        assert code == 130 and not (tmp_path / "r" / "mesh.ply").exists()
        assert err == f"fastsurf: stopped; the last checkpoint is {tmp_path / 'r' / 'checkpoint.safetensors'}\n"


@pytest.mark.parametrize("states, code", [
    (("done", "kept"), 0), (("done", "failed"), 1), (("done", "stopped"), 130), (("failed", "waiting"), 130)
])  # fmt: skip
def test_ctrl_c_counts_for_many_scenes_where_it_left_something_undone(tmp_path, capsys, monkeypatch, states, code):
    def made(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return [batch.Row(state, "", state, "") for state in states]

    monkeypatch.setattr(batch, "batch", made)
    assert run(capsys, "batch", tmp_path, "-o", tmp_path / "out", "--quiet") == (code, "", "")


ENDLESS = """
import sys, time
from pathlib import Path
import fastsurf.reconstruction
from fastsurf.hooks import PhaseStarted, Saved

def endless(scene, config, *, hooks, should_stop, **_):
    for hook in hooks:
        hook(PhaseStarted("train"))
        hook(Saved("checkpoint", Path("r/checkpoint.safetensors")))
    print("under way", flush=True)
    while not should_stop():
        time.sleep(0.01)
    print("finishing", flush=True)
    time.sleep(60)

fastsurf.reconstruction.reconstruct = endless
from fastsurf.cli import main
sys.exit(main([sys.argv[1], "--run", "r"]))
"""


def test_a_second_ctrl_c_stops_at_once_and_names_the_checkpoint(tmp_path):
    p = process(["-c", ENDLESS, tmp_path], cwd=tmp_path)
    assert p.stdout is not None
    for word in ("under way", "finishing"):
        while word not in (line := p.stdout.readline()):
            assert line, p.communicate()
        p.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = p.communicate(timeout=30)
    assert p.returncode == 130 and err == "fastsurf: stopped; the last checkpoint is r/checkpoint.safetensors\n"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.5])
def test_ctrl_c_while_libraries_load_is_one_line(tiny_folder, tmp_path, seconds):
    program = "import sys, os, signal, threading\nfrom fastsurf.cli import main\n" \
        f"timer = threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT))\ntimer.daemon = True\ntimer.start()\n" \
        "sys.exit(main())"
    p = process(["-c", program, "info", tiny_folder, "--masks", "auto"], cwd=tmp_path)
    _, err = p.communicate(timeout=60)
    assert (p.returncode, err) in ((130, "fastsurf: stopped; nothing was saved\n"), (0, ""))


def test_the_handler_lets_training_finish_only_once_it_has_begun():
    interrupt = cli.Interrupt()
    interrupt.watch(PhaseStarted("read"))
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGINT, None)
    interrupt = cli.Interrupt()
    interrupt.watch(PhaseStarted("train"))
    assert not interrupt.requested()
    interrupt.handle(signal.SIGTERM, None)
    assert interrupt.requested() and not interrupt.stopped_at_once
    with pytest.raises(KeyboardInterrupt):
        interrupt.handle(signal.SIGINT, None)
    interrupt.handle(signal.SIGINT, None)  # on the way out already: patience
    assert interrupt.stopped_at_once


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    cli.main(["--version"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_last_checkpoint_is_remembered():
    kept = cli.Kept()
    for event in (fake_step(1, 0.1), Saved("checkpoint", Path("a")), Saved("mesh", Path("b")), PhaseDone("train", 1.0)):
        kept(event)
    assert kept.checkpoint == Path("a") and str(kept) == "the last checkpoint is a"


def test_what_a_stopped_command_leaves_is_told():
    told = {}
    for what, path in (("mesh", Path("m_1.ply")), ("mesh", Path("m_50.ply")), ("picture", Path("o/a.png")), ("database", Path("s/d.db"))):
        kept = cli.Kept()
        if what == "mesh":
            kept(Saved("mesh", Path("m_0.ply")))
        kept(Saved(what, path))
        told[path.name] = str(kept)
    assert told["m_1.ply"] == "finished before: m_0.ply, m_1.ply" and str(cli.Kept()) == "nothing was saved"
    assert "made so far are in o:" in told["a.png"] and told["d.db"].startswith("s/d.db is kept")
    kept.folder = Path("many")
    assert str(kept) == "what is finished stays in many, and the same command goes on"


def test_scores_of_nothing_are_left_out():
    lines = cli._table({"psnr": None, "views": {}, "step": 3, "mesh": {"f_score": 0.5}})
    assert [line.split() for line in lines] == [["step", "3"], ["mesh"], ["f_score", "0.5"]]
