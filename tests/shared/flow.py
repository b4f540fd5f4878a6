"""Pings that count."""

import re
import signal
import subprocess

INTERVAL = 0.005
"""200 packets a second."""


class Flow:
    """From a gateway's inner address to another's, until it is ended."""

    def __init__(self, site, target, source=None):
        source = source or site.inner
        words = site.command("ping", "-n", "-q", "-i", str(INTERVAL), "-W", "5", "-I", source, target)
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def end(self):
        """How many were sent and how many were lost."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=20)
        sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", output).groups())
        # the last may be on its way
        return sent, max(0, sent - received - 1)

    def close(self):
        """Harmless when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
