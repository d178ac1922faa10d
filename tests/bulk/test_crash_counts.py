"""The count that finds what kills its worker: marked before, forgotten after, refused at the limit."""

from segray.bulk.crash_counts import Attempts


def test_what_was_begun_so_often_and_not_ended_is_refused() -> None:
    attempts = Attempts()
    assert [attempts.begin(["a"], 3) for _ in range(4)] == [True, True, True, False]
    attempts.end(["a"])
    assert attempts.begin(["a"], 1)


def test_a_refusal_marks_nothing() -> None:
    attempts = Attempts()
    assert attempts.begin(["a"], 1)
    assert not attempts.begin(["a", "b"], 1)
    assert attempts.begin(["b"], 1)
