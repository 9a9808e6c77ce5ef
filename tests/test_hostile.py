"""Files that were made to do harm, or broke: each loads or is refused in one line, whatever is in it. tools/fuzz.py tries many more."""

import ast
import functools
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import rings
from hostile import CASES, tetrahedron

import fastsurf
from fastsurf import guard
from fastsurf.checkpoint import read_header
from fastsurf.cli import main
from fastsurf.config import load_config
from fastsurf.errors import LONGEST, CheckpointError, ConfigError, FastsurfError, MeshError, SceneError, UsageError
from fastsurf.formats import load
from fastsurf.meshio import read_mesh, write_mesh
from fastsurf.metrics import read_truth
from fastsurf.poses import _claim
from fastsurf.scene import load_scene

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
few = hypothesis.settings(
    deadline=None, max_examples=8, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)  # fmt: skip

SOURCES = sorted(Path(fastsurf.__file__).parent.rglob("*.py"))
COUNTS = st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 255, 2**31, 2**32 - 1, 2**60, 2**64 - 1)])
CHANGE = st.tuples(st.sampled_from(["put", "cut", "repeat", "drop"]), st.floats(0, 1), COUNTS | st.binary(max_size=8))
NUMBERS = st.floats() | st.integers() | st.just(10**400)
NAMES = st.text(max_size=8) | st.sampled_from(["../x.png", "/etc/passwd", "C:\\x", "nan", "a\x1b[2Jb"])
LEAVES = st.none() | st.booleans() | NUMBERS | NAMES
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


def loads_or_refuses(read, folder):
    """FastsurfError of one printable line, or none; warnings are errors here."""
    try:
        read(folder)
    except FastsurfError as e:
        assert str(e).strip() and str(e).isprintable() and len(str(e)) <= LONGEST


def edited(data, edits):
    for kind, share, payload in edits:
        at = round(share * share * len(data))  # rather near the start, where the counts are
        if kind == "put":
            data = data[:at] + payload + data[at + len(payload) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 40] * 3 + data[at + 40 :]
        else:
            data = data[:at] + data[at + 9 :]
    return data


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    make, read = CASES[request.param]
    folder = tmp_path_factory.mktemp("good")
    files = make(folder)
    read(folder)
    return folder, {file: file.read_bytes() for file in files}, read


@few
@hypothesis.given(data=st.data())
def test_broken_bytes(case, data):
    folder, good, read = case
    file = data.draw(st.sampled_from(sorted(good)))
    file.write_bytes(edited(good[file], data.draw(st.lists(CHANGE, min_size=1, max_size=3))))
    loads_or_refuses(read, folder)
    file.write_bytes(good[file])


@hypothesis.settings(few, max_examples=40)
@hypothesis.given(data=st.data())
def test_transforms_that_hold_anything(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    file = CASES["transforms"][0](folder)[0]
    tree = json.loads(file.read_text())
    node = data.draw(st.sampled_from([tree, tree["frames"], *tree["frames"], tree["frames"][0]["transform_matrix"]]))
    keys = sorted(node) if isinstance(node, dict) else range(len(node))
    extra = ["camera_angle_x", "distortion_params", "camera_model", "test_filenames", "applied_transform"] if isinstance(node, dict) else []
    node[data.draw(st.sampled_from([*keys, *extra]))] = data.draw(TREES)
    file.write_text(json.dumps(tree))
    loads_or_refuses(load, folder)


# claims larger than the file


def test_colmap_counts_that_cannot_be(tmp_path):
    files = CASES["colmap-binary"][0](tmp_path)
    for file in files:
        good = file.read_bytes()
        file.write_bytes(struct.pack("<Q", 1 << 60) + good[8:])
        with pytest.raises(SceneError, match="not readable as a COLMAP model"):
            load(tmp_path)
        file.write_bytes(good)


def npy(shape, dtype="<f8", data=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1, 17)", "(17, 4611686018427387904)", "[1]"])
def test_arrays_larger_than_their_file(tmp_path, shape):
    rings.llff(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(npy(shape, data=bytes(136)))
    with pytest.raises(SceneError, match="not readable as npy"):
        load(tmp_path)


@pytest.mark.parametrize("format", ["llff", "idr"])
def test_pickles_are_never_opened(tmp_path, format):
    getattr(rings, format)(tmp_path)
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return open, (str(opened), "w")

    trap = np.array([Trap()], dtype=object)
    if format == "llff":
        np.save(tmp_path / "poses_bounds.npy", trap, allow_pickle=True)
    else:
        np.savez(tmp_path / "cameras.npz", world_mat_0=trap)
    with pytest.raises(SceneError, match="holds object, want numbers"):
        load(tmp_path)
    assert not opened.exists()


def test_archives_that_unpack_to_too_much(tmp_path, monkeypatch):
    rings.idr(tmp_path)
    np.savez_compressed(tmp_path / "cameras.npz", world_mat_0=np.zeros(1 << 20))
    monkeypatch.setattr(guard, "MOST_ARRAYS", 1 << 20)
    with pytest.raises(SceneError, match="unpacks to 8388736 bytes, want at most 1048576"):
        load(tmp_path)


def test_meshes_that_claim_too_much(tmp_path):
    for name in ("a.ply", "a.glb"):
        write_mesh(tmp_path / name, tetrahedron())
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"element vertex 4", b"element vertex 1000000000000"))
    data = (tmp_path / "a.glb").read_bytes()
    (tmp_path / "a.glb").write_bytes(data.replace(b'"count":12', b'"count":9e9'))
    for name in ("a.ply", "a.glb"):
        with pytest.raises(MeshError, match=r"claims 9?[01]+ elements in"):
            read_mesh(tmp_path / name)


