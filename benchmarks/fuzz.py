"""Mutated pictures through everything that `pdae encode` and `pdae info` do to one.

    python benchmarks/fuzz.py --count 20000
    python benchmarks/fuzz.py --count 20000 --model faces64     # those that decode: z as well

Fourteen kinds of files, seeds fixed. A child process reads them; the parent sees when it hangs or
dies, counts that, and goes on behind the file. Prints a table, or with --json an object.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING

from PIL import Image, ImageCms
from report import table

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 64  # pixels of the frame, where no model says
FITS = ("crop", "pad", "stretch")
PATIENCE_S = 60.0  # of the parent, for one picture: far beyond what is allowed
LIMITS = {"slowest_cpu_s": 2.0, "peak_mib": 1536.0}
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Mutation = Callable[[bytearray, random.Random], None]

# --- Whole files ---------------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """A small valid file of each kind."""
    noise = random.Random(0).randbytes(12 * 9 * 3)
    picture = Image.frombytes("RGB", (12, 9), noise).resize((61, 47), Image.Resampling.BICUBIC)
    frames = [picture.rotate(angle) for angle in (0, 20, 40)]
    deep = Image.frombytes("I;16", (24, 18), random.Random(1).randbytes(24 * 18 * 2))
    palette = picture.quantize(17)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return {
        "png": _saved(picture, "PNG", exif=exif, icc_profile=profile),
        "png 16 bits": _saved(deep, "PNG"),
        "png palette": _saved(palette, "PNG", transparency=bytes(range(17))),
        "png interlaced": _interlaced(picture),
        "png animated": _saved(frames[0], "PNG", **animated),
        "jpeg": _saved(picture, "JPEG", exif=exif, icc_profile=profile),
        "jpeg progressive": _saved(picture, "JPEG", progressive=True, comment=b"a comment"),
        "jpeg cmyk": _saved(picture.convert("CMYK"), "JPEG"),
        "webp": _saved(picture, "WEBP", exif=exif, icc_profile=profile),
        "webp animated": _saved(frames[0], "WEBP", **animated),
        "gif animated": _saved(frames[0], "GIF", **animated, transparency=0),
        "bmp": _saved(palette, "BMP"),
        "tiff": _saved(picture, "TIFF", compression="tiff_lzw", icc_profile=profile),
        "ppm": _saved(picture, "PPM"),
    }


def _saved(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _interlaced(picture: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow reads and doesn't write."""
    width, height = picture.size
    rows = bytearray()
    for left, top, right, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        for y in range(top, height, down):
            row = b"".join(bytes(picture.getpixel((x, y))) for x in range(left, width, right))
            rows += b"\0" + row if row else b""
    facts = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = _chunk(b"IHDR", facts) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


# --- Mutations, in place -------------------------------------------------------------------------


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 4, 32))):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def drop(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.randrange(1, 64)]


def insert(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    data[place:place] = chance.randbytes(chance.randrange(1, 64))


def repeat(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    part = data[begin : begin + chance.choice((8, 64, 512))]
    data[begin:begin] = part * chance.choice((1, 1, 50))


def number(data: bytearray, chance: random.Random) -> None:
    """An extreme value where headers keep theirs."""
    kind = chance.choice((">H", "<H", ">I", "<I"))
    value = chance.choice(EXTREMES) & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF)
    place = chance.randrange(max(1, min(len(data), chance.choice((64, 512))) - 4))
    data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)


def png_chunk(data: bytearray, chance: random.Random) -> None:
    """A PNG's chunk changed under a true checksum, which would else hide the rest of the reader."""
    places, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        places.append((place, length))
        place += 12 + length
    begin, length = chance.choice(places) if places else (0, 0)
    name, content = bytes(data[begin + 4 : begin + 8]), data[begin + 8 : begin + 8 + length]
    if data[:4] != b"\x89PNG" or not content:
        return flip(data, chance)
    packed = name == b"IDAT" and chance.random() < 0.8
    try:
        inner = bytearray(zlib.decompress(content)) if packed else content
    except zlib.error:  # of an earlier mutation
        return flip(data, chance)
    if inner:
        chance.choice((flip, number, drop, insert))(inner, chance)
    content = zlib.compress(inner) if packed else inner
    data[begin : begin + 12 + length] = _chunk(name, content)


