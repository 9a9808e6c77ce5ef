#!/usr/bin/env python
"""Feeds broken files to a reader: tools/fuzz.py READER [--seconds 60] [--seed 0], READER one of --list, or `all`.

Each input has to load or to be refused by a FastsurfError of one line. Anything else is a finding: another exception or a warning, two
seconds of work, more memory than the limit, a file opened that isn't the scene's, a file written, a crash. The reader runs in a child whose
memory is limited; so is that of ffmpeg, which videos are handed to, and which may work for as long as a child may stay silent. Where
atheris is installed (pip install 'fastsurf[fuzz]'), coverage leads the search through the Python parts; without it, inputs are changed at
random. The input behind each finding is kept in --out.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
SLOW = 2.0  # seconds of work
STUCK = 20.0  # seconds without a sign of life
MEMORY = 2 << 30  # bytes beyond what the libraries take
NUMBERS = (0, 1, -1, 127, 255, 256, 65535, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, (1 << 64) - 1)
WORDS = ("nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "0", "-0.0", "9" * 400, "", "x", "../../../etc/passwd", "/etc/passwd",
         "C:\\x.png", "a\x00b", "\x1b[2J", "a\nb", "a" * 5000, "[[[[", "1e999")  # fmt: skip
VALUES = (None, True, [], {}, "", "x", "nan", float("nan"), float("inf"), -1, 0, 1e308, 5e-324, 10**400, [[]], [[1, 2], [3]], "../../x.png",
          "/etc/passwd", "images/\x1b[31m.png", "a" * 5000, {"a": {"b": [1]}}, [1] * 17)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads files: `make` writes good ones into a folder and returns those to break, `read` reads the folder."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


def readers() -> dict[str, Reader]:
    """Every reader by its name."""
    from hostile import CASES

    return {name: Reader(*case) for name, case in CASES.items()}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four changes; of JSON mostly within its structure."""
    if data[:1] == b"{" and rng.random() < 0.7:
        try:
            return mutate_json(data, rng)
        except (ValueError, RecursionError, OverflowError):
            pass
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice((flip, cut, number, word, repeat, drop))(data, rng)
    return data


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        node, path = tree, []
        while isinstance(node, dict | list) and node and (not path or rng.random() < 0.75):
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            path.append((node, key))
            node = node[key]
        if not path:
            break
        parent, key = path[-1]
        action = rng.random()
        if action < 0.6:
            parent[key] = rng.choice(VALUES)
        elif action < 0.75:
            del parent[key]
        elif action < 0.85 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif isinstance(node, str):
            parent[key] = rng.choice(WORDS)
        elif isinstance(node, int | float):
            parent[key] = node * rng.choice((-1, 1e-300, 1e300, 1e6, 0))
        else:
            for _ in range(rng.choice((3, 100, 3000))):
                node = [node]
            parent[key] = node
    return json.dumps(tree).encode()


def flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at, changed = rng.randrange(len(data)), bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 4, 8, 64)) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data) + 1), rng.choice((1, 4, 8, 64))
    return data[:at] + data[at : at + n] * rng.choice((2, 3, 50)) + data[at + n :]


def number(data: bytes, rng: random.Random) -> bytes:
    """A binary number put over what is there, often at the start, where the counts are."""
    kind = rng.choice(["<B", "<H", "<I", "<Q", ">I", ">Q", "<f", "<d"])
    value = rng.choice((float("nan"), float("inf"), 1e300, -1.0, 0.0)) if kind[1] in "fd" else rng.choice(NUMBERS)
    if kind[1] in "BHIQ":
        value = int(value) % (1 << 8 * struct.calcsize(kind))
    new = struct.pack(kind, min(value, 3e38) if kind == "<f" else value)
    at = rng.randrange(min(len(data), rng.choice((1, 16, 64, 1 << 30))) + 1) if data else 0
    return data[:at] + new + data[at + len(new) :]


