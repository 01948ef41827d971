"""Training on one rank: the loop, and what it does between steps.

One step: plan → loader → image → backbone → embedding → head (gather, rows, margin softmax, centres) → embedding
gradient → backbone's backward, summed over ranks → optimiser → running statistics averaged. With `micro_batches` the
backbone takes the batch in parts (recognition/micro_batches.py). Everything random is a pure function of (seed, step,
rank), so that a run goes on after a stop exactly as if it had not stopped.
Between steps the guard's verdict (recognition/guard.py) says, on all ranks alike, whether to save, to go back, to stop.
Started by recognition.launch, one process a rank. Proven by tests/recognition/test_train.py and test_faults.py.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from eval.during_training import Verifier
from recognition import distributed
from recognition.assembly import Run, assemble
from recognition.backbones.model_file import save_model, write_atomically
from recognition.cause import note_failure, note_path, note_stop
from recognition.checkpoint import Saver
from recognition.config import Config, find_sets, load, settings_of
from recognition.data.batch import Batch, normalise
from recognition.data.dataset import RecordDataset, split_roots
from recognition.distributed import Ranks, max_over_ranks, sum_over_ranks
from recognition.errors import CheckpointError, DataError, NumericsError
from recognition.guard import Verdict
from recognition.log import RunLog, logger, provenance
from recognition.micro_batches import MicroBatches
from recognition.profiling import Profile
from recognition.progress import Progress
from recognition.replicas import require_equal
from recognition.speed import Garbage, as_written
from recognition.state import SaveClock, keep_best, make_saver, model_info, replicated_state, resume, save
from recognition.status import read_json, write_status
from recognition.stopping import StopRequest, end_with_parent, sole_run
from recognition.streams import torch_seed
from recognition.warm_start import warm_start
from recognition.watch import read_step
from tools.records.names import identity_names

_DROPOUT = 0x64726F706F7574  # keeps this use of the seed apart from others


class StepFigures(NamedTuple):
    """What a step leaves: scalars on the device.

    loss: of the global batch.  bad: its loss or a gradient is not finite; the backbone was not changed, and nothing was
    where the loss is not finite.  embedding: of the global batch, [B, d].  momentum_embedding: this rank's, [b, d].
    """

    loss: Tensor
    gradient_norm: Tensor
    bad: Tensor
    embedding: Tensor
    momentum_embedding: Tensor | None


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """All ranks agreed to stop after this step, and saved. signal: what asked for it."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class _BackToCheckpoint(Exception):  # noqa: N818 (caught within this file)
    """Too many bad steps: go on from the last save."""


