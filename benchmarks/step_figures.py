"""What follows from the times of benchmarks/step.py: rates, ratios within a round, operations and the floor.

    operations an image   backbone: 2 · MAC forward, twice that backward; the momentum backbone's forward 2 · MAC more;
                          head: 6 · k · d, k the classes used: cosines, and two products backward
    floor                 the time that these take at the device's matrix products a second

What is computed a second time to save memory (backbone.checkpointing, micro_batches) counts once: it is the step's, not
the floor's.
Proven by tests/benchmarks/test_step.py.
"""

import re
import statistics
from typing import Any

from benchmarks.step_contestants import ALONE, OURS, USUAL

PEAKS = {"H200": 790, "H100": 989, "A100": 312, "L40S": 362, "V100": 125}
"""Dense bf16 or fp16 products with float32 sums, 10¹² operations a second: of the H200 what large products reach, taken
over and not measured by us, of the others as in their data sheets (SXM where there are several)."""
OTHER_FORMS = ("PCIE", "NVL", "MIG")
"""Words in the names of GPUs that have less than the SXM module of the same model: cards, and slices of one."""


def dense_peak(device: str) -> float | None:
    """The peak of a GPU that is known by its name, in whole words; None where it has to be measured."""
    words = set(re.findall(r"\w+", device.upper()))
    return None if words & set(OTHER_FORMS) else next((float(p) for name, p in PEAKS.items() if name in words), None)


def add_figures(rows: list[dict[str, Any]], peak: float) -> None:
    """Complete the rows of one case. peak: 10¹² operations a second."""
    for row in rows:
        used = 0 if row["kind"] == ALONE else max(1, int(row["sample_rate"] * row["classes"]))
        backbone = (8 if row["momentum_forward"] else 6) * row["giga_macs"]
        row["giga_flops_per_image"] = backbone + 6 * used * row["embedding_size"] / 1e9
        row["floor_images_per_second"] = peak * 1e3 / row["giga_flops_per_image"]
        row["milliseconds"] = median(row["rounds_ms"])
        row["images_per_second"] = row["milliseconds"] and row["batch"] / row["milliseconds"] * 1e3
        rate = row["images_per_second"]
        row["share_of_floor"] = rate and rate / row["floor_images_per_second"]
        row["speed_over_baseline"] = over(find(rows, USUAL), row, "rounds_ms")
        row["cpu_speed_over_baseline"] = over(find(rows, USUAL), row, "rounds_cpu_ms")
        row["time_over_alone"] = over(row, find(rows, ALONE), "rounds_ms")
        plain = find(rows, OURS, row["overrides"]) if row["kind"] == OURS else None
        row["time_over_no_injection"] = over(row, plain, "rounds_ms")
        row["head_share"] = share(row["breakdown_ms"], ("head", "memory write"), row["milliseconds"])


def find(rows: list[dict[str, Any]], kind: str, overrides: list[str] | None = None) -> dict[str, Any] | None:
    """The row of a kind without injection, of ours the one with these settings."""
    same = (row for row in rows if row["kind"] == kind and row["inject"] == "none")
    return next((row for row in same if overrides is None or row["overrides"] == overrides), None)


def over(above: dict[str, Any] | None, below: dict[str, Any] | None, what: str) -> float | None:
    """Median of two rows' ratios round by round: what a round is slowed by, it is slowed by in both."""
    if not above or not below:
        return None
    return median([a / b for a, b in zip(above[what], below[what], strict=False) if b])


def share(parts: dict[str, float], names: tuple[str, ...], whole: float | None) -> float | None:
    """Of some parts in the whole."""
    return sum(parts.get(name, 0.0) for name in names) / whole if whole else None


def median(values: list[float]) -> float | None:
    """None of nothing."""
    return statistics.median(values) if values else None
