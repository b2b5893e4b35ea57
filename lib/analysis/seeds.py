"""What several seeds say together: mean and spread, and paired differences with intervals and a verdict.

Tables here have the columns that name a setting, then `seed`, then the scores.
"""

from __future__ import annotations

from math import nan

import pandas as pd
from scipy import stats


def summarise_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation of every score over the seeds, one row a setting, in order of appearance."""
    border = list(table).index("seed")
    by, scores = list(table)[:border], list(table)[border + 1 :]
    grouped = table.groupby(by, sort=False)[scores]
    parts = [grouped.agg(kind).add_suffix(f"_{kind}") for kind in ("mean", "std")]
    merged = pd.concat(parts, axis=1)[[f"{score}_{kind}" for score in scores for kind in ("mean", "std")]]
    return merged.assign(seeds=grouped.size()).reset_index()


def paired_differences(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each method less the reference method of the same setting and seed, with a 95 % interval over the seeds.

    The interval is Student's, n - 1 degrees of freedom: 3 seeds are the least that give a usable one. verdict: helps
    where it lies above 0, hurts below, else no difference; a single seed gives none.
    """
    border = list(table).index("seed")
    scores = [name for name in list(table)[border + 1 :] if name.startswith("mAP_")]
    setting = [name for name in list(table)[:border] if name != "method"]
    base = table[table["method"] == reference].set_index([*setting, "seed"])[scores]
    others = table[table["method"] != reference].set_index([*setting, "seed"])
    long = (others[scores] - base.reindex(others.index)).assign(method=others["method"]).reset_index()
    long = long.melt([*setting, "method", "seed"], scores, "score", "difference").dropna(subset="difference")
    rows = []
    for key, group in long.groupby([*setting, "method", "score"], sort=False):
        values = group["difference"].to_numpy()
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else nan
        low, high = values.mean() - half, values.mean() + half
        word = "one seed" if half != half else "helps" if low > 0 else "hurts" if high < 0 else "no difference"
        rows.append(
            {**dict(zip([*setting, "method", "score"], key, strict=True)), "difference": values.mean(),
             "low": low, "high": high, "seeds": len(values), "verdict": word}
        )  # fmt: skip
    return pd.DataFrame(rows)


def factor_differences(table: pd.DataFrame, factors: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """What each of two factors changes with the other one and the seed held fixed, with intervals over the seeds.

    factors: column -> (value, reference value), two of them, such as {"start": ("language", "random"), "loss": ...}.
    Returned: factor ("language less random"), given (the other factor's value), score, difference, low, high, seeds,
    verdict; empty where a value is missing.
    """
    parts = []
    for (factor, (high, low)), other in zip(factors.items(), reversed(factors), strict=True):
        pairs = table[table[factor].isin([high, low])].rename(columns={factor: "method"})
        if set(pairs["method"]) == {high, low}:
            found = paired_differences(pairs, low).drop(columns="method").rename(columns={other: "given"})
            parts.append(found.assign(factor=f"{high} less {low}"))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    return found[["factor", *(name for name in found if name != "factor")]]
