"""Make the demo scene: traced photographs of a procedural solid, their cameras, and the exact surface.

    python tools/make_scene.py OUT [--views 48 --test 6 --size 320 --seed 0]
"""

import argparse
from pathlib import Path

from fastsurf.demo_scene import make_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=int, default=48, help="training photographs")
    parser.add_argument("--test", type=int, default=6, help="held-out photographs")
    parser.add_argument("--size", type=int, default=320, help="edge of a photograph, pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_scene(arguments.out, arguments.views, arguments.test, arguments.size, arguments.seed)


if __name__ == "__main__":
    main()
