#!/usr/bin/python3
"""Fits the parallel scaling law to losses and predicts.

    fit_law.py DATA.csv [--predict N P]

DATA has the columns corpus, size, P, N, loss. For each corpus the law

    loss = E + (A / (N (k ln P + 1)))^alpha

is fitted as published (arXiv 2505.10475): Huber loss (delta 1e-3) of the error of log loss, L-BFGS
from a grid of starts. The problem is solved in log E, log A, log alpha and log k: A spans decades, and
all four stay positive. Relies on Debian's python3-scipy.
"""

import argparse
import csv
import itertools
import sys

import numpy as np
from scipy.optimize import minimize

DELTA = 1e-3
MIN_LOSSES = 5  # four constants
# E, A, alpha, k: the published grid but for alpha = 0 (A in 1e9), where no gradient leads anywhere.
GRID = (np.exp([-1, -0.5, 0]), 1e9 * np.exp([-4, -2, 0, 2, 4]), [0.25, 0.5, 1, 1.5, 2],
        [0.2, 0.4, 0.6, 0.8])


def fail(message):
    print(f"parscale: {message}", file=sys.stderr)
    sys.exit(2)


def read(path):
    """corpus -> array of rows (P, N, loss)."""
    corpora = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeError, csv.Error) as problem:
        fail(f"{path}: {problem}")
    for number, row in enumerate(table, 2):
        try:
            values = [float(row[key]) for key in ("P", "N", "loss")]
            if not all(0 < value < np.inf for value in values):
                raise ValueError
            corpora.setdefault(row["corpus"], []).append(values)
        except (KeyError, TypeError, ValueError):
            fail(f"{path}: line {number}: found {list(row.values())}, expected corpus, size, P, N "
                 "and loss, the last three above 0")
    for corpus, rows in corpora.items():
        if len(rows) < MIN_LOSSES:
            fail(f"{path}: {corpus}: found {len(rows)} losses, expected at least {MIN_LOSSES}")
    return {corpus: np.array(rows) for corpus, rows in corpora.items()}


def predict(constants, P, N):
    E, A, alpha, k = constants
    return E + (A / (N * (k * np.log(P) + 1))) ** alpha


def objective(logs, P, N, log_loss):
    """Sum of Huber losses and its gradient by the four logarithms."""
    E, A, alpha, k = np.exp(logs)
    worth = k * np.log(P) + 1
    reducible = (A / (N * worth)) ** alpha
    error = np.log(E + reducible) - log_loss
    small = np.abs(error) <= DELTA
    total = np.where(small, error ** 2 / 2, DELTA * (np.abs(error) - DELTA / 2)).sum()
    slope = np.where(small, error, DELTA * np.sign(error)) / (E + reducible)
    by_log = [np.full_like(reducible, E), reducible * alpha,
              reducible * alpha * np.log(A / (N * worth)),
              -reducible * alpha * k * np.log(P) / worth]
    return total, np.array([(slope * part).sum() for part in by_log])


def fit(rows):
    """rows (P, N, loss) -> (E, A, alpha, k), R2 of the losses."""
    P, N, loss = rows.T
    scale = 1e6  # the objective is of the order of 1e-5, below the solver's tolerances
    def scaled(logs):
        total, gradient = objective(logs, P, N, np.log(loss))
        return total * scale, gradient * scale
    best = None
    with np.errstate(over="ignore", invalid="ignore"):
        for start in itertools.product(*GRID):
            found = minimize(scaled, np.log(start), jac=True, method="L-BFGS-B",
                             options={"maxiter": 2000, "maxfun": 4000})
            if np.isfinite(found.fun) and (best is None or found.fun < best.fun):
                best = found
    constants = np.exp(best.x)
    residual = loss - predict(constants, P, N)
    return constants, 1 - (residual ** 2).sum() / ((loss - loss.mean()) ** 2).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--predict", nargs=2, type=float, metavar=("N", "P"))
    options = parser.parse_args()
    if options.predict and min(options.predict) <= 0:
        fail(f"--predict: found {options.predict}, expected numbers above 0")
    corpora = read(options.data)
    print("corpus    losses       E          A        k    alpha      R2"
          + (f"   loss of N = {options.predict[0]:g}, P = {options.predict[1]:g}"
             if options.predict else ""))
    for corpus, rows in corpora.items():
        constants, r2 = fit(rows)
        E, A, alpha, k = constants
        line = f"{corpus:8s} {len(rows):7d}  {E:.4f}  {A:.3e}   {k:.4f}   {alpha:.4f}  {r2:.4f}"
        if options.predict:
            line += f"   {predict(constants, options.predict[1], options.predict[0]):.4f}"
        print(line)


if __name__ == "__main__":
    main()
