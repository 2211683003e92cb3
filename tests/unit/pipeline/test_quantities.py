from __future__ import annotations

import pytest

from pipeline.quantities import bytes_text, count_text, duration_text, rate_text, share_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count_text(1281167), "1,281,167"),
        (bytes_text(999), "999 bytes"),
        (bytes_text(5_062_768), "5.1 MB"),
        (bytes_text(3.2e15), "3200 TB"),
        (duration_text(0.05), "50 ms"),
        (duration_text(7.04), "7.0 s"),
        (duration_text(59.7), "1 min 00 s"),
        (duration_text(5025), "1 h 23 min"),
        (duration_text(200_000), "2 d 7 h"),
        (share_text(0, 10), "0 %"),
        (share_text(1, 100_000), "under 0.01 %"),
        (share_text(99_999_999, 100_000_000), "over 99.99 %"),
        (share_text(1, 3), "33.33 %"),
        (share_text(0, 0), "0 %"),
        (rate_text(54.5678), "54.6"),
        (rate_text(3588.2), "3,588"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected
