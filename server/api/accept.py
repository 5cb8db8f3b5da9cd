"""Which of the media types that can be had a client would rather have."""

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """The one of highest quality, of equals the first; None where nothing fits.

    ``accept`` is an Accept header (RFC 9110, 12.5.1), or empty: then anything fits. For each type the
    narrowest range that matches it counts; parameters other than q tell no types apart here.
    """
    ranges = dict(_range(part) for part in accept.lower().split(",") if part.strip())
    if not ranges:
        return offered[0]
    best = max(offered, key=lambda media: _quality(media, ranges))
    return best if _quality(best, ranges) > 0 else None


def _range(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip() for piece in part.split(";"))
    qualities = [float(match[1]) for each in parameters if (match := _QUALITY.fullmatch(each))]
    return media, qualities[0] if qualities else 1.0


def _quality(media: str, ranges: dict[str, float]) -> float:
    kind = media.partition("/")[0]
    return next((ranges[name] for name in (media, f"{kind}/*", "*/*") if name in ranges), 0.0)
