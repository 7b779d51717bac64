"""A real skvd on a directory of its own, for Python tests."""
from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

PROGRAM = os.environ.get("SKV_DAEMON", "")
_CONFIG = """
[socket]
path = "{socket}"
mode = "0600"
[log]
level = "info"
target = "stderr"
[tiers.host]
budget = "{host}"
slab = "256KiB"
[tiers.device]
kind = "{device}"
budget = "16MiB"
[data]
spin = "0ns"
recall_every = {recall_every}
[sessions]
staging = "256KiB"
"""
_NVME = """
[tiers.nvme]
path = "{path}"
size = "64MiB"
segment = "1MiB"
"""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Daemon:
    """start() waits until it listens; stop() is SIGTERM, kill() SIGKILL; the files stay between."""

    def __init__(self, device: str = "emulated", host: str = "16MiB", nvme: bool = False,
                 recall_every: int = 0) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="skv-py-", dir="/tmp"))
        self.socket = str(self.directory / "s")
        self.process: "subprocess.Popen[bytes] | None" = None
        config = _CONFIG.format(socket=self.socket, host=host, device=device,
                                recall_every=recall_every)
        if nvme:
            config += _NVME.format(path=self.directory / "bodies.skv")
        (self.directory / "skvd.toml").write_text(config)

    def start(self) -> "Daemon":
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "--config", str(self.directory / "skvd.toml")], stderr=log,
                preexec_fn=_die_with_parent)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self._listens():
                return self
            time.sleep(0.01)
        raise RuntimeError("skvd did not start:\n" + self.log())

    def _listens(self) -> bool:
        import socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(self.socket)
            except OSError:
                return False
            return True

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """As after a crash."""
        self.kill()
        self.start()

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
