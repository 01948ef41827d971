"""A page about a profiled run from its Chrome trace: where the time of a step went, and what it waited for.

Everything is read from the trace alone, so a trace of another machine can be summarised anywhere:

    python -m recognition.profile_summary RUN/profile/trace_rank0.json.gz

Times in a trace are microseconds; figures are a step's means, milliseconds. On a GPU the host runs ahead of the
device: a phase has a time of each, the device's being that of the kernels that were launched in it. NCCL's kernels run
while they wait for other ranks: they count as exchange and not as work. Idle: nothing of either runs. On a CPU the main
thread does the work: what lies outside its operators is Python, or waiting for ranks.
Proven by tests/recognition/test_profiling.py.
"""

import argparse
import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from recognition.errors import DataError, run_command
from recognition.phases import PHASES

DATA_WAIT, BETWEEN = "data wait", "between steps"
STEP = "ProfilerStep#"
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
EXCHANGES = "nccl"  # how the names of kernels that exchange begin
LAUNCHES = ("cuda_runtime", "cuda_driver")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
READ_A_VALUE = "aten::_local_scalar_dense"  # behind .item(), bool(tensor), int(tensor)
ROWS = 12

Event = dict[str, Any]
Range = tuple[float, float]


def main(arguments: Sequence[str]) -> None:
    """Print the page of a trace."""
    parser = argparse.ArgumentParser(prog="python -m recognition.profile_summary", description=main.__doc__)
    parser.add_argument("trace", type=Path, metavar="TRACE", help="RUN/profile/trace_rank0.json.gz, or another's")
    print(page(summarise(read_trace(parser.parse_args(list(arguments)).trace))), end="")


def read_trace(path: Path) -> list[Event]:
    """The events of a Chrome trace that have a duration; DataError when it is none."""
    try:
        data = path.read_bytes()
        events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
        return [event for event in events if event.get("ph") == "X" and "dur" in event]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no trace of a profiler: {error}") from error


def summarise(events: Sequence[Event]) -> dict[str, Any]:
    """All figures of the page. Only what begins within the annotated steps counts; DataError where there are none."""
    steps = [event for event in events if event["name"].startswith(STEP) and event.get("cat") == "user_annotation"]
    if not steps:
        raise DataError("the trace has no annotated steps")
    begin, end = min(event["ts"] for event in steps), max(event["ts"] + event["dur"] for event in steps)
    inside = [event for event in events if begin <= event["ts"] < end]
    main_thread = steps[0]["tid"]
    operators = [event for event in inside if event.get("cat") == "cpu_op"]
    annotations = [event for event in inside if event.get("cat") == "user_annotation" and event["tid"] == main_thread]
    asked = [event for event in inside if event["name"].partition(":")[0] in ("gloo", "nccl")
             and event.get("cat") == "user_annotation"]
    # The host only enqueues what a device exchanges.
    exchanges = [event for event in inside if _is_exchange(event)] or asked
    per_step = 1e3 * len(steps)
    outside = end - begin - covered((event for event in operators if event["tid"] == main_thread), begin, end)
    return {
        "steps": len(steps),
        "milliseconds": (end - begin) / per_step,
        "slowest_milliseconds": max(event["dur"] for event in steps) / 1e3,
        "phases": _phases(annotations, inside, begin, end, per_step),
        "main_thread_outside_operators": outside / per_step,
        "exchanges": {"calls": len(asked) / len(steps), "milliseconds": covered(exchanges, begin, end) / per_step},
        "device": _device(inside, begin, end, per_step),
        "waits_for_the_device": _calls(inside, LAUNCHES, WAITS, len(steps)),
        "copies_to_the_host": sum("DtoH" in e["name"] for e in inside if e.get("cat") == "gpu_memcpy") / len(steps),
        "values_read": sum(event["name"] == READ_A_VALUE for event in operators) / len(steps),
        "operators": _top(self_times(operators), per_step),
        "kernels": _top([(e["name"], e["dur"]) for e in inside if e.get("cat") in ON_DEVICE], per_step),
    }


def covered(events: Iterable[Event], begin: float, end: float) -> float:
    """Time within [begin, end) in which at least one of the events runs."""
    total, reached = 0.0, begin
    for start, stop in sorted((event["ts"], event["ts"] + event["dur"]) for event in events):
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            total, reached = total + stop - start, stop
    return total


