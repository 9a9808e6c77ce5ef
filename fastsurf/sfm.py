"""Structure from motion with COLMAP, in a process of its own: `python -m fastsurf.sfm`, started by poses.py.

A fault inside COLMAP can end its process, and it writes to the terminal as it likes; neither reaches the user's screen from here. The job
comes as one JSON line on stdin; when stdin ends, so does the work. Answers are JSON lines on what was stdout:

    {"done": 12, "of": 50}                      progress of the stage at work
    {"finished": "features", "detail": "..."}   a stage has ended: features, matching, mapping, in this order
    {"model": {...}}                            at the end
    {"points": n}                               at the end of a job with known cameras: features, matching, no mapping
    {"error": "..."}                            or this

Features and matches are computed in portions, each complete in the database before the next, so that nothing is done twice: COLMAP itself
says nothing in between, and its database must not be read while it writes.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pycolmap

from .epipolar import Pair, fit
from .footage import lens, names_in, up_in_picture
from .formats.colmap import LEAST_TRACK, MOST_ERROR

T = TypeVar("T")
Say = Callable[[dict[str, Any]], None]
Floats = npt.NDArray[np.float32]

PORTION = 1.0  # seconds that one is meant to take
ALL_PAIRS = 80  # photographs up to which all pairs are compared
ALIKE, NEIGHBOURS = 25, 5  # beyond: of each photograph those that look most alike, and the next by name
OVERLAP, ALIKE_IN_SEQUENCE = 10, 5  # of pictures in sequence; those that look alike close loops
WORDS, SAMPLE = 32, 20_000  # of the vocabulary that likeness is measured by, and descriptors that it is made from
SMALL = 640  # pixels up to which photographs are doubled for SIFT; larger ones gave twice the features so, and poses no better (fox)
DISTORTED = 20  # photographs that a camera needs for four distortion parameters; one where it has fewer
WORTH = 0.98  # of the reprojection error before: as far as four must lower it; a narrow thing in the middle has nothing to find them by
FITTING = 15  # matches that agree with one motion, for a pair to count
SMALLEST_MODEL, MOST_MODELS = 3, 5
NEAR = 4.0  # pixels from its epipolar lines, up to which a match agrees with a model; as COLMAP has it for pairs
UNITED = 0.8  # share of the matches that agree with a sound model: .95 fox, .99 DTU; .53 and .62 of a pot with a pattern that repeats
CENTRED = 40  # photographs below which a camera's principal point stays in the middle: from 23 (chessman) it came out 75 pixels off
FURTHEST = 0.03  # of the larger side, that a principal point may move


def run(job: dict[str, Any], say: Say, token: Any) -> None:
    """Features, matches and a model of the photographs in job["scene"]/images; the model is left in job["model"].

    Args:
        job: scene, model, pairs, cameras, max_side, features, seed, threads, and masks, a folder of NAME.png that are 0 where no features
            are wanted, or None; with known cameras (landmarks.py) known, wanted (pairs of names), doubled and points (a file to write) for
            model, pairs, cameras and masks.
        say: takes the answers.
        token: pycolmap's CancellationToken.
    """
    scene = Path(job["scene"])
    images, database = scene / "images", scene / "database.db"
    pycolmap.set_random_seed(job["seed"])
    names = names_in(images)
    if "known" in job:
        _enter_known(job["known"], images, database)
        _features(job, images, database, names, say, token)
        _matches(job, scene, database, [(a, b) for a, b in job["wanted"]], say, token)
        say({"points": _triangulate(job, scene)})
        return
    features = _features(job, images, database, names, say, token)
    pairs = _matches(job, scene, database, _wanted(job, database, names), say, token)
    found = _map(job, scene, names, say, token)
    say({"model": {**found, "features": features, "pairs": pairs}})


def _features(job: dict[str, Any], images: Path, database: Path, names: list[str], say: Say, token: Any) -> int:
    """Returns the median number of features of a photograph."""
    with pycolmap.Database.open(database) as db:
        fresh = "known" not in job and not db.num_keypoints()  # else all photographs were entered long ago
        if fresh:
            db.clear_all_tables()
    if fresh:
        for group in camera_groups(images, names, job["cameras"]):
            reader = pycolmap.ImageReaderOptions()
            reader.camera_model = "SIMPLE_RADIAL"  # four parameters, free from the first pair on, go astray: 3 of DTU's 49 were placed
            pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, group, reader)
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        todo = [name for name in names if name in ids and not db.exists_keypoints(ids[name])]
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.num_threads = job["max_side"], job["threads"]
    options.sift.max_num_features = job["features"]
    reader = pycolmap.ImageReaderOptions()
    if job.get("masks"):
        reader.mask_path = job["masks"]
    small = min(job["max_side"], *(max(lens(images / name)[:2]) for name in names)) <= SMALL
    options.sift.first_octave = -1 if job.get("doubled", small) else 0
    for portion, done in _portions(todo, max(2, job["threads"])):
        say({"done": len(names) - len(todo) + done, "of": len(names)})
        pycolmap.extract_features(
            database, images, portion, reader_options=reader, extraction_options=options, cancellation_token=token,
        )  # fmt: skip
    with pycolmap.Database.open(database) as db:
        counts = [db.num_keypoints_for_image(ids[name]) if name in ids else 0 for name in names]
    median = int(np.median(counts))
    say({"finished": "features", "detail": f"{len(names)} photographs, {median} features each"})
    return median


def _wanted(job: dict[str, Any], database: Path, names: list[str]) -> list[tuple[str, str]]:
    """The pairs to compare."""
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        known = [name for name in names if name in ids and db.num_keypoints_for_image(ids[name])]
        few = job["pairs"] == "all" or (job["pairs"] == "auto" and len(known) <= ALL_PAIRS)
        alike = [] if few or len(known) < 3 else likeness([db.read_descriptors(ids[name]).data for name in known], job["seed"])
    return [(known[i], known[j]) for i, j in pairs_of(len(known), "all" if few else job["pairs"], alike)]


def _matches(job: dict[str, Any], scene: Path, database: Path, wanted: list[tuple[str, str]], say: Say, token: Any) -> int:
    """Returns the number of pairs that show the same thing."""
    with pycolmap.Database.open(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        todo = [(a, b) for a, b in wanted if not db.exists_two_view_geometry(ids[a], ids[b])]
    matching, verification, pairing = (
        pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions(), pycolmap.ImportedPairingOptions(),
    )  # fmt: skip
    matching.num_threads = job["threads"]
    verification.ransac.random_seed = job["seed"]
    pairing.match_list_path = str(scene / "pairs.txt")
    for portion, done in _portions(todo, 8):
        say({"done": len(wanted) - len(todo) + done, "of": len(wanted)})
        (scene / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in portion), encoding="utf-8")
        pycolmap.match_image_pairs(database, matching, pairing, verification, cancellation_token=token)
    (scene / "pairs.txt").unlink(missing_ok=True)
    with pycolmap.Database.open(database) as db:
        _, inliers = db.read_two_view_geometry_num_inliers()
    verified = sum(n >= FITTING for n in inliers)
    say({"finished": "matching", "detail": f"{verified} of {len(wanted)} pairs fit"})
    return verified


def _map(job: dict[str, Any], scene: Path, names: list[str], say: Say, token: Any) -> dict[str, Any]:
    """The largest model, turned upright and written; what is said about it.

    Where many matches contradict it, things that look alike were taken for one: then it is made again without the pairs that do.
    """
    work = Path(job["model"]).with_name(".models")
    work.mkdir(exist_ok=True)
    ranked, doubted = _models(scene / "database.db", scene / "images", work / "first", job["seed"], names, say, token), 0
    if ranked:
        share, against = _contradictions(ranked[0], scene / "database.db")
        if share < UNITED and against:
            _copy_without(scene / "database.db", work / "database.db", against)
            again = _models(work / "database.db", scene / "images", work / "second", job["seed"], names, say, token)
            if again and again[0].num_reg_images() >= ranked[0].num_reg_images():
                ranked, doubted = again, len(against)
    if not ranked:
        say({"finished": "mapping", "detail": "nothing found its place"})
        return {"placed": [], "sizes": [], "doubted": 0}
    model = _with_principal_points(_with_distortion(ranked[0], token), token)
    images = [model.images[i] for i in sorted(model.reg_image_ids())]
    poses = np.stack([image.cam_from_world().inverse().matrix() for image in images])  # camera to world, (n, 3, 4)
    ups = np.array([(*up_in_picture(scene / "images" / image.name), 0) for image in images], np.float64)
    turn = upright(np.einsum("nij,nj->ni", poses[:, :, :3], ups))
    if turn is not None:
        model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(turn), np.zeros(3)))
    Path(job["model"]).mkdir(parents=True)
    model.write(job["model"])
    say({"finished": "mapping", "detail": f"{len(images)} of {len(names)} photographs placed"})
    return {
        "placed": sorted(image.name for image in images),
        "sizes": [other.num_reg_images() for other in ranked],
        "points": model.num_points3D(),
        "error": model.compute_mean_reprojection_error(),
        "track": model.compute_mean_track_length(),
        "cameras": [
            {"model": c.model.name, "width": c.width, "height": c.height, "params": [float(p) for p in c.params]}
            for _, c in sorted(model.cameras.items())
        ],
        "turn": None if turn is None else turn.tolist(),
        "doubted": doubted,
    }  # fmt: skip


def _models(database: Path, images: Path, work: Path, seed: int, names: list[str], say: Say, token: Any) -> list[Any]:
    """What COLMAP makes of the matched pairs, the largest model first.

    Args:
        work: a folder for it, made here.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = 1  # with more, sums come in any order: another model each time, and mapping hardly faster
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = seed
    options.min_model_size, options.max_num_models = SMALLEST_MODEL, MOST_MODELS
    placed = 0

    def first() -> None:
        nonlocal placed
        placed = 2
        tell()

    def another() -> None:
        nonlocal placed
        placed = min(placed + 1, len(names))
        tell()

    def tell() -> None:
        say({"done": placed, "of": len(names)})

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    models = pycolmap.incremental_mapping(
        database, images, work, options, initial_image_pair_callback=first, next_image_callback=another, cancellation_token=token,
    )  # fmt: skip
    return sorted(models.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))


