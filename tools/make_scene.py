"""Make the demo scene: traced photographs of a procedural solid, their cameras, and the exact surface.

    python tools/make_scene.py OUT [--views 48 --test 6 --size 320 --seed 0]
    python tools/make_scene.py OUT --exposure 1 --white-balance 0.6 --occluders 2 --sky [--occluder-masks]

The second line spoils the training photographs as photographs taken in the wild are; held-out ones stay clean, and the truth is the same.
"""

import argparse
from pathlib import Path

from fastsurf.demo_scene import make_scene
from fastsurf.demo_wild import Wild


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=int, default=48, help="training photographs")
    parser.add_argument("--test", type=int, default=6, help="held-out photographs")
    parser.add_argument("--size", type=int, default=320, help="edge of a photograph, pixels")
    parser.add_argument("--seed", type=int, default=0)
    spoiled = parser.add_argument_group("photographs in the wild")
    spoiled.add_argument("--exposure", type=float, default=0, metavar="STOPS", help="too bright or too dark by up to STOPS")
    spoiled.add_argument("--white-balance", type=float, default=0, metavar="STOPS", help="red against blue, up to STOPS towards either")
    spoiled.add_argument("--occluders", type=int, default=0, metavar="N", help="passers-by in front, in each photograph others")
    spoiled.add_argument("--occluder-masks", action="store_true", help="write ignore/NAME.png, white where a passer-by is")
    spoiled.add_argument("--sky", action="store_true", help="sky, hills and meadows behind the solid; no alpha channel")
    a = parser.parse_args()
    if min(a.exposure, a.white_balance, a.occluders) < 0:
        parser.error("--exposure, --white-balance and --occluders want 0 or more")
    wild = Wild(a.exposure, a.white_balance, a.occluders, a.occluder_masks, a.sky)
    make_scene(a.out, a.views, a.test, a.size, a.seed, wild=wild)


if __name__ == "__main__":
    main()