def word(data: bytes, rng: random.Random) -> bytes:
    """Another word in the place of one of a text."""
    found = list(re.finditer(rb"[^\s,:\[\](){}\"=]+", data[:20000]))
    if not found:
        return data
    spot, new = rng.choice(found), rng.choice((*WORDS, *(str(n) for n in NUMBERS)))
    return data[: spot.start()] + new.encode() + data[spot.end() :]


class Watch:
    """What Python opens while a reader runs; anything but the scene and the interpreter's own files is remembered."""

    def __init__(self, home: Path) -> None:
        self.on, self.seen = False, ""
        self._allowed = (str(home), sys.prefix, sys.base_prefix, str(HERE.parent), "/proc/self", "/sys", "/dev/null")
        self._nameless = (tempfile.gettempdir(), os.devnull)  # which may be written to: nothing is left there
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or event not in ("open", "os.remove", "os.rename", "os.mkdir", "os.system", "subprocess.Popen", "socket.connect"):
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else str(args[0])
        if event == "subprocess.Popen" and Path(path).name.startswith("ffmpeg"):
            return
        if event != "open":
            self.seen = f"{event} {path}"
        elif isinstance(args[0], int) or path in self._nameless:
            return
        elif not os.path.abspath(path).startswith(self._allowed):
            self.seen = f"opened {path}"
        elif "__pycache__" not in path and (int(args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(str(args[1])) & set("wax+")):
            self.seen = f"wrote {path}"


def work_of_others() -> float:
    """Seconds of processors that this process's children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def work(name: str, seconds: float, seed: int, out: Path, engine: str) -> None:
    """Breaks a reader's files one after the other until the time is over; in the child."""
    lead: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if engine == "atheris":
        import atheris

        lead = atheris.instrument_imports(include=["fastsurf", "trimesh.exchange", "tomllib", "PIL"], enable_loader_override=False)
    with lead:
        from fastsurf.errors import FastsurfError

        reader = readers()[name]
    rng = random.Random(seed)
    home = Path(tempfile.mkdtemp(prefix="fuzz"))
    files = reader.make(home)
    reader.read(home)  # the good ones load, and every library is there
    good = {file: file.read_bytes() for file in files}
    warnings.simplefilter("error")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch, until = Watch(home), time.monotonic() + seconds
    state: dict[str, Any] = {"inputs": 0, "refused": 0, "loaded": 0, "findings": {}, "slowest": 0.0}
    last = out / "last.bin"

    def report() -> None:
        (out / "state.json").write_text(json.dumps(state))

    def one(file: Path, data: bytes) -> None:
        last.write_bytes(file.name.encode() + b"\n" + data)
        file.write_bytes(data)
        began, before, watch.seen, watch.on, found = time.process_time(), work_of_others(), "", True, ""
        try:
            reader.read(home)
            state["loaded"] += 1
        except FastsurfError as e:
            state["refused"] += 1
            found = "" if str(e).isprintable() and str(e).strip() else f"not one line: {e!r}"
        except BaseException as e:  # whatever comes is what is looked for
            place = next((f for f in reversed(traceback.extract_tb(e.__traceback__)) if "fastsurf/" in f.filename), None)
            found = f"{type(e).__name__} at {Path(place.filename).name}:{place.lineno}: {str(e)[:100]}" if place else repr(e)[:200]
        watch.on = False
        took, others, peak = time.process_time() - began, work_of_others() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        state["slowest"], state["peak_kb"] = max(state["slowest"], took + others), peak
        found = found or (f"took {took + others:.1f} s" if took > SLOW or others > STUCK else "") or watch.seen
        found = found or (f"ffmpeg took {peak >> 10} MiB" if peak << 10 > MEMORY else "")
        file.write_bytes(good[file])
        state["inputs"] += 1
        if found:
            key = re.sub(r"[:(].*", "", found) if "at " not in found else found.split(": ")[0]
            if key not in state["findings"]:
                state["findings"][key] = found
                (out / f"{name}-{len(state['findings'])}-{file.name}").write_bytes(data)
                report()
        if state["inputs"] % 50 == 0:
            report()
        if time.monotonic() > until:
            report()
            shutil.rmtree(home, ignore_errors=True)
            os._exit(0)

    report()
    if engine == "random":
        while True:
            file = rng.choice(files)
            one(file, mutate(good[file], rng))

    def change(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.3:
            return bytes(atheris.Mutate(data, most))[:most]
        return (data[:1] + mutate(data[1:], dice))[:most]

    corpus = out / "corpus"
    corpus.mkdir(exist_ok=True)
    for k, file in enumerate(files):
        (corpus / f"{k}").write_bytes(bytes([k]) + good[file])
    longest = 2 * max(map(len, good.values())) + 1024

    def test(data: bytes) -> None:
        if data:
            one(files[data[0] % len(files)], data[1:])

    atheris.Setup([sys.argv[0], f"-max_len={longest}", f"-seed={seed + 1}", "-rss_limit_mb=0", "-timeout=60", "-verbosity=0", str(corpus)],
                  test, custom_mutator=change)  # fmt: skip
    atheris.Fuzz()


def run(name: str, seconds: float, seed: int, out: Path, engine: str) -> dict[str, Any]:
    """Lets children break a reader's files until the time is over; a child that dies or hangs is a finding, and another follows."""
    out.mkdir(parents=True, exist_ok=True)
    total: dict[str, Any] = {"reader": name, "inputs": 0, "refused": 0, "loaded": 0, "slowest": 0.0, "findings": {}}
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 1:
        words = [sys.executable, __file__, name, "--inside", "--engine", engine, f"--seconds={left}", f"--seed={seed}", "--out", str(out)]
        with open(out / "said.txt", "wb") as said:
            child = subprocess.Popen(words, stdout=said, stderr=said)
            sign, since = b"", time.monotonic()
            while child.poll() is None:
                time.sleep(0.2)
                now = (out / "last.bin").read_bytes() if (out / "last.bin").is_file() else b""
                if now != sign:
                    sign, since = now, time.monotonic()
                if time.monotonic() - since > max(STUCK, 3 * STUCK * (not sign)):
                    child.kill()
        state = json.loads((out / "state.json").read_text()) if (out / "state.json").is_file() else {}
        for key in ("inputs", "refused", "loaded"):
            total[key] += state.get(key, 0)
        total["slowest"] = max(total["slowest"], state.get("slowest", 0.0))
        total["findings"] |= state.get("findings", {})
        if child.returncode:
            said_last = (out / "said.txt").read_text(errors="replace").strip().splitlines()[-3:]
            total["findings"][f"died {child.returncode}"] = f"the process ended with {child.returncode}: {' | '.join(said_last)}"
            if (out / "last.bin").is_file():
                shutil.copy(out / "last.bin", out / f"{name}-died-{seed}.bin")
            if not state.get("inputs"):
                break
        seed += 1
        for left_over in ("state.json", "last.bin"):
            (out / left_over).unlink(missing_ok=True)
    return total


def main() -> None:
    """Prints a line for each reader and each finding; exit code 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where inputs behind findings are kept")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return work(args.reader, args.seconds, args.seed, args.out, args.engine)
    known = list(readers())
    if args.list:
        return print("\n".join(known))
    if args.reader not in (*known, "all"):
        parser.error(f"unknown reader {args.reader}; one of all, {', '.join(known)}")
    engine = args.engine
    if engine == "auto":
        engine = "atheris" if subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode == 0 else "random"
    worst = 0
    print(f"{'reader':<14} {'engine':<8} {'inputs':>8} {'refused':>8} {'loaded':>8} {'slowest s':>10} {'findings':>9}")
    for name in known if args.reader == "all" else [args.reader]:
        found = run(name, args.seconds, args.seed, args.out / name, engine)
        print(f"{name:<14} {engine:<8} {found['inputs']:>8} {found['refused']:>8} {found['loaded']:>8} {found['slowest']:>10.2f} "
              f"{len(found['findings']):>9}", flush=True)  # fmt: skip
        for what in found["findings"].values():
            print(f"    {what}", flush=True)
            worst = 1
    sys.exit(worst)


if __name__ == "__main__":
    main()