def _contradictions(model: Any, database: Path) -> tuple[float, list[tuple[int, int]]]:
    """The share of all matches between placed photographs that agree with their poses, and the pairs, by ids, most of whose don't."""
    placed = set(model.reg_image_ids())
    poses = {i: model.images[i].cam_from_world().inverse().matrix() for i in placed}
    agreeing, matches, against = 0.0, 0, []
    with pycolmap.Database.open(database) as db:
        places = {i: np.asarray(db.read_keypoints(i), np.float64)[:, :2] for i in placed}
        for number, n in zip(*db.read_two_view_geometry_num_inliers(), strict=True):
            i, j = pycolmap.pair_id_to_image_pair(number)
            if n < FITTING or i not in placed or j not in placed:
                continue
            chosen = np.asarray(db.read_two_view_geometry(i, j).inlier_matches, int).reshape(-1, 2)
            ends = ((model.images[i].camera, places[i][chosen[:, 0]]), (model.images[j].camera, places[j][chosen[:, 1]]))
            a, b = (np.asarray(camera.cam_from_img(at)).reshape(-1, 2) for camera, at in ends)
            pixel = 1 / model.images[i].camera.mean_focal_length()
            if _turned_only(a, b, poses[i][:, :3], poses[j][:, :3]) < NEAR * pixel:
                continue  # from one spot: which way a camera moved is noise there
            share = fit([Pair(0, 1, a, b, pixel, NEAR)], np.stack([poses[i], poses[j]])).share
            agreeing, matches = agreeing + share * n, matches + n
            if share < 0.5:
                against.append((i, j))
    return agreeing / max(matches, 1), against


