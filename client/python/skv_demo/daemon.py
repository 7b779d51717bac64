"""skvd for the demo: its configuration, start, restart, and its end in every case."""
from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import time

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20


def die_with_parent() -> None:
    """Runs in a child before exec: should the demo be killed, nothing of it stays behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def up(value: float, unit: int) -> int:
    return -(-int(value) // unit) * unit


class Daemon:
    """One skvd of this demo: budgets fitted to the data, socket and files in `folder`.

    Owns the process; stop() ends it and removes the socket. Its log is `folder`/skvd.log.
    """

    START_SECONDS = 20.0
    STOP_SECONDS = 60.0

    def __init__(self, binary: pathlib.Path, folder: pathlib.Path, *, data_bytes: int,
                 device_bytes: int) -> None:
        self.binary = binary
        self.folder = folder
        # A socket's path has 108 bytes; the build folder may be deep.
        self.socket = folder / "skvd.sock"
        if len(str(self.socket)) > 100:
            self.socket = pathlib.Path(f"/tmp/skv-demo-{os.getpid()}.sock")
        self.host_bytes = max(up(data_bytes / 2, 2 * _MIB), 16 * _MIB)
        self.device_bytes = up(device_bytes, 2 * _MIB)
        self.nvme_bytes = up(4 * data_bytes, 16 * _MIB) + 256 * _MIB
        self._process: subprocess.Popen | None = None
        self._config = folder / "skvd.toml"
        self._nvme = folder / "bodies.skv"

    def start(self, fresh: bool) -> float:
        """`fresh`: begin with empty tiers. Returns the seconds until it answered."""
        if fresh:
            self._nvme.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        self._config.write_text(f'''# written by the demo
[socket]
path = "{self.socket}"
mode = "0600"
[log]
target = "stderr"
[tiers.host]
budget = {self.host_bytes}
slab = "1MiB"
[tiers.nvme]
path = "{self._nvme}"
size = {self.nvme_bytes}
segment = "16MiB"
[tiers.device]
kind = "emulated"
budget = {self.device_bytes}
[data]
spin = "0ns"  # two engines and skvd share the cores
[deadlines]
wait = "10s"
''')
        began = time.monotonic()
        log = open(self.folder / "skvd.log", "ab")
        self._process = subprocess.Popen([self.binary, "--config", self._config, "--foreground"],
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                         preexec_fn=die_with_parent)
        log.close()
        while time.monotonic() - began < self.START_SECONDS:
            if self._process.poll() is not None:
                raise SystemExit(f"skvd ended with {self._process.returncode}:\n{self.log_tail()}")
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                    probe.connect(str(self.socket))
                return time.monotonic() - began
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"skvd does not answer on {self.socket}:\n{self.log_tail()}")

    def stop(self) -> float:
        """SIGTERM, so that it drains; SIGKILL if that takes too long. Returns the seconds."""
        began = time.monotonic()
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.socket.unlink(missing_ok=True)
        return time.monotonic() - began

    def clean(self) -> None:
        """After stop(): the file of the NVMe tier, the only big thing."""
        self._nvme.unlink(missing_ok=True)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        try:
            return "\n".join((self.folder / "skvd.log").read_text(errors="replace").splitlines()[-15:])
        except OSError:
            return ""
