"""A text ends before its first stop string, wherever it was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.huggingface.stop_strings import StopStrings

_TEXT = st.text("abc", max_size=20)


def _run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stopping = StopStrings(stops)
    return [*(stopping.push(piece) for piece in pieces), stopping.flush()], stopping.met


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "met"),
    [
        (["END"], ["one E", "N", "D two"], ["one ", "", "", ""], True),
        (["END"], ["one E", "N", "ough"], ["one ", "", "ENough", ""], False),
        (["END"], ["one EN"], ["one ", "EN"], False),
        (["aab"], ["aa", "ab"], ["", "a", ""], True),
        (["x", "END"], ["aENx"], ["aEN", ""], True),
        ([], ["one"], ["one", ""], False),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", "", ""], True),
    ],
)
def test_only_a_possible_beginning_is_held_back(
    stops: list[str], pieces: list[str], shown: list[str], met: bool
) -> None:
    assert _run(stops, pieces) == (shown, met)


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), _TEXT, st.data())
def test_the_cuts_make_no_difference(stops: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, met = _run(stops, pieces)
    letter_by_letter, met_letter_by_letter = _run(stops, list(text))
    assert ("".join(shown), met) == ("".join(letter_by_letter), met_letter_by_letter)
    assert met == any(stop in text for stop in stops)
    assert text.startswith("".join(shown))
    assert not any(stop in "".join(shown) for stop in stops)