def _turned_only(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], first: Any, second: Any) -> float:
    """How far matches (n, 2), on the planes z = 1 of cameras turned (3, 3) to the world, are from each other had the camera only turned:
    the median, radians."""
    (one, other) = (np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) @ turn.T for x, turn in ((a, first), (b, second)))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    return float(np.median(np.linalg.norm(one - other, axis=1)))


def _copy_without(database: Path, copy: Path, pairs: Iterable[tuple[int, int]]) -> None:
    """A database once more, but for the matches of some pairs."""
    copy.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as one, contextlib.closing(sqlite3.connect(copy)) as other:
        one.backup(other)
    with pycolmap.Database.open(copy) as db:
        for i, j in pairs:
            db.delete_two_view_geometry(i, j)


def _enter_known(known: list[dict[str, Any]], images: Path, database: Path) -> None:
    """Photographs with their cameras into a new database."""
    pycolmap.Database.open(database).close()
    for photograph in known:
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model, reader.camera_params = photograph["model"], ",".join(map(repr, photograph["params"]))
        pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, [photograph["name"]], reader)


def _triangulate(job: dict[str, Any], scene: Path) -> int:
    """Points of the features that matched, seen from the known cameras: job["points"] gets `points` (n, 3) and `sightings` (m, 2), each the
    index of a photograph in job["known"] and of a point. Returns n."""
    with pycolmap.Database.open(scene / "database.db") as db:
        ids = {image.name: (image.image_id, image.camera_id) for image in db.read_all_images()}
    cameras, images = [], []
    for photograph in job["known"]:
        image, camera = ids[photograph["name"]]
        turn = np.array(photograph["c2w"])[:, :3].T
        x, y, z, w = pycolmap.Rotation3d(turn).quat
        shift = -turn @ np.array(photograph["c2w"])[:, 3]
        cameras.append([camera, photograph["model"], photograph["width"], photograph["height"], *photograph["params"]])
        images += [[image, w, x, y, z, *shift, camera, photograph["name"]], []]
    known = scene / "known"
    known.mkdir()
    for name, rows in (("cameras", cameras), ("images", images), ("points3D", [])):
        text = "".join(" ".join(repr(float(a)) if isinstance(a, float) else str(a) for a in row) + "\n" for row in rows)
        (known / f"{name}.txt").write_text(text, encoding="utf-8")
    (scene / "found").mkdir()
    model = pycolmap.triangulate_points(pycolmap.Reconstruction(known), scene / "database.db", scene / "images", scene / "found")
    index = {ids[photograph["name"]][0]: i for i, photograph in enumerate(job["known"])}
    trusted = [p for _, p in sorted(model.points3D.items()) if p.error <= MOST_ERROR and len(p.track.elements) >= LEAST_TRACK]
    sightings = [(index[e.image_id], n) for n, point in enumerate(trusted) for e in point.track.elements]
    points = np.array([p.xyz for p in trusted]).reshape(-1, 3)
    np.savez(job["points"], points=points, sightings=np.array(sightings, np.int64).reshape(-1, 2))
    return len(trusted)


