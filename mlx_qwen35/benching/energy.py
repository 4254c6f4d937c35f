"""Joules that an Apple chip has spent, by its own counters: CPU, GPU, neural engine and memory together. Needs no root.

macOS keeps them in IOReport, a private library. So it is asked in a process of its own, `python -m` this module: should
a later macOS answer otherwise, that process ends and a bench says that it has no energy to tell. Not yet run on a Mac.
"""

from __future__ import annotations

import ctypes
import json
import re
import select
import subprocess
import sys
from collections.abc import Iterable
from ctypes import byref, c_int32, c_int64, c_long, c_uint32, c_uint64, c_void_p

GROUP = "Energy Model"
# Totals of a part; their shares (clusters, cores, caches) stand beside them under other names. Where there are two
# chips, "DIE_0_" stands before a total or a number behind it.
TOTALS = re.compile(r"(.*CPU Energy|GPU Energy|(ANE|DRAM)\d*(_\d+)?)")
JOULES = {"mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9}
UTF8 = 0x08000100
NAME_BYTES = 256
PATIENCE = 10  # seconds


class Meter:
    """Asks the process that counts. why: there is none, in words; empty where there is"""

    def __init__(self) -> None:
        self.why, self._process = "only macOS on Apple's chips counts it", None
        if sys.platform == "darwin":
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self.why = "" if self.joules() is not None else "macOS's counters did not answer"

    def joules(self) -> float | None:
        """Since the meter was made."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
                raise OSError("no answer")
            return float(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError, TypeError):  # it has ended, or found nothing
            self.close()
            return None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


def total(channels: Iterable[tuple[str, str, int]]) -> float | None:
    """Joules of (name, unit, count); None where no total is among them."""
    found = [n * JOULES[unit] for name, unit, n in channels if unit in JOULES and TOTALS.fullmatch(name)]
    return sum(found) if found else None


class _Counters:
    """The channels of GROUP, from when they were first read. Raises OSError or AttributeError without IOReport."""

    def __init__(self) -> None:
        self._cf = ctypes.CDLL("/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation")
        self._report = ctypes.CDLL("/usr/lib/libIOReport.dylib")
        pointer = c_void_p
        signatures = {
            (self._cf, "CFStringCreateWithCString"): (pointer, pointer, ctypes.c_char_p, c_uint32),
            (self._cf, "CFStringGetCString"): (ctypes.c_bool, pointer, ctypes.c_char_p, c_long, c_uint32),
            (self._cf, "CFDictionaryCreateMutableCopy"): (pointer, pointer, c_long, pointer),
            (self._cf, "CFDictionaryGetValue"): (pointer, pointer, pointer),
            (self._cf, "CFArrayGetCount"): (c_long, pointer),
            (self._cf, "CFArrayGetValueAtIndex"): (pointer, pointer, c_long),
            (self._cf, "CFRelease"): (None, pointer),
            (self._report, "IOReportCopyChannelsInGroup"): (pointer, pointer, pointer, c_uint64, c_uint64, c_uint64),
            (self._report, "IOReportCreateSubscription"): (pointer, pointer, pointer, pointer, c_uint64, pointer),
            (self._report, "IOReportCreateSamples"): (pointer, pointer, pointer, pointer),
            (self._report, "IOReportCreateSamplesDelta"): (pointer, pointer, pointer, pointer),
            (self._report, "IOReportChannelGetChannelName"): (pointer, pointer),
            (self._report, "IOReportChannelGetUnitLabel"): (pointer, pointer),
            (self._report, "IOReportSimpleGetIntegerValue"): (c_int64, pointer, c_int32),
        }
        for (library, name), (result, *arguments) in signatures.items():
            getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
        found = self._report.IOReportCopyChannelsInGroup(self._string(GROUP), None, 0, 0, 0)
        if not found:
            raise OSError(f"no channels of {GROUP}")
        self._channels = self._cf.CFDictionaryCreateMutableCopy(None, 0, found)
        subscribed = c_void_p()
        self._subscription = self._report.IOReportCreateSubscription(None, self._channels, byref(subscribed), 0, None)
        self._list = self._string("IOReportChannels")
        self._first = self._sample()

    def read(self) -> list[tuple[str, str, int]]:
        """Name, unit and count of each."""
        now = self._sample()
        since = self._report.IOReportCreateSamplesDelta(self._first, now, None)
        items = self._cf.CFDictionaryGetValue(since, self._list)
        channels = [self._cf.CFArrayGetValueAtIndex(items, i) for i in range(self._cf.CFArrayGetCount(items))]
        told = [self._channel(channel) for channel in channels]
        self._cf.CFRelease(now)
        self._cf.CFRelease(since)
        return told

    def _sample(self) -> int:
        sample = self._report.IOReportCreateSamples(self._subscription, self._channels, None)
        if not sample:
            raise OSError("no sample")
        return sample

    def _channel(self, channel: int) -> tuple[str, str, int]:
        name = self._text(self._report.IOReportChannelGetChannelName(channel))
        unit = self._text(self._report.IOReportChannelGetUnitLabel(channel)).strip()
        return name, unit, self._report.IOReportSimpleGetIntegerValue(channel, 0)

    def _string(self, text: str) -> int:
        return self._cf.CFStringCreateWithCString(None, text.encode(), UTF8)

    def _text(self, string: int | None) -> str:
        buffer = ctypes.create_string_buffer(NAME_BYTES)
        if not string or not self._cf.CFStringGetCString(string, buffer, NAME_BYTES, UTF8):
            return ""
        return buffer.value.decode(errors="replace")


def main() -> None:
    """For each line that comes in, joules since the first."""
    counters = _Counters()
    for _ in sys.stdin:
        print(json.dumps(total(counters.read())), flush=True)


if __name__ == "__main__":
    main()