def test_faces_of_vertices_that_are_not_there(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    with pytest.raises(MeshError, match="can be read"):
        read_mesh(tmp_path / "a.obj")


@pytest.mark.parametrize("length", [10**12, 1 << 63, 0])
def test_checkpoint_headers_that_cannot_be(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("changes", [
    {"scene": None, "center": [0, 0]}, {"center": [0, 0, float("nan")]}, {"radius": 0}, {"step": -1}, {"progress": 7}, {"photographs": 3},
    {"config": []}, {"config": {"field": {"levels": 10**9}}}, {"config": {"train": {"rate_mlp": float("inf")}}},
], ids=str)  # fmt: skip
def test_checkpoints_that_say_nonsense(tmp_path, changes):
    file = CASES["checkpoint"][0](tmp_path)[0]
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tree = json.loads(data[8 : 8 + length])
    tree["__metadata__"]["fastsurf"] = json.dumps(json.loads(tree["__metadata__"]["fastsurf"]) | changes)
    text = json.dumps(tree).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(FastsurfError):
        read_header(file)


def test_deep_nesting(tmp_path):
    rings.transforms(tmp_path)
    for depth in (40, 100_000):
        (tmp_path / "transforms.json").write_text('{"frames": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(SceneError, match="nested more than 32 deep"):
            load(tmp_path)
    (tmp_path / "a.toml").write_text("threads = " + "[" * 20_000 + "]" * 20_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(str(tmp_path / "a.toml"))
    load_config(None, [])
    with pytest.raises(ConfigError):
        load_config(None, ["threads=" + "[" * 20_000])


# pictures


def png(width, height):
    """A PNG that says it is of this size, and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(15000, 14000), (100_000, 100_000), (1 << 31, 1)])
def test_pictures_of_absurd_sizes(tmp_path, size):
    rings.transforms(tmp_path)
    (tmp_path / "images/002.png").write_bytes(png(*size))
    with pytest.raises(SceneError, match=r"002\.png can't be read as an image"):
        load(tmp_path)


def test_large_photographs_are_none_too_many():
    """Today's largest telephones: 16320 x 12240."""
    assert guard.MOST_PIXELS > 16320 * 12240


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_picture_and_no_camera_file(tmp_path):
    """Reading one would wait for ever."""
    rings.idr(tmp_path)
    (tmp_path / "image/002.png").unlink()
    os.mkfifo(tmp_path / "image/002.png")
    with pytest.raises(SceneError, match="not a regular file"):
        load(tmp_path)
    (tmp_path / "m").mkdir()
    rings.middlebury(tmp_path / "m")
    (tmp_path / "m/ring_par.txt").unlink()
    os.mkfifo(tmp_path / "m/ring_par.txt")
    with pytest.raises(SceneError, match="not a regular file"):
        load(tmp_path / "m")


def test_postscript_is_no_picture(tmp_path):
    """Pillow would have Ghostscript run it."""
    rings.transforms(tmp_path)
    (tmp_path / "images/002.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 36\nshowpage\n")
    with pytest.raises(SceneError, match=r"002\.png can't be read as an image"):
        load(tmp_path)


# paths


def rename(folder, name):
    tree = json.loads((folder / "transforms.json").read_text())
    tree["frames"][1]["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("name, why", [
    ("../other/001.png", "lies outside"), ("images/../../other/001.png", "lies outside"), ("{other}/001.png", "lies outside"),
    ("C:\\photos\\1.png", "lies outside"), ("..\\other\\001.png", "lies outside"), ("images/001.png\0.jpg", "printable"),
    ("images/\x1b[2Jme.png", "printable"), ("images/a\nb.png", "printable"), ("x" * 300, "that a file can have"),
])  # fmt: skip
def test_names_that_lead_elsewhere(tmp_path, name, why, capsys):
    (tmp_path / "scene").mkdir()
    rings.transforms(tmp_path / "scene")
    (tmp_path / "scene/images").rename(tmp_path / "other")
    rings.transforms(tmp_path / "scene")
    rename(tmp_path / "scene", name.format(other=tmp_path / "other"))
    with pytest.raises(SceneError, match=why) as caught:
        load(tmp_path / "scene")
    assert str(caught.value).isprintable()
    assert main(["info", str(tmp_path / "scene")]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable()


@pytest.mark.parametrize("name", ["Bild größe.png", "写真.png", "Screenshot 3.00\u202fPM.png", "क\u200dष.png", "a b#c.png"])
def test_names_of_all_languages_are_fine(tmp_path, name):
    rings.transforms(tmp_path, images=[f"images/{i}{name}" for i in range(3)], n=3)
    assert load(tmp_path).views[1].name == f"images/1{name}"


def test_a_broken_record_is_another_scenes(tmp_path):
    for text in ("[]", "{", "[" * 1000, '{"source": 1}'):
        (tmp_path / "poses.json").write_text(text)
        with pytest.raises(UsageError, match="other photographs"):
            _claim(tmp_path, {"source": "x"}, force=False)


def test_outside_may_be_allowed(tmp_path):
    (tmp_path / "scene").mkdir()
    rings.transforms(tmp_path / "scene")
    (tmp_path / "scene/images").rename(tmp_path / "images")
    tree = json.loads((tmp_path / "scene/transforms.json").read_text())
    for frame in tree["frames"]:
        frame["file_path"] = "../" + frame["file_path"]
    (tmp_path / "scene/transforms.json").write_text(json.dumps(tree))
    with pytest.raises(SceneError, match=r"--set scene\.outside=true"):
        load_scene(tmp_path / "scene")
    scene = load_scene(tmp_path / "scene", load_config(None, ["scene.outside=true"]).scene)
    assert len(scene.images) == 5


@pytest.mark.parametrize("name", ["transforms", "colmap", "idr", "llff", "middlebury", "strecha", "blendedmvs"])
def test_links_that_the_user_has_put_there_are_followed(tmp_path, name):
    home = tmp_path / "scene"
    home.mkdir()
    getattr(rings, name)(home)
    moved = sorted(p for p in home.rglob("*") if p.suffix in (".png", ".jpg"))[2]
    moved.rename(tmp_path / moved.name)
    moved.symlink_to(tmp_path / moved.name)
    (tmp_path / "link").symlink_to(home)
    assert len(load(home).views) == len(load(tmp_path / "link").views) == 5


def test_meshes_refer_to_no_other_file(tmp_path):
    """An OBJ names its materials, and those pictures: none is opened."""
    (tmp_path / "secret.mtl").write_text("newmtl a\nmap_Kd secret.png\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.obj").write_text("mtllib ../secret.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    opened, on = [], [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if on[0] and event == "open" else None)
    read_truth(tmp_path / "in/a.obj")
    on[0] = False
    assert any(path.endswith("a.obj") for path in opened)
    assert not [path for path in opened if "secret" in path]


def test_messages_are_one_line_whatever_they_quote():
    message = str(SceneError("a\x1b[31m\nb\u202e\udc80" + "x" * 10**6))
    assert message.startswith("a\\x1b[31m b\\u202e\\udc80xxx") and message.isprintable() and len(message) == LONGEST
    assert str(SceneError("größe 3 µm, 日本")) == "größe 3 µm, 日本"


# no code from data

FORBIDDEN = {"pickle", "cPickle", "dill", "marshal", "shelve", "yaml", "joblib", "cloudpickle"}


def faults(tree):
    """What in a source would run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN)
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.save", "subprocess.getoutput"}:
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield called
        if called in {"np.load", "numpy.load", "np.lib.format.read_array"} and keywords.get("allow_pickle", "False") != "False":
            yield called
        if keywords.get("shell", "False") != "False":
            yield f"{called}(shell=...)"


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_runs_what_a_file_says():
    assert len(SOURCES) > 50
    found = {path.name: list(faults(parsed(path))) for path in SOURCES}
    assert not {name: what for name, what in found.items() if what}


def test_the_look_for_faults_finds_them():
    text = "import pickle\nfrom yaml import load\neval('1')\nnp.load(f, allow_pickle=True)\nrun('x', shell=True)\ntorch.load(f)\n"
    assert len(list(faults(ast.parse(text)))) == 6


def test_every_reader_is_tried():
    """Whatever opens other people's files goes through guard, or is a reader of bytes that is fuzzed itself, or reads what we wrote."""
    fuzzed = {"guard.py", "checkpoint.py", "meshio.py", "formats/colmap.py"}
    ours = {"files.py", "scoring.py", "ui/jsonlines.py", "batch.py", "following.py"}
    names = {"Image.open", "json.load", "np.load", "np.loadtxt", "np.fromfile", "open", "zipfile.ZipFile", "pillow.open"}
    for path in SOURCES:
        calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        found = {ast.unparse(call) for call in calls} & names
        found |= {call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr == "read_bytes"}
        assert not found or path.relative_to(Path(fastsurf.__file__).parent).as_posix() in fuzzed | ours, (path, found)
