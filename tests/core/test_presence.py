"""Who counts as gone, and for how long a process did not run."""

from qlm_core.presence import PULSE_S, SILENCE_S, Hearing, SleepWatch


def test_silence_ends_a_stream_and_whatever_is_heard_begins_it_anew():
    hearing = Hearing()
    beats = int(SILENCE_S / PULSE_S)
    assert not any(hearing.pulse() for _ in range(beats))
    hearing.heard()
    assert [hearing.pulse() for _ in range(beats + 1)] == [False] * beats + [True]


def test_a_late_pulse_counts_as_one_however_late_it_is():
    """Only pulses are counted: whoever slept has not listened."""
    hearing = Hearing(2 * PULSE_S)
    assert [hearing.pulse() for _ in range(3)] == [False, False, True]


def test_only_what_is_beyond_a_pulse_is_sleep():
    watch = SleepWatch(10.0)
    assert watch.slept_s(10.0 + PULSE_S) == 0.0
    # A busy process is a little late.
    assert watch.slept_s(10.0 + 2.3 * PULSE_S) == 0.0
    slept_s = watch.slept_s(10.0 + 2.3 * PULSE_S + 40.0)
    assert abs(slept_s - (40.0 - PULSE_S)) < 1e-9
    assert watch.slept_s(10.0 + 2.3 * PULSE_S + 40.0) == 0.0