def _with_distortion(model: Any, token: Any) -> Any:
    """The model with four distortion parameters, found by bundle adjustment, for cameras of many photographs, if they explain them better
    than the one that the model was made with."""
    shared = Counter(model.images[i].camera_id for i in model.reg_image_ids())
    bent = [i for i, n in shared.items() if n >= DISTORTED and model.cameras[i].model.name == "SIMPLE_RADIAL"]
    if not bent:
        return model
    free = pycolmap.Reconstruction(model)
    for i in bent:
        f, cx, cy, k = model.cameras[i].params
        free.cameras[i].model, free.cameras[i].params = pycolmap.CameraModelId.OPENCV, [f, f, cx, cy, k, 0.0, 0.0, 0.0]
    _adjust(free, pycolmap.BundleAdjustmentOptions(), token)
    model.update_point_3d_errors()
    return free if free.compute_mean_reprojection_error() < WORTH * model.compute_mean_reprojection_error() else model


def _adjust(model: Any, options: Any, token: Any) -> None:
    """Bundle adjustment of a whole model, the same each time."""
    options.print_summary, options.ceres.solver_options.num_threads = False, 1
    pycolmap.bundle_adjustment(model, options, cancellation_token=token)
    model.update_point_3d_errors()


def _with_principal_points(model: Any, token: Any) -> Any:
    """The model with its cameras' principal points found by bundle adjustment, where that is safe; COLMAP leaves them in the middle."""
    shared = Counter(model.images[i].camera_id for i in model.reg_image_ids())
    if min(shared.values()) < CENTRED:
        return model
    free = pycolmap.Reconstruction(model)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = True
    _adjust(free, options, token)
    for i in shared:
        before, after = model.cameras[i], free.cameras[i]
        moved = max(abs(before.principal_point_x - after.principal_point_x), abs(before.principal_point_y - after.principal_point_y))
        if moved > FURTHEST * max(before.width, before.height):
            return model
    return free


def camera_groups(folder: Path, names: Sequence[str], how: str) -> list[list[str]]:
    """Photographs that share a camera, in order of name. `how`: auto (same size, make, model and focal length), one, folder, each."""
    keys: dict[str, Callable[[str], object]] = {
        "auto": lambda name: lens(folder / name), "one": lambda name: "", "folder": lambda name: os.path.dirname(name),
        "each": lambda name: name,
    }  # fmt: skip
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(keys[how](name), []).append(name)
    return list(groups.values())


