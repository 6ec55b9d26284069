"""Messages to bam-convert: one line of JSON each, after a byte that no library prints."""

import json
import math
import os
import select

MARK = "\x1e"

# The kind of a failure that another rank reports.
OTHER_RANK = "other-rank"

# Standard output is for events alone: what libraries print must not fall into the middle of one.
EVENTS = os.dup(1)
os.dup2(2, 1)


class Failure(Exception):
    """Ends the run with a message for the user; `kind` says which rule it broke."""

    def __init__(self, kind, message, **more):
        super().__init__(message)
        self.kind, self.more = kind, more


def emit(event, **fields):
    """Sends an event. Also raises where bam-convert no longer listens."""
    line = MARK + json.dumps({"event": event, **finite(fields)}, ensure_ascii=False, allow_nan=False) + "\n"
    data = line.encode()
    while data:
        data = data[os.write(EVENTS, data) :]


def finite(value):
    """The same value with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_reader():
    """Raises where the reader of our events is gone: without it, nobody would take a state that we wait with."""
    poll = select.poll()
    poll.register(EVENTS, 0)
    if any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0)):
        raise BrokenPipeError("bam-convert no longer reads events")
