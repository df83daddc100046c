"""How well a GPU is used: steps, generation and neighbours beside the peaks of its matrix products, in one run."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import cell_of, name_of
from diffmem.atomic import whole
from diffmem.cells import PASSES
from diffmem.cli.tables import print_table
from diffmem.measures import two_nearest
from diffmem.models import LaunchedDenoiser, compile_networks, generate, launching, set_precision
from diffmem.models.processes import this_device
from diffmem.runs import seconds_in_turn, training_step

PAPER: dict[str, Any] = {}
LAPTOP = {"width": 16, "blocks": 1, "channel_mult": (2, 2)}
PRECISIONS = {"fp32": ("ieee", torch.float32), "tf32": ("tf32", torch.float32), "bf16": ("ieee", torch.bfloat16)}
EVALUATIONS = 35
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""Calls in which a step waits for the device, as `.item()` does; the bench itself waits for the whole device."""

Row = dict[str, Any]


@click.command()
@click.option("--compile", "compiled", multiple=True, type=click.Choice([*PRECISIONS]), help="Compile these too.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures as JSON.")
def main(compiled: tuple[str, ...], output: Path | None) -> None:
    """Measure what a GPU makes of its peak: the paper's network, a laptop's, and the neighbour search.

    Example: python -m benchmarks.gpu --compile bf16 -o gpu.json
    """
    device = this_device()
    if device.type != "cuda":
        raise click.ClickException("this measures a CUDA GPU, and there is none here; see `python -m benchmarks`")
    title = f"{name_of(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    rows = [_peak(device, precision) for precision in PRECISIONS]
    peaks = {row["what"].split()[-1]: row["TFLOP/s"] for row in rows}
    for row in _all(device, peaks, compiled):
        rows.append(row)
        click.echo(json.dumps(row), err=True)
    if output:
        with whole(output) as file:
            file.write_text(json.dumps({"device": title, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print_table(title, rows)


def _all(device: torch.device, peaks: dict[str, float], compiled: tuple[str, ...]) -> Iterator[Row]:
    for precision in PRECISIONS:
        yield _step("paper's net, batch 512", "cifar10", PAPER, 512, precision, device, peaks)
    for precision in ("fp32", "bf16"):
        for most in (-1, launching.MOST_BYTES):
            how = "one by one" if most < 0 else "at once"
            yield _step(f"laptop's net, {how}", "digits", LAPTOP, 128, precision, device, peaks, most=most)
    for precision in ("fp32", "tf32"):
        yield _generation("paper's net", "cifar10", PAPER, 128, precision, device, peaks)
    yield _generation("laptop's net", "digits", LAPTOP, 500, "fp32", device, peaks)
    for size in (50_000, 1_000_000):
        for precision in ("fp32", "tf32"):
            yield _neighbours(10_000, size, precision, device, peaks)
    for precision in compiled:
        yield _step("paper's net, batch 512, compiled", "cifar10", PAPER, 512, precision, device, peaks, compiled=True)


def _peak(device: torch.device, precision: str) -> Row:
    mode, dtype = PRECISIONS[precision]
    torch.backends.cuda.matmul.fp32_precision = mode
    a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
    seconds = _in_a_row(lambda: a @ b, device)
    return {"what": f"matrix product {precision}", "ms": seconds * 1e3, "TFLOP/s": 2 * 8192**3 / seconds / 1e12}


def _step(
    what: str,
    dataset: str,
    M: dict[str, Any],
    batch: int,
    precision: str,
    device: torch.device,
    peaks: dict[str, float],
    *,
    compiled: bool = False,
    most: int = launching.MOST_BYTES,
) -> Row:
    """Return the time of a training step, that of its kernels alone, and what it launches and waits for."""
    launching.MOST_BYTES = most
    cell = cell_of(dataset, M, batch)
    cell = cell.model_copy(update={"T": cell.T.model_copy(update={"precision": precision})})
    set_precision(cell.T)
    torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    state, step = training_step(cell, batch, device)
    if compiled:
        compile_networks(state, device)
    for _ in range(launching.WARM_UP + 2):
        step()
    torch.cuda.synchronize(device)
    ready = time.perf_counter() - started
    seconds = _in_a_row(step, device)
    found = _profiled(step, device)
    return {
        "what": f"step, {what}, {precision}",
        "ms": seconds * 1e3,
        "TFLOP/s": PASSES * cell.work.forward * batch / seconds / 1e12,
        "of peak": PASSES * cell.work.forward * batch / seconds / 1e12 / peaks[precision],
        "over its kernels": seconds / found["kernels"],
        "launches": found["launches"],
        "waits": found["waits"],
        "GiB": torch.cuda.max_memory_allocated(device) / 2**30,
        "s until ready": ready,
    }


def _in_a_row(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a work that is done again and again without a wait between, after a first time."""
    work()
    torch.cuda.synchronize(device)
    started, count = time.perf_counter(), 0
    while count < 5 or time.perf_counter() - started < 1.0:
        work()
        count += 1
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count


def _profiled(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the seconds of a step's kernels, and how often it launches and waits for the device."""
    times = 3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            step()
        torch.cuda.synchronize(device)
    events = seen.key_averages()
    launches = sum(e.count for e in events if e.key.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")))
    waits = sum(e.count for e in events if e.key in WAITS)
    kernels = sum(e.self_device_time_total for e in events if e.device_type.name == "CUDA") / 1e6
    return {"kernels": kernels / times, "launches": launches / times, "waits": waits / times}


def _generation(
    what: str,
    dataset: str,
    M: dict[str, Any],
    images: int,
    precision: str,
    device: torch.device,
    peaks: dict[str, float],
) -> Row:
    cell = cell_of(dataset, M, 8)
    set_precision(cell.T.model_copy(update={"precision": precision}))
    state, _ = training_step(cell, 8, device)
    denoiser, side = LaunchedDenoiser(state.averaged), cell.P.resolution or 0

    def work() -> None:
        generate(
            denoiser,
            range(images),
            shape=(cell.channels, side, side),
            labels=cell.labels,
            seed=0,
            steps=18,
            device=device,
        )

    (seconds,) = seconds_in_turn([work], device, at_least=0.1)
    speed = EVALUATIONS * cell.work.forward * images / seconds / 1e12
    return {
        "what": f"generation, {what}, {images} images, {precision}",
        "ms": seconds * 1e3,
        "TFLOP/s": speed,
        "of peak": speed / peaks[precision],
        "images a second": images / seconds,
    }


def _neighbours(n: int, size: int, precision: str, device: torch.device, peaks: dict[str, float]) -> Row:
    torch.backends.cuda.matmul.fp32_precision = PRECISIONS[precision][0]
    images, training = (torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, device=device) for count in (n, size))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    (seconds,) = seconds_in_turn([lambda: two_nearest(images, training)], device, at_least=0.5)
    speed = 2 * n * size * 3072 / seconds / 1e12
    return {
        "what": f"two nearest of {size:,} for {n:,} images, 32x32 RGB, {precision}",
        "ms": seconds * 1e3,
        "TFLOP/s": speed,
        "of peak": speed / peaks[precision],
        "GiB": (torch.cuda.max_memory_allocated(device) - before) / 2**30,
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gpu")
