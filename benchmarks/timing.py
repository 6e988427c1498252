"""Interleaved rounds: every contestant once per round, so that whatever slows the machine slows them all."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

_STAT = Path("/proc/stat")
_JIFFIES = 100


def rounds(
    contestants: dict[str, Callable[[], object]],
    threads: int,
    count: int,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Return the median seconds of each contestant, its fastest and slowest round, and how many rounds there were.

    Rounds go on until ``count`` of them were left alone by other processes, or for ``seconds``; the least disturbed
    ones count.
    """
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=threads, label=name) for name, run in contestants.items()
    }
    repeats = {name: max(1, int(0.02 / timer.timeit(1).median)) for name, timer in timers.items()}
    done: list[tuple[float, dict[str, float]]] = []
    order = list(timers)
    end = time.perf_counter() + seconds
    while sum(disturbance < 0.05 for disturbance, _ in done) < count and (len(done) < 3 or time.perf_counter() < end):
        busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
        times = {name: timers[name].timeit(repeats[name]).median for name in order}
        order.append(order.pop(0))  # so that none always runs on what the same other one left in cache
        others = (_busy_seconds() - busy) - (time.process_time() - own)
        done.append((max(0.0, others) / (time.perf_counter() - start), times))
    done.sort(key=lambda each: each[0])
    kept = [times for _, times in done[:count]]
    return {
        name: {
            "median": median(times[name] for times in kept),
            "fastest": min(times[name] for times in kept),
            "slowest": max(times[name] for times in kept),
            "rounds": len(kept),
            "disturbance": max(disturbance for disturbance, _ in done[:count]),
        }
        for name in contestants
    }


def _busy_seconds() -> float:
    """Return the processor time that all processes of this machine have taken, or 0 where Linux does not tell."""
    if not _STAT.exists():
        return time.process_time()
    user, nice, system, _idle, _wait, *rest = (
        int(field) for field in _STAT.read_text(encoding="utf-8").split("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(rest)) / _JIFFIES


def describe(device: torch.device, threads: int) -> dict[str, object]:
    """Return what a reader must know of the machine: processor, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": threads, "torch": torch.__version__}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in (info.read_text(encoding="utf-8").splitlines() if info.exists() else ())
        if ":" in line
    )
    vector = torch.backends.cpu.get_cpu_capability()
    return (
        f"{fields.get('model name', 'CPU')} (family {fields.get('cpu family')}, model {fields.get('model')}), {vector}"
    )
