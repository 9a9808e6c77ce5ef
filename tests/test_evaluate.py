"""The tool that scores reconstructions: what it plans, makes once and only once, says of failures, and writes down."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsurf.cameras import Camera
from fastsurf.config import load_config
from fastsurf.errors import ConfigError, FastsurfError, UsageError
from fastsurf.figures import color_bar, contact_sheet, draw_error, heat
from fastsurf.metrics import Truth, distance_to, score_mesh
from fastsurf.runs import expected
from fastsurf.scoring import on_view
from fastsurf.shade import look_at

TOOL = Path(__file__).parents[1] / "tools" / "evaluate.py"
SMALL = ["field.levels=4", "field.log2_entries=10", "train.rays=256", "grid.resolution=24", "mesh.resolution=40", "mesh.min_component=0.05"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evaluate", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    return module


def planned(tool, *words):
    return tool.plan(tool.parser().parse_intermixed_args(["-o", "out", *map(str, words)]))


def test_seeds_are_the_outermost_loop(tool, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    cells = planned(tool, tmp_path / "a", tmp_path / "b", "--presets", "default,quick", "--seeds", "3,5", "--at", "15,60")
    assert [cell.label[3] for cell in cells] == [3] * 8 + [5] * 8
    assert [cell.label[:3] for cell in cells[:4]] == [(s, v, "15 s") for s in "ab" for v in ("default", "quick")]
    assert {cell.config.train.minutes for cell in cells} == {0.25, 1.0}
    assert len({cell.name for cell in cells}) == 16
    assert {cell.config.scene.holdout for cell in cells} == {8}


def test_a_cell_is_another_where_any_setting_is(tool, tmp_path) -> None:
    changes = ((), ("--samples", 9), ("--set", "loss.mask=0.2"))
    (cell,), (same,), (other,) = (planned(tool, tmp_path, "--steps", 5, *more) for more in changes)
    assert cell.name == same.name != other.name
    assert cell.scoring != same.scoring


def test_variants_are_presets_with_changes(tool) -> None:
    made = dict(tool.variants("default,quick", ["base=", "two=color.inputs=x,h,d,loss.mask=0.3"], ["mesh.faces=7"]))
    assert list(made) == ["base", "two", "quick+base", "quick+two"]
    assert made["base"] == load_config(None, ["mesh.faces=7"])
    assert made["quick+two"] == load_config("quick", ["mesh.faces=7", "color.inputs=x,h,d", "loss.mask=0.3"])
    with pytest.raises(ConfigError, match="did you mean loss"):
        tool.variants("default", ["a=loss.maks=1"], [])
    for wrong in (["loss.mask=1", "loss.mask=1"], ["alone"]):
        with pytest.raises(UsageError):
            tool.variants("default", wrong, [])


@pytest.mark.parametrize("words, said", [
    (["--seeds", "0,x"], "numbers with commas"), (["--gt", "nowhere.ply"], "no nowhere.ply"), (["--gt", "z=x"], "no scene 'z'"),
    (["nowhere"], "no scene nowhere"),
])  # fmt: skip
def test_requests_that_make_no_sense_are_one_line(tool, tmp_path, capsys, words, said) -> None:
    assert tool.main([str(tmp_path), "-o", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("evaluate: ") and error.count("\n") == 1


def test_a_scene_is_made_once_scored_and_drawn_and_a_failure_is_a_row(tool, tiny_folder, tmp_path, capsys) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    program = f"{sys.executable} {tmp_path / 'judge.py'}"
    (tmp_path / "judge.py").write_text(
        "import json, pathlib, sys\nmesh, scene, flag, out = sys.argv[1:]\nassert flag == '--json' and pathlib.Path(mesh).is_file()\n"
        "json.dump({'verdict': 4.25, 'list': [1]}, open(out, 'w'))\n"
    )
    words = [str(tiny_folder), str(empty), "-o", str(out), "--steps", "30", "--samples", "5000", "--score-mesh", program]
    words += [word for setting in SMALL for word in ("--set", setting)]
    assert tool.main(words) == 1
    said = capsys.readouterr().out
    assert "FAILED: the reconstruction ended with exit code 3: fastsurf: " in said

    tree = json.loads((out / "results.json").read_text())
    good, bad = sorted(tree["cells"], key=lambda cell: "failed" in cell)
    assert bad["scene"] == "empty" and "exit code 3" in bad["failed"]
    scores = good["scores"]
    assert scores["steps"] == 30 and scores["samples_millions"] == pytest.approx(30 * 256 * 24 / 1e6)
    assert scores["wall_seconds"] > scores["train_seconds"] > 0 and scores["peak_mb"] > 50
    assert scores["psnr"] > 5 and 0 < scores["mask_iou"] <= 1 and scores["components"] >= 1 and len(good["views"]) == 2
    assert scores["chamfer_px"] == pytest.approx(scores["chamfer"] / scores["footprint"]) and 0 <= scores["f_score"] <= 1
    assert good["external"] == {"mesh": {"verdict": 4.25}}

    table = (out / "results.md").read_text()
    assert "**failed**: the reconstruction ended" in table and "verdict" in table and f"{tiny_folder.name}.png" in table
    cell = next((out / "cells").glob(f"{tiny_folder.name}-*"))
    drawn = {file.name for file in (cell / "pictures").glob("*.png")}
    assert drawn == {f"{k}-{kind}.png" for k in (0, 1) for kind in ("photograph", "rendering", "shaded", "normals", "error")}
    assert (out / f"{tiny_folder.name}.png").is_file() and (cell / "log.txt").stat().st_size > 0
    assert not (cell / "run" / "checkpoint.safetensors").exists()

    before = (cell / "made.json").stat().st_mtime_ns
    assert tool.main([words[0], *words[2:]]) == 0
    assert "kept" in capsys.readouterr().out and (cell / "made.json").stat().st_mtime_ns == before
    again = json.loads((out / "results.json").read_text())["cells"]
    assert any("failed" in c for c in again)  # other cells of the folder stay in the table


def test_another_program_that_fails_says_so(tool, tmp_path) -> None:
    with pytest.raises(FastsurfError, match="exit code 2: no use"):
        tool.ask(f"{sys.executable} -c \"raise SystemExit(print('no use') or 2)\"", [], tmp_path / "answer.json")
    with pytest.raises(FastsurfError, match="nowhere can't be run"):
        tool.ask("nowhere", [], tmp_path / "answer.json")


def cell(seed: int, **scores):
    head = {"scene": "s", "variant": "v", "budget": "1 s", "seed": seed, "folder": "f", "external": {}, "commit": "", "sources": "x"}
    return {**head, "scores": scores}


def test_medians_and_spread(tool) -> None:
    cells = [cell(k, f_score_05=f, watertight=k > 0, psnr=p) for k, (f, p) in enumerate([(0.5, 20.0), (0.75, None), (0.7, 30.0)])]
    (row,) = tool.summary(cells)
    assert row["median"] == {"f_score_05": 0.7, "psnr": 25.0, "watertight": 1.0} and row["seeds"] == [0, 1, 2]
    assert row["spread"]["f_score_05"] == 0.25
    lines = tool.markdown(cells, [], {"fastsurf": "1", "python": "3", "cores": 2, "machine": "m"}).splitlines()
    assert "| s | v | 1 s | 3 | 0.7000 ± 0.1250 | 25.00 ± 5.00 | 100% |" in lines
    assert "| s | v | 1 s | 1 | 0.7500 | – | yes |" in lines


def test_pixels_to_be_ignored_are_not_scored(tiny) -> None:
    scene, i, config = copy.copy(tiny), tiny.test[0], load_config()
    photo, counts = expected(scene, i, "white")
    assert counts.all()
    shown = np.rint(255 * photo).astype(np.uint8)
    shown[10:20, 10:20] ^= 255
    spoiled = on_view(shown, scene, i, config)
    scene.ignored = [torch.zeros(photo.shape[:2], dtype=torch.bool) for _ in scene.images]
    scene.ignored[i][10:20, 10:20] = True
    scores = on_view(shown, scene, i, config)
    assert scores["psnr"] > 50 > 25 > spoiled["psnr"] and scores["ssim"] > 0.99 > spoiled["ssim"] and scores["psnr_object"] > 50


def test_offset_is_signed_and_follows_the_truths_normals() -> None:
    from test_metrics import ball

    for offset in (0.01, -0.02):
        assert score_mesh(ball(1 + offset), Truth(mesh=ball()), samples=5_000)["offset"] == pytest.approx(offset, rel=0.03)
    assert np.isnan(score_mesh(ball(), Truth(points=ball().vertices), samples=5_000)["offset"])


def test_errors_are_drawn_in_the_colours_of_their_distance() -> None:
    from test_metrics import ball

    truth = Truth(mesh=ball(), region=(np.array([-2.0, -2, -2]), np.array([2.0, 2, 0]), np.eye(4)))
    camera = Camera("PINHOLE", 60, 60, (100.0, 100.0, 30.0, 30.0))
    picture = draw_error(ball(1.1), distance_to(truth), 0.2, camera, look_at(np.array([5.0, 0, 0]), np.zeros(3)))
    np.testing.assert_allclose(picture[40, 30], heat(np.array([0.1]), 0.2)[0], atol=4)  # below: the truth is 0.1 away
    np.testing.assert_array_equal(picture[20, 30], heat(np.array([np.nan]), 0.2)[0])  # above: no truth
    np.testing.assert_array_equal(picture[2, 2], 255)
    np.testing.assert_array_equal(heat(np.array([0.0, 1.0, 9.0]), 1.0), [(38, 52, 118), (128, 8, 32), (128, 8, 32)])


def test_sheets_hold_every_picture_whole() -> None:
    pictures = [np.full((h, w, 3), (10 * h, 0, 9), np.uint8) for h, w in ((5, 50), (9, 40))]
    sheet = contact_sheet(["a", "b"], [("first", pictures), ("second", pictures[::-1])], lambda width: color_bar(width, 0.5))
    for picture in pictures:
        assert (sheet == picture[0, 0]).all(2).sum() == 2 * picture.shape[0] * picture.shape[1]