def main(arguments: Sequence[str]) -> int:
    """Train on this rank; the launcher's environment says which one it is."""
    parser = argparse.ArgumentParser(prog="python -m recognition.train", description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE")
    parser.add_argument("--profile", type=int, default=0, metavar="N")
    options = parser.parse_args(list(arguments))
    end_with_parent()
    config = load(options.config, options.overrides)
    ranks = distributed.start(config.timeout_seconds, Progress(note_path("progress")))
    status = 0
    try:
        train(config, ranks, Profile(options.profile))
    except Stopped as stop:
        status = note_stop(stop.signal)
    distributed.stop(ranks)
    return status


def train(config: Config, ranks: Ranks, profile: Profile | None = None) -> Run:
    """Train to the end of the schedule, from the newest checkpoint if the run's folder has one.

    profile: of some of the steps.  Raises Stopped when a signal asked for it, once the state is saved.
    """
    with contextlib.closing(RunLog(config.folder, ranks)) as log, StopRequest() as stop, sole_run(config.folder, ranks):
        run = assemble(config, ranks)
        names = class_names(run.dataset, config.data.root, ranks)
        resume(run)
        if run.saved < 0:
            kept = warm_start(config.start, config.backbone, replicated_state(run), run.head.state(), run.head.start,
                              names, run.dataset.num_classes, ranks)
            if kept:
                logger.info(kept)
        profile = profile or Profile(0)
        profile.require(run)
        begin(run)
        sets = find_sets(config) if config.evaluation.every_epochs > 0 else []
        verifier = Verifier(sets, config.evaluation.degrade, ranks)
        with make_saver(run, names) as saver:
            while not run.is_over or run.scored != run.step:
                log.begin(run.step, len(run.rates), config)
                try:
                    learn(run, log, verifier, saver, stop, profile)
                except _BackToCheckpoint:
                    go_back(run, saver)
        if ranks.is_first:  # also where the last save was of an earlier command
            save_model(config.folder / "model_last.pt", run.backbone, config.backbone, model_info(run))
            write_status(config.folder, "trained", step=run.step, steps=len(run.rates), epoch=run.epoch)
        logger.info("trained: step %d, epoch %.2f", run.step, run.epoch)
    return run


def learn(run: Run, log: RunLog, verifier: Verifier, saver: Saver, stop: StopRequest, profile: Profile) -> None:
    """Steps to the end of the schedule; between them logs, evaluates and saves where it is due."""
    config, progress, total = run.config, run.ranks.progress, len(run.rates)
    clock = SaveClock(config.checkpoint.every_minutes)
    batches = run.loader.batches(run.step, total)
    with contextlib.closing(batches), Garbage(config.speed.hold_garbage) as garbage:  # type: ignore[type-var]
        evaluate_where_due(run, log, verifier, saver, stop)  # a stop may have come before it
        progress.at("loading a batch", run.step)
        for batch in log.waiting(profile.watch(run, batches)):
            progress.at("a step", run.step)
            lr = float(run.rates[run.step])
            figures = train_step(run, batch, lr)
            verdict = run.guard.post(run.step, figures.bad, stop.signal, run.ranks.is_first and clock.is_due)
            log.advance()
            is_logged = run.step % config.log.every_steps == 0 or run.is_over
            if is_logged:
                log_step(run, log, figures, batch, lr)
            count_bad_step(run, verdict)
            evaluate_where_due(run, log, verifier, saver, stop)
            if is_save_due(run) or (verdict and (verdict.save or verdict.stop)):
                save_now(run, saver)
                clock.restart()
                log.restart_clock(run.step)
            elif config.checkpoint.compare_steps and run.step % config.checkpoint.compare_steps == 0:
                require_equal(replicated_state(run), run.step, run.ranks)
            if verdict and verdict.stop:
                leave(run, saver, verdict.stop)
            garbage.after_step(is_logged or run.saved == run.step)
            progress.at("loading a batch", run.step)
    count_bad_step(run, run.guard.settle())


def train_step(run: Run, batch: Batch, lr: float) -> StepFigures:
    """One optimiser step on all ranks."""
    seed_step(run)
    image, count, head = normalise(batch.image, run.product_dtype), run.config.micro_batches, run.head
    phase = run.phases
    parts = MicroBatches(image, count, run.replica, run.product_dtype, partial(seed_step, run))
    statistics = run.statistics.remember()
    momentum_embedding = remembered = None
    with phase("backbone forward"):
        embedding = parts.embed(run.statistics)
        sent = head.send(embedding), head.send(batch.label)
    with phase("momentum forward"):
        if run.momentum:
            momentum_embedding = parts.through(run.momentum)
            remembered = head.send(momentum_embedding.float())
    with phase("head"):
        result = head.step(embedding, batch.label, run.step, lr, sent)
    with phase("backward"):
        parts.back_propagate(result.embedding_gradient * run.optimizer.scale)
    with phase("optimizer"):
        gradient_norm, taken = run.optimizer.step(lr, result.finite)
        run.statistics.settle(statistics, result.finite)
    with phase("momentum update"):
        if run.momentum:
            run.momentum.update(taken)
    with phase("memory write"):
        head.remember(result, remembered, run.step, taken)
    run.step += 1
    # An overflow of the scaled backward is no fault: the scale is looking for its level.
    bad = ~(result.finite if run.optimizer.scaled else taken)
    return StepFigures(result.loss, gradient_norm, bad, result.embedding, momentum_embedding)


def log_step(run: Run, log: RunLog, figures: StepFigures, batch: Batch, lr: float) -> None:
    """Write the figures of this step; the host waits for the device here."""
    groups, norms = read_step(run, figures, lr, log.data_wait)
    if met := count_bad_samples(run):
        groups["train"]["bad_samples"] = met
    log.steps(run.step, run.epoch, run.config.batch_size, groups, norms, batch.image)


def count_bad_samples(run: Run) -> int:
    """How many samples the ranks together could not use; DataError on all when they are more than allowed."""
    bad = run.loader.bad
    met = int(sum_over_ranks(torch.tensor([bad.count], device=run.ranks.device), run.ranks))
    if met > bad.allowed:  # in later epochs other ranks meet the same ones: each counts once
        met = len(set().union(*distributed.all_values(sorted(bad.found), run.ranks)))
        if met > bad.allowed:
            raise DataError(f"{run.config.data.root}: {met} samples could not be used (the log names them), where "
                            f"data.bad_share={bad.share:g} of the images allows {bad.allowed}")
    return met


def count_bad_step(run: Run, verdict: Verdict | None) -> None:
    """Count a step that did not change the backbone. Too many raise: back to the last save, once, or the end."""
    if verdict is None or not verdict.bad:
        return
    run.bad_steps.add(verdict.step)
    logger.warning("step %d was skipped: its loss or its gradient is not finite", verdict.step)
    if run.bad_steps.too_many:
        if run.bad_steps.gone_back or run.saved < 0:
            when = " after going back to a checkpoint" if run.bad_steps.gone_back else ""
            raise NumericsError(f"by step {run.step}{when}, {run.bad_steps.told()}")
        raise _BackToCheckpoint


def go_back(run: Run, saver: Saver) -> None:
    """Take over the last good checkpoint; the run can do so once."""
    logger.warning("going back to the last checkpoint: %s", run.bad_steps.told())
    saver.finish()
    run.guard.settle()
    run.bad_steps.gone_back = True
    if not resume(run):
        raise CheckpointError(f"{run.config.folder}: the checkpoint to go back to is gone")


def is_save_due(run: Run) -> bool:
    """Whether a checkpoint is due after this step, by epochs, by steps, or because it is the last one."""
    settings = run.config.checkpoint
    by_steps = settings.every_steps > 0 and run.step % settings.every_steps == 0
    return by_steps or run.is_over or run.is_due(settings.every_epochs)


def save_now(run: Run, saver: Saver) -> None:
    """Begin to save the state after this step, which is known to be good or skipped."""
    run.ranks.progress.at("saving", run.step)
    count_bad_step(run, run.guard.settle())
    save(run, saver)


def leave(run: Run, saver: Saver, signal: int) -> None:
    """End the run here, once the state is on disk. Raises Stopped, or what the save ran into."""
    saver.finish()
    logger.info("saved and stopped after step %d", run.step)
    if run.ranks.is_first:
        write_status(run.config.folder, "stopped", step=run.step, signal=signal, exit_status=128 + signal)
    raise Stopped(signal)


def evaluate_where_due(run: Run, log: RunLog, verifier: Verifier, saver: Saver, stop: StopRequest) -> None:
    """Score the backbone where that is due after this step and not done yet."""
    if run.scored == run.step or not run.is_due(run.config.evaluation.every_epochs):
        if run.is_over and run.scored != run.step:
            run.scores, run.scored = [], run.step  # those of an earlier step are another network's
        return
    run.ranks.progress.at("evaluation", run.step)
    with as_written(run.backbone):  # sets have batches of other sizes
        scores = verifier.score(run.backbone, run.product_dtype, lambda: stop.signal != 0)
    if scores is None:  # a signal came: the evaluation is made up for when the run goes on
        if run.saved != run.step:
            save_now(run, saver)
        leave(run, saver, int(max_over_ranks(torch.tensor([stop.signal], device=run.ranks.device), run.ranks)))
    assert scores is not None
    run.scores, run.scored = scores, run.step
    log.scores(run.step, run.epoch, run.scores, verifier.curves)
    keep_best(run)
    log.restart_clock(run.step)


def seed_step(run: Run, *part: int) -> None:
    """Seed torch's default generator (dropout) for this step and rank: there is no random state to save.

    part: number of a micro-batch, where there are several.
    """
    torch.manual_seed(torch_seed(_DROPOUT, run.config.seed, run.step, run.ranks.rank, *part))


def class_names(dataset: RecordDataset, root: str, ranks: Ranks) -> dict[int, str] | None:
    """The identities' names by class, on rank 0, where one set that has names is trained on; else None.

    root: as the settings name it.  A collective: all ranks call it.
    """
    names, failure = None, None
    if ranks.is_first and len(split_roots(root)) == 1:
        try:
            names = identity_names(dataset)
        except DataError as error:
            failure = error
    distributed.fail_together(failure, ranks)
    return names


def begin(run: Run) -> None:
    """Say what is trained and leave config.json in the run's folder."""
    config, ranks, head = run.config, run.ranks, run.head
    if ranks.is_first and run.step < len(run.rates):
        record_start(run)
    logger.info("run %s: %d images of %d identities from %s", config.folder, run.dataset.num_images,
                run.dataset.num_classes, config.data.root)
    logger.info("%s, %.2f M parameters; %s; %d ranks on %s; %s; batch %d; classes a rank ≤ %d",
                config.backbone.name, sum(p.numel() for p in run.backbone.parameters()) / 1e6, config.head.margin,
                ranks.world_size, ranks.device.type, str(run.product_dtype).removeprefix("torch."), config.batch_size,
                head.stop - head.start)
    if head.memory is not None and not head.memory.injects(len(run.rates) - 1):
        logger.warning("nothing will be injected: head.inject starts after the last step, or has no age or strength")
    logger.info("%d steps (%s epochs), from step %d, loader %s", len(run.rates), config.epochs, run.step,
                run.loader.name)


def record_start(run: Run) -> None:
    """Write config.json: settings, data, commit and versions of the start; of each going on, its step and commit."""
    path = run.config.folder / "config.json"
    if not run.step:  # figures of a run that was here before are not this one's
        (run.config.folder / "evaluation.json").unlink(missing_ok=True)
    record = {"settings": settings_of(run.config), "data": run.dataset.fingerprint(), **provenance()}
    if run.step and (first := read_json(path)):
        gone_on = [*first.get("gone_on", []), {"step": run.step, **provenance()}]
        record = first | {"settings": settings_of(run.config), "gone_on": gone_on}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    write_status(run.config.folder, "running", step=run.step, steps=len(run.rates), epoch=run.epoch)


def run_rank(arguments: Sequence[str], work: Callable[[Sequence[str]], int] = main) -> NoReturn:
    """`work` as a process of its own: notes how it ended and leaves with its status.

    At once: threads that wait for a peer that is gone would keep the interpreter from ending.
    """
    try:
        status = work(arguments)
    except KeyboardInterrupt:
        status = 130
    except Exception as failure:
        status, text = note_failure(failure)
        if note_path("failure") is None:  # nobody else will say it
            print(text, file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run_rank(sys.argv[1:])
