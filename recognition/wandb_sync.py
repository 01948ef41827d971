"""Weights & Biases, optional: it copies what TensorBoard's writer writes (`log.wandb=PROJECT`).

The account, the address and the mode are the user's own (`wandb login`, WANDB_MODE=offline, WANDB_BASE_URL …); nothing
of the environment is written here, and no key is asked for, stored or printed. Sent are scalars, histograms and ROC
curves, the settings without those that are paths, and the load of the machine: no pictures of a batch, no code, no git
remote, no console, no command line. The run keeps one id, RUN/wandb_id, so that it goes on there where it goes on here.
A service that cannot be reached keeps a new run from starting, since it was asked for, but never one that goes on.
Proven by tests/recognition/test_wandb_sync.py.
"""

import secrets
from pathlib import Path
from typing import Any

from recognition.config import Config, settings_of
from recognition.errors import SettingsError

PATHS = ("output", "data.root", "evaluation.sets", "evaluation.ijb", "start.backbone", "start.checkpoint")
"""Settings that say where something lies on a machine."""

ID_FILE = "wandb_id"


def join(config: Config, folder: Path, goes_on: bool) -> Any:
    """Begin, or take up, the run of this folder; its handle for `leave`, None where that failed and `goes_on`."""
    try:
        import wandb
    except ImportError as error:
        raise SettingsError(f"log.wandb={config.log.wandb}: wandb cannot be imported ({error}); "
                            "pip install wandb, or leave log.wandb empty") from None
    sent = {name: value for name, value in settings_of(config).items() if name not in PATHS}
    settings = wandb.Settings(
        console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
        x_save_requirements=False, login_timeout=60, quiet=True,
    )
    from recognition.log import logger  # which asks for this file

    try:
        run = wandb.init(project=config.log.wandb, name=config.name, id=_run_id(folder), resume="allow", config=sent,
                         dir=str(folder), sync_tensorboard=True, settings=settings)
    except (wandb.Error, TimeoutError, OSError) as error:
        reason = f"log.wandb={config.log.wandb}: {_first_line(error)}"
        if not goes_on:
            raise SettingsError(f"{reason.rstrip('.')} (or WANDB_MODE=offline)") from None
        logger.warning("%s; the run goes on without it", reason)
        return None
    logger.info("Weights & Biases: %s", run.url or f"offline, in {folder / 'wandb'}")
    return run


def leave(run: Any) -> None:
    """Send what is left."""
    run.finish()


def _run_id(folder: Path) -> str:
    """The run's id at the service, made once and kept in the run's folder."""
    path = folder / ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(6) + "\n")
    return path.read_text().strip()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
