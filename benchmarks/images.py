"""How fast image files are decoded, and how much memory it takes to score a collection larger than that.

    python -m benchmarks.images decode [--count 20000] [--rounds 3]
    python -m benchmarks.images score [--count 1000000] [--samples 100]

Each makes its images in a temporary folder (TMPDIR), with an empty cache beside them, and removes both. A million
images of 64x64 need 25 GB there. Times are compared within one run only.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
"""Pixels of a side of all images, which are RGB."""


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    decode = commands.add_parser("decode", help="folder of PNG files, beside a bare loop of Pillow on all cores")
    decode.add_argument("--count", type=int, default=20_000)
    decode.add_argument("--rounds", type=int, default=3)
    decode.set_defaults(run=lambda given: measure_decoding(given.count, given.rounds))
    score = commands.add_parser("score", help="memory of `diffmem score` against a .npz")
    score.add_argument("--count", type=int, default=1_000_000)
    score.add_argument("--samples", type=int, default=100)
    score.set_defaults(run=lambda given: measure_scoring(given.count, given.samples))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["DIFFMEM_CACHE"] = str(Path(folder, "cache"))
        given.run(given)


# --- decoding ------------------------------------------------------------------------------------------


def textured(generator: np.random.Generator) -> Image.Image:
    """Return an image whose PNG is about as long as that of a photograph: coarse noise with some fine noise on it."""
    coarse = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    fine = generator.integers(-8, 9, size=(SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + fine, 0, 255).astype(np.uint8))


def pixels_of(file: str) -> np.ndarray:
    """Decode a file as a bare loop would."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def bare_loop(files: list[str]) -> np.ndarray:
    """Decode files on all cores with Pillow and nothing else."""
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        return np.stack(pool.map(pixels_of, files, chunksize=256))


def measure_decoding(count: int, rounds: int) -> None:
    """Print the seconds of a bare loop, of diffmem with an empty cache and again from its cache."""
    from diffmem.data.collection import read_images

    generator = np.random.default_rng(0)
    Path("images").mkdir()
    for number in range(count):
        textured(generator).save(f"images/{number:06}.png")
    files = sorted(str(file) for file in Path("images").iterdir())
    print(f"{count:,} PNG files of {SIDE}x{SIDE}, {Path(files[0]).stat().st_size:,} bytes the first one")
    for number in range(rounds):
        os.environ["DIFFMEM_CACHE"] = str(Path.cwd() / f"cache-{number}")
        loop = timed(lambda: bare_loop(files))
        first = timed(lambda: read_images("images", resolution=None))
        again = timed(lambda: read_images("images", resolution=None))
        print(f"loop {loop:.2f} s, diffmem {first:.2f} s ({first / loop:.2f} times), again {again:.2f} s")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


# --- memory --------------------------------------------------------------------------------------------


def write_noise(path: Path, count: int) -> None:
    """Write a .npz of random images without holding them in memory."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive, archive.open("images.npy", "w", force_zip64=True) as f:
        shape = (count, SIDE, SIDE, 3)
        np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for first in range(0, count, 1000):
            f.write(generator.integers(256, size=(min(1000, count - first), *shape[1:]), dtype=np.uint8).data)


def measure_scoring(count: int, samples: int) -> None:
    """Print the seconds and the most memory of `diffmem score`, without what is mapped from files."""
    write_noise(Path("training.npz"), count)
    write_noise(Path("samples.npz"), samples)
    for what in ("first", "again, from the cache"):
        command = [sys.executable, "-m", "diffmem", "score", "--images", "samples.npz", "--against", "training.npz"]
        started = time.monotonic()
        with subprocess.Popen([*command, "--store", f"{what[:5]}.duckdb"], stdout=subprocess.DEVNULL) as process:
            most: dict[str, int] = {}
            watching = threading.Thread(target=watch, args=(process, most))
            watching.start()
            process.wait()
            watching.join()
        seconds = time.monotonic() - started
        print(
            f"{what}: {count:,} training images of {SIDE}x{SIDE}, {samples} samples: {seconds:.0f} s, "
            f"{most['RssAnon'] / 2**20:.2f} GiB of its own, {most['RssFile'] / 2**20:.2f} GiB mapped from files; "
            f"exit code {process.returncode}"
        )


def watch(process: subprocess.Popen[bytes], most: dict[str, int]) -> None:
    """Keep the most memory that a process had, in KiB, by kind."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        for name, _, value in (line.partition(":") for line in lines):
            if name.startswith("Rss"):
                most[name] = max(most.get(name, 0), int(value.split()[0]))
        time.sleep(0.02)


if __name__ == "__main__":
    main()
