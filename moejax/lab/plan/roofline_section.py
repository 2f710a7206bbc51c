"""The roofline as sections of a plan."""

from moejax.lab.plan.devices import DEVICES
from moejax.lab.plan.roofline import Roofline, Row, draw_up
from moejax.lab.plan.sections import Line, PlanRequest, Section, gigabytes, short
from moejax.runtime.number_words import duration

BAR = 20
"""Letters of the longest bar."""


def list_known() -> list[str]:
    """The devices whose peaks are known."""
    return [name for name, device in DEVICES.items() if device.peak is not None]


def find_roofline(request: PlanRequest) -> Roofline | None:
    """That of the plan's step; None if the peaks of its devices are not known."""
    peak = DEVICES[request.kind].peak
    if peak is None:
        return None
    return draw_up(request.config, request.vocab_size, request.grid, peak)


def list_roofline(request: PlanRequest) -> list[Section]:
    """The roofline by part, and what it says of the whole step."""
    found = find_roofline(request)
    return [_list_parts(found), _list_limit(request, found)]


def _list_parts(found: Roofline | None) -> Section:
    """The least time of each part of a step on a device, and what binds it."""
    rows = [] if found is None else found.rows
    longest = max((row.least for row in rows), default=0.0)
    columns = ("FLOPs", "moved", "sent", "compute", "memory", "links", "binds", "")
    title = "Least time of a step on a device"
    return Section("roofline", title, [_tell(row, longest) for row in rows], columns)


def _list_limit(request: PlanRequest, found: Roofline | None) -> Section:
    """The least time of the whole step, and the best MFU that this config can reach."""
    title = "The best that it can reach"
    if found is None:
        why = f"the peaks of a {request.kind} are not known here for {request.config.model.dtype}"
        return Section("limit", title, [Line("best_mfu", (why,), None)])
    row, links = found.rows[0], found.link_seconds
    known = row.peak.links is not None or not any(one.sent for one in found.rows)
    behind = "if all is sent behind products"
    step = f"{_time(found.overlapped)} {behind}, {_time(found.apart)} if nothing is"
    best, apart = found.mfu(found.overlapped), found.mfu(found.apart)
    lines = [
        Line(
            "step",
            (
                step
                if known
                else f"{_time(found.device_seconds)}, and what is sent, of which the"
                " bandwidth is not known",
            ),
            {
                "device_seconds": found.device_seconds,
                "link_seconds": links if known else None,
                "overlapped_seconds": found.overlapped,
                "apart_seconds": found.apart if known else None,
            },
            f"parts, each as long as what binds it: {_time(found.device_seconds)}; links:"
            f" {_time(links) if known else 'not known'}",
        ),
        Line(
            "best_mfu",
            (f"{best:.1%} {behind}, {apart:.1%} if nothing is" if known else f"{best:.1%}",),
            {"overlapped": best, "apart": apart if known else None},
            f"{short(found.model_flops)} FLOPs of the model on a device, over these times and"
            f" {short(row.peak.flops[row.dtype])} FLOP/s of {row.dtype} products"
            f" ({row.peak.source}); all scores of attention count, computed or not, so it may be"
            f" more than 100%",
        ),
        Line("binds", (found.binds,), found.binds, "most of this time is of this limit"),
    ]
    return Section("limit", title, lines)


def _tell(row: Row, longest: float) -> Line:
    seconds = row.seconds
    times = {limit: (_time(value) if value else "-") for limit, value in seconds.items()}
    cells = (
        short(row.flops) if row.flops else "-",
        gigabytes(row.bytes) if row.bytes else "-",
        gigabytes(row.sent) if row.sent else "-",
        *(times.get(limit, "?") for limit in ("compute", "memory", "links")),
        row.binds,
        ("█" * round(BAR * row.least / longest)).ljust(BAR),
    )
    value = {
        "flops": row.flops,
        "bytes": row.bytes,
        "sent_bytes": row.sent,
        "seconds": seconds,
        "binds": row.binds,
    }
    return Line(row.part, cells, value, _explain(row))


def _explain(row: Row) -> str:
    """The arithmetic of the limit that binds."""
    if row.binds == "links":
        return f"{gigabytes(row.sent)} over {gigabytes(row.peak.links or 0)}/s of all links"
    if row.binds == "memory":
        return f"{gigabytes(row.bytes)} over {gigabytes(row.peak.memory)}/s"
    return f"{short(row.flops)} FLOPs over {short(row.peak.flops[row.dtype])} FLOP/s"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