MUTATIONS: tuple[Mutation, ...] = (flip, cut, drop, insert, repeat, number, number)


def mutated(kind: str, files: dict[str, bytes], key: int) -> bytes:
    """File number `key` of a kind: one to three mutations, or the halves of two files."""
    chance = random.Random(f"{kind} {key}")
    data = bytearray(files[kind])
    if chance.random() < 0.05:
        other = files[chance.choice(sorted(files))]
        data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]
    deep = data[:4] == b"\x89PNG" and chance.random() < 0.7
    for _ in range(chance.choice((1, 1, 2, 3))):
        if data:
            (png_chunk if deep else chance.choice(MUTATIONS))(data, chance)
    return bytes(data)


# --- The child: reads pictures, says what became of each -----------------------------------------


def read(data: bytes, fit: str, size: int) -> list[Tensor]:
    """What `pdae encode --frames all --keep-alpha --keep-exif` makes of a file, and `info`."""
    from pdae_cli.pictures import decoding, images, metadata

    first = decoding.open_picture(data, "it")
    frames = decoding.open_frames(data, "it") if decoding.has_more_frames(first) else [first]
    pictures = []
    for frame in frames:
        pixels = images.prepare(frame, size, 3, fit)
        images.picture_sha(pixels)
        images.alpha_of(frame, size, fit)
        metadata.read_recipe(frame)
        metadata.exif_of(frame)
        pictures.append(images.to_float(pixels))
    return pictures


