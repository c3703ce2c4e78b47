"""Is a planted difference found, and is a planted nothing left alone? Counted over seeded trials.

    python benchmarks/power.py NOISE.json [FILE]

Noise is drawn from the rounds of a recorded run in which all arms were the same (`benchmarks/record_noise.py`): each
arm's figures over their median, one recorded round for all arms of a trial's round, so that what the arms of a round
share stays shared. It is stretched or shrunk, in logarithms, to the wanted spread (half the quartiles' distance), so
that its shape is the machine's and its size is given. Then one arm is made slower by the planted share, and the
verdict is asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from velollm.bench.samples import Sample
from velollm.bench.stats import compare_arms

ARMS = ("default", "default-control", "tuned")
ROUNDS = (8, 16, 32, 64, 128, 160)
PLANTED = (0.0, 0.05, 0.10)
SPREADS = (0.05,)
TRIALS = 200
TRIALS_OF_NOTHING = 1000  # a share of 2% needs more of them


def read_noise(path: Path, metric_field: str) -> NDArray[np.float64]:
    """Logarithms of each arm's figures over their median: a row a round, a column an arm."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    rounds = sorted({run["round"] for run in runs})
    values = {(run["arm"], run["round"]): run[metric_field] for run in runs}
    whole = [number for number in rounds if all(values.get((arm, number)) for arm in ARMS)]
    logs = np.log(np.array([[values[arm, number] for arm in ARMS] for number in whole]))
    return np.asarray(logs - np.median(logs, axis=0))


def spread_of(logs: NDArray[np.float64]) -> float:
    """Half the distance of the quartiles, as `velollm bench` tells it."""
    low, high = np.quantile(np.exp(logs), (0.25, 0.75))
    return float(high - low) / 2


def stretched(noise: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    """The noise with that spread, every arm alike."""
    columns = []
    for column in noise.T:
        factor = 1.0
        for _ in range(50):
            factor *= spread / max(spread_of(column * factor), 1e-9)
        columns.append(column * factor)
    return np.asarray(np.array(columns).T)


def share_of_verdicts(
    noise: NDArray[np.float64], rounds: int, planted: float, *, control: bool, seed: int
) -> dict[str, float]:
    """Shares of each verdict over the trials."""
    draw = np.random.default_rng((seed, rounds, round(planted * 1000)))
    counts = {"faster": 0, "slower": 0, "no difference": 0}
    names = ARMS if control else (ARMS[0], ARMS[2])
    trials = TRIALS if planted else TRIALS_OF_NOTHING
    for _ in range(trials):
        picked = noise[draw.integers(0, len(noise), rounds)]
        rates = 40.0 * np.exp(picked) * np.array([1.0, 1.0, 1.0 - planted])
        samples = [
            Sample(arm, "chat", number, 0, decode_tokens_per_s=float(rates[number, ARMS.index(arm)]))
            for number in range(rounds)
            for arm in names
        ]
        counts[compare_arms(samples, "default", "tuned", "decode").verdict] += 1
    return {verdict: count / trials for verdict, count in counts.items()}


def main() -> None:
    recorded = read_noise(Path(sys.argv[1]), "decode_tokens_per_s")
    rows = []
    for control in (True, False):
        for spread in SPREADS:
            noise = stretched(recorded, spread)
            for planted in PLANTED:
                for rounds in ROUNDS if control else ROUNDS[:2]:
                    shares = share_of_verdicts(noise, rounds, planted, control=control, seed=1)
                    rows.append(
                        {
                            "floor": "control" if control else "split",
                            "spread": spread_of(noise),
                            "planted": planted,
                            "rounds": rounds,
                            **shares,
                        }
                    )
                    print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    document = {
        "trials": TRIALS,
        "trials_of_nothing": TRIALS_OF_NOTHING,
        "recorded_spread": spread_of(recorded),
        "recorded_rounds": len(recorded),
        "rows": rows,
    }
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
