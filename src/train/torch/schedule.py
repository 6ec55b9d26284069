"""The learning rate over the steps of a run; `src/train/schedule.rs` is the same in Rust."""

import math


def share(settings, step):
    """The rate of step `step`, counted from 1, as a share of the peak.

    A step that an earlier plan of an extended run had keeps the rate of that plan.
    """
    steps = next((end for end in plans(settings) if step <= end), settings["steps"])
    warmup = settings["warmup"]
    if step < warmup:
        return step / warmup

    def fall(start):
        return (step - start) / max(steps - start, 1)

    decay = settings["schedule"]
    if decay == "constant":
        kept = 1.0
    elif decay == "linear":
        kept = 1.0 - fall(warmup)
    elif decay == "cosine":
        kept = 0.5 + 0.5 * math.cos(math.pi * fall(warmup))
    else:
        start = steps - settings["decay-steps"]
        kept = 1.0 if step <= start else 1.0 - fall(start)
    return settings["floor"] + (1.0 - settings["floor"]) * kept


def plans(settings):
    """The numbers of steps that were planned, ascending; the last is the present plan."""
    return [*settings.get("extended", []), settings["steps"]]