def self_times(operators: Iterable[Event]) -> list[tuple[str, float]]:
    """Name and time of each operator less that of the operators which it called on its thread."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in operators:
        threads[event["tid"]].append(event)
    times = []
    for found in threads.values():
        stack: list[list[Any]] = []  # end, name, own time
        for event in sorted(found, key=lambda event: (event["ts"], -event["dur"])):
            while stack and stack[-1][0] <= event["ts"]:
                times.append((stack[-1][1], stack.pop()[2]))
            if stack:
                stack[-1][2] -= event["dur"]
            stack.append([event["ts"] + event["dur"], event["name"], event["dur"]])
        times += [(name, own) for _, name, own in stack]
    return times


def _phases(
    annotations: Sequence[Event], inside: Sequence[Event], begin: float, end: float, per_step: float
) -> list[dict[str, Any]]:
    """Milliseconds of each phase on the host and on the device, and its share of the wall time of the host."""
    ranges = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in annotations if e["name"] in (DATA_WAIT, *PHASES))
    on_host: dict[str, float] = defaultdict(float)
    on_device: dict[str, float] = defaultdict(float)
    for start, stop, name in ranges:
        on_host[name] += min(stop, end) - start
    on_host[BETWEEN] = end - begin - sum(on_host.values())
    starts = [start for start, _, _ in ranges]

    def phase_at(time: float) -> str:
        at = bisect_right(starts, time) - 1
        return ranges[at][2] if at >= 0 and time < ranges[at][1] else BETWEEN

    launched = {event["args"]["correlation"]: float(event["ts"]) for event in inside
                if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})}
    for event in inside:
        if event.get("cat") in ON_DEVICE:
            launch = launched.get(event.get("args", {}).get("correlation"))
            on_device[phase_at(event["ts"] if launch is None else launch)] += event["dur"]
    return [{"name": name, "milliseconds": on_host[name] / per_step, "share": on_host[name] / (end - begin),
             "device_milliseconds": on_device[name] / per_step}
            for name in (DATA_WAIT, *PHASES, BETWEEN)]


def _is_exchange(event: Event) -> bool:
    return event.get("cat") == "kernel" and event["name"].startswith(EXCHANGES)


def _device(inside: Sequence[Event], begin: float, end: float, per_step: float) -> dict[str, float] | None:
    """How long the device worked, only exchanged, and idled in a step; None without one."""
    events = [event for event in inside if event.get("cat") in ON_DEVICE]
    if not events:
        return None
    running = covered(events, begin, end)
    busy = covered((event for event in events if not _is_exchange(event)), begin, end)
    reached, gaps = begin, []
    for event in sorted(events, key=lambda event: event["ts"]):
        gaps.append(event["ts"] - reached)
        reached = max(reached, event["ts"] + event["dur"])
    return {"busy": busy / per_step, "only_exchanging": (running - busy) / per_step,
            "idle": (end - begin - running) / per_step, "idle_share": 1 - running / (end - begin),
            "longest_gap": max([*gaps, end - reached]) / 1e3, "launches": len(events) * 1e3 / per_step}


def _calls(inside: Sequence[Event], kinds: Sequence[str], names: Sequence[str], steps: int) -> dict[str, float]:
    """Calls a step of those names that occur."""
    counts: dict[str, float] = defaultdict(float)
    for event in inside:
        if event.get("cat") in kinds and event["name"] in names:
            counts[event["name"]] += 1 / steps
    return dict(counts)


def _top(times: Iterable[tuple[str, float]], per_step: float) -> list[dict[str, Any]]:
    """The names with the most time, with calls and milliseconds a step."""
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for name, time in times:
        total[name] += time
        calls[name] += 1
    names = sorted(total, key=lambda name: -total[name])[:ROWS]
    return [{"name": name, "milliseconds": total[name] / per_step, "calls": calls[name] * 1e3 / per_step}
            for name in names]


def page(summary: dict[str, Any]) -> str:
    """The figures as text for people."""
    device, wall = summary["device"], summary["milliseconds"]
    exchanges, waits = summary["exchanges"], summary["waits_for_the_device"]
    slowest = summary["slowest_milliseconds"]
    lines = [f"{summary['steps']} steps on rank 0, {wall:.2f} ms each, the slowest {slowest:.2f}", "",
             str(_phase_table(summary["phases"], device is not None)), ""]
    if device:
        lines += [f"device: busy {device['busy']:.2f} ms a step, only exchanging with other ranks "
                  f"{device['only_exchanging']:.2f} ms, idle {device['idle']:.2f} ms "
                  f"({device['idle_share']:.0%}), longest gap {device['longest_gap']:.2f} ms, "
                  f"{device['launches']:.0f} kernels and copies a step"]
    else:
        outside = summary["main_thread_outside_operators"]
        lines += [f"main thread outside operators (Python, or waiting for other ranks): {outside:.2f} ms a step "
                  f"({outside / wall:.0%})"]
    lines += [f"exchanges between ranks: {exchanges['calls']:.1f} a step, {exchanges['milliseconds']:.2f} ms with one "
              "under way"]
    if device:
        told = ", ".join(f"{name} {count:.1f}" for name, count in waits.items()) or "none"
        lines += [f"host waits for the device, a step: {told}; copies to the host {summary['copies_to_the_host']:.1f}; "
                  f"values read by the host {summary['values_read']:.1f}"]
    lines += [""]
    for title, rows in {"kernels": summary["kernels"], "operators on the host, own time": summary["operators"]}.items():
        if rows:
            lines += [str(_top_table(title, rows, wall)), ""]
    return "\n".join(lines)


def _phase_table(rows: Sequence[dict[str, Any]], has_device: bool) -> PrettyTable:
    table = PrettyTable(["part of a step", "ms", "share", *(["device ms"] if has_device else [])], align="r")
    table.align["part of a step"] = "l"
    for row in rows:
        extra = [f"{row['device_milliseconds']:.2f}"] if has_device else []
        table.add_row([row["name"], f"{row['milliseconds']:.2f}", f"{row['share']:.1%}", *extra])
    return table


def _top_table(title: str, rows: Sequence[dict[str, Any]], wall: float) -> PrettyTable:
    table = PrettyTable([title, "ms", "share", "calls"], align="r")
    table.align[title] = "l"
    for row in rows:
        table.add_row([row["name"][:90], f"{row['milliseconds']:.2f}", f"{row['milliseconds'] / wall:.1%}",
                       f"{row['calls']:.1f}"])
    return table


if __name__ == "__main__":
    run_command(main)