def pairs_of(n: int, how: str, alike: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Which of n pictures are compared, as sorted (i, j) with i < j.

    Args:
        how: all; sequence, the next OVERLAP and then at distances that double; auto, the next few by name.
        alike: for each picture the others, the most alike first; used with auto and sequence.
    """
    if how == "all":
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    next_ones = [*range(1, NEIGHBOURS + 1)]
    if how == "sequence":
        next_ones = [*range(1, OVERLAP + 1), *(2**k for k in range(4, 20))]
    kin = ALIKE_IN_SEQUENCE if how == "sequence" else ALIKE
    found = {(i, i + step) for step in next_ones for i in range(n - step)}
    return sorted(found | {(min(i, j), max(i, j)) for i, others in enumerate(alike) for j in others[:kin]})


def likeness(descriptors: Sequence[npt.NDArray[np.uint8]], seed: int) -> list[list[int]]:
    """For each picture the others, the most alike first, by aggregated local descriptors (VLAD, Jegou et al. 2010).

    Args:
        descriptors: of each picture, (n_features, 128).
    """
    rng = np.random.default_rng(seed)
    every = np.concatenate(descriptors)
    words = vocabulary(every[np.sort(rng.permutation(len(every))[:SAMPLE])].astype(np.float32), rng)
    codes = np.stack([_vlad(d.astype(np.float32), words) for d in descriptors])  # (n, WORDS * 128)
    similar = codes @ codes.T
    np.fill_diagonal(similar, -np.inf)
    return [row[:-1].tolist() for row in np.argsort(-similar, axis=1, kind="stable")]


def vocabulary(sample: Floats, rng: np.random.Generator, rounds: int = 10) -> Floats:
    """Centres of the sample's clusters, (WORDS, 128), by k-means from random members."""
    words = sample[np.sort(rng.permutation(len(sample))[:WORDS])]
    for _ in range(rounds):
        nearest = _nearest(sample, words)
        for k in range(len(words)):
            members = sample[nearest == k]
            if len(members):
                words[k] = members.mean(0)
    return words


def _vlad(descriptors: Floats, words: Floats) -> Floats:
    """Sum of the differences to the nearest word, word by word, each scaled to length 1; the whole too."""
    nearest = _nearest(descriptors, words)
    code = np.zeros_like(words)
    for k in range(len(words)):
        code[k] = (descriptors[nearest == k] - words[k]).sum(0)
    code /= np.maximum(np.linalg.norm(code, axis=1, keepdims=True), 1e-6)
    flat: Floats = code.ravel() / max(float(np.linalg.norm(code)), 1e-6)
    return flat


def _nearest(points: Floats, words: Floats) -> npt.NDArray[np.intp]:
    return np.asarray(np.argmin((words * words).sum(1) - 2 * points @ words.T, axis=1))


def upright(ups: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The least rotation (3, 3) that turns the mean of the cameras' up directions (n, 3) to +z; None where they have no common one."""
    up = ups.mean(0)
    length = np.linalg.norm(up)
    if length < 0.3:
        return None
    up = up / length
    cross = np.array([up[1], -up[0], 0.0])  # up x z
    if up[2] < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    skew = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.asarray(np.eye(3) + skew + skew @ skew / (1 + up[2]))


def _portions(items: Sequence[T], first: int) -> Iterator[tuple[Sequence[T], int]]:
    """`items` in portions that each take about PORTION seconds of the caller's time, with the number that came before."""
    size, at = first, 0
    while at < len(items):
        start = time.monotonic()
        yield items[at : at + size], at
        at += size
        factor = PORTION / max(time.monotonic() - start, 1e-3)
        size = max(first, int(size * min(max(factor, 0.5), 2.0)))


def _watch(lines: Iterable[str], token: Any) -> None:
    """Read what comes after the job until there is no more: then nobody waits for the result."""
    for _ in lines:
        pass
    token.cancel()


def serve(work: Callable[[dict[str, Any], Say, Any], None]) -> None:
    """Do the job that stdin names: `work(job, say, token)` says what there is to say and ends early when the token is cancelled."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what COLMAP prints goes to the log
    job = json.loads(sys.stdin.readline())
    token = pycolmap.CancellationToken()
    threading.Thread(target=_watch, args=(sys.stdin, token), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    with contextlib.suppress(InterruptedError, BrokenPipeError):
        try:
            work(job, say, token)
        except (RuntimeError, ValueError, IndexError) as e:
            say({"error": " ".join(str(e).split())})


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started this, and ends stdin
    serve(run)
