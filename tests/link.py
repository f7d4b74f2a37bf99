"""A script: a bad link between two network namespaces, with delay, loss, a rate and cuts.

    python tests/link.py NS_A NS_B --delay-s 0.05 --loss 0.05 --rate-bits 20e6 --cut FILE

It makes a TAP device in each (10.77.0.1 and 10.77.0.2) and carries packets between them; while FILE
exists the link is cut. It ends with its standard input, so that it does not outlive who started it.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LONGEST_QUEUE_S = 1.0


@dataclass(frozen=True)
class Quality:
    """How bad a link is; `cut` is a file that cuts it while it exists."""

    delay_s: float
    loss: float
    rate_bits: float
    cut: Path


@dataclass
class Link:
    """Packets under way, each with when it arrives; one queue, two directions."""

    quality: Quality
    ends: tuple[int, int]
    under_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    free_at: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def take(self, end: int, packet: bytes) -> None:
        """Takes a packet in at one end, or loses it."""
        now = time.monotonic()
        start = max(self.free_at.get(end, now), now)
        lost = self.quality.cut.exists() or random.random() < self.quality.loss  # noqa: S311
        if lost or start - now > _LONGEST_QUEUE_S:
            return
        self.free_at[end] = start + len(packet) * 8 / self.quality.rate_bits
        self.count += 1
        other = self.ends[1 - self.ends.index(end)]
        arrives = self.free_at[end] + self.quality.delay_s
        heapq.heappush(self.under_way, (arrives, self.count, other, packet))

    def deliver(self) -> float:
        """Delivers what has arrived; returns the seconds until there is more to do."""
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(self.under_way)
            os.write(end, packet)
        wait = self.under_way[0][0] - time.monotonic() if self.under_way else 0.2
        return min(max(wait, 0.0), 0.2)


def open_end(namespace: str, address: str) -> int:
    """Makes a TAP device in a namespace and returns its file."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, 0):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFF_TAP | _IFF_NO_PI))
    for command in (f"ip addr add {address}/24 dev link0", "ip link set link0 up"):
        subprocess.run(command.split(), check=True)
    libc.setns(home, 0)
    os.close(home)
    os.close(there)
    return end


def carry(link: Link) -> None:
    """Carries packets until standard input ends."""
    wait = 0.2
    while True:
        ready, _, _ = select.select([*link.ends, sys.stdin], [], [], wait)
        if sys.stdin in ready and not os.read(sys.stdin.fileno(), 1):
            return
        for end in link.ends:
            if end in ready:
                _drain(link, end)
        wait = link.deliver()


def _drain(link: Link, end: int) -> None:
    while True:
        try:
            packet = os.read(end, 65536)
        except BlockingIOError:
            return
        link.take(end, packet)


def main() -> None:
    """Makes the link and carries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--delay-s", type=float, default=0.05)
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--rate-bits", type=float, default=20e6)
    parser.add_argument("--cut", type=Path, required=True)
    told = parser.parse_args()
    first, second = (open_end(*end) for end in zip(told.namespaces, ADDRESSES, strict=True))
    quality = Quality(told.delay_s, told.loss, told.rate_bits, told.cut)
    print("ready", flush=True)
    carry(Link(quality, (first, second)))


if __name__ == "__main__":
    main()
