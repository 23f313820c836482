"""Places and what lies below them."""

from sdrt.engine.how import below


def test_places_below_another_have_their_names_there() -> None:
    """A place whose name only starts alike is another one."""
    how = {"a.b.c": "x", "a.b": "y", "ab.c": "z", "a.bc": "w"}
    assert below(how, "a") == {"b.c": "x", "b": "y", "bc": "w"}
    assert below(how, "a.b") == {"c": "x"}
    assert below({}, "a") == {}
