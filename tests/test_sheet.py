import numpy as np
from PIL import Image

from fastsurf import cli
from fastsurf.cameras import world_to_pixels
from fastsurf.sheet import BOX, CAPTION, COLUMNS, GAP, MAP, OUTLINE, THUMBNAIL, draw_sheet, thumbnail


def painted(picture, color):
    return np.all(picture == np.array(color, np.uint8), axis=-1)


def test_the_sheet_holds_every_photograph_and_two_maps(tiny):
    sheet = draw_sheet(tiny)
    side = max(tiny.images[0].shape)  # photographs smaller than a thumbnail stay as they are
    rows = -(-len(tiny.images) // COLUMNS)
    assert sheet.shape == (GAP + rows * (min(side, THUMBNAIL) + CAPTION + GAP) + CAPTION + MAP, COLUMNS * (THUMBNAIL + GAP) + GAP, 3)
    maps = sheet[-MAP:]
    left, right = maps[:, : maps.shape[1] // 2], maps[:, maps.shape[1] // 2 :]
    assert painted(left, BOX).sum() > 200 and painted(right, BOX).sum() > 200


def test_a_thumbnail_has_its_mask_s_outline_and_the_box_where_they_are(tiny):
    picture = thumbnail(tiny, 0)
    outline = painted(picture, OUTLINE)
    mask = tiny.masks[0].numpy() > 127
    assert 20 < outline.sum() < 0.2 * mask.size and mask[outline].all()
    cube = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    corners = world_to_pixels(tiny.capture.views[0], tiny.to_world(cube))
    h, w = picture.shape[:2]
    seen = [(x, y) for x, y in corners if 1 <= x < w - 1 and 1 <= y < h - 1]
    assert seen
    for x, y in seen:
        assert painted(picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2], BOX).any()


def test_info_writes_it_and_overwrites_nothing_unasked(tiny_folder, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    assert cli.main(["info", str(tiny_folder), "--sheet", str(file)]) == 0
    with Image.open(file) as sheet:
        assert sheet.width == COLUMNS * (THUMBNAIL + GAP) + GAP
    assert cli.main(["info", str(tiny_folder), "--sheet", str(file)]) == 2 and "--force" in capsys.readouterr().err
    assert cli.main(["info", str(tiny_folder), "--sheet", str(tmp_path / "sheet.gif")]) == 2 and ".png" in capsys.readouterr().err