def work(first: int, last: int, model_name: str | None) -> None:
    """Pictures first … last-1: a line of JSON before each, and one with its outcome after."""
    import resource

    import torch

    import pdae_cli
    from pdae_cli.errors import InputError

    torch.set_num_threads(1)
    model = pdae_cli.load(model_name, "cpu") if model_name else None
    frame = model.config.unet.image_size if model else SIZE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    files, waiting = seeds(), []
    for key in range(first, last):
        kind = sorted(files)[key % len(files)]
        data = mutated(kind, files, key)
        print(json.dumps({"begun": key}), flush=True)
        begun, cpu, trace = time.perf_counter(), time.process_time(), ""
        try:
            waiting += read(data, FITS[key % 3], frame)
            if model is not None and len(waiting) >= 32:
                model.encode(torch.stack(waiting[:32]), noise=False)
            del waiting[: 32 if len(waiting) >= 32 else 0]
            outcome = "decoded"
        except InputError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else "own limit"
            outcome = f"refused: {cause}"
            if "\n" in str(error) or not str(error).isprintable() or "it: " not in str(error):
                outcome = "refused, not in one line"
        except Exception as error:
            outcome, trace = f"traceback: {type(error).__name__}", traceback.format_exc()
        record = {
            "key": key, "kind": kind, "outcome": outcome, "trace": trace,
            "seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        }  # fmt: skip
        print(json.dumps(record), flush=True)


# --- The parent ----------------------------------------------------------------------------------


@dataclass
class Figures:
    """What became of all pictures."""

    pictures: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    tracebacks: int = 0
    hangs: int = 0
    crashes: int = 0
    slowest_s: float = 0.0
    slowest_cpu_s: float = 0.0
    slowest: str = ""
    peak_mib: float = 0.0
    culprits: list[str] = field(default_factory=list)  # the first few, to look into

    def add(self, record: dict[str, object]) -> None:
        """One picture's record."""
        kind, outcome = str(record["kind"]), str(record["outcome"])
        self.count(kind, outcome)
        cpu = float(str(record["cpu"]))
        if cpu > self.slowest_cpu_s:
            self.slowest_cpu_s, self.slowest = cpu, f"{kind}, number {record['key']}"
        self.slowest_s = max(self.slowest_s, float(str(record["seconds"])))
        self.peak_mib = max(self.peak_mib, float(str(record["peak"])) / (1 << 20))
        if not outcome.startswith(("decoded", "refused: ")):
            self.tracebacks += 1
            self.blame(f"{kind}, number {record['key']}: {outcome}\n{record['trace']}")

    def count(self, kind: str, outcome: str) -> None:
        self.pictures += 1
        self.outcomes[outcome] += 1
        self.kinds.setdefault(kind, Counter())[outcome.partition(":")[0]] += 1

    def lost(self, key: int, hung: bool, status: int | None) -> None:
        """The child didn't come back from a picture."""
        kind = sorted(seeds())[key % len(seeds())]
        self.hangs += hung
        self.crashes += not hung
        outcome = "hang" if hung else f"crash: status {status}"
        self.count(kind, outcome)
        self.blame(f"{kind}, number {key}: {outcome}")

    def blame(self, text: str) -> None:
        if len(self.culprits) < 10:
            self.culprits.append(text)

    @property
    def good(self) -> bool:
        """Whether all limits hold."""
        return not (self.tracebacks or self.hangs or self.crashes) and (
            self.slowest_cpu_s < LIMITS["slowest_cpu_s"] and self.peak_mib < LIMITS["peak_mib"]
        )


def watch(
    child: Callable[[int], Sequence[str]], count: int, patience: float = PATIENCE_S
) -> Figures:
    """Run `child(first)`, a command that goes through pictures first … count-1, again behind every
    picture that it hangs or dies at."""
    figures, first = Figures(), 0
    while first < count:
        process = subprocess.Popen(
            child(first), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with process:
            records, begun, hung = _records(process, patience), None, False
            for record in records:
                if "begun" in record:
                    begun = int(str(record["begun"]))
                elif "hung" in record:
                    hung = True
                    process.kill()
                else:
                    figures.add(record)
                    first, begun = int(str(record["key"])) + 1, None
        if begun is not None:
            figures.lost(begun, hung, process.returncode)
            first = begun + 1
        elif first < count:
            status = process.returncode
            raise RuntimeError(f"the child ended with status {status} before picture {first}")
    return figures


def _records(process: subprocess.Popen[str], patience: float) -> Iterator[dict[str, object]]:
    """What a child says, a line each, and {"hung": true} once it is silent for `patience` s."""
    lines: Queue[str] = Queue()

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        while line := lines.get(timeout=patience):
            yield json.loads(line)
    except Empty:
        yield {"hung": True}
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--model", help="encode what decodes with this model, in batches of 32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        return work(args.work, args.count, args.model)
    command = [sys.executable, str(Path(__file__)), "--count", str(args.count)]
    command += ["--model", args.model] if args.model else []
    figures = watch(lambda first: [*command, "--work", str(first)], args.count)
    if args.json:
        print(json.dumps(vars(figures), indent=1))
    else:
        rows = [[k, sum(c.values()), c["decoded"], c["refused"]] for k, c in figures.kinds.items()]
        print(table("kind|files|decoded|refused", sorted(rows)))
        print(table("outcome|files", sorted(map(list, figures.outcomes.items()))))
        print(
            f"{figures.pictures} files: {figures.tracebacks} tracebacks, {figures.hangs} hangs, "
            f"{figures.crashes} crashes; slowest {figures.slowest_cpu_s:.2f} s of CPU "
            f"({figures.slowest}), {figures.slowest_s:.2f} s by the clock; "
            f"peak {figures.peak_mib:.0f} MiB"
        )
        print(*figures.culprits, sep="\n")
    sys.exit(not figures.good)


if __name__ == "__main__":
    main()
