"""The processes that train on the other devices: started by the first one, and ended with it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from rmexp.errors import ConfigError, RmexpError
from rmexp.signals import Killed

# Seconds between two looks at the others, until this process has met the death of one by itself,
# and until a signal has ended its waiting.
_BETWEEN, _NOTICED, _PATIENCE = 1.0, 10.0, 60.0


class Launcher(_SubprocessScriptLauncher):
    """Start a process for each further device, and end the training when one of them dies.

    Lightning would kill this process together with them, and it has a run to end.
    """

    _gave_up = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._parent = os.getppid()

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **more: Any
    ) -> Any:
        """Start the processes, unless they are there, and call the function.

        Raises ConfigError where one of them has died.
        """
        self.cluster_environment.validate_settings(self.num_processes, self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        over = threading.Event()
        if self.procs:
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            return function(*args, **more)
        except BaseException as error:
            over.set()
            dead = self._death(error)
            self.kill(signal.SIGTERM)  # they wait for this one in vain
            if dead is None:
                raise
            folder = "FOLDER" if trainer is None else trainer.default_root_dir
            raise ConfigError(
                f"{dead}: mend that, and go on with resume=true out_dir={folder}"
            ) from error
        finally:
            over.set()

    def _death(self, error: BaseException) -> str | None:
        """Say which process's death an error comes of, None where it is an error of its own."""
        if isinstance(error, RmexpError) or (isinstance(error, Killed) and not self._gave_up):
            return None  # which the others may meet as well
        if not self.procs:
            time.sleep(_BETWEEN)  # connections are lost before a process is gone
            return None if os.getppid() == self._parent else "the first process has died"
        for number, process in enumerate(self.procs, 1):
            try:
                code = process.wait(_BETWEEN)
            except subprocess.TimeoutExpired:
                continue
            if code < 0:
                name = signal.Signals(-code).name
                return f"process {number} was killed by {name}, for want of memory perhaps"
            if code > 0:
                return f"process {number} ended with code {code}, its log says why"
        return None

    def _watch(self, over: threading.Event) -> None:
        """End this process's waiting for one that died, which may be without an end."""
        while not over.wait(_BETWEEN):
            if any(process.poll() for process in self.procs):
                if over.wait(_NOTICED):
                    return
                self._gave_up = True
                os.kill(os.getpid(), signal.SIGTERM)
                if not over.wait(_PATIENCE):
                    os.kill(os.getpid(), signal.SIGKILL)
                return


def watch_processes(trainer: Trainer) -> None:
    """Let the trainer start and watch its processes in this way, if it is to start any."""
    found = trainer.strategy.launcher
    if isinstance(found, _SubprocessScriptLauncher):
        trainer.strategy._launcher = Launcher(
            found.cluster_environment, found.num_processes, found.num_nodes
        )
