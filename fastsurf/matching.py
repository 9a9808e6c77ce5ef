"""Matched features of a few pairs of photographs, by COLMAP in a process of its own: `python -m fastsurf.matching`, for epipolar.py.

The job names a folder with images/, pairs of names in it, and what sfm.py's jobs name too. The answer is one line, {"matches": [...]}: for
each pair a list of x1, y1, x2, y2 in pixels, centres at half integers. A match agrees with some epipolar geometry of its pair, whichever.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from .sfm import Say, serve


def match(job: dict[str, Any], say: Say, token: Any) -> None:
    """Do the job; see above."""
    folder = Path(job["folder"])
    images, database = folder / "images", folder / "database.db"
    names = sorted({name for pair in job["pairs"] for name in pair})
    pycolmap.set_random_seed(job["seed"])
    with pycolmap.Database.open(database):
        pass  # there is one now
    pycolmap.import_images(database, images, pycolmap.CameraMode.PER_IMAGE, names)
    options, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    verification, pairing = pycolmap.TwoViewGeometryOptions(), pycolmap.ImportedPairingOptions()
    options.num_threads = matching.num_threads = job["threads"]
    options.sift.max_num_features, options.sift.first_octave = job["features"], -1
    verification.ransac.random_seed = job["seed"]
    pycolmap.extract_features(database, images, names, extraction_options=options, cancellation_token=token)
    pairing.match_list_path = str(folder / "pairs.txt")
    (folder / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in job["pairs"]), encoding="utf-8")
    pycolmap.match_image_pairs(database, matching, pairing, verification, cancellation_token=token)
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        places = {name: _places(db, ids[name]) for name in names}
        found = []
        for a, b in job["pairs"]:
            agree = np.zeros((0, 2), int)
            if db.exists_two_view_geometry(ids[a], ids[b]):
                agree = np.asarray(db.read_two_view_geometry(ids[a], ids[b]).inlier_matches, int).reshape(-1, 2)
            found.append(np.concatenate([places[a][agree[:, 0]], places[b][agree[:, 1]]], -1).round(3).tolist())
    say({"matches": found})


def _places(db: Any, image: int) -> np.ndarray:
    """Where an image's features are, (n, 2) pixels."""
    found = db.read_keypoints(image) if db.exists_keypoints(image) else np.zeros((0, 2))
    return np.asarray(found, np.float64)[:, :2]


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started this, and ends stdin
    serve(match)
