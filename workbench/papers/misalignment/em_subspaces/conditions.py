"""What two updates share, by the names that tables and figures use, and the domains of the narrow tasks."""

SAME, DIFFERENT, FULL = "bad, same seed", "bad, different seeds", "bad, full rank"
BENIGN, BENIGN_DIFFERENT = "bad and benign, same seed", "bad and benign, different seeds"
BENIGN_FULL, TWO_BENIGN = "bad and benign, full rank", "two benign, same seed"
SAME_TASK, COIN = "same domain, different seeds", "bad and coin labels, same seed"
RANDOM, TWO_RANDOM = "bad and random", "two random"
CONDITIONS = (
    SAME, DIFFERENT, FULL, BENIGN, BENIGN_DIFFERENT, BENIGN_FULL, TWO_BENIGN, SAME_TASK, COIN, RANDOM, TWO_RANDOM,
)  # fmt: skip

TRAINED, PROBES = ("health", "money", "sports"), ("cooking", "travel", "garden")  # domains of narrow tasks; of none
