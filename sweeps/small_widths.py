"""2 to 4 bits by the protocol of small_schedule: which rate, and what reaches float.

What is chosen here, on images held out of classes 0 to 19, is tested by small_claim.
"""

from sweeps import rows, small_schedule

STUDY = small_schedule.STUDY._replace(
    title=small_schedule.STUDY.title.replace(
        "Where the sharpness begins and ends", "2 to 4 bits, and the rate for them"
    ),
    rows=rows.widths(),
    columns=("soft", "hard", "hard + BN", "soft - (hard + BN)"),
)
