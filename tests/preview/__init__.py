"""Tests of `segray preview`."""
